"""PyTerrier's own checks on every transformer: inspection, schematics, empty frames."""

import os

import pandas as pd
import pyterrier as pt
import pytest

from frozen_llms import UNLOADED
from pyterrier_routehead import AttentionHeadScorer, ICRReranker, StaticHeadReranker
from toys import two_queries

os.environ["PT_TEST_TRANSFORMER_REPORTS"] = "0"


@pt.testing.transformer_test_class
def test_scorer():
    return AttentionHeadScorer(llm=UNLOADED)


@pt.testing.transformer_test_class
def test_scorer_with_all_columns():
    return AttentionHeadScorer([(1, 2)], llm=UNLOADED, raw=True, features=True, hidden_layers=[1], title_field="title")


@pt.testing.transformer_test_class
def test_static_reranker():
    return StaticHeadReranker("1-2,3-4", llm=UNLOADED, depth=10, first_stage_weight=1.0)


@pt.testing.transformer_test_class
def test_icr_reranker():
    return ICRReranker(llm=UNLOADED)


TRANSFORMERS = [
    AttentionHeadScorer(llm=UNLOADED),
    AttentionHeadScorer("0-1", llm=UNLOADED, raw=True, features=True, hidden_layers=[0]),
    StaticHeadReranker("0-1", llm=UNLOADED),
    ICRReranker(llm=UNLOADED, first_stage_weight=1.0),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_empty_frames_keep_their_columns_and_need_no_model(transformer):
    inp = two_queries().assign(url="http://x").iloc[:0]
    out = transformer(inp)
    assert len(out) == 0
    assert set(inp.columns) <= set(out.columns)
    if not isinstance(transformer, AttentionHeadScorer):
        assert out["score"].dtype == "float64"
        assert out["rank"].dtype == "int64"
    assert list(out.columns) == pt.inspect.transformer_outputs(transformer, list(inp.columns))


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_missing_columns_name_the_transformer(transformer):
    with pytest.raises(pt.validate.InputValidationError, match=type(transformer).__name__):
        transformer(pd.DataFrame({"qid": ["1"], "docno": ["d"], "score": [1.0]}))


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_attributes_can_be_read_and_applied(transformer):
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
    assert attributes["llm"] is UNLOADED
    # PyTerrier looks for a private attribute of an argument's name first: there must be none.
    assert all(value is getattr(transformer, name) for name, value in attributes.items())
    changed = pt.inspect.transformer_apply_attributes(transformer, depth=None, batch_size=7)
    assert (changed.batch_size, changed.llm) == (7, UNLOADED)


def test_inputs_are_either_text_or_vectors():
    assert pt.inspect.transformer_inputs(AttentionHeadScorer(llm=UNLOADED, text_field="body", title_field="title")) == [
        ["qid", "docno", "query", "body", "title"]
    ]
    assert pt.inspect.transformer_inputs(ICRReranker(llm=UNLOADED, first_stage_weight=0.5)) == [
        ["qid", "docno", "head_scores", "head_reading", "score"],
        ["qid", "docno", "query", "text", "score"],
    ]


def test_pipelines_can_be_inspected_and_drawn():
    pipeline = AttentionHeadScorer(llm=UNLOADED) >> ICRReranker(llm=UNLOADED)
    columns = ["qid", "query", "docno", "text", "score", "rank"]
    assert set(pt.inspect.transformer_outputs(pipeline, columns)) == {*columns, "head_scores", "head_reading"}
    assert "AttentionHeads" in pt.schematic.draw(pipeline)
