"""`RouteHeadReranker`: what it learns from, what it runs, and how it ranks, with tiny models."""

import copy
import inspect
import pickle
import re
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from frozen_llms import UNLOADED, passes
from judged_lists import same_ranking
from pyterrier_routehead import (
    AttentionHeadScorer,
    Extensions,
    FrozenLLM,
    Head,
    HeadRouter,
    HeadScoreStore,
    HeadSet,
    ICRReranker,
    MismatchError,
    NotFittedError,
    ReadingSettings,
    RouteHeadReranker,
    RouterTraining,
    Selection,
    StaticHeadReranker,
)
from pyterrier_routehead import routed as route
from pyterrier_routehead.common.standard import standardised
from pyterrier_routehead.ranking import rank as ranking
from pyterrier_routehead.ranking.windows import slide_windows
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.reading.reading import ModelIdentity
from pyterrier_routehead.routing import state as query_encoder
from pyterrier_routehead.routing.evidence import list_evidence
from pyterrier_routehead.routing.state import QueryState, embed_query, encode_queries
from routed_options import by_options
from toys import byte_tokenizer, frame, toy_llm, two_queries

# Random heads say nothing of a query, so that training often keeps the router as it started.
pytestmark = pytest.mark.filterwarnings("ignore:no epoch of training ranked the:UserWarning")

SMALL = {"pool_size": 6, "max_heads": 2, "training": RouterTraining(epochs=4, learning_rate=0.05)}
WORDS = ["cats", "sleep", "moon", "far", "paris", "rain", "tea", "whale", "blue", "night"]





def some_lists(seed, queries, documents=6, relevant=2):
    """Candidates of random words, and for each query two relevant documents, somewhere."""
    generator = np.random.default_rng(seed)
    qids = [f"{seed}-{i}" for i in range(queries)]
    texts = {
        qid: [" ".join(generator.choice(WORDS, generator.integers(1, 6))) for _ in range(documents)] for qid in qids
    }
    found = {qid: f"{' '.join(generator.choice(WORDS, 2))} {i}" for i, qid in enumerate(qids)}
    rows = [
        {"qid": qid, "docno": f"{qid}-d{i}", "label": 1}
        for qid in qids
        for i in generator.permutation(documents)[:relevant]
    ]
    return frame(texts, found), pd.DataFrame(rows)


TRAIN, TRAIN_QRELS = some_lists(1, 14)
VALID, VALID_QRELS = some_lists(2, 5, documents=7)


@pytest.fixture(scope="module")
def scored(llm):
    """The frames with head scores and hidden states."""
    scorer = AttentionHeadScorer(llm=llm, hidden_layers=[1, 2])
    return {"train": scorer(TRAIN), "valid": scorer(VALID)}


@pytest.fixture(scope="module")
def fitted(llm, scored):
    return by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)


def router_for(identity, pool="3-1,0-2,2-0,1-3", *, layer=0, source="query", evidence=False, **choice):
    """A router of random weights, which distinguishes queries."""
    heads = HeadSet.of(pool, model=identity, settings=ReadingSettings())
    generator, hidden = np.random.default_rng(0), 32
    weights = {
        "mean": np.zeros(hidden),
        "deviation": np.full(hidden, 2.0),
        "projection": generator.normal(size=(hidden, 3)),
        "head_embeddings": generator.normal(size=(len(heads), 3)),
        "bias": np.zeros(len(heads)),
    }
    if evidence:
        weights |= {
            "evidence_mean": np.zeros(4),
            "evidence_deviation": np.ones(4),
            "evidence_weights": np.array([3.0, 4.0, 5.0, 6.0]),
        }
    return HeadRouter.of(heads, weights, state=QueryState(layer, source=source), selection=Selection(**choice))


@pytest.fixture(scope="module")
def router(llm):
    return router_for(model_identity(llm), max_heads=2)


def rank_by(vectors, weights):
    return np.stack(vectors).astype(float) @ weights


# PyTerrier


@pt.testing.transformer_test_class
def test_transformer():
    return RouteHeadReranker(llm=UNLOADED)


@pt.testing.transformer_test_class
def test_transformer_with_everything():
    identity = ModelIdentity("no/such-model", ("aa",) * 4, 4, 4)
    return RouteHeadReranker(
        router_for(identity, evidence=True), llm=UNLOADED, routed_heads=True, first_stage_weight=0.5, depth=3
    )


def test_it_must_be_fitted_or_given_a_router():
    with pytest.raises(NotFittedError, match="RouteHeadReranker has no router yet: fit it"):
        RouteHeadReranker(llm=UNLOADED)(two_queries())


@pytest.mark.parametrize("routed_heads", [False, True])
@pytest.mark.parametrize("source", ["query", "tail"])
@pytest.mark.parametrize("columns", [[], ["head_scores", "head_reading", "hidden_state"]], ids=["text", "vectors"])
def test_empty_frames_need_no_model(routed_heads, source, columns):
    inp = two_queries().assign(**dict.fromkeys(columns))
    reranker = RouteHeadReranker(llm=UNLOADED, routed_heads=routed_heads, extensions=Extensions(source=source))
    out = reranker(inp.iloc[:0])
    assert len(out) == 0
    assert out["score"].dtype == "float64"
    assert out["rank"].dtype == "int64"
    assert ("routed_heads" in out.columns) is routed_heads
    assert list(out.columns) == pt.inspect.transformer_outputs(reranker, list(inp.columns))


@pytest.mark.parametrize(("source", "beside"), [("query", "query"), ("tail", "hidden_state")])
def test_inputs_are_text_or_vectors_with_what_embeds_the_query(source, beside):
    inputs = pt.inspect.transformer_inputs(RouteHeadReranker(llm=UNLOADED, extensions=Extensions(source=source)))
    assert ["qid", "docno", "head_scores", "head_reading", beside] in inputs
    assert ["qid", "docno", "query", "text"] in inputs
    weighed = pt.inspect.transformer_inputs(by_options(llm=UNLOADED, source=source, first_stage_weight=1.0))
    assert all("score" in columns for columns in weighed)


def test_missing_columns_name_the_transformer(scored, router, llm):
    reranker = RouteHeadReranker(router, llm=llm)
    for inp in (pd.DataFrame({"qid": ["1"], "docno": ["d"]}), scored["valid"].drop(columns=["query"])):
        with pytest.raises(pt.validate.InputValidationError, match="RouteHeadReranker"):
            reranker(inp)


def test_attributes_can_be_read_and_applied():
    reranker = RouteHeadReranker(llm=UNLOADED, max_heads=4)
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(reranker)}
    assert (attributes["max_heads"], attributes["llm"]) == (4, UNLOADED)
    for name, value in attributes.items():
        assert value is getattr(reranker, name)
    assert attributes["extensions"] == Extensions()
    applied = pt.inspect.transformer_apply_attributes(reranker, max_heads=3)
    assert applied.max_heads == 3
    for name in set(attributes) - {"max_heads"}:
        assert getattr(applied, name) is attributes[name]


def test_pipelines_are_fitted_and_drawn(llm):
    routing = by_options(**SMALL, llm=llm)
    pipeline = AttentionHeadScorer(llm=llm) >> routing
    pipeline.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)
    out = pipeline(VALID)
    assert len(out) == len(VALID)
    assert isinstance(routing.router_, HeadRouter)
    assert "RouteHead" in pt.schematic.draw(pipeline)


def test_a_fitted_reranker_can_be_copied_and_pickled(fitted, scored, llm):
    expected = fitted(scored["valid"])
    same_ranking(copy.deepcopy(fitted)(scored["valid"]), expected)
    loaded = pickle.loads(pickle.dumps(fitted))
    loaded.llm = llm
    same_ranking(loaded(scored["valid"]), expected)
    pd.testing.assert_frame_equal(loaded.labels_, fitted.labels_)


def test_a_reranker_with_a_router_can_be_pickled(router, scored, llm):
    expected = RouteHeadReranker(router, llm=llm)(scored["valid"])
    loaded = pickle.loads(pickle.dumps(RouteHeadReranker(router)))
    loaded.llm = llm
    same_ranking(loaded(scored["valid"]), expected)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"pool_size": 0}, ValueError, "^pool_size must be an integer number of heads >= 1, got 0$"),
        ({"pool_size": True}, TypeError, "^pool_size must be an integer number of heads >= 1, got True$"),
        ({"pool_size": 64.0}, TypeError, "^pool_size must be an integer number of heads >= 1, got 64.0$"),
        ({"pool_size": None}, TypeError, "^pool_size must be an integer number of heads >= 1, got None$"),
        ({"max_heads": 1.5}, TypeError, "^max_heads must be an integer number of heads >= 1, got 1.5$"),
        ({"max_heads": 8.0}, TypeError, "^max_heads must be an integer number of heads >= 1, got 8.0$"),
        ({"max_heads": "8"}, TypeError, "^max_heads must be an integer number of heads >= 1, got '8'$"),
        ({"max_heads": True}, TypeError, "^max_heads must be an integer number of heads >= 1, got True$"),
        ({"max_heads": 0}, ValueError, "^max_heads must be an integer number of heads >= 1, got 0$"),
        ({"hold_out": 0}, ValueError, "^hold_out is a share between 0 and 1, got 0$"),
        ({"hold_out": 1.0}, ValueError, "^hold_out is a share between 0 and 1, got 1.0$"),
        ({"hold_out": "some"}, TypeError, "^hold_out is a share between 0 and 1, got 'some'$"),
        ({"threshold": 2}, ValueError, "^threshold is a number from 0 to 1, got 2$"),
        ({"threshold": "high"}, TypeError, "^threshold is a number from 0 to 1, got 'high'$"),
        ({"threshold": True}, TypeError, "^threshold is a number from 0 to 1, got True$"),
        ({"unsure": -1}, ValueError, "^unsure is a number from 0 to 1, got -1$"),
        ({"unsure": np.nan}, ValueError, "^unsure is a number from 0 to 1, got nan$"),
        ({"max_heads": 2, "min_heads": 3}, ValueError, r"^min_heads must be at most max_heads \(2\), got 3$"),
        ({"min_heads": 9}, ValueError, r"^min_heads must be at most max_heads \(8\), got 9$"),
        ({"min_heads": 0}, ValueError, "^min_heads must be an integer number of heads >= 1, got 0$"),
        ({"min_heads": 2.0}, TypeError, "^min_heads must be an integer number of heads >= 1, got 2.0$"),
        ({"static_heads": -1}, ValueError, "^static_heads must be an integer number of heads >= 0, got -1$"),
        ({"static_heads": False}, TypeError, "^static_heads must be an integer number of heads >= 0, got False$"),
        ({"weighting": "odd"}, ValueError, "^weighting is one of 'even', 'probability', 'logit', got 'odd'$"),
        ({"weighting": 1}, TypeError, "^weighting is one of 'even', 'probability', 'logit', got 1$"),
        ({"pooling": "max"}, ValueError, "^pooling is one of 'mean', 'last', got 'max'$"),
        ({"pooling": None}, TypeError, "^pooling is one of 'mean', 'last', got None$"),
        ({"source": "head"}, ValueError, "^source is one of 'query', 'tail', got 'head'$"),
        ({"token_filter": "sum"}, ValueError, "token_filter='sum' has no scores per head to route over"),
        ({"max_layer": 0}, ValueError, "^max_layer must be a number of layers >= 1"),
        ({"max_layer": "half"}, TypeError, "^max_layer must be a number of layers >= 1"),
        ({"layer": -1}, ValueError, "^layer must be an integer >= 0, got -1$"),
        ({"layer": 2.0}, TypeError, "^layer must be an integer >= 0, got 2.0$"),
        ({"evidence": "yes"}, TypeError, "^evidence is True or False, got 'yes'$"),
        ({"routed_heads": 1}, TypeError, "^routed_heads is True or False, got 1$"),
        ({"allow_mismatch": None}, TypeError, "^allow_mismatch is True or False, got None$"),
        ({"seed": -1}, ValueError, "^seed must be an integer >= 0, got -1$"),
        ({"seed": 1.0}, TypeError, "^seed must be an integer >= 0, got 1.0$"),
        ({"seed": None}, TypeError, "^seed must be an integer >= 0, got None$"),
        ({"detection_data": 5}, TypeError, "^detection_data is a string, got 5$"),
        ({"training": {"epochs": 3}}, TypeError, "^training is a RouterTraining, such as RouterTraining"),
        ({"training": [("epochs", 3)]}, TypeError, "^training is a RouterTraining, such as RouterTraining"),
        ({"extensions": {"evidence": True}}, TypeError, "^extensions are Extensions, such as Extensions"),
        ({"extensions": None}, TypeError, "^extensions are Extensions, such as Extensions"),
        ({"depth": 0}, ValueError, "depth must be an integer >= 1"),
        ({"first_stage_weight": np.nan}, ValueError, "first_stage_weight is a finite number"),
        ({"depth": True}, TypeError, "depth must be an integer >= 1, got True"),
        ({"first_stage_weight": "1"}, TypeError, "first_stage_weight is a finite number, got '1'"),
        ({"router": 3}, TypeError, "^router is a HeadRouter, the name of one or None, got int$"),
        ({"router": "some/folder"}, ValueError, "^RouteHeadReranker knows no 'some/folder': 'smollm2-135m'$"),
        ({"llm": 3}, TypeError, "llm must be a FrozenLLM"),
        ({"labels": 5}, TypeError, r"^labels must be the name of a recipe \(search, .*\) or a function, got 5$"),
        ({"labels": ["search"]}, TypeError, r"^labels must be the name of a recipe \(search, .*\) or a function, got"),
        ({"labels": "serach"}, ValueError, "there is no label recipe 'serach'; known: search, .*or give a function"),
    ],
    ids=str,
)
def test_f23_arguments_that_cannot_be_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        by_options(**{"llm": UNLOADED, **wrong})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pool_size", np.int64(3)), ("max_heads", np.int32(4)), ("threshold", np.float32(0.25)), ("threshold", 1),
        ("max_layer", np.float64(0.5)), ("evidence", np.True_), ("seed", np.int64(2)), ("labels", len),
        ("training", RouterTraining(learning_rate=np.float32(0.1), epochs=np.int64(1), target_size=3)),
    ],
    ids=str,
)  # fmt: skip
def test_f23_numbers_of_numpy_are_numbers(name, value):
    reranker = by_options(llm=UNLOADED, **{name: value})
    assert getattr(reranker.extensions if name == "evidence" else reranker, name) is value


def test_attributes_set_wrong_later_are_refused_too(fitted, scored):
    wrong = copy.copy(fitted)
    wrong.threshold = 3
    with pytest.raises(ValueError, match="threshold is a number from 0 to 1, got 3"):
        wrong(scored["valid"])
    wrong.threshold, wrong.training = None, {"epochs": 3}
    with pytest.raises(TypeError, match="training is a RouterTraining"):
        wrong(scored["valid"])


# Ranking


def test_scores_are_the_sums_of_exactly_the_heads_that_are_named(llm, router, scored):
    out = RouteHeadReranker(router, llm=llm, routed_heads=True)(VALID)
    routes = set()
    for qid, own in out.groupby("qid"):
        (named,) = set(own["routed_heads"])
        routes.add(named)
        assert isinstance(named, tuple)
        state = encode_queries(llm, [own["query"].iloc[0]], router.state)[own["query"].iloc[0]]
        weights = router.route(state)
        assert named == tuple(str(head) for head, weight in zip(router.pool, weights, strict=True) if weight)
        heads = [Head(*map(int, name.split("-"))) for name in named]
        vectors = scored["valid"][scored["valid"]["qid"] == qid]["head_scores"]
        reading = scored["valid"]["head_reading"].iloc[0]
        expected = np.stack(vectors)[:, reading.columns(heads)].sum(axis=1, dtype=float)
        np.testing.assert_allclose(own["score"], expected, atol=1e-5)
        alone = StaticHeadReranker(heads, llm=llm)(VALID[VALID["qid"] == qid])
        same_ranking(own, alone, atol=1e-5)
    assert len(routes) > 1
    assert "routed_heads" not in RouteHeadReranker(router, llm=llm)(VALID).columns


@pytest.mark.parametrize(
    "options",
    [{}, {"first_stage_weight": 0.7}, {"depth": 3}, {"batch_size": 3}, {"depth": 4, "first_stage_weight": 2.0}],
    ids=str,
)
@pytest.mark.parametrize(
    "choice", [{"max_heads": 2}, {"weighting": "probability", "min_heads": 3}, {"evidence": True, "max_heads": 2},
               {"weighting": "logit", "evidence": True}], ids=str
)
def test_on_text_and_behind_a_scorer_gives_the_same(llm, options, choice):
    router = router_for(model_identity(llm), layer=1, **choice)
    behind = by_options(router, llm=llm, routed_heads=True, **options)
    on_text = by_options(router, llm=llm, routed_heads=True, **options)
    scorer = AttentionHeadScorer(llm=llm, depth=options.get("depth"))
    one, other = behind(scorer(VALID)), on_text(VALID)
    same_ranking(one, other, atol=1e-5)
    assert one["routed_heads"].tolist() == other["routed_heads"].tolist()


def test_the_order_of_the_rows_does_not_matter(llm, router):
    reranker = RouteHeadReranker(router, llm=llm, routed_heads=True)
    expected = reranker(VALID).set_index("docno")
    shuffled = reranker(VALID.sample(frac=1, random_state=1)).set_index("docno").loc[expected.index]
    same_ranking(shuffled, expected)
    assert shuffled["routed_heads"].tolist() == expected["routed_heads"].tolist()


def test_below_depth_rows_keep_their_order_and_have_no_routed_heads(llm, router):
    out = RouteHeadReranker(router, llm=llm, depth=3, routed_heads=True)(VALID)
    for _, own in out.groupby("qid"):
        assert own["routed_heads"].isna().tolist() == [False] * 3 + [True] * 4
        assert own["rank"].iloc[3:].tolist() == [3, 4, 5, 6]
        assert own["score"].iloc[3:].max() < own["score"].iloc[:3].min()


def test_heads_can_be_weighted_by_their_probabilities(llm, scored):
    router = router_for(model_identity(llm), weighting="probability", threshold=0.3)
    out = RouteHeadReranker(router, llm=llm)(VALID)
    columns = scored["valid"]["head_reading"].iloc[0].columns(list(router.pool))
    fractions = []
    for qid, own in scored["valid"].groupby("qid"):
        query = own["query"].iloc[0]
        weights = router.route(encode_queries(llm, [query], router.state)[query])
        fractions += [weight for weight in weights if 0 < weight < 1]
        expected = rank_by(own["head_scores"], np.eye(16)[columns].T @ weights)
        np.testing.assert_allclose(out[out["qid"] == qid]["score"], expected, atol=1e-5)
    assert len(fractions) > 5


@pytest.mark.parametrize("first_stage_weight", [0.0, 1.5])
def test_heads_can_be_weighted_by_their_logits(llm, scored, first_stage_weight):
    router = router_for(model_identity(llm), weighting="logit")
    out = RouteHeadReranker(router, llm=llm, first_stage_weight=first_stage_weight, routed_heads=True)(VALID)
    columns = scored["valid"]["head_reading"].iloc[0].columns(list(router.pool))
    for qid, own in scored["valid"].groupby("qid"):
        query = own["query"].iloc[0]
        logits = router.logits(encode_queries(llm, [query], router.state)[query])
        assert logits.min() < 0 < logits.max()
        vectors = np.stack(own["head_scores"])[:, columns].astype(float)
        expected = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0) @ logits
        first = own["score"]
        expected += first_stage_weight * (first - first.mean()) / first.std(ddof=0)
        mine = out[out["qid"] == qid]
        np.testing.assert_allclose(mine["score"], expected, atol=1e-3)
        assert mine["routed_heads"].iloc[0] == tuple(map(str, router.pool))


def test_weights_are_learnt_with_the_first_stage_in_view(llm, scored):
    reports = []
    for weight in (0.0, 5.0):
        fitted = by_options(llm=llm, extensions=Extensions(weighting="logit"), first_stage_weight=weight, **SMALL)
        fitted.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
        assert fitted.router_.selection.weighting == "logit"
        best = fitted.report_["held-out nDCG@10"].max()
        evaluated = pt.Evaluate(fitted(scored["valid"]), VALID_QRELS, metrics=[pt.measures.nDCG @ 10])
        assert evaluated["nDCG@10"] == pytest.approx(best, abs=1e-6)
        reports.append(fitted.report_["held-out nDCG@10"].iloc[0])
    assert reports[0] != reports[1]  # before training, the first stage ranks


@pytest.mark.parametrize("inp", ["text", "vectors"])
@pytest.mark.parametrize("first_stage_weight", [0.0, 1.5])
def test_odd_lists_are_weighed_by_logits_too(llm, inp, first_stage_weight):
    """Unsorted rows without ranks, one index for all, a list of one, and one that the first stage has not ranked."""
    lists = pd.concat([VALID, frame({"one": ["only"]}), frame({"tied": ["tea", "rain"]}, score=1.0)])
    lists = lists.drop(columns="rank").sample(frac=1, random_state=1).reset_index(drop=True)
    scored = AttentionHeadScorer(llm=llm)(lists)
    odd = (lists if inp == "text" else scored).set_axis([7] * len(lists))
    router = router_for(model_identity(llm), weighting="logit")
    out = RouteHeadReranker(router, llm=llm, first_stage_weight=first_stage_weight)(odd)
    assert out.index.equals(odd.index)
    assert out["docno"].tolist() == odd["docno"].tolist()
    assert out[out["qid"] == "one"][["score", "rank"]].to_numpy().tolist() == [[0.0, 0]]
    columns = scored["head_reading"].iloc[0].columns(list(router.pool))
    for qid, own in scored.groupby("qid"):
        query = own["query"].iloc[0]
        vectors = np.stack(own["head_scores"])[:, columns].astype(float)
        expected = standardised(vectors) @ router.logits(encode_queries(llm, [query], router.state)[query])
        expected += first_stage_weight * standardised(own["score"].to_numpy())
        mine = out[out["qid"] == qid]
        np.testing.assert_allclose(mine["score"], expected, atol=1e-3)
        assert mine["rank"].tolist() == (-mine["score"]).rank(method="first").sub(1).tolist()


def test_heads_that_tell_nothing_add_nothing(llm, scored):
    equal = scored["valid"].assign(head_scores=[np.full(16, 0.1, dtype=np.float32)] * len(VALID))
    router = router_for(model_identity(llm), weighting="logit")
    out = RouteHeadReranker(router, llm=llm)(equal)
    assert out["score"].tolist() == [0.0] * len(VALID)
    assert out["rank"].tolist() == VALID["rank"].tolist()
    mixed = RouteHeadReranker(router, llm=llm, first_stage_weight=0.5)(equal)
    np.testing.assert_allclose(mixed["score"], np.tile(0.5 * standardised(np.arange(7.0, 0, -1)), 5))


def test_the_first_stage_is_added_as_standard_scores(llm, router):
    plain = RouteHeadReranker(router, llm=llm)(VALID)
    mixed = RouteHeadReranker(router, llm=llm, first_stage_weight=2.0)(VALID)
    for qid, own in plain.groupby("qid"):
        z = [(s - s.mean()) / s.std(ddof=0) for s in (own["score"], VALID[VALID["qid"] == qid]["score"])]
        np.testing.assert_allclose(mixed[mixed["qid"] == qid]["score"], z[0] + 2 * z[1], atol=1e-5)


def test_a_router_can_look_at_the_list(llm, scored):
    router = router_for(model_identity(llm), evidence=True, max_heads=2)
    out = RouteHeadReranker(router, llm=llm, routed_heads=True)(VALID)
    columns = scored["valid"]["head_reading"].iloc[0].columns(list(router.pool))
    for qid, own in scored["valid"].groupby("qid"):
        vectors = np.stack(own["head_scores"])[:, columns]
        query = own["query"].iloc[0]
        state = encode_queries(llm, [query], router.state)[query]
        weights = router.route(state, list_evidence(vectors, own["score"].to_numpy()))
        np.testing.assert_allclose(out[out["qid"] == qid]["score"], vectors.astype(float) @ weights, atol=1e-4)


def test_several_pooling_and_layers_embed_the_query_otherwise(llm):
    query = VALID["query"].iloc[0]
    states = [
        encode_queries(llm, [query], QueryState(layer, pooling))[query]
        for layer in (0, 2)
        for pooling in ("mean", "last")
    ]
    assert all(state.shape == (32,) for state in states)
    assert len({tuple(state.round(4)) for state in states}) == 4


def test_static_heads_and_unsure_follow_the_pool(llm, scored):
    pool = [Head(3, 1), Head(0, 2), Head(2, 0), Head(1, 3)]
    for choice, heads in (({"unsure": 1.0, "max_heads": 3}, pool[:3]), ({"threshold": 0.0, "static_heads": 4}, pool)):
        router = router_for(model_identity(llm), **choice)
        out = RouteHeadReranker(router, llm=llm)(scored["valid"])
        same_ranking(out, StaticHeadReranker(heads)(scored["valid"]), atol=1e-5)


# What is run


def test_behind_a_scorer_no_document_is_read(llm, router, scored):
    reranker = RouteHeadReranker(router, llm=llm)
    assert passes(llm, lambda: reranker(scored["valid"])) == 0
    assert passes(llm, lambda: by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS)) == 0
    assert passes(llm, lambda: reranker(VALID)) == VALID["qid"].nunique()


def test_on_text_no_layer_above_the_deepest_routed_head_runs(llm):
    router = router_for(model_identity(llm), "0-1,1-2,2-0,3-3", max_heads=1)
    reranker = RouteHeadReranker(router, llm=llm, routed_heads=True)
    run = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, index=index: run.append(index))
        for index, layer in enumerate(llm.model.layers)
    ]
    depths = set()
    try:
        for qid in VALID["qid"].unique():
            run.clear()
            (named,) = set(reranker(VALID[VALID["qid"] == qid])["routed_heads"])
            deepest = int(named[0].split("-")[0])
            assert max(run) == deepest
            depths.add(deepest)
        run.clear()
        looking = router_for(model_identity(llm), "0-1,1-2,3-3", evidence=True, max_heads=1)
        RouteHeadReranker(looking, llm=llm)(VALID)
        assert max(run) == 3  # its evidence is on all heads of the pool
    finally:
        for hook in hooks:
            hook.remove()
    assert len(depths) > 1
    assert min(depths) < 3


def test_a_query_is_embedded_once(router, scored):
    llm = toy_llm()
    assert llm.num_layers == 4  # loaded, and tried on a few tokens
    reranker = RouteHeadReranker(router, llm=llm)
    run = []
    hook = llm.model.layers[0].register_forward_pre_hook(lambda *_: run.append(1))
    try:
        reranker(scored["valid"])
        assert len(run) == VALID["qid"].nunique()
        reranker(scored["valid"])
        RouteHeadReranker(router, llm=llm)(scored["valid"])
        assert len(run) == VALID["qid"].nunique()
    finally:
        hook.remove()


def test_lists_in_a_store_are_not_read_again(llm, router, tmp_path):
    store = HeadScoreStore(tmp_path / "store")
    expected = RouteHeadReranker(router, llm=llm)(VALID)
    AttentionHeadScorer(llm=llm, store=store)(VALID)
    reranker = RouteHeadReranker(router, llm=llm, store=store)
    assert passes(llm, lambda: same_ranking(reranker(VALID), expected, atol=1e-5)) == 0


# Lists beyond the context


LONG = frame(
    {qid: [f"{WORDS[(3 * i + start) % 10]} {i} says {'x' * i}" for i in range(20)] for start, qid in enumerate("ab")},
    {"a": "cats sleep", "b": "the moon is blue"},
)


@pytest.fixture
def windows(monkeypatch):
    """What is ranked in windows: the candidates' numbers and scores, window by window."""
    seen = []

    def slide(lengths, budget, rank):
        def spy(numbers):
            seen.append((list(numbers), rank(numbers)))
            return seen[-1][1]

        return slide_windows(lengths, budget, spy)

    monkeypatch.setattr(ranking, "slide_windows", slide)
    return seen


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
@pytest.mark.parametrize("options", [{}, {"first_stage_weight": 0.7}, {"depth": 15}, {"batch_size": 2}], ids=str)
@pytest.mark.parametrize(
    "choice",
    [
        {"max_heads": 2},
        {"weighting": "logit"},
        {"evidence": True, "max_heads": 1},
        {"weighting": "logit", "evidence": True},
    ],
    ids=str,
)
def test_each_window_is_ranked_as_a_list_of_its_own(windows, options, choice):
    llm = toy_llm(context=420)
    router = router_for(model_identity(llm), **choice)
    with pytest.warns(UserWarning, match="sliding windows"):
        out = by_options(router, llm=llm, routed_heads=True, **options)(LONG)
    assert out["docno"].tolist() == LONG["docno"].tolist()
    depth = options.get("depth", 20)
    behind = by_options(router, llm=llm, routed_heads=True, **options)
    remaining, routed_by_window = list(windows), []
    for qid in "ab":
        list_, mine = LONG[LONG["qid"] == qid], out[out["qid"] == qid]
        assert sorted(mine["rank"]) == list(range(20))
        assert mine["score"].nunique() == 20
        assert mine["rank"].iloc[depth:].tolist() == list(range(depth, 20))
        numbers, routed, count = [], {}, 0
        while 0 not in numbers:
            numbers, scores = remaining.pop(0)
            count += 1
            window = list_.iloc[numbers].assign(rank=range(len(numbers)))
            alone = behind(AttentionHeadScorer(llm=llm)(window))
            np.testing.assert_allclose(scores, alone["score"], atol=1e-4)
            routed |= dict(zip(alone["docno"], alone["routed_heads"], strict=True))
            routed_by_window.append((qid, alone["routed_heads"].iloc[0]))
        assert count > 2
        np.testing.assert_allclose(mine["score"].iloc[numbers], scores, atol=1e-6)
        # A row's heads are those of the last window that it was in.
        assert mine["routed_heads"].tolist() == [routed.get(docno) for docno in mine["docno"]]
        assert mine["routed_heads"].notna().sum() == depth
    assert not remaining
    # The query is the same in all windows, the evidence of the list is not.
    by_evidence = choice.get("evidence", False) and "weighting" not in choice
    assert (len(set(routed_by_window)) > 2) is by_evidence


@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.parametrize("choice", [{}, {"weighting": "logit"}, {"evidence": True}], ids=str)
def test_a_query_is_embedded_once_for_all_windows(windows, monkeypatch, choice):
    embedded = []

    def spy(llm, queries, *args):
        embedded.extend(queries)
        return encode_queries(llm, queries, *args)

    monkeypatch.setattr(query_encoder, "encode_queries", spy)
    llm = toy_llm(context=420)
    with pytest.warns(UserWarning, match="sliding windows"):
        RouteHeadReranker(router_for(model_identity(llm), **choice), llm=llm)(LONG)
    assert len(windows) > 4
    assert embedded == ["cats sleep", "the moon is blue"]


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_windows_run_no_layer_above_the_deepest_routed_head(windows):
    llm = toy_llm(context=420)
    router = router_for(model_identity(llm), "0-1,1-2,2-0,3-3", max_heads=1)
    reranker = RouteHeadReranker(router, llm=llm, routed_heads=True)
    run, deepest = [], set()
    for index, layer in enumerate(llm.model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: run.append(index))
    for query in ("cats sleep", "the moon is blue", "tea", "paris"):
        run.clear()
        with pytest.warns(UserWarning, match="sliding windows"):
            (named,) = set(reranker(LONG[LONG["qid"] == "a"].assign(query=query))["routed_heads"])
        assert max(run) == int(named[0].split("-")[0])
        deepest.add(max(run))
    assert len(deepest) > 1


# The query's rows in the re-ranking pass


def test_tail_states_come_from_the_column(llm, scored):
    router = router_for(model_identity(llm), layer=2, source="tail", max_heads=2)
    out = RouteHeadReranker(router, llm=llm, routed_heads=True)(
        scored["valid"]
    )
    columns = scored["valid"]["head_reading"].iloc[0].columns(list(router.pool))
    for qid, own in scored["valid"].groupby("qid"):
        weights = router.route(own["hidden_state"].iloc[0][1])  # layers 1 and 2
        expected = np.stack(own["head_scores"])[:, columns].astype(float) @ weights
        np.testing.assert_allclose(out[out["qid"] == qid]["score"], expected, atol=1e-5)
    assert out["routed_heads"].nunique() > 1


def test_tail_states_need_no_model_and_no_query(llm, scored):
    router = router_for(model_identity(llm), layer=2, source="tail", max_heads=2)
    expected = RouteHeadReranker(router, llm=llm)(scored["valid"])
    same_ranking(RouteHeadReranker(router)(scored["valid"].drop(columns=["query", "text"])), expected)


def test_tail_states_that_are_not_there_are_asked_for(llm, scored):
    router = router_for(model_identity(llm), layer=3, source="tail")
    reranker = RouteHeadReranker(router, llm=llm)
    with pytest.raises(pt.validate.InputValidationError, match="hidden_state"):
        reranker(scored["valid"].drop(columns="hidden_state"))
    with pytest.raises(ValueError, match=r"put it behind AttentionHeadScorer\(hidden_layers=\[3\]\)"):
        reranker(VALID)
    with pytest.raises(ValueError, match=r"layers \[1, 2\], the router needs 3: AttentionHeadScorer\(hidden_layers="):
        reranker(scored["valid"])
    with pytest.raises(ValueError, match="source='tail' needs the column 'hidden_state': fit behind an Attention"):
        by_options(llm=llm, source="tail").fit(scored["train"].drop(columns="hidden_state"), TRAIN_QRELS)


def test_a_router_of_tail_states_is_learnt(scored):
    reranker = by_options(extensions=Extensions(source="tail"), layer=1, **SMALL).fit(scored["train"], TRAIN_QRELS)
    assert reranker.router_.state == QueryState(1, source="tail")
    states = np.stack([own["hidden_state"].iloc[0][0] for _, own in scored["train"].groupby("qid", sort=False)])
    held = ~np.isin(TRAIN["qid"].unique(), reranker.labels_["qid"])
    np.testing.assert_allclose(reranker.router_.weights["mean"], states[~held].mean(axis=0), atol=1e-5)
    assert np.isfinite(reranker(scored["valid"])["score"]).all()


# Learning


def test_fit_says_what_it_found(fitted):
    assert fitted.router_.pool.detection.criterion == "ndcg@10"
    assert fitted.router_.pool.detection.queries == 14
    assert len(fitted.router_.pool) == 6
    assert list(fitted.router_.pool.scores) == sorted(fitted.router_.pool.scores, reverse=True)
    assert fitted.router_.state == QueryState(2)  # the middle layer
    assert fitted.router_.selection == Selection(max_heads=2)
    assert not fitted.router_.uses_evidence
    assert list(fitted.labels_) == ["qid", "heads", "size", "before", "after"]
    assert (fitted.labels_["size"] <= 2).all()
    assert fitted.left_out_ == 0
    assert len(fitted.report_) == 5
    best = fitted.report_["held-out nDCG@10"].idxmax()
    assert fitted.router_.report == {
        "labels": "shrunk",
        "first stage's weight": 0.0,
        "training queries": 14,
        "held-out queries": 5,
        "left out": 0,
        "distinct labels": fitted.labels_["heads"].nunique(),
        "epoch": best,
        "kept its start": best == 0,
        "held-out nDCG@10": pytest.approx(fitted.report_["held-out nDCG@10"].max()),
    }


def test_fit_on_text_is_fit_behind_a_scorer(llm, fitted):
    reranker = by_options(llm=llm, **SMALL)
    assert passes(llm, lambda: reranker.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS)) == 19
    assert reranker.router_.pool.heads == fitted.router_.pool.heads
    pd.testing.assert_frame_equal(reranker.labels_, fitted.labels_, check_exact=False, atol=1e-6)
    pd.testing.assert_frame_equal(reranker.report_, fitted.report_, check_exact=False, atol=1e-3)
    for query in VALID["query"].unique():
        state = encode_queries(llm, [query], fitted.router_.state)[query]
        found = [one.router_.probabilities(state) for one in (reranker, fitted)]
        np.testing.assert_allclose(*found, atol=1e-3)
    same_ranking(reranker(VALID), fitted(VALID), atol=1e-5)


def test_the_seed_decides_what_is_learnt(llm, scored):
    routers = [
        by_options(llm=llm, seed=seed, **SMALL).fit(scored["train"], TRAIN_QRELS) for seed in (0, 0, 1)
    ]
    for name, array in routers[0].router_.weights.items():
        np.testing.assert_array_equal(array, routers[1].router_.weights[name])
    assert not np.allclose(routers[0].router_.weights["projection"], routers[2].router_.weights["projection"])
    assert set(routers[0].labels_["qid"]) == set(routers[1].labels_["qid"]) != set(routers[2].labels_["qid"])


@pytest.mark.parametrize("hold_out", [0.2, 0.5])
def test_held_out_training_queries_have_no_labels(llm, scored, hold_out):
    reranker = by_options(llm=llm, hold_out=hold_out, **SMALL).fit(scored["train"], TRAIN_QRELS)
    held = set(TRAIN["qid"]) - set(reranker.labels_["qid"])
    assert len(held) == round(hold_out * 14)
    assert reranker.labels_["qid"].is_unique
    assert (reranker.router_.report["training queries"], reranker.router_.report["held-out queries"]) == (
        14 - len(held),
        len(held),
    )
    assert reranker.router_.pool.detection.queries == 14 - len(held)
    # ... nor do their judgements matter for the pool and the labels.
    turned = TRAIN_QRELS.copy()
    rows = turned["qid"].isin(held)
    turned.loc[rows, "docno"] = turned.loc[rows, "qid"] + "-d0"
    turned = turned.drop_duplicates(["qid", "docno"])
    again = by_options(llm=llm, hold_out=hold_out, **SMALL).fit(scored["train"], turned)
    assert again.router_.pool.to_json() == reranker.router_.pool.to_json()
    pd.testing.assert_frame_equal(again.labels_, reranker.labels_)
    assert not again.report_["held-out nDCG@10"].equals(reranker.report_["held-out nDCG@10"])


def test_validation_queries_are_in_no_label_and_change_neither_pool_nor_labels(llm, scored, fitted):
    assert fitted.labels_["qid"].tolist() == list(TRAIN["qid"].unique())
    other = VALID_QRELS.assign(docno=VALID_QRELS["qid"] + "-d6").drop_duplicates()
    again = by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS, scored["valid"], other)
    pd.testing.assert_frame_equal(again.labels_, fitted.labels_)
    assert again.router_.pool.to_json() == fitted.router_.pool.to_json()
    assert not again.report_["held-out nDCG@10"].equals(fitted.report_["held-out nDCG@10"])
    np.testing.assert_array_equal(again.report_["loss"], fitted.report_["loss"])


def test_a_query_in_training_and_validation_is_refused(llm, scored):
    both = pd.concat([VALID, TRAIN[TRAIN["qid"] == "1-3"]], ignore_index=True)
    reranker = by_options(llm=llm, **SMALL)
    with pytest.raises(ValueError, match="1 queries are in training and validation, such as '1-3'"):
        reranker.fit(TRAIN, TRAIN_QRELS, both, pd.concat([VALID_QRELS, TRAIN_QRELS]))
    assert not hasattr(reranker, "router_")
    numbers = scored["train"].assign(qid=scored["train"]["qid"].str.replace("1-", "").astype(int))
    with pytest.raises(ValueError, match="14 queries are in training and validation"):
        reranker.fit(
            numbers,
            TRAIN_QRELS.assign(qid=TRAIN_QRELS["qid"].str.replace("1-", "")),
            numbers.assign(qid=numbers["qid"].astype(str)),
            TRAIN_QRELS.assign(qid=TRAIN_QRELS["qid"].str.replace("1-", "")),
        )


def test_lists_that_tell_nothing_are_left_out_and_not_read(llm):
    qrels = TRAIN_QRELS[~TRAIN_QRELS["qid"].isin(["1-0", "1-4", "1-9"])]
    reranker = by_options(llm=llm, **SMALL)
    assert passes(llm, lambda: reranker.fit(TRAIN, qrels, VALID, VALID_QRELS)) == 16
    assert reranker.left_out_ == 3
    assert len(reranker.labels_) == 11
    assert reranker.router_.report["left out"] == 3


def test_too_little_to_learn_from_is_refused(llm, scored):
    for qids, message in ((["1-0"], "0 training lists"), (["1-0", "1-1"], "1 training lists")):
        few = scored["train"][scored["train"]["qid"].isin(qids)]
        with pytest.raises(ValueError, match=f"{message} are informative: too few to learn from"):
            by_options(llm=llm, **SMALL).fit(few, TRAIN_QRELS)
    with pytest.raises(ValueError, match="do the qids and docnos of topics and qrels agree"):
        by_options(llm=llm, **SMALL).fit(scored["train"], VALID_QRELS)


def test_validation_lists_whose_relevant_documents_have_no_scores_are_refused(llm, scored):
    below = VALID_QRELS.drop_duplicates("qid").assign(docno=lambda qrels: qrels["qid"] + "-d6")
    cut = AttentionHeadScorer(llm=llm, depth=3)(VALID)
    with pytest.raises(ValueError, match="none of the 5 validation lists has both a relevant and a non-relevant"):
        by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS, cut, below)


def test_a_layer_that_the_model_lacks_is_refused_before_anything_is_read(llm):
    reranker = by_options(llm=llm, layer=99, **SMALL)

    def fit():
        with pytest.raises(ValueError, match="there is no layer 99 among 4 to embed queries by"):
            reranker.fit(TRAIN, TRAIN_QRELS)

    assert passes(llm, fit) == 0


def test_validation_lists_that_were_read_otherwise_are_refused(llm, scored):
    other = AttentionHeadScorer(llm=llm, document_order="best_first")(VALID)
    with pytest.raises(ValueError, match="validation lists were read with other settings than the training lists"):
        by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS, other, VALID_QRELS)


def test_a_reranker_with_a_router_is_not_fitted(llm, router, scored):
    with pytest.raises(ValueError, match="was given a router: leave it out to train one"):
        RouteHeadReranker(router, llm=llm).fit(scored["train"], TRAIN_QRELS)


def test_a_fit_that_is_refused_leaves_no_router(llm, scored):
    reranker = by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS)
    with pytest.raises(ValueError, match="do the qids"):
        reranker.fit(scored["train"], VALID_QRELS)
    with pytest.raises(NotFittedError, match="has no router yet"):
        reranker(scored["valid"])


@pytest.mark.parametrize("labels", ["search", "search+prior", "shrunk"])
def test_labels_are_made_by_name(llm, scored, labels):
    reranker = by_options(llm=llm, labels=labels, **SMALL).fit(scored["train"], TRAIN_QRELS)
    assert reranker.router_.report["labels"] == labels
    assert reranker.labels_["size"].between(1, 2).all()
    if labels == "search":
        assert reranker.labels_["after"].mean() > reranker.labels_["before"].mean()


def test_labels_are_made_by_a_function(llm, scored):
    def the_first(lists, most):
        return np.tile(np.arange(lists.scores.shape[2]) == 0, (len(lists), 1)).astype(float)

    reranker = by_options(llm=llm, labels=the_first, **SMALL).fit(scored["train"], TRAIN_QRELS)
    assert reranker.router_.report["labels"] == "the_first"
    assert set(reranker.labels_["heads"]) == {str(reranker.router_.pool.heads[0])}
    with pytest.raises(ValueError, match="no label recipe 'serach'; known: search"):
        by_options(llm=llm, labels="serach", **SMALL).fit(scored["train"], TRAIN_QRELS)


def test_the_pool_keeps_to_the_layers_wanted(llm, scored):
    reranker = by_options(llm=llm, max_layer=2, **SMALL).fit(scored["train"], TRAIN_QRELS)
    assert {head.layer for head in reranker.router_.pool} <= {0, 1}


def test_depth_cuts_what_is_learnt_from(llm, scored):
    cut = scored["train"][scored["train"]["rank"] < 4]
    one = by_options(llm=llm, depth=4, **SMALL).fit(scored["train"], TRAIN_QRELS)
    other = by_options(llm=llm, **SMALL).fit(cut, TRAIN_QRELS)
    assert one.router_.pool.heads == other.router_.pool.heads
    pd.testing.assert_frame_equal(one.labels_, other.labels_)
    assert one.left_out_ == other.left_out_ > 0


def test_depth_cuts_what_weights_are_learnt_from_and_what_they_rank(llm, scored):
    options = {"llm": llm, "weighting": "logit", "first_stage_weight": 1.5, **SMALL}
    train, valid = (scored[name][scored[name]["rank"] < 4] for name in ("train", "valid"))
    one = by_options(depth=4, **options).fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    other = by_options(**options).fit(train, TRAIN_QRELS, valid, VALID_QRELS)
    pd.testing.assert_frame_equal(one.report_, other.report_)
    for name, array in one.router_.weights.items():
        np.testing.assert_array_equal(array, other.router_.weights[name])
    out, cut = one(scored["valid"]), other(valid)
    ranked = out[out["docno"].isin(valid["docno"])]
    assert ranked["score"].tolist() == cut["score"].tolist()
    assert ranked["rank"].tolist() == cut["rank"].tolist()
    for _, own in out.groupby("qid"):
        assert own["rank"].iloc[4:].tolist() == [4, 5, 6]
    # Lists without a relevant candidate are uninformative; of the others, all judgements count.
    informative = VALID_QRELS["qid"].isin(VALID_QRELS["qid"][VALID_QRELS["docno"].isin(valid["docno"])])
    judged = VALID_QRELS[informative]
    assert not judged["docno"].isin(valid["docno"]).all()
    evaluated = pt.Evaluate(cut[cut["qid"].isin(judged["qid"])], judged, metrics=[pt.measures.nDCG @ 10])
    assert evaluated["nDCG@10"] == pytest.approx(one.router_.report["held-out nDCG@10"], abs=1e-6)


@pytest.mark.parametrize("inp", ["text", "vectors"])
def test_weights_keep_to_the_layers_wanted(llm, scored, inp):
    reranker = by_options(llm=llm, weighting="logit", max_layer=0.5, layer=0, routed_heads=True, **SMALL)
    train, valid = (TRAIN, VALID) if inp == "text" else (scored["train"], scored["valid"])
    reranker.fit(train, TRAIN_QRELS, valid, VALID_QRELS)
    assert {head.layer for head in reranker.router_.pool} == {0, 1}
    run = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, index=index: run.append(index))
        for index, layer in enumerate(llm.model.layers)
    ]
    try:
        out = reranker(VALID)
    finally:
        for hook in hooks:
            hook.remove()
    assert max(run) == 1
    assert set(out["routed_heads"]) == {tuple(map(str, reranker.router_.pool))}
    same_ranking(out, reranker(scored["valid"]), atol=1e-4)


def test_fit_again_with_another_weighting_starts_anew(llm, fitted, scored):
    reranker = by_options(llm=llm, **SMALL)
    found = []
    for weighting in ("logit", "even", "logit"):
        reranker.extensions = Extensions(weighting=weighting)
        reranker.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
        assert reranker.router_.selection.weighting == weighting
        found.append(reranker(scored["valid"]))
    pd.testing.assert_frame_equal(found[0], found[2])
    pd.testing.assert_frame_equal(found[1], fitted(scored["valid"]))
    assert found[0]["score"].tolist() != found[1]["score"].tolist()


@pytest.mark.parametrize("inp", ["text", "vectors"])
def test_a_router_with_evidence_is_learnt(llm, scored, inp):
    train, valid = (TRAIN, VALID) if inp == "text" else (scored["train"], scored["valid"])
    reranker = by_options(llm=llm, evidence=True, **SMALL).fit(train, TRAIN_QRELS, valid, VALID_QRELS)
    assert reranker.router_.uses_evidence
    columns = scored["train"]["head_reading"].iloc[0].columns(list(reranker.router_.pool))
    evidence = [
        list_evidence(np.stack(own["head_scores"])[:, columns], own["score"].to_numpy())
        for _, own in scored["train"].groupby("qid")
    ]
    np.testing.assert_allclose(
        reranker.router_.weights["evidence_mean"], np.concatenate(evidence).mean(axis=0), atol=1e-4
    )
    assert np.isfinite(reranker(valid)["score"]).all()


# How heads are chosen: arguments over what a router was made with


def chosen(reranker, inp):
    """The heads of each query."""
    return reranker(inp).drop_duplicates("qid").set_index("qid")["routed_heads"]


@pytest.mark.parametrize(
    ("made_with", "given"),
    [
        ({}, {"max_heads": 1}),
        ({"max_heads": 2}, {}),
        ({"max_heads": 2}, {"max_heads": 4, "threshold": 0.0}),
        ({"max_heads": 4, "min_heads": 3}, {"min_heads": 1, "max_heads": 1}),
        ({"max_heads": 4, "min_heads": 3, "weighting": "probability"}, {"threshold": 0.0}),
        ({"weighting": "probability"}, {"weighting": "even"}),
        ({"weighting": "even"}, {"weighting": "probability"}),
        ({"weighting": "logit", "max_heads": 2}, {"max_heads": 3}),
        ({"static_heads": 2, "max_heads": 1}, {"static_heads": 0}),
        ({"unsure": 1.0, "max_heads": 3}, {"unsure": 0.0}),
        ({"unsure": 1.0, "max_heads": 3}, {"max_heads": 1}),
    ],
    ids=str,
)
def test_selection_arguments_override_those_of_a_given_router(llm, scored, made_with, given):
    router = router_for(model_identity(llm), **made_with)
    wanted = router.with_selection(Selection(**made_with | given))
    by_hand = by_options(router, llm=llm, routed_heads=True, **given)
    expected = RouteHeadReranker(wanted, llm=llm, routed_heads=True)
    pd.testing.assert_frame_equal(by_hand(scored["valid"]), expected(scored["valid"]))
    same_ranking(by_hand(VALID), expected(VALID))
    assert router.selection == Selection(**made_with)  # that of the user's own object
    if given and made_with.get("weighting") != "logit":
        plain = RouteHeadReranker(router, llm=llm, routed_heads=True)
        assert not by_hand(scored["valid"]).equals(plain(scored["valid"]))


def test_a_routers_own_numbers_are_what_arguments_are_checked_against(llm, scored):
    wide = router_for(model_identity(llm), max_heads=12)
    widely = RouteHeadReranker(wide, extensions=Extensions(min_heads=9), routed_heads=True, llm=llm)
    assert chosen(widely, scored["valid"]).map(len).eq(4).all()  # the pool
    narrow = router_for(model_identity(llm), max_heads=2)
    with pytest.raises(ValueError, match=r"^min_heads must be at most max_heads \(2\), got 3$"):
        RouteHeadReranker(narrow, extensions=Extensions(min_heads=3))
    many = router_for(model_identity(llm), min_heads=3)
    with pytest.raises(ValueError, match=r"^max_heads=2 is below the min_heads=3 that the router was made with: set"):
        RouteHeadReranker(many, max_heads=2)
    two = RouteHeadReranker(many, max_heads=2, extensions=Extensions(min_heads=2), routed_heads=True, llm=llm)
    assert chosen(two, scored["valid"]).map(len).eq(2).all()
    for router, weighting in ((wide, "logit"), (router_for(model_identity(llm), weighting="logit"), "even")):
        with pytest.raises(ValueError, match=f"with {weighting!r} its logits mean something else: fit again"):
            RouteHeadReranker(router, extensions=Extensions(weighting=weighting))


def test_a_fitted_reranker_chooses_as_it_was_fitted_to(llm, scored):
    reranker = by_options(llm=llm, routed_heads=True, **SMALL | {"max_heads": 12, "min_heads": 9})
    reranker.fit(scored["train"], TRAIN_QRELS)
    assert reranker.router_.selection == Selection(max_heads=12, min_heads=9)
    expected = reranker(scored["valid"])
    assert expected["routed_heads"].map(len).eq(6).all()  # the pool
    reranker.max_heads = None  # as the router was made to
    pd.testing.assert_frame_equal(reranker(scored["valid"]), expected)
    reranker.max_heads, reranker.extensions = 3, Extensions(min_heads=1)
    assert reranker(scored["valid"])["routed_heads"].map(len).le(3).all()
    assert reranker.router_.selection == Selection(max_heads=12, min_heads=9)


def test_how_a_fitted_reranker_chooses_can_be_changed(fitted, scored):
    wide = copy.copy(fitted)
    wide.max_heads, wide.extensions, wide.routed_heads = 5, Extensions(min_heads=5), True
    assert wide(scored["valid"])["routed_heads"].map(len).eq(5).all()
    wide.max_heads, wide.extensions = 1, Extensions(min_heads=1)
    assert wide(scored["valid"])["routed_heads"].map(len).eq(1).all()


# A router that kept its start


def kept_its_start(caught):
    return [warning for warning in caught if "no epoch of training ranked" in str(warning.message)]


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_f7_a_router_that_kept_its_start_says_so(llm, scored):
    reranker = by_options(llm=llm, **SMALL | {"training": RouterTraining(epochs=0)})
    with pytest.warns(
        UserWarning,
        match="no epoch of training ranked the 3 held-out queries better than the router as it started: it has learnt "
        "nothing from 11 training queries, and chooses nearly the same heads for every query",
    ) as caught:
        reranker.fit(scored["train"], TRAIN_QRELS)
    line = inspect.currentframe().f_lineno - 1
    assert [(warning.filename, warning.lineno) for warning in kept_its_start(caught)] == [(__file__, line)]
    assert reranker.router_.report["kept its start"] is True
    assert reranker.router_.report["epoch"] == 0
    assert repr(reranker.router_).endswith(", kept its start: nearly the same heads for every query>")


@pytest.mark.parametrize(
    "training",
    [RouterTraining(epochs=4, learning_rate=0.05), RouterTraining(epochs=0, start="ridge")],
    ids=["trained", "ridge"],
)
def test_f7_a_router_that_has_learnt_says_nothing(llm, scored, training):
    """By training, or by the ridge regression that it starts from."""
    reranker = by_options(llm=llm, **SMALL | {"training": training, "labels": "search"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reranker.fit(scored["train"], TRAIN_QRELS)
    assert not kept_its_start(caught)
    assert reranker.router_.report["kept its start"] is False
    assert (reranker.router_.report["epoch"] > 0) == (training.epochs > 0)
    assert "start" not in repr(reranker.router_)


def test_f7_the_report_says_whether_the_best_epoch_is_the_first(llm, scored):
    found = set()
    for labels, seed in product(("search", "shrunk"), range(3)):
        reranker = by_options(llm=llm, labels=labels, seed=seed, **SMALL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reranker.fit(scored["train"], TRAIN_QRELS)
        kept = reranker.report_["held-out nDCG@10"].idxmax() == 0
        assert reranker.router_.report["kept its start"] == bool(kept_its_start(caught)) == kept
        found.add(bool(kept))
    assert found == {True, False}


# Warnings point at the user's line


def warned(match, run):
    """Where the warning points that calling this leads to, beside where it should: at the line of the lambda."""
    with pytest.warns(UserWarning, match=match) as caught:
        run()
    (own,) = (warning for warning in caught if re.search(match, str(warning.message)))
    return (own.filename, own.lineno), (__file__, run.__code__.co_firstlineno)


@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("piped", [True, False])
def test_f31_warnings_point_at_the_users_line(llm, scored, verbose, piped, capsys):
    router = router_for(model_identity(llm), max_heads=2)
    weighed = HeadRouter.of(
        router.pool, router.weights, state=router.state, selection=Selection(weighting="logit"),
        report={"first stage's weight": 0.5},
    )  # fmt: skip

    def made(router, llm=llm, **given):
        own = by_options(router, llm=llm, verbose=verbose, **given)
        return pt.Transformer.identity() >> own if piped else own

    overflowing, otherwise = made(router, toy_llm(context=420)), made(router, document_order="best_first")
    unlike = made(weighed, first_stage_weight=2.0)
    found, expected = warned("such lists are ranked in sliding windows", lambda: overflowing(LONG))
    assert found == expected
    found, expected = warned("document_order='best_first' instead of 'best_last'", lambda: otherwise(VALID))
    assert found == expected
    for inp in (VALID, scored["valid"]):
        found, expected = warned("were learnt for first_stage_weight=0.5, not 2", lambda inp=inp: unlike(inp))
        assert found == expected
    if not piped:
        fitting = by_options(llm=llm, verbose=verbose, **SMALL | {"training": RouterTraining(epochs=0)})
        for inp in (TRAIN, scored["train"]):
            found, expected = warned("it has learnt nothing", lambda inp=inp: fitting.fit(inp, TRAIN_QRELS))
            assert found == expected
    assert ("RouteHeadReranker" in capsys.readouterr().err) == verbose


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_f31_a_pipelines_fit_warns_at_the_users_line(llm):
    pipeline = AttentionHeadScorer(llm=llm) >> by_options(llm=llm, **SMALL | {"training": RouterTraining(epochs=0)})
    found, expected = warned("it has learnt nothing", lambda: pipeline.fit(TRAIN, TRAIN_QRELS, VALID, VALID_QRELS))
    assert found == expected


# Sharing


def test_a_saved_router_ranks_the_same(fitted, scored, llm, tmp_path):
    expected = fitted(scored["valid"])
    fitted.router_.save(tmp_path / "router")
    for router in (fitted.router_, HeadRouter(tmp_path / "router"), pt.Artifact.load(str(tmp_path / "router"))):
        reranker = RouteHeadReranker(router, llm=llm)
        out = reranker(scored["valid"])
        assert out["score"].tolist() == expected["score"].tolist()
        assert out["rank"].tolist() == expected["rank"].tolist()
        same_ranking(reranker(VALID), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"evidence": True}, {"depth": 5, "first_stage_weight": 2.0}], ids=str)
def test_saved_weights_rank_the_same(scored, llm, tmp_path, options):
    fitted = by_options(llm=llm, extensions=Extensions(weighting="logit"), **options, **SMALL)
    fitted.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    expected, on_text = fitted(scored["valid"]), fitted(VALID)
    loaded = fitted.router_.save(tmp_path / "router")
    assert loaded.selection == fitted.router_.selection
    ranking = {name: value for name, value in options.items() if name != "evidence"}
    thawed = pickle.loads(pickle.dumps(fitted))
    thawed.llm = llm
    for reranker in (by_options(loaded, llm=llm, **ranking), thawed, copy.deepcopy(fitted)):
        out = reranker(scored["valid"])
        assert out["score"].tolist() == expected["score"].tolist()
        assert out["rank"].tolist() == expected["rank"].tolist()
        same_ranking(reranker(VALID), on_text)
    even = by_options(loaded.with_selection(Selection()), llm=llm, **ranking)(scored["valid"])
    assert not np.allclose(even["score"], expected["score"])


def test_without_llm_a_router_brings_its_model(router, llm, tmp_path):
    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    shared = FrozenLLM(str(tmp_path / "model"))
    own = router_for(model_identity(shared), max_heads=2)
    expected = RouteHeadReranker(router, llm=shared)(VALID)
    same_ranking(RouteHeadReranker(own)(VALID), expected, atol=1e-5)
    same_ranking(RouteHeadReranker(own)(AttentionHeadScorer(llm=shared)(VALID)), expected, atol=1e-5)


def test_a_router_for_another_model_is_refused_by_name(router):
    other = toy_llm(architecture="Qwen3")
    for inp in (VALID, AttentionHeadScorer(llm=other)(VALID)):
        with pytest.raises(MismatchError, match=r"LlamaModel .*not for Qwen3Model"):
            RouteHeadReranker(router, llm=other)(inp)


def test_another_model_for_the_query_is_refused_by_name(router, scored):
    with pytest.raises(MismatchError, match=r"read from LlamaModel .*not Qwen3Model"):
        RouteHeadReranker(router, llm=toy_llm(architecture="Qwen3"))(scored["valid"])


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
def test_a_router_for_another_reading_is_refused_with_both(llm, router):
    scorer = AttentionHeadScorer(llm=llm, document_order="best_first")
    with pytest.raises(MismatchError, match="document_order='best_first' instead of 'best_last'"):
        RouteHeadReranker(router, llm=llm)(scorer(VALID))
    allowed = RouteHeadReranker(router, llm=llm, allow_mismatch=True)(scorer(VALID))
    assert np.isfinite(allowed["score"]).all()
    with pytest.warns(UserWarning, match="document_order='best_first' instead of 'best_last'"):
        RouteHeadReranker(router, llm=llm, document_order="best_first")(VALID)


def test_vectors_without_a_head_of_the_pool_are_refused(llm, router):
    part = AttentionHeadScorer("3-1,0-2", llm=llm)(VALID)
    with pytest.raises(ValueError, match="head_scores lacks 2 of 4 heads: 2-0, 1-3"):
        RouteHeadReranker(router, llm=llm)(part)


def test_routing_is_one_of_several_behind_a_scorer(llm, router):
    scorer = AttentionHeadScorer(llm=llm)
    several = [scorer >> RouteHeadReranker(router, llm=llm), scorer >> ICRReranker()]
    one, other = (pipeline(VALID) for pipeline in several)
    assert one["rank"].tolist() != other["rank"].tolist()


def test_a_list_of_equal_documents_can_be_learnt_from(llm):
    twins = pd.concat([TRAIN, frame({"twins": ["tea", "tea"]})], ignore_index=True)
    qrels = pd.concat([TRAIN_QRELS, pd.DataFrame([{"qid": "twins", "docno": "twins-d0", "label": 1}])])
    reranker = by_options(llm=llm, document_attention="blockwise", **SMALL)
    assert np.isfinite(reranker.fit(twins, qrels, VALID, VALID_QRELS).report_["loss"]).all()


def test_tail_states_are_looked_up_by_each_rows_own_reading(llm, scored):
    router = router_for(model_identity(llm), layer=2, source="tail", weighting="logit")
    other = AttentionHeadScorer(llm=llm, hidden_layers=[2, 0])(VALID)
    odd = VALID["qid"].isin(["2-1", "2-3"])
    mixed = pd.concat([scored["valid"][~odd], other[odd]]).sort_index()
    reranker = RouteHeadReranker(router, llm=llm)
    same_ranking(reranker(mixed), reranker(scored["valid"]))


def test_tail_states_of_validation_queries_are_looked_up_by_their_own_reading(llm, scored):
    other = AttentionHeadScorer(llm=llm, hidden_layers=[0])(VALID)
    with pytest.raises(ValueError, match=r"hidden_state holds the layers \[0\], the router needs 1"):
        by_options(source="tail", layer=1, **SMALL).fit(scored["train"], TRAIN_QRELS, other, VALID_QRELS)


def test_tail_validation_on_text(llm, scored):
    with pytest.raises(ValueError, match="source='tail' needs the column 'hidden_state'"):
        by_options(llm=llm, extensions=Extensions(source="tail"), layer=1, **SMALL).fit(
            scored["train"], TRAIN_QRELS, VALID, VALID_QRELS)


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_sliding_windows_are_warned_of_once():
    llm = toy_llm(context=420)
    with pytest.warns(UserWarning, match="sliding windows") as caught:
        RouteHeadReranker(router_for(model_identity(llm), max_heads=2), llm=llm)(LONG)
    assert len([warning for warning in caught if "sliding windows" in str(warning.message)]) == 1


@pytest.mark.parametrize("verbose", [True, False])
def test_training_shows_its_progress_if_asked_to(llm, scored, capsys, verbose):
    by_options(llm=llm, verbose=verbose, **SMALL).fit(scored["train"], TRAIN_QRELS)
    assert ("held-out nDCG@10" in capsys.readouterr().err) == verbose


def test_other_weighting_after_fit_is_refused(llm, scored):
    reranker = by_options(llm=llm, **SMALL).fit(scored["train"], TRAIN_QRELS)
    reranker.extensions = Extensions(weighting="logit")
    with pytest.raises(ValueError, match="logit"):
        reranker(scored["valid"])


def test_named_routers_follow_the_reading_of_any_row(llm, monkeypatch):
    blockwise = router_for(model_identity(llm), max_heads=2)
    settings = ReadingSettings(document_attention="blockwise")
    blockwise.pool = HeadSet.of(blockwise.pool.heads, model=blockwise.pool.model, settings=settings)
    routers = {"blockwise": blockwise, "listwise": router_for(model_identity(llm))}
    monkeypatch.setattr(route, "named_router", lambda name, pattern: routers[pattern])
    inp = AttentionHeadScorer(llm=llm, document_attention="blockwise", depth=4)(VALID)
    expected = RouteHeadReranker("mine", llm=llm)(inp)
    same_ranking(RouteHeadReranker(blockwise, llm=llm)(inp), expected)
    # Rows below the depth have no reading; here they come first.
    assert RouteHeadReranker("mine", llm=llm)(inp.iloc[::-1])["score"].tolist() == expected["score"].tolist()[::-1]


def test_a_router_without_any_weight_ranks_text_too(llm, scored):
    router = router_for(model_identity(llm), weighting="probability")
    router.weights["bias"] = np.full(4, -500, dtype=np.float32)
    reranker = RouteHeadReranker(router, llm=llm)
    same_ranking(reranker(VALID), reranker(scored["valid"]))


def test_remembered_embeddings_hold_no_more_than_themselves(llm):
    state = embed_query(llm, "some words " * 20, QueryState(1, "last"))
    assert state.base is None or state.base.untyped_storage().nbytes() == state.nbytes


def test_fit_refuses_uncalibrated_scores_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="'ndcg@10' requires calibrated scores, but calibrate=False"):
        RouteHeadReranker(llm=UNLOADED, calibrate=False).fit(TRAIN, TRAIN_QRELS)


def test_a_first_stage_weight_unlike_the_learnt_one_warns_once_something_is_ranked(llm, scored):
    reranker = by_options(llm=llm, extensions=Extensions(weighting="logit"), first_stage_weight=0.5, **SMALL)
    reranker.fit(scored["train"], TRAIN_QRELS, scored["valid"], VALID_QRELS)
    reranker.first_stage_weight = 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(reranker(TRAIN.iloc[:0])) == 0
        pt.inspect.transformer_outputs(reranker, list(TRAIN.columns))
    with pytest.warns(UserWarning, match="were learnt for first_stage_weight=0.5, not 2"):
        reranker(scored["valid"])
