"""The store of head scores: what it gives is what reading gives, and no file is ever half there or taken for another's.

Most tests read a tiny model; those on damage, processes and kills store made-up numbers.
"""

import contextlib
import copy
import errno
import hashlib
import inspect
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save

from damage import flips, unprivileged
from places import ROOT
from pyterrier_routehead import (
    AttentionHeadScorer,
    ChatMarkup,
    FrozenLLM,
    HeadScoreStore,
    ICRReranker,
    StaticHeadReranker,
    StoreError,
    get_template,
)
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import StoreKey, kept_store
from tiny import tiny_model
from toys import byte_tokenizer, frame, toy_llm, two_queries

ARRAYS = ("raw", "null", "filtered")


@pytest.fixture
def store(tmp_path):
    return HeadScoreStore(tmp_path / "store")


def read(llm, inp, heads="all", **options):
    """What a scorer gives, and how many lists were read for it."""
    before = llm.document_passes
    out = AttentionHeadScorer(heads, llm=llm, **options)(inp)
    return out, llm.document_passes - before


def passes(llm, store, inp, heads="all", **options):
    """How many lists are read for a request."""
    return read(llm, inp, heads, store=store, **options)[1]


def assert_same_bits(one, other):
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def assert_same_columns(out, other, columns):
    for column in columns:
        for own, expected in zip(out[column], other[column], strict=True):
            assert_same_bits(own, expected)


def files(store):
    return sorted(store.path.glob("??/*"))


def states(store):
    """The files of hidden states."""
    return sorted(store.path.glob("hidden/??/*"))


# What the transformers give


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"document_attention": "blockwise"},
        {"document_order": "best_first", "max_doc_tokens": 5, "prompt": "icr"},
        {"token_filter": "none"},
        {"raw": True, "features": True, "hidden_layers": [1, 3]},
        {"batch_size": 2},
    ],
    ids=str,
)
def test_with_a_store_all_bits_are_as_without_and_nothing_is_read_twice(llm, store, options):
    inp = two_queries()
    expected, _ = read(llm, inp, **options)
    vectors = [name for name in expected.columns if name not in (*inp.columns, "head_reading")]
    for number in (2, 0, 0):
        out, count = read(llm, inp, store=store, **options)
        assert count == number
        assert_same_columns(out, expected, vectors)
        pd.testing.assert_frame_equal(out.drop(columns=vectors), expected.drop(columns=vectors))
    assert len(store) == store.check() == 2


def test_every_request_within_what_was_read_is_found(llm, store):
    inp = two_queries()
    whole, count = read(llm, inp, raw=True, store=store)
    assert count == 2
    before = [(file, file.stat().st_mtime_ns) for file in files(store)]
    for heads, columns in (("all", range(16)), ("1-0,0-2", [4, 2]), ([(3, 1)], [13]), ("2-3,2-2,0-0", [11, 10, 0])):
        for options in ({}, {"raw": True}, {"calibrate": False}, {"token_filter": "none"}, {"batch_size": 2}):
            out, count = read(llm, inp, heads, store=store, **options)
            assert count == 0
            for i in range(len(inp)):
                raw, filtered = whole["head_scores_raw"][i][list(columns)], whole["head_scores"][i][list(columns)]
                if options.get("calibrate") is False:
                    assert_same_bits(out["head_scores"][i], raw)
                elif "token_filter" not in options:
                    assert_same_bits(out["head_scores"][i], filtered)
                if "raw" in options:
                    assert_same_bits(out["head_scores_raw"][i], raw)
            plain, _ = read(llm, inp, heads, **options)
            np.testing.assert_allclose(np.stack(out["head_scores"]), np.stack(plain["head_scores"]), atol=1e-6)
    assert [(file, file.stat().st_mtime_ns) for file in files(store)] == before


def test_some_heads_bring_all_of_their_layers_along(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, raw=True)
    assert passes(llm, store, inp, "2-1,0-3,1-0,2-2", calibrate=False) == 2
    out, count = read(llm, inp, [(layer, head) for layer in range(3) for head in range(4)], raw=True, store=store)
    assert count == 0
    for column in ("head_scores", "head_scores_raw"):
        for own, whole in zip(out[column], expected[column], strict=True):
            np.testing.assert_allclose(own, whole[:12], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"calibrate": False}, {"token_filter": "none"}, {"first_stage_weight": 0.5}])
@pytest.mark.parametrize("reranker", [lambda **o: StaticHeadReranker("1-0,2-3", **o), ICRReranker])
def test_rerankers_find_what_a_scorer_has_read(llm, store, reranker, options):
    inp = two_queries()
    expected = reranker(llm=llm, **options)(inp)
    read(llm, inp, store=store)
    before = llm.document_passes
    out = reranker(llm=llm, store=store, batch_size=2, **options)(inp)
    assert llm.document_passes == before
    np.testing.assert_allclose(out["score"], expected["score"], atol=1e-5)
    assert out["rank"].tolist() == expected["rank"].tolist()


def test_a_scorer_finds_what_a_reranker_has_read(llm, store):
    inp = two_queries()
    before = llm.document_passes
    ICRReranker(llm=llm, store=store, calibrate=False)(inp)
    assert llm.document_passes - before == 2
    out, count = read(llm, inp, store=store)  # calibrated: the store holds that too
    assert count == 0
    assert_same_columns(out, read(llm, inp)[0], ["head_scores"])


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
def test_a_list_ranked_in_windows_is_read_once(tmp_path):
    llm = toy_llm(context=600)
    inp = frame({"q": [f"text number {i} of the list " * 5 for i in range(8)]})
    reranker = StaticHeadReranker("1-0", llm=llm, store=tmp_path / "store")
    with pytest.warns(UserWarning, match="sliding windows"):
        first = reranker(inp)
    count = llm.document_passes
    assert count > 1
    with pytest.warns(UserWarning, match="sliding windows"):
        pd.testing.assert_frame_equal(reranker(inp), first)
    assert llm.document_passes == count


def test_deeper_heads_are_read_anew_and_replace_what_was_there(llm, store):
    inp = two_queries()
    for heads, layers in (("0-0", 1), ("1-3,0-1", 2), ("all", 4)):
        out, count = read(llm, inp, heads, store=store)
        assert count == 2
        assert len(store) == store.check() == len(files(store)) == 2
        assert all(f"-{layers}-" in file.name for file in files(store))
        np.testing.assert_allclose(
            np.stack(out["head_scores"]), np.stack(read(llm, inp, heads)[0]["head_scores"]), atol=1e-6
        )
    for heads in ("0-0", "1-3,0-1", "3-2"):
        assert passes(llm, store, inp, heads) == 0


def test_hidden_states_are_kept_through_everything_that_follows(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, hidden_layers=[0, 1, 3])
    assert passes(llm, store, inp, "0-0") == 2
    assert passes(llm, store, inp, "1-0", hidden_layers=[1]) == 2  # none were read before
    assert passes(llm, store, inp, "0-1", hidden_layers=[1]) == 0
    assert passes(llm, store, inp, "1-0", hidden_layers=[0]) == 2
    assert passes(llm, store, inp, "1-0", hidden_layers=[1, 0]) == 0
    assert passes(llm, store, inp, "all") == 2  # deeper, without hidden states
    assert passes(llm, store, inp, "all", hidden_layers=[1]) == 0
    out, count = read(llm, inp, "0-0", hidden_layers=[3, 0], store=store)
    assert count == 2
    for states, whole in zip(out["hidden_state"], expected["hidden_state"], strict=True):
        assert_same_bits(states, whole[[2, 0]])
    out, count = read(llm, inp, hidden_layers=[0, 1, 3], store=store)
    assert count == 0
    assert_same_columns(out, expected, ["head_scores", "hidden_state"])
    assert len(store) == store.check() == 2


def test_hidden_states_of_less_than_was_read_are_kept_too(llm, store):
    inp = two_queries()
    assert passes(llm, store, inp) == 2
    assert passes(llm, store, inp, "0-0", hidden_layers=[0]) == 2
    expected, _ = read(llm, inp, "0-0", hidden_layers=[0])
    out, count = read(llm, inp, "0-0", hidden_layers=[0], store=store)
    assert count == passes(llm, store, inp) == 0
    assert_same_columns(out, expected, ["hidden_state"])


def test_hidden_states_of_less_than_was_read_do_not_make_a_second_entry(llm, store):
    inp = two_queries()
    read(llm, inp, store=store)
    read(llm, inp, "0-0", hidden_layers=[0], store=store)
    assert len(store) == store.check() == 2


def test_a_batch_of_one_known_and_one_new_list_reads_the_new_one(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, raw=True)
    known, new = inp[inp["qid"] == "q1"], inp[inp["qid"] == "q2"]
    assert passes(llm, store, known) == 1
    for mixed in (pd.concat([known, new]), pd.concat([new, known])):
        own = HeadScoreStore(store.path.with_name(f"store-{mixed['qid'].iloc[0]}"))
        assert passes(llm, own, known) == 1
        out, count = read(llm, mixed, raw=True, batch_size=2, store=own)
        assert count == 1
        assert_same_columns(out.sort_index(), expected, ["head_scores", "head_scores_raw"])
        assert passes(llm, own, mixed, batch_size=2) == 0
    assert passes(llm, store, new) == 1


def test_only_the_candidates_that_are_scored_count(llm, store):
    inp = two_queries()
    assert passes(llm, store, inp, depth=3) == 2
    assert passes(llm, store, inp[inp["rank"] < 3]) == 0
    assert passes(llm, store, inp) == 1  # the second list has three candidates


# What makes a list another one


def changed(**columns):
    return two_queries().assign(**columns)


@pytest.mark.parametrize(
    ("inp", "count"),
    [
        (changed(query="what is q3"), 2),
        (changed(query=["what is q1"] * 5 + ["what is q2?"] * 3), 1),
        (changed(rank=[1, 0, 2, 3, 4, 0, 1, 2]), 1),
        (two_queries().drop(columns=["rank", "score"])[::-1], 2),
        (changed(text=[*two_queries()["text"][:-1], "tea or coffees"]), 1),
        (changed(text=[*two_queries()["text"][:3], "", *two_queries()["text"][4:]]), 1),
        (two_queries()[:-1], 1),
        (two_queries()[1:], 1),
    ],
    ids=["queries", "one query", "order", "rows", "text", "empty text", "last candidate", "first candidate"],
)
def test_other_queries_texts_and_orders_are_other_lists(llm, store, inp, count):
    assert passes(llm, store, two_queries()) == 2
    out, number = read(llm, inp, store=store)
    assert number == count
    assert_same_columns(out, read(llm, inp)[0], ["head_scores"])
    assert passes(llm, store, two_queries()) == 0
    assert store.check() == 2 + count


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "core"},
        {"prompt": "icr"},
        {"document_order": "best_first"},
        {"document_attention": "blockwise"},
        {"max_doc_tokens": 4},
        {"title_field": "docno"},
    ],
    ids=str,
)
def test_other_settings_of_the_prompt_are_other_lists(llm, store, options):
    inp = two_queries()
    read(llm, inp, store=store)
    out, count = read(llm, inp, store=store, **options)
    assert count == 2
    assert_same_columns(out, read(llm, inp, **options)[0], ["head_scores"])
    assert passes(llm, store, inp, **options) == passes(llm, store, inp) == 0
    assert store.check() == 4


@pytest.mark.parametrize(
    "change",
    [
        {"introduction": "Some paragraphs:"},
        {"document_tag": "({number})"},
        {"instruction": "Find what is relevant."},
        {"query_label": "Q:"},
        {"separator": "\n\n\n"},
        {"chat": ChatMarkup("<|turn|>", "<|end|>")},
        {"span": "text"},
        {"span_overhang": 1},
        {"suffix_rows": 1},
        {"null_query": "nothing"},
    ],
    ids=str,
)
def test_whatever_differs_in_the_template_makes_other_lists(llm, store, change):
    inp = two_queries()
    read(llm, inp, store=store)
    template = replace(get_template("default"), **change)
    out, count = read(llm, inp, prompt=template, store=store)
    assert count == 2
    assert_same_columns(out, read(llm, inp, prompt=template)[0], ["head_scores"])
    assert passes(llm, store, inp, prompt=replace(template, name="of another name")) == 0


def test_the_same_ids_read_the_other_way_are_other_lists(llm, store):
    """Neither how documents see each other nor which candidate is which is to be seen in a prompt's ids."""
    inp = two_queries()
    template = replace(get_template("default"), document_tag="[document]")
    for attention in ("listwise", "blockwise"):
        assert passes(llm, store, inp, prompt=template, document_attention=attention) == 2
    backwards = inp[::-1].drop(columns=["rank", "score"])
    out, count = read(llm, backwards, prompt=template, document_order="best_first", store=store)
    assert count == 2
    expected, _ = read(llm, inp, prompt=template)
    for name in ("q1", "q2"):
        own, other = (np.stack(part[part["qid"] == name].sort_index()["head_scores"]) for part in (out, expected))
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_names_rows_scores_and_limits_that_cut_nothing_do_not_matter(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, store=store)
    renamed = inp.assign(qid=inp["qid"] + "x", docno=[f"other {i}" for i in range(len(inp))], url="http://x")
    for same in (renamed, inp.assign(score=inp["score"] * 3 - 7), inp.drop(columns="rank")):
        out, count = read(llm, same, store=store)
        assert count == 0
        assert_same_columns(out, expected, ["head_scores"])
    shuffled, count = read(llm, inp.sample(frac=1, random_state=2), store=store)
    assert count == 0
    assert_same_columns(shuffled.sort_index(), expected, ["head_scores"])
    assert passes(llm, store, inp, max_doc_tokens=149) == 0
    assert passes(llm, store, inp.assign(text=" " + inp["text"] + "\n")) == 0  # texts are stripped
    assert passes(llm, store, inp.assign(body=inp["text"]), text_field="body") == 0
    assert store.check() == 2


def altered(llm, layer, parameter="self_attn.q_proj.weight"):
    """The same model but for the first weight of one matrix."""
    model = copy.deepcopy(llm.model)
    model.layers[layer].get_parameter(parameter).data.view(-1)[0] += 1
    return FrozenLLM(model, tokenizer=llm.tokenizer)


@pytest.mark.parametrize("parameter", ["self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"])
def test_one_other_weight_in_the_first_layer_is_another_model(llm, store, parameter):
    inp = two_queries()
    other = altered(llm, 0, parameter)
    assert passes(llm, store, inp) == 2
    assert passes(other, store, inp, "0-0") == passes(other, store, inp) == 2
    expected = read(other, inp)[0]
    assert_same_columns(read(other, inp, store=store)[0], expected, ["head_scores"])
    assert_same_columns(read(llm, inp, store=store)[0], read(llm, inp)[0], ["head_scores"])
    assert passes(llm, store, inp) == passes(other, store, inp, "0-0") == 0
    assert len(store) == store.check() == 4  # each list counts once for each model


def test_models_that_differ_higher_up_share_what_lies_below(llm, store):
    inp = two_queries()
    other = altered(llm, 2)
    assert passes(llm, store, inp) == 2
    assert passes(other, store, inp, "0-0,1-3") == 0
    assert passes(other, store, inp, "2-0") == 2
    assert passes(other, store, inp, "3-0") == 2
    for own in (llm, other):
        out, count = read(own, inp, store=store)
        assert count == 0
        assert_same_columns(out, read(own, inp)[0], ["head_scores"])
    assert not np.array_equal(read(llm, inp)[0]["head_scores"][0], read(other, inp)[0]["head_scores"][0])
    assert store.check() == 4


def test_a_deeper_entry_takes_the_place_of_one_that_another_model_wrote(llm, store):
    inp = two_queries()
    other = altered(llm, 2)
    assert passes(llm, store, inp, "1-0") == 2
    assert passes(other, store, inp) == 2
    assert passes(llm, store, inp, "1-0") == 0
    assert store.check() == 2


def test_a_model_used_in_part_shares_with_the_whole(llm, store):
    inp = two_queries()
    part = FrozenLLM(llm.model, tokenizer=llm.tokenizer, max_layers=2)
    assert passes(part, store, inp) == 2
    assert passes(llm, store, inp, "1-3") == 0
    assert passes(llm, store, inp) == 2
    out, count = read(part, inp, store=store)
    assert count == 0
    assert [len(vector) for vector in out["head_scores"]] == [8] * len(inp)
    assert store.check() == 2


def test_another_dtype_is_another_reading(llm, store):
    inp = two_queries()
    halved = FrozenLLM(tiny_model("Llama", max_position_embeddings=4096).bfloat16(), tokenizer=llm.tokenizer)
    assert halved.fingerprint == llm.fingerprint
    assert passes(llm, store, inp) == passes(halved, store, inp) == 2
    assert passes(llm, store, inp) == passes(halved, store, inp) == 0
    assert_same_columns(read(halved, inp, store=store)[0], read(halved, inp)[0], ["head_scores"])
    assert store.check() == 4


def test_equal_models_under_any_name_share(llm, store, tmp_path):
    inp = two_queries()
    assert passes(llm, store, inp) == 2
    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    same = FrozenLLM(tmp_path / "model", dtype="float32")
    assert same.name != llm.name
    assert passes(same, store, inp) == passes(toy_llm(), store, inp) == 0


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Gemma2", {"layer_types": ["full_attention"] * 4}),
        ("Qwen2", {"layer_types": ["sliding_attention"] * 4}),
        ("Qwen2", {"max_window_layers": 0}),
    ],
    ids=str,
)
def test_equal_weights_in_layers_of_another_kind_are_another_model(store, architecture, changes):
    inp = two_queries()
    models = [tiny_model(architecture, max_position_embeddings=4096, **options) for options in ({}, changes)]
    one, other = (FrozenLLM(model, tokenizer=byte_tokenizer()) for model in models)
    assert not np.allclose(read(one, inp)[0]["head_scores"][0], read(other, inp)[0]["head_scores"][0], atol=1e-4)
    read(one, inp, store=store)
    assert passes(other, store, inp) == 2


def test_other_embeddings_of_positions_are_another_model(store):
    inp = two_queries()
    model = tiny_model("GPT2", max_position_embeddings=4096)
    changed = copy.deepcopy(model)
    changed.wpe.weight.data.mul_(3)
    one, other = (FrozenLLM(own, tokenizer=byte_tokenizer()) for own in (model, changed))
    assert not np.allclose(read(one, inp)[0]["head_scores"][0], read(other, inp)[0]["head_scores"][0], atol=1e-4)
    read(one, inp, store=store)
    assert passes(other, store, inp) == 2


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("Llama", {"hidden_act": "relu"}),
        ("Llama", {"rms_norm_eps": 0.1}),
        ("Mistral", {"sliding_window": 8}),
        ("Granite", {"attention_multiplier": 1.0}),
    ],
    ids=str,
)
def test_equal_weights_under_another_configuration_are_another_model(store, architecture, changes):
    inp = two_queries()
    models = [tiny_model(architecture, max_position_embeddings=4096, **options) for options in ({}, changes)]
    one, other = (FrozenLLM(model, tokenizer=byte_tokenizer()) for model in models)
    assert one.fingerprint == other.fingerprint
    assert not np.allclose(read(one, inp)[0]["head_scores"][0], read(other, inp)[0]["head_scores"][0], atol=1e-4)
    read(one, inp, store=store)
    assert passes(other, store, inp) == 2


def test_other_embeddings_are_another_model(llm, store):
    inp = two_queries()
    model = copy.deepcopy(llm.model)
    model.embed_tokens.weight.data.mul_(2)
    other = FrozenLLM(model, tokenizer=llm.tokenizer)
    assert not np.allclose(read(llm, inp)[0]["head_scores"][0], read(other, inp)[0]["head_scores"][0], atol=1e-4)
    read(llm, inp, store=store)
    assert passes(other, store, inp) == 2


def test_token_filter_sum_leaves_the_store_alone(llm, store):
    inp = two_queries()
    expected = ICRReranker(llm=llm, token_filter="sum")(inp)["score"]
    before = llm.document_passes
    for _ in range(2):
        out = ICRReranker(llm=llm, token_filter="sum", store=store)(inp)
        np.testing.assert_allclose(out["score"], expected, atol=1e-6)
    assert llm.document_passes - before == 4
    assert len(store) == store.check() == 0


# As an argument


def test_a_folders_name_does_for_a_store(llm, tmp_path, monkeypatch):
    inp = two_queries()
    monkeypatch.chdir(tmp_path)
    assert passes(llm, "scores/of/heads", inp) == 2
    for same in (str(tmp_path / "scores/of/heads"), tmp_path / "scores/of/heads", Path("scores/of/heads")):
        assert passes(llm, same, inp) == 0
        assert HeadScoreStore.of(same).check() == 2
    opened = HeadScoreStore("scores/of/heads")
    assert HeadScoreStore.of(opened) is opened
    assert HeadScoreStore.of(None) is None
    assert repr(opened) == f"HeadScoreStore({str(tmp_path / 'scores/of/heads')!r})"  # also after a change of folder


def test_nothing_is_made_before_something_is_read(llm, tmp_path):
    scorer = AttentionHeadScorer(llm=llm, store=tmp_path / "store")
    scorer(two_queries()[:0])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", [AttentionHeadScorer, ICRReranker, lambda **o: StaticHeadReranker("1-0", **o)])
def test_transformers_with_a_store_are_inspected_and_pickled(llm, store, tmp_path, kind):
    inp = two_queries()
    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    for own in (store, str(store.path)):
        transformer = kind(llm=FrozenLLM(tmp_path / "model", dtype="float32"), store=own)
        attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
        assert attributes["store"] is own
        assert pt.inspect.subtransformers(transformer) == {}
        assert pt.inspect.transformer_outputs(transformer, list(inp.columns))
        column = "head_scores" if kind is AttentionHeadScorer else "score"
        expected = np.stack(transformer(inp)[column])
        restored = pickle.loads(pickle.dumps(transformer))
        np.testing.assert_array_equal(np.stack(restored(inp)[column]), expected)
        assert restored.llm.document_passes == transformer.llm.document_passes  # nothing was read again
        assert str(HeadScoreStore.of(restored.store).path) == str(store.path)
    assert store.check() == 2


def test_a_damaged_file_is_named_by_whoever_wants_it_and_read_again_once_it_is_gone(llm, store):
    inp = two_queries()
    expected, _ = read(llm, inp, store=store)
    file = files(store)[0]
    file.write_bytes(file.read_bytes()[:-1])
    for transformer in (AttentionHeadScorer, ICRReranker):
        with pytest.raises(StoreError, match=re.escape(str(file))):
            transformer(llm=llm, store=store)(inp)
    file.unlink()
    out, count = read(llm, inp, store=store)
    assert count == 1
    assert_same_columns(out, expected, ["head_scores"])


# Entries

LAYERS = ("11111111", "22222222", "33333333", "44444444")


def key_of(number=0, fingerprint=LAYERS, num_heads=3):
    return StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), tuple(fingerprint), num_heads, {"model": "m"})


def scores_of(number=0, layers=4, num_heads=3, documents=5, hidden=()):
    numbers = np.random.default_rng(number)
    raw, null, filtered = numbers.standard_normal((3, documents, layers * num_heads), dtype=np.float32)
    states = {layer: numbers.standard_normal(7, dtype=np.float32) for layer in hidden}
    return ListScores(raw, null, filtered, None, states)


def assert_holds(store, key, scores, layers, hidden=()):
    """The store gives exactly the first layers of these scores."""
    found = store.get(key, layers, hidden)
    assert found is not None
    for name in ARRAYS:
        expected = np.ascontiguousarray(getattr(scores, name)[:, : layers * key.num_heads])
        assert_same_bits(getattr(found, name), expected)
    assert list(found.hidden) == list(hidden)
    for layer in hidden:
        assert_same_bits(found.hidden[layer], scores.hidden[layer])
    assert found.summed is None


def test_an_entry_serves_what_it_covers(store):
    key, scores = key_of(), scores_of(layers=3, hidden=(0, 2))
    assert store.get(key, 1) is None
    store.put(key, scores, 3)
    for layers in (1, 2, 3):
        for hidden in ((), (0,), (2, 0)):
            assert_holds(store, key, scores, layers, hidden)
    assert store.get(key, 4) is None
    assert store.get(key, 1, [1]) is None
    assert store.get(key, 1, [0, 1]) is None
    assert store.get(key_of(1), 1) is None
    assert_holds(HeadScoreStore(store.path), key, scores, 3, (0, 2))


def test_of_two_depths_the_deeper_stays(store):
    key, shallow, deep = key_of(), scores_of(1, layers=2, hidden=(0,)), scores_of(2, hidden=(3,))
    store.put(key, shallow, 2)
    store.put(key, deep, 4)
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, deep, 4)
    np.testing.assert_array_equal(store.get(key, 4, [0, 3]).hidden[0], shallow.hidden[0])  # kept
    store.put(key, shallow, 2)  # as a process does that began before the deeper one was there
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, deep, 4, (3,))


def test_the_newer_of_two_entries_of_one_depth_stays(store):
    key, old, new = key_of(), scores_of(1, hidden=(0, 1)), scores_of(2, hidden=(1, 2))
    store.put(key, old, 4)
    store.put(key, new, 4)
    assert len(files(store)) == store.check() == 1
    assert_holds(store, key, new, 4, (1, 2))
    assert_same_bits(store.get(key, 4, [0]).hidden[0], old.hidden[0])


def test_models_are_told_apart_by_the_layers_that_are_asked_for(store):
    one, other = key_of(), key_of(fingerprint=(*LAYERS[:2], "aaaaaaaa", "44444444"))
    third = key_of(fingerprint=("bbbbbbbb", *LAYERS[1:]))
    scores = [scores_of(i) for i in range(3)]
    store.put(one, scores[0], 4)
    assert_holds(store, other, scores[0], 2)
    assert store.get(other, 3) is None
    assert store.get(third, 1) is None
    for key, own in ((other, scores[1]), (third, scores[2])):
        store.put(key, own, 4)
    for key, own in zip((one, other, third), scores, strict=True):
        assert_holds(store, key, own, 4)
    assert_holds(store, third, scores[2], 1)
    assert len(store) == store.check() == 3
    known_in_part = key_of(fingerprint=LAYERS[:2])
    assert store.get(known_in_part, 2) is not None


def test_hidden_states_of_layers_that_two_models_share_leave_both_entries_alone(store):
    for number in range(8):  # the order in which a folder lists its files is anybody's guess
        one, other = key_of(number), key_of(number, fingerprint=(*LAYERS[:2], "aaaaaaaa", "bbbbbbbb"))
        scores = scores_of(1), scores_of(2, hidden=(3,))
        store.put(one, scores[0], 4)
        store.put(other, scores[1], 4)
        below = scores_of(3, layers=1, hidden=(0,))
        store.put(other, below, 1)
        assert store.get(other, 1, [0]) is not None
        assert_holds(store, one, scores[0], 4)
        assert_holds(store, other, scores[1], 4, (3,))
        assert store.get(one, 4, [3]) is None  # never read for this model
    assert store.check() == 16


def test_an_entry_says_in_its_file_what_it_is(store):
    store.put(key_of(), scores_of(hidden=(2,)), 4)
    (file,) = files(store)
    assert re.fullmatch(rf"{key_of().digest}-4-[0-9a-f]{{8}}\.safetensors", file.name)
    assert file.parent.name == key_of().digest[:2]
    tensors = load(file.read_bytes())
    assert set(tensors) == set(ARRAYS)
    assert_same_bits(tensors["filtered"], scores_of(hidden=(2,)).filtered)
    (state,) = states(store)
    assert re.fullmatch(rf"{key_of().digest}-3-[0-9a-f]{{8}}\.safetensors", state.name)  # after three layers
    assert state.parent.name == file.parent.name
    assert_same_bits(load(state.read_bytes())["hidden"], scores_of(hidden=(2,)).hidden[2])
    folders = [".writing", "hidden", "pt_meta.json", "store.json", file.parent.name]
    assert sorted(path.name for path in store.path.iterdir()) == sorted(folders)
    assert not list((store.path / ".writing").iterdir())


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_was_put_in_comes_out(data):
    documents, num_heads, layers = (data.draw(st.integers(1, most)) for most in (9, 5, 4))
    shape = (documents, layers * num_heads)
    own = [data.draw(arrays(np.float32, shape, elements=FLOATS)) for _ in range(3)]
    if data.draw(st.booleans()):
        own = [np.asfortranarray(array) for array in own]
    wanted = data.draw(st.lists(st.integers(0, layers - 1), unique=True))
    hidden = {layer: data.draw(arrays(np.float32, data.draw(st.integers(1, 6)), elements=FLOATS)) for layer in wanted}
    key, scores = key_of(data.draw(st.integers()), num_heads=num_heads), ListScores(*own, None, hidden)
    with tempfile.TemporaryDirectory() as folder:
        store = HeadScoreStore(folder)
        store.put(key, scores, layers)
        for number in range(1, layers + 1):
            assert_holds(store, key, scores, number)
        assert_holds(store, key, scores, layers, tuple(wanted))
        assert store.get(key, layers + 1) is None
        assert store.check() == len(store) == 1


# Damage


def foreign(tensors, metadata=None):
    return save({name: np.ones((2, 12), dtype=np.float32) for name in tensors}, metadata)


def entry_bytes(number):
    """The file of another list."""
    with tempfile.TemporaryDirectory() as folder:
        store = HeadScoreStore(folder)
        store.put(key_of(number), scores_of(number, hidden=(1,)), 4)
        return files(store)[0].read_bytes()


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


DAMAGE = {
    "a byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "a few bytes": lambda data: data[:5],
    "empty": lambda data: b"",
    "too long": lambda data: data + b"\0",
    "last byte flipped": lambda data: flipped(data, -1),
    "a byte of the numbers flipped": lambda data: flipped(data, -300),
    "the header's length flipped": lambda data: flipped(data, 0),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"head scores" * 99,
    "another library's file": lambda data: foreign(["weight"], {"format": "pt"}),
    "right tensors, no description": lambda data: foreign(ARRAYS),
    "description of nothing": lambda data: foreign(ARRAYS, {"head_scores": "null"}),
    "description that is no JSON": lambda data: foreign(ARRAYS, {"head_scores": "{"}),
    "tensor missing": lambda data: save(dict([next(iter(load(data).items()))]), {"head_scores": "{}"}),
    "another list's file": lambda data: entry_bytes(77),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_named(store, damage):
    for number in range(3):
        store.put(key_of(number), scores_of(number, hidden=(1,)), 4)
    (file,) = (file for file in files(store) if file.name.startswith(key_of(1).digest))
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    for ask in (lambda: store.get(key_of(1), 1), lambda: store.get(key_of(1), 4, [1]), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))) as refused:
            ask()
        assert "delete it" in str(refused.value)
    for number in (0, 2):
        assert_holds(store, key_of(number), scores_of(number, hidden=(1,)), 4, (1,))
    file.unlink()
    assert store.get(key_of(1), 1) is None
    assert store.check() == 2


def test_a_folder_in_a_files_place_is_named(store):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    file.unlink()
    file.mkdir()
    for ask in (lambda: store.get(key_of(), 1), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))):
            ask()


@pytest.mark.parametrize("said", ["{}", "[]", "5", '"key"', f'{{"key": "{key_of().digest}"}}'])
def test_a_description_that_lacks_something_is_named(store, said):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    file.write_bytes(foreign(ARRAYS, {"head_scores": said}))
    for ask in (lambda: store.get(key_of(), 1), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))):
            ask()


def test_no_flipped_byte_ever_gives_other_scores_or_another_error(store):
    key, scores = key_of(fingerprint=LAYERS, num_heads=1), scores_of(layers=2, num_heads=1, documents=2, hidden=(1,))
    store.put(key, scores, 2)
    (file,) = files(store)
    data = file.read_bytes()
    wrong = []
    for place in range(len(data)):
        file.write_bytes(flipped(data, place))
        for layers in (2, 3):
            try:
                found = store.get(key, layers, [1])
            except StoreError:
                continue
            except Exception as error:
                wrong.append((place, repr(error)))
                continue
            same = found is None or all((getattr(found, name) == getattr(scores, name)).all() for name in ARRAYS)
            if not same or (found is not None and layers > 2):
                wrong.append((place, f"scores of {layers} layers"))
    assert not wrong


def test_check_names_everything_that_is_wrong(store):
    for number in range(4):
        store.put(key_of(number), scores_of(number), 4)
    damaged = files(store)[1:3]
    for file in damaged:
        file.write_bytes(b"")
    others = [store.path / "notes.txt", store.path / "ab" / "x", store.path / ".hidden", store.path / "new" / "a" / "b"]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    with pytest.raises(StoreError) as refused:
        store.check()
    assert sorted(line.split(" ")[0] for line in str(refused.value).split("\n")) == sorted(map(str, damaged + others))
    for file in others:
        assert f"{file} does not belong to a store of head scores" in str(refused.value)
    assert len(store) == 4  # by their names alone
    for file in damaged + others:
        file.unlink()
    assert store.check() == 2


@pytest.mark.parametrize("folder", [".", "zz", "00"])
def test_an_entry_in_the_wrong_folder_is_named_by_check(store, folder):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    moved = store.path / folder / file.name
    moved.parent.mkdir(exist_ok=True)
    file.rename(moved)
    assert store.get(key_of(), 4) is None
    with pytest.raises(StoreError, match=re.escape(str(moved))):
        store.check()


def test_what_fails_while_it_is_written_leaves_nothing(store, monkeypatch):
    old = scores_of(1, layers=2)
    store.put(key_of(), old, 2)
    for name in ("fsync", "replace"):

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(StoreError, match=r"\.safetensors cannot be written: No space left"):
                store.put(key_of(), scores_of(2), 4)
        assert not list((store.path / ".writing").iterdir())
        assert store.check() == 1
        assert_holds(store, key_of(), old, 2)
    store.put(key_of(), scores_of(2), 4)
    assert_holds(store, key_of(), scores_of(2), 4)


# What is checked beside the checksum


def with_fitting_checksum(tensors, **changes):
    """An entry's file as the package writes it, but with arrays of any kind and other descriptions."""
    about = {"model": "m", "key": key_of().digest, "layers": 4, "fingerprint": list(LAYERS)} | changes
    about = {name: value for name, value in about.items() if value is not ...}
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].tobytes(), zlib.crc32(f"{name}{tensors[name].shape}".encode(), total))
    return save(tensors, {"head_scores": json.dumps(about | {"checksum": changes.get("checksum", total)})})


def test_a_fitting_checksum_is_what_the_store_writes(store):
    scores = scores_of()
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    file.write_bytes(with_fitting_checksum({name: getattr(scores, name) for name in ARRAYS}))
    assert_holds(store, key_of(), scores, 4)


def refused(store, file, content, message):
    file.write_bytes(content)
    for ask in (lambda: store.get(key_of(), 1), lambda: store.get(key_of(), 4, [1]), store.check):
        with pytest.raises(StoreError, match=f"{re.escape(str(file))} .*{message}"):
            ask()


@pytest.mark.parametrize("kind", ["float16", "float64", "int32", "uint8", "bool"])
def test_f33_scores_of_another_type_are_refused_whatever_the_checksum(store, kind):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    for name in ARRAYS:
        tensors = {own: getattr(scores, own) for own in ARRAYS}
        tensors[name] = np.ones_like(tensors[name], dtype=kind)
        refused(store, file, with_fitting_checksum(tensors), rf"of float32 \(F32\), found '{name}' of")


def test_f33_a_type_changed_in_the_header_is_refused(store):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,), (state,) = files(store), states(store)
    for own in (file, state):
        data = own.read_bytes()
        assert b"F32" in data
        own.write_bytes(data.replace(b"F32", b"I32", 1))
        with pytest.raises(StoreError, match=rf"{re.escape(str(own))} is damaged .*I32"):
            store.get(key_of(), 4, [1])
        with pytest.raises(StoreError, match=re.escape(str(own))):
            store.check()
        own.write_bytes(data)
    assert store.check() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_f33_numbers_that_are_not_finite_are_refused_and_never_kept(store, value):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    for name in ARRAYS:
        tensors = {own: getattr(scores, own).copy() for own in ARRAYS}
        tensors[name][2, 3] = value
        refused(store, file, with_fitting_checksum(tensors), f"'{name}' are not finite")
        store.put(key_of(2), replace(scores, **{name: tensors[name]}), 4)
        assert store.get(key_of(2), 1) is None
    store.put(key_of(2), replace(scores, hidden={1: np.full(3, value, dtype=np.float32)}), 4)
    assert store.get(key_of(2), 1) is None
    assert len(files(store)) == len(states(store)) == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"raw": (5, 11)}, "shapes"),
        ({"null": (4, 12)}, "shapes"),
        ({"filtered": (60,)}, "shapes"),
        ({"raw": (5, 0), "null": (5, 0), "filtered": (5, 0)}, "shapes"),
        ({"raw": (5, 10), "null": (5, 10), "filtered": (5, 10)}, "shapes"),  # for four layers
        ({"more": (5, 12)}, "its arrays are"),
        ({"hidden.1": (2, 2)}, "hidden.1 has the shape"),
        ({"hidden.01": (2,)}, "its arrays are"),
    ],
    ids=str,
)
def test_f33_scores_of_another_shape_are_refused_whatever_the_checksum(store, shapes, message):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,) = files(store)
    tensors = {name: np.ones(shapes.get(name, (5, 12)), dtype=np.float32) for name in {*ARRAYS, *shapes}}
    refused(store, file, with_fitting_checksum(tensors), message)


def test_f33_scores_of_another_number_of_heads_are_refused(store):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    file.write_bytes(with_fitting_checksum({name: np.ones((5, 8), dtype=np.float32) for name in ARRAYS}))
    with pytest.raises(StoreError, match=r"has 8 columns for 4 layers with 3 heads each: delete it"):
        store.get(key_of(), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": 3}, {"key": None}, {"key": key_of(1).digest}, {"layers": 4.0}, {"layers": True}, {"layers": "4"},
        {"layers": 3}, {"layers": 10**400}, {"fingerprint": "11111111"}, {"fingerprint": list(LAYERS[:3])},
        {"fingerprint": [1, 2, 3, 4]}, {"fingerprint": None}, {"checksum": True}, {"checksum": "1"}, {"model": 3},
        {"key": ...}, {"layers": ...}, {"fingerprint": ...}, {"more": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_f33_descriptions_of_another_type_are_refused_whatever_the_checksum(store, changes):
    scores = scores_of()
    store.put(key_of(), scores, 4)
    (file,) = files(store)
    tensors = {name: getattr(scores, name) for name in ARRAYS}
    refused(store, file, with_fitting_checksum(tensors, **changes), "delete it")


@pytest.mark.parametrize("said", ["[" * 100_000, '{"checksum": NaN}', '{"key": 1, "key": 1}', "9" * 5000], ids=len)
def test_f44_a_description_that_is_no_proper_json_is_named(store, said):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    refused(store, file, save({"raw": np.ones((2, 12), dtype=np.float32)}, {"head_scores": said}), "is damaged")


def test_f34_no_flipped_bit_of_any_file_gives_anything_else(store):
    key, scores = key_of(fingerprint=LAYERS, num_heads=1), scores_of(layers=2, num_heads=1, documents=2, hidden=(1,))
    store.put(key, scores, 2)
    for file in (*files(store), *states(store), store.path / "store.json"):
        data = file.read_bytes()
        for flipped_ in flips(data, 400):
            file.write_bytes(flipped_)
            try:
                found = HeadScoreStore(store.path).get(key, 2, [1])
            except StoreError as error:
                named = str(file) in str(error)
                assert named
                continue
            assert all((getattr(found, name) == getattr(scores, name)).all() for name in ARRAYS)
            assert (found.hidden[1] == scores.hidden[1]).all()
        file.write_bytes(data)
    assert store.check() == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_f33_a_damaged_hidden_state_is_named_and_leaves_the_scores_alone(store, damage):
    scores = scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (file,) = states(store)
    data = file.read_bytes()
    file.write_bytes(DAMAGE[damage](data) if damage != "a byte of the numbers flipped" else flipped(data, -20))
    for ask in (lambda: store.get(key_of(), 4, [1]), store.check):
        with pytest.raises(StoreError, match=re.escape(str(file))) as named:
            ask()
        assert "delete it" in str(named.value)
    assert_holds(store, key_of(), scores, 4)
    file.unlink()
    assert store.get(key_of(), 4, [1]) is None
    store.put(key_of(), scores, 4)
    assert_holds(store, key_of(), scores, 4, (1,))


def test_what_a_store_cannot_keep_is_refused(store):
    with pytest.raises(ValueError, match="calibrated scores of all 9 heads of 3 layers"):
        store.put(key_of(), scores_of(layers=4), 3)
    with pytest.raises(ValueError, match="4 layers were run, weights of 2 are known"):
        store.put(key_of(fingerprint=LAYERS[:2]), scores_of(), 4)
    with pytest.raises(ValueError, match="2 layers were run, weights of 4 are known, states are of 4"):
        store.put(key_of(), scores_of(layers=2, hidden=(3,)), 2)


# Stores of earlier versions


def test_hidden_states_that_an_earlier_version_kept_beside_the_scores_are_found_and_kept(store):
    scores = scores_of(layers=2, hidden=(0, 1))
    store.put(key_of(), scores, 2)
    (file,) = files(store)
    for state in states(store):
        state.unlink()
    tensors = {name: getattr(scores, name) for name in ARRAYS}
    tensors |= {f"hidden.{layer}": state for layer, state in scores.hidden.items()}
    file.write_bytes(with_fitting_checksum(tensors, layers=2, fingerprint=list(LAYERS[:2])))
    assert store.check() == 1
    assert_holds(store, key_of(), scores, 2, (0, 1))
    store.put(key_of(), scores_of(3, hidden=(3,)), 4)  # replaces the entry
    assert len(files(store)) == store.check() == 1
    found = store.get(key_of(), 4, [0, 1, 3])
    for layer in (0, 1):
        assert_same_bits(found.hidden[layer], scores.hidden[layer])


# Folders


def contents(folder):
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "3f/x.safetensors", "sub/folder/x"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    file = tmp_path / "folder" / name
    file.parent.mkdir(parents=True)
    file.write_text("x")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path / 'folder'} exists and is no store of head scores")):
        HeadScoreStore(tmp_path / "folder")
    assert contents(tmp_path) == before


def test_a_file_is_no_store(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match=re.escape(f"{file} exists and is no store")):
        HeadScoreStore(file)
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "said",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"type": "head_score_store", "format": 2}', b'{"type": "x"}'],
)
def test_a_store_that_says_something_unknown_is_refused_and_left_alone(tmp_path, said):
    (tmp_path / "store.json").write_bytes(said)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "store.json"))):
        HeadScoreStore(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("made", [[], [""], [".writing"], [".writing/tmpabc"]], ids=str)
def test_a_creation_that_was_interrupted_is_completed(tmp_path, made):
    folder = tmp_path / "store"
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("abc"):
            (folder / name).write_text('{"ty')
        else:
            (folder / name).mkdir()
    store = HeadScoreStore(folder)
    store.put(key_of(), scores_of(), 4)
    assert store.check() == 1
    again = HeadScoreStore(folder)
    assert_holds(again, key_of(), scores_of(), 4)


def test_a_store_without_its_folder_for_writing_is_opened(store):
    store.put(key_of(), scores_of(), 4)
    (store.path / ".writing").rmdir()
    opened = HeadScoreStore(store.path)
    opened.put(key_of(1), scores_of(1), 4)
    assert opened.check() == 2


@pytest.fixture
def open_folder():
    """A folder that every user of the machine may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_f44_a_store_that_may_not_be_written_to_is_read_without_its_folder_for_writing(open_folder):
    store, scores = HeadScoreStore(open_folder / "store"), scores_of(hidden=(1,))
    store.put(key_of(), scores, 4)
    (store.path / ".writing").rmdir()
    with unprivileged():
        opened = HeadScoreStore(store.path)
        assert_holds(opened, key_of(), scores, 4, (1,))
        assert len(opened) == opened.check() == 1
        assert opened.get(key_of(1), 1) is None
        with pytest.raises(StoreError, match=re.escape(key_of(1).digest) + ".* cannot be written: Permission denied"):
            opened.put(key_of(1), scores_of(1), 4)
        with pytest.raises(StoreError, match=r"other/store.json cannot be written: Permission denied"):
            HeadScoreStore(open_folder / "other")
    assert not (store.path / ".writing").exists()


def test_f44_what_may_not_be_read_is_named(open_folder):
    store = HeadScoreStore(open_folder / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    for closed in (*files(store), *states(store), store.path / "store.json", files(store)[0].parent, store.path):
        mode = closed.stat().st_mode
        closed.chmod(0)
        message = f"{re.escape(str(closed))}.* cannot be read: Permission denied"
        with unprivileged(), pytest.raises(StoreError, match=message):
            HeadScoreStore(store.path).get(key_of(), 4, [1])
        closed.chmod(mode)
    assert store.check() == 1


def test_f44_loops_of_links_and_files_for_folders_are_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match=r"/loop/store.json cannot be read: Too many levels"):
        HeadScoreStore(tmp_path / "loop")
    with pytest.raises(StoreError, match=r"/loop/store/store.json cannot be read: Too many levels"):
        HeadScoreStore(tmp_path / "loop" / "store")
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    (file,), (state,) = files(store), states(store)
    for own in (file, state):
        for make in (own.symlink_to, lambda _, own=own: own.mkdir(), lambda _, own=own: os.mkfifo(own)):
            own.rmdir() if own.is_dir() else own.unlink()
            make(own)
            for ask in (lambda: store.get(key_of(), 4, [1]), store.check):
                with pytest.raises(StoreError, match=rf"{re.escape(str(own))} cannot be read: \w.*delete it"):
                    ask()
        own.unlink()
        own.parent.rmdir()
        own.parent.symlink_to(own.parent)
        with pytest.raises(StoreError, match=re.escape(str(own.parent))):
            store.check()
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))}.* cannot be "):
            store.put(key_of(), scores_of(hidden=(1,)), 4)
        own.parent.unlink()
        own.parent.write_text("x")
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))} does not belong"):
            store.check()
        with pytest.raises(StoreError, match=rf"{re.escape(str(own.parent))}.* cannot be "):
            store.put(key_of(), scores_of(hidden=(1,)), 4)
        own.parent.unlink()
        store.put(key_of(), scores_of(hidden=(1,)), 4)
    assert store.check() == 1


def test_f22_a_stores_path_is_expanded_and_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert HeadScoreStore("~/scores").path == HeadScoreStore.of(Path("~/scores")).path == tmp_path / "home" / "scores"
    near = HeadScoreStore("near")
    kept = kept_store("near")
    monkeypatch.chdir("/")
    near.put(key_of(), scores_of(), 4)
    assert HeadScoreStore.of(kept).check() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "near"]


def test_f22_a_store_to_keep_means_the_same_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = HeadScoreStore("near")
    for same in (None, store, str(tmp_path), tmp_path):
        assert kept_store(same) is same
    assert kept_store("far") == kept_store(Path("far")) == str(tmp_path / "far")  # nothing is made
    assert kept_store("~/far") == str(tmp_path / "home" / "far")
    assert [path.name for path in tmp_path.iterdir()] == ["near"]
    for wrong, error in ((3, TypeError), (True, TypeError), (b"far", TypeError), ("", ValueError)):
        for use in (kept_store, HeadScoreStore.of, HeadScoreStore):
            with pytest.raises(error, match="store is a path, got "):
                use(wrong)


def test_leftovers_go_after_an_hour_and_never_count(store):
    store.put(key_of(), scores_of(), 4)
    (file,) = files(store)
    ages = {"young": 0, "almost": 3500, "old": 3700, "ancient": 10**6, file.name: 3000}
    for name, age in ages.items():
        left = store.path / ".writing" / name
        left.write_bytes(file.read_bytes())
        os.utime(left, (time.time() - age,) * 2)
    assert len(store) == store.check() == 1
    opened = HeadScoreStore(store.path)
    assert {left.name for left in (store.path / ".writing").iterdir()} == {"young", "almost", file.name}
    assert len(opened) == opened.check() == 1
    assert_holds(opened, key_of(), scores_of(), 4)


# Processes: real ones, forked by a process that has imported the package (so that starting one takes no time)


def made_up(number):
    """Key and scores of a list, the same in every process."""
    numbers = np.random.default_rng(number)
    raw, null, filtered = numbers.standard_normal((3, 100, 256), dtype=np.float32)
    key = StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), ("11111111", "22222222"), 128, {"model": "m"})
    return key, ListScores(raw, null, filtered, None, {1: raw[0] + 1})


def write_lists(path, count, resume):
    """Write so many lists, those that are there already only if this is no resumption; report each when it is done."""
    store = HeadScoreStore(path)
    for number in range(count):
        key, scores = made_up(number)
        if resume and store.get(key, 2, [1]) is not None:
            print("kept", number, flush=True)
        else:
            store.put(key, scores, 2)
            print("done", number, flush=True)
    print("all", flush=True)


SCRIPT = f"""
import hashlib, os, signal, sys
import numpy as np
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import HeadScoreStore, StoreKey

{inspect.getsource(made_up)}
{inspect.getsource(write_lists)}
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(600)  # should nobody kill it
        print("started", os.getpid(), flush=True)
        count, resume, path = line.strip().split(" ", 2)
        try:
            write_lists(path, int(count), resume == "resume")
            signal.pause()
        except BaseException as error:
            print("failed", repr(error), flush=True)
        finally:
            os._exit(1)
    print("ended", -os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


class Writer:
    """Runs processes that write lists, one after the other, and kills each at some moment."""

    def __init__(self):
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._pid = None

    def wait(self):
        """Until processes can be started."""
        assert self._hear() == ["ready"]

    def close(self):
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._nursery.communicate(timeout=60)

    def _hear(self):
        said = self._nursery.stdout.readline().split()
        assert said, "the process that forks is gone"
        if said[0] == "failed":
            self._pid = None
            self._nursery.stdout.readline()  # that it has ended
            pytest.fail(f"writing {' '.join(said)}")
        return said

    def start(self, path, count, how):
        self._nursery.stdin.write(f"{count} {how} {path}\n")
        self._nursery.stdin.flush()
        word, pid = self._hear()
        assert word == "started"
        self._pid = int(pid)

    def run_until(self, new=None, pause=0.0):
        """Kill it so many seconds after it has reported so many new lists, or when it is through with all.

        Returns the numbers of the lists that it has reported, new ones and those it found.
        """
        done, kept = set(), set()
        due = new == 0
        while True:
            if due and self._pid is not None:
                time.sleep(pause)
                os.kill(self._pid, signal.SIGKILL)
                self._pid = None
            said = self._hear()
            if said[0] == "ended":
                return done, kept
            if said[0] != "all":
                (done if said[0] == "done" else kept).add(int(said[1]))
            due = said[0] == "all" or len(done) == new


@pytest.fixture(scope="module")
def writers():
    with contextlib.ExitStack() as stack:
        both = [Writer(), Writer()]
        for writer in both:
            stack.callback(writer.close)
        for writer in both:
            writer.wait()
        yield both


def written(path, count):
    """The numbers of the lists that are there, all of which must be right."""
    store = HeadScoreStore(path)
    found = set()
    for number in range(count):
        key, scores = made_up(number)
        if store.get(key, 2, [1]) is not None:
            assert_holds(store, key, scores, 2, (1,))
            found.add(number)
    assert store.check() == len(store) == len(found)
    return found


def kill_again_and_again(writer, path, kills):
    """Kill a writer at random moments, resume, and check after each kill that nothing was lost or done twice."""
    moments = random.Random(kills)
    count = 10 * kills
    reported, there = set(), set()
    for kill in range(kills):
        writer.start(path, count, "resume")
        # The first one may die while it makes the store.
        done, kept = writer.run_until(moments.randrange(1, 6) if kill else 0, pause=moments.uniform(0, 0.008))
        assert not done & there
        assert kept <= there
        reported |= done
        there = written(path, count)
        assert reported <= there
    assert len(there) < count  # so all were killed at work
    writer.start(path, count, "resume")
    done, kept = writer.run_until()
    assert (done, kept) == (set(range(count)) - there, there)
    assert written(path, count) == set(range(count))
    assert len(list(path.glob("??/*"))) == count


def test_a_writer_that_is_killed_loses_nothing_that_it_has_reported(writers, tmp_path):
    kill_again_and_again(writers[0], tmp_path / "store", kills=3)


@pytest.mark.slow
def test_a_writer_that_is_killed_twenty_times_loses_nothing_that_it_has_reported(writers, tmp_path):
    kill_again_and_again(writers[0], tmp_path / "store", kills=20)


@pytest.mark.parametrize("how", ["anew", "resume"])
def test_two_processes_may_write_the_same_lists_at_once(writers, tmp_path, how):
    path, count = tmp_path / "store", 40
    for writer in writers:
        writer.start(path, count, how)
    reports = [writer.run_until() for writer in writers]
    for done, kept in reports:
        assert done | kept == set(range(count))
        assert not done & kept
    if how == "anew":
        assert [len(done) for done, _ in reports] == [count, count]
    assert written(path, count) == set(range(count))
    assert len(list(path.glob("??/*"))) == count
    assert not list((path / ".writing").iterdir())


# Hidden states at once

WORKERS = 4


def put_states(path, worker):
    """Put a hidden state of the worker's own layer for each of some lists, as a reader does that wants it alone."""
    store = HeadScoreStore(path)
    for number in range(20):
        numbers = np.random.default_rng(number)
        raw, null, filtered = numbers.standard_normal((3, 2, 3 * 4), dtype=np.float32)
        state = {worker: np.full(3, 10 * number + worker, dtype=np.float32)}
        key = StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), ("1", "2", "3", "4"), 3, {"model": "m"})
        store.put(key, ListScores(raw, null, filtered, None, state), 4)


def assert_all_states_are_there(path):
    store = HeadScoreStore(path)
    lost = []
    for number in range(20):
        key = StoreKey(hashlib.sha256(str(number).encode()).hexdigest(), ("1", "2", "3", "4"), 3, {"model": "m"})
        for worker in range(WORKERS):
            found = store.get(key, 4, [worker])
            if found is None:
                lost.append((number, worker))
            else:
                assert found.hidden[worker].tolist() == [10 * number + worker] * 3
    assert lost == []
    assert store.check() == len(store) == 20
    assert not list((path / ".writing").iterdir())


def test_f42_threads_that_put_hidden_states_at_once_lose_none(tmp_path):
    path = tmp_path / "store"
    start = threading.Barrier(WORKERS)
    failed = []

    def work(worker):
        start.wait()
        try:
            put_states(path, worker)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert_all_states_are_there(path)


AT_ONCE = f"""
import hashlib, sys
import numpy as np
import safetensors.numpy
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.reading.store import HeadScoreStore, StoreKey

{inspect.getsource(put_states)}
print("ready", flush=True)
sys.stdin.readline()
put_states(sys.argv[1], int(sys.argv[2]))
"""


def test_f42_processes_that_put_hidden_states_at_once_lose_none(tmp_path):
    path = tmp_path / "store"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(path), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for worker in range(WORKERS)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            worker.communicate(timeout=120)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert_all_states_are_there(path)


# As an artifact


def test_a_packed_store_comes_back_with_the_same_scores(tmp_path, monkeypatch, address):
    """The functions for the Hub and Zenodo build this package, and take it from an address."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    store.put(key_of(1), scores_of(1), 4)
    (store.path / ".writing" / "half").write_bytes(b"half a file")
    (store.path / "notes.txt").write_text("private")
    metadata = {}
    store.build_package(metadata_out=metadata, verbose=False)
    assert metadata == {"type": "head_score_store", "format": "safetensors", "package_hint": "pyterrier-routehead"}
    loaded = HeadScoreStore.from_url(f"{address}/store.tar.lz4")
    assert loaded.path.is_relative_to(tmp_path / "home")
    assert loaded.check() == 2
    assert_holds(loaded, key_of(), scores_of(hidden=(1,)), 4, (1,))
    loaded.put(key_of(2), scores_of(2), 4)
    assert len(loaded) == 3


def test_pyterrier_knows_stores_by_an_entry_point():
    name = ".".join(pt.inspect.artifact_type_format(HeadScoreStore))
    setup = (ROOT / "setup.py").read_text()
    assert f'"{name} = pyterrier_routehead:HeadScoreStore"' in setup


def test_a_store_of_an_earlier_version_is_read_and_packed(tmp_path):
    store = HeadScoreStore(tmp_path / "store")
    store.put(key_of(), scores_of(), 4)
    (store.path / "pt_meta.json").unlink()
    opened = HeadScoreStore(store.path)
    assert opened.check() == 1
    metadata = {}
    opened.build_package(metadata_out=metadata, verbose=False)
    assert metadata["type"] == "head_score_store"


def test_a_copy_of_a_store_holds_the_same(store, tmp_path):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    copied = store.save(tmp_path / "copy")
    assert copied.check() == 1
    assert_holds(copied, key_of(), scores_of(hidden=(1,)), 4, (1,))
    with pytest.raises(FileExistsError, match="copy exists already"):
        store.save(tmp_path / "copy")


def test_the_card_of_a_store_says_what_it_holds(store):
    store.put(key_of(), scores_of(hidden=(1,)), 4)
    store.put(key_of(1), scores_of(1, layers=2), 2)
    card = store._hf_readme(repo="somebody/scores", metadata={})
    for line in ("lists: 2", "lists of model=m, layers=4: 1", "lists of model=m, layers=2: 1", "hidden states: 1"):
        assert line in card
    assert "HeadScoreStore.from_hf('somebody/scores')" in card
    files(store)[0].write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged"):
        store._hf_readme(repo="somebody/scores", metadata={})
