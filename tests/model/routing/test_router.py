"""`HeadRouter`: probabilities, the choice of heads and the files; and how its weights are trained."""

import copy
import hashlib
import json
import math
import os
import pickle
import re
from dataclasses import asdict, fields, replace
from importlib.metadata import entry_points
from itertools import combinations

import numpy as np
import pyterrier as pt
import pytest
import torch
from safetensors.numpy import load, save

from damage import flips, of_format_1, sealed
from pyterrier_routehead import ArtifactError, Detection, HeadRouter, HeadSet, ReadingSettings, Selection
from pyterrier_routehead.reading.reading import ModelIdentity
from pyterrier_routehead.routing.labels import make_labels
from pyterrier_routehead.routing.router import EVIDENCE_NAMES, WEIGHT_NAMES, choose
from pyterrier_routehead.routing.search import PaddedLists, candidates_ideal, list_ndcg, standardised_lists
from pyterrier_routehead.routing.settings import FOR_LABELS, FOR_LOGITS, RouterTraining
from pyterrier_routehead.routing.state import QueryState
from pyterrier_routehead.routing.training import RoutingData, _Router, ridge_regression, train

MODEL = ModelIdentity("no/such-model", ("aa", "bb", "cc", "dd"), 4, 4)
HIDDEN, SIZE = 5, 2


def some_pool(heads="3-1,0-2,2-0"):
    detection = Detection("ndcg@10", {"depth": None}, "some queries", 7)
    return HeadSet.of(
        heads, model=MODEL, scores=[1.0 / (i + 1) for i in range(heads.count(",") + 1)], settings=ReadingSettings(),
        detection=detection,
    )


def some_weights(seed=0, evidence=False):
    generator = np.random.default_rng(seed)
    weights = {
        "mean": generator.normal(size=HIDDEN),
        "deviation": 0.5 + generator.random(HIDDEN),
        "projection": generator.normal(size=(HIDDEN, SIZE)),
        "head_embeddings": generator.normal(size=(3, SIZE)),
        "bias": generator.normal(size=3),
    }
    if evidence:
        weights |= {
            "evidence_mean": generator.normal(size=4),
            "evidence_deviation": 0.5 + generator.random(4),
            "evidence_weights": generator.normal(size=4),
        }
    return weights


def some_router(evidence=False, seed=0, **selection):
    return HeadRouter.of(
        some_pool(),
        some_weights(seed, evidence),
        state=QueryState(2, "last"),
        selection=Selection(**selection),
        report={"epoch": 3, "held-out nDCG@10": 0.25},
    )


def some_inputs(seed=1):
    generator = np.random.default_rng(seed)
    return generator.normal(size=HIDDEN).astype(np.float32), generator.normal(size=(3, 4))


def plain_probabilities(weights, state, evidence=None):
    """By loops, from what the documentation says."""
    w = {name: array.tolist() for name, array in weights.items()}
    standard = [(x - m) / d for x, m, d in zip(state.tolist(), w["mean"], w["deviation"], strict=True)]
    query = [sum(standard[i] * w["projection"][i][j] for i in range(HIDDEN)) for j in range(SIZE)]
    found = []
    for head in range(3):
        logit = sum(q * e for q, e in zip(query, w["head_embeddings"][head], strict=True)) / math.sqrt(SIZE)
        logit += w["bias"][head]
        if evidence is not None:
            for i in range(4):
                features = (evidence[head][i] - w["evidence_mean"][i]) / w["evidence_deviation"][i]
                logit += features * w["evidence_weights"][i]
        found.append(1 / (1 + math.exp(-logit)))
    return found


# Probabilities


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_the_plain_computation(evidence, seed):
    weights = some_weights(seed, evidence)
    router = HeadRouter.of(some_pool(), weights, state=QueryState(0))
    state, features = some_inputs(seed)
    features = features if evidence else None
    probabilities = router.probabilities(state, features)
    assert probabilities.dtype == np.float64
    assert router.uses_evidence is evidence
    np.testing.assert_allclose(probabilities, plain_probabilities(weights, state, features), atol=1e-5)


def test_the_query_and_the_evidence_matter():
    router = some_router(evidence=True)
    (one, features), (other, else_) = some_inputs(1), some_inputs(2)
    base = router.probabilities(one, features)
    assert not np.allclose(base, router.probabilities(other, features), atol=1e-2)
    assert not np.allclose(base, router.probabilities(one, else_), atol=1e-2)


def test_a_query_embedding_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"query embedding has the shape \(6,\), not \(5,\)"):
        some_router().probabilities(np.zeros(6))


@pytest.mark.parametrize("evidence", [False, True])
def test_what_is_trained_with_torch_is_applied_with_numpy(evidence):
    generator = np.random.default_rng(0)
    states = generator.normal(2, 3, size=(20, 7)).astype(np.float32)
    features = generator.normal(1, 5, size=(20, 3, 4)) if evidence else None
    data = RoutingData(states, None, features, (generator.random((20, 3)) < 0.4).astype(float))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = _Router(data, Selection(), RouterTraining(size=6)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
    router = HeadRouter.of(some_pool(), model.weights(1.0), state=QueryState(0))
    with torch.inference_mode():
        given = None if features is None else torch.tensor(features, dtype=torch.float32)
        expected = model(torch.tensor(states), given)[0].sigmoid().numpy()
    assert expected.std() > 0.1
    found = [router.probabilities(state, None if features is None else features[i]) for i, state in enumerate(states)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Choosing


PROBABILITIES = np.array([0.2, 0.9, 0.5, 0.6, 0.1])


@pytest.mark.parametrize(
    ("selection", "weights"),
    [
        ({}, [0, 1, 1, 1, 0]),
        ({"threshold": 0.55}, [0, 1, 0, 1, 0]),
        ({"threshold": 0.0}, [1, 1, 1, 1, 1]),
        ({"threshold": 0.95}, [0, 1, 0, 0, 0]),
        ({"threshold": 0.95, "min_heads": 2}, [0, 1, 0, 1, 0]),
        ({"min_heads": 4}, [1, 1, 1, 1, 0]),
        ({"min_heads": 8}, [1, 1, 1, 1, 1]),
        ({"threshold": 0.0, "max_heads": 2}, [0, 1, 0, 1, 0]),
        ({"max_heads": 1}, [0, 1, 0, 0, 0]),
        ({"weighting": "probability"}, [0, 0.9, 0.5, 0.6, 0]),
        ({"weighting": "probability", "min_heads": 4}, [0.2, 0.9, 0.5, 0.6, 0]),
        ({"static_heads": 1}, [1, 1, 1, 1, 0]),
        ({"static_heads": 2, "max_heads": 1, "threshold": 0.6}, [1, 1, 0, 0, 0]),
        ({"static_heads": 9}, [1, 1, 1, 1, 1]),
        ({"static_heads": 1, "max_heads": 2}, [1, 1, 0, 1, 0]),
        ({"weighting": "probability", "static_heads": 2}, [1, 1, 0.5, 0.6, 0]),
        ({"unsure": 0.9}, [0, 1, 1, 1, 0]),
        ({"unsure": 0.91, "max_heads": 2}, [1, 1, 0, 0, 0]),
        ({"unsure": 0.91}, [1, 1, 1, 1, 1]),
        ({"unsure": 0.91, "max_heads": 3, "weighting": "probability"}, [1, 1, 1, 0, 0]),
    ],
    ids=str,
)
def test_probabilities_become_weights(selection, weights):
    chosen = choose(PROBABILITIES, Selection(**selection))
    assert chosen.tolist() == weights
    assert chosen.dtype == np.float64


def test_equal_probabilities_are_chosen_in_the_pools_order():
    assert choose(np.full(4, 0.7), Selection(max_heads=2)).tolist() == [1, 1, 0, 0]


def test_a_router_routes_by_its_selection():
    state, _ = some_inputs()
    probabilities = some_router().probabilities(state)
    assert probabilities.std() > 0.05
    for selection in (
        Selection(max_heads=1),
        Selection(weighting="probability", min_heads=3),
        Selection(unsure=1.0, max_heads=2),
    ):
        router = some_router().with_selection(selection)
        assert router.selection == selection
        np.testing.assert_array_equal(router.route(state), choose(probabilities, selection))
    assert some_router().selection == Selection()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 1.5}, "threshold is a number from 0 to 1, got 1.5"),
        ({"threshold": -0.1}, "threshold is a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold is a number from 0 to 1, got nan"),
        ({"unsure": 2}, "unsure is a number from 0 to 1, got 2"),
        ({"min_heads": 0}, "min_heads must be an integer number of heads >= 1, got 0"),
        ({"max_heads": 0}, "max_heads must be an integer number of heads >= 1, got 0"),
        ({"min_heads": 3, "max_heads": 2}, r"min_heads must be at most max_heads \(2\), got 3"),
        ({"min_heads": 9}, r"min_heads must be at most max_heads \(8\), got 9"),
        ({"static_heads": -1}, "static_heads must be an integer number of heads >= 0, got -1"),
        ({"weighting": "odd"}, "weighting is one of 'even', 'probability', 'logit', got 'odd'"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Selection(**wrong)


@pytest.mark.parametrize("wrong", ["2", None, True, [1], 1.5, 2.0], ids=repr)
@pytest.mark.parametrize("name", ["min_heads", "max_heads", "static_heads"])
def test_f23_numbers_of_heads_are_whole(name, wrong):
    message = rf"^{name} must be an integer number of heads >= \d, got {re.escape(repr(wrong))}$"
    with pytest.raises(TypeError, match=message):
        Selection(**{name: wrong})


@pytest.mark.parametrize("wrong", ["0.5", None, False, [0.5], 0.5j], ids=repr)
@pytest.mark.parametrize("name", ["threshold", "unsure"])
def test_f23_probabilities_are_numbers(name, wrong):
    with pytest.raises(TypeError, match=f"^{name} is a number from 0 to 1, got {re.escape(repr(wrong))}$"):
        Selection(**{name: wrong})


@pytest.mark.parametrize("wrong", [None, 1, ["even"]], ids=repr)
def test_f23_a_weighting_is_a_string(wrong):
    with pytest.raises(TypeError, match=r"^weighting is one of 'even', 'probability', 'logit', got"):
        Selection(weighting=wrong)


def test_a_selection_holds_plain_numbers():
    """They are written to files."""
    own = Selection(np.float32(0.25), np.int64(2), np.int8(3), static_heads=np.uint8(1), unsure=1)
    assert [type(value) for value in asdict(own).values()] == [float, int, int, str, int, float]
    assert own == Selection(0.25, 2, 3, static_heads=1, unsure=1.0)


def test_another_selection_is_another_router_of_the_same_weights():
    router = some_router(evidence=True)
    other = router.with_selection(Selection(max_heads=1))
    assert router.selection == Selection()
    assert other.selection == Selection(max_heads=1)
    assert (other.pool, other.state, other.report) == (router.pool, router.state, router.report)
    state, features = some_inputs()
    np.testing.assert_array_equal(other.logits(state, features), router.logits(state, features))
    assert (other.route(state, features) > 0).sum() == 1
    same_routers(other.with_selection(router.selection), router)


def test_f7_a_router_that_kept_its_start_says_so(tmp_path):
    plain = "<HeadRouter over 3 heads of no/such-model>"
    assert repr(some_router()) == plain
    for kept, shown in (
        (False, plain),
        (True, "<HeadRouter over 3 heads of no/such-model, kept its start: nearly the same heads for every query>"),
    ):
        router = HeadRouter.of(
            some_pool(), some_weights(), state=QueryState(2), report={"epoch": 0, "kept its start": kept}
        )
        assert repr(router) == repr(router.save(tmp_path / str(kept))) == shown
        assert repr(router.with_selection(Selection(max_heads=2))) == shown


# Weights


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mean", (4,), r"'mean' have the shape \(4,\), not \(5,\)"),
        ("deviation", (6,), r"'deviation' have the shape \(6,\), not \(5,\)"),
        ("head_embeddings", (2, 2), r"'head_embeddings' have the shape \(2, 2\), not \(3, 2\)"),
        ("head_embeddings", (3, 3), r"'head_embeddings' have the shape \(3, 3\), not \(3, 2\)"),
        ("bias", (4,), r"'bias' have the shape \(4,\), not \(3,\)"),
        ("projection", (4, 2), r"have the shape \(5,\), not \(4,\)"),
        ("colour", (1,), "weights are .*colour.*, not"),
        ("evidence_mean", (4,), "weights are .*evidence_mean.*, not"),
    ],
)
def test_weights_of_a_wrong_shape_or_name_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        HeadRouter.of(some_pool(), some_weights() | {name: np.ones(shape)}, state=QueryState(0))


@pytest.mark.parametrize("name", [*WEIGHT_NAMES, *EVIDENCE_NAMES])
def test_weights_that_lack_or_are_not_finite_are_refused(name):
    weights = some_weights(evidence=True)
    broken = weights | {name: np.where(np.arange(weights[name].size) == 1, np.nan, 1).reshape(weights[name].shape)}
    with pytest.raises(ValueError, match="not finite"):
        HeadRouter.of(some_pool(), broken, state=QueryState(0))
    less = {own: array for own, array in weights.items() if own != name}
    with pytest.raises(ValueError, match=r"its weights are .*, not"):
        HeadRouter.of(some_pool(), less, state=QueryState(0))


def test_a_router_for_a_pool_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\), not \(2, 2\)"):
        HeadRouter.of(some_pool("1-1,2-2"), some_weights(), state=QueryState(0))


# Files


def same_routers(one, other):
    assert one.pool == other.pool
    assert (one.state, one.selection, one.report, one.version) == (
        other.state,
        other.selection,
        other.report,
        other.version,
    )
    assert set(one.weights) == set(other.weights)
    for name, array in one.weights.items():
        np.testing.assert_array_equal(array, other.weights[name])
    state, evidence = some_inputs()
    evidence = evidence if one.uses_evidence else None
    np.testing.assert_array_equal(one.probabilities(state, evidence), other.probabilities(state, evidence))
    np.testing.assert_array_equal(one.route(state, evidence), other.route(state, evidence))


@pytest.mark.parametrize("evidence", [False, True])
def test_saved_and_loaded_routers_say_the_same(evidence, tmp_path):
    router = some_router(evidence, threshold=0.25, max_heads=3, weighting="probability", static_heads=1, unsure=0.1)
    saved = router.save(tmp_path / "deep" / "router")
    for loaded in (saved, HeadRouter(tmp_path / "deep" / "router"), HeadRouter(str(tmp_path / "deep" / "router"))):
        same_routers(loaded, router)


def test_a_router_is_three_files_without_pickle(tmp_path):
    path = some_router().save(tmp_path / "router").path
    assert sorted(file.name for file in path.iterdir()) == ["pt_meta.json", "router.json", "router.safetensors"]
    said = json.loads((path / "router.json").read_text())
    assert said["selection"]["max_heads"] == 8
    assert HeadSet.from_json(said["pool"]) == some_pool()
    length = int.from_bytes((path / "router.safetensors").read_bytes()[:8], "little")
    assert set(json.loads((path / "router.safetensors").read_bytes()[8 : 8 + length])) == set(WEIGHT_NAMES)


def test_routers_are_known_to_pyterrier_by_their_entry_point(tmp_path):
    (own,) = entry_points(group="pyterrier.artifact", name="head_router.safetensors")
    assert own.load() is HeadRouter
    path = some_router().save(tmp_path / "router").path
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta == {"type": "head_router", "format": "safetensors", "package_hint": "pyterrier-routehead"}
    loaded = pt.Artifact.load(str(path))
    assert type(loaded) is HeadRouter
    same_routers(loaded, some_router())


def test_saving_overwrites_nothing(tmp_path):
    some_router().save(tmp_path / "router")
    with pytest.raises(FileExistsError, match="router exists already"):
        some_router(seed=5).save(tmp_path / "router")
    same_routers(HeadRouter(tmp_path / "router"), some_router())


def test_loaded_routers_can_choose_otherwise_and_be_saved_again(tmp_path):
    first = some_router().save(tmp_path / "one")
    other = first.with_selection(Selection(max_heads=2)).save(tmp_path / "two")
    assert other.selection == Selection(max_heads=2)
    same_routers(other.with_selection(Selection()), first)


def test_routers_can_be_copied_and_pickled(tmp_path):
    for router in (some_router(evidence=True), some_router().save(tmp_path / "router")):
        for other in (copy.copy(router), copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
            same_routers(other, router)


def changed(**changes):
    def change(folder):
        file = folder / "router.json"
        file.write_text(sealed(json.dumps(json.loads(file.read_text()) | changes)))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "router.json").unlink(), " holds no router: there is no router.json in it"),
        (write("router.json", b"{"), "/router.json is damaged: "),
        (write("router.json", b"[1]"), "/router.json is no readable router: it is an object with fields, found list"),
        (write("router.json", b"\xff\xfe"), "/router.json is damaged: "),
        (write("router.json", b'{"format": 1}'), "/router.json is no readable router: lacks pool, state, "),
        (write("router.safetensors", b""), "/router.safetensors is no readable router: it is damaged"),
        (write("router.safetensors", b"\1" * 100), "/router.safetensors is no readable router: it is damaged"),
        (lambda folder: (folder / "router.safetensors").unlink(), "/router.safetensors cannot be read: No such"),
        (changed(format=3), "/router.json is no readable router: its format is 3, this version reads 1 and 2"),
        (changed(selection={"threshold": 3}), "/router.json is no readable router: selection lacks min_heads, "),
        (changed(selection=asdict(Selection()) | {"threshold": 3}), "/router.json .*a number from 0 to 1, got 3"),
        (changed(selection={}), "/router.json is no readable router: selection lacks threshold"),
        (changed(selection={"colour": "red"}), "/router.json is no readable router: .*colour"),
        (changed(state={"layer": 1, "pooling": "max", "source": "query"}), "/router.json .*: pooling must be one of"),
        (changed(state={"layer": 4, "pooling": "last", "source": "query"}), "/router.json .*there is no layer 4 "),
        (changed(state={}), "/router.json is no readable router: state lacks layer"),
        (changed(pool={}), "/router.json is no readable router: .*no readable head set: it lacks format"),
        (changed(pool=some_pool("1-1,2-2").to_json()), r"/router.safetensors .*\(3, 2\), not \(2, 2\)"),
        (changed(weights_sha256=None), "/router.json is no readable router: it lacks weights_sha256"),
        (changed(weights_sha256="0" * 64), "/router.safetensors .*checksum differs"),
    ],
)
def test_folders_that_hold_no_router_are_refused_by_name(change, message, tmp_path):
    path = some_router().save(tmp_path / "mine").path
    change(path)
    with pytest.raises(ArtifactError, match=f"mine{message}"):
        HeadRouter(path)


FIELDS = [
    *("format", "pool", "state", "selection", "report", "version", "weights_sha256", "checksum"),
    *(f"state.{field.name}" for field in fields(QueryState)),
    *(f"selection.{field.name}" for field in fields(Selection)),
    *("pool.heads", "pool.model", "pool.scores", "pool.k", "pool.settings"),
]
WRONG = [None, True, 3, -1, 2.5, float("nan"), float("inf"), 10**400, "", "x", "\ud800", [], [None], {}, {"a": 1}, ...]


@pytest.mark.parametrize("place", FIELDS)
def test_f44_every_field_has_one_type(place, tmp_path):
    """Whatever stands in a field either is refused by name or is kept as it is, with a checksum that fits."""
    file = some_router().save(tmp_path / "mine").path / "router.json"
    said = json.loads(file.read_text())
    *way, last = place.split(".")
    accepted = []
    for value in WRONG:
        written = copy.deepcopy(said)
        inner = written[way[0]] if way else written
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        file.write_text(json.dumps(written) if place == "checksum" else sealed(json.dumps(written)))
        found = read_or_refused(tmp_path / "mine")
        if found is not None:
            accepted.append(value)
            found.route(some_inputs()[0])
            again = found.save(tmp_path / f"again{len(accepted)}").path / "router.json"
            kept = json.loads(again.read_text())
            if value is not ...:
                assert (kept[way[0]] if way else kept)[last] == value
    assert len({type(value) for value in accepted} - {type(None), type(...)}) <= 1 or place == "selection.threshold"
    assert ... not in accepted or place == "pool.k"


def read_or_refused(folder):
    """The router, or None where it is refused by the name of its file."""
    try:
        return HeadRouter(folder)
    except ArtifactError as error:
        said = str(error)
    assert str(folder / "router.") in said
    assert len(said) < 1000
    return None


def test_f34_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    router = some_router(evidence=True)
    path = router.save(tmp_path / "mine").path
    equal = 0
    for name in ("router.json", "router.safetensors"):
        data = (path / name).read_bytes()
        for flipped in flips(data, 400):
            (path / name).write_bytes(flipped)
            found = read_or_refused(path)
            if found is not None:
                same_routers(found, router)
                equal += 1
        (path / name).write_bytes(data)
    assert equal < 60  # blanks between the values of the description
    same_routers(HeadRouter(path), router)


def test_f34_a_router_of_format_1_is_read_with_all_other_checks(tmp_path):
    path = some_router(evidence=True).save(tmp_path / "mine").path
    (path / "router.json").write_text(of_format_1(json.loads((path / "router.json").read_text())))
    same_routers(HeadRouter(path), some_router(evidence=True))
    weights = load((path / "router.safetensors").read_bytes())
    (path / "router.safetensors").write_bytes(save(weights | {"deviation": weights["deviation"] * 0}))
    with pytest.raises(ArtifactError, match=r"router.safetensors is no readable router: .*'deviation' must be at "):
        HeadRouter(path)


@pytest.mark.parametrize("seal", [lambda said: sealed(json.dumps(said)), of_format_1], ids=["now", "format 1"])
def test_early_names_of_the_numbers_of_heads_are_read(seal, tmp_path):
    router = some_router(min_heads=2, max_heads=3)
    file = router.save(tmp_path / "mine").path / "router.json"
    said = json.loads(file.read_text())
    selection = said["selection"]
    selection["least"], selection["most"] = selection.pop("min_heads"), selection.pop("max_heads")
    file.write_text(seal(said))
    loaded = HeadRouter(tmp_path / "mine")
    same_routers(loaded, router)
    again = loaded.save(tmp_path / "again").path / "router.json"
    assert set(json.loads(again.read_text())["selection"]) == set(asdict(Selection()))


@pytest.mark.parametrize("name", [*WEIGHT_NAMES, *EVIDENCE_NAMES])
@pytest.mark.parametrize("kind", ["float16", "float64", "int32", "uint8", "bool"])
def test_f34_weights_of_another_type_are_refused(name, kind, tmp_path):
    weights = {own: np.ones_like(array) for own, array in some_router(evidence=True).weights.items()}
    found = {"float16": "F16", "float64": "F64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}[kind]
    rewrite_weights(tmp_path, weights | {name: weights[name].astype(kind)})
    with pytest.raises(ArtifactError, match=rf"mine/router.safetensors is .* \(F32\), found '{name}' of {found}"):
        HeadRouter(tmp_path / "mine")


def rewrite_weights(folder, weights):
    """A router with these weights in its file, and the checksums that fit."""
    path = some_router(evidence=True).save(folder / "mine").path
    content = save(weights)
    (path / "router.safetensors").write_bytes(content)
    changed(weights_sha256=hashlib.sha256(content).hexdigest())(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("deviation", 0.0, "'deviation' must be at least 1e-09, found 0"),
        ("deviation", 1e-45, "'deviation' must be at least 1e-09, found 1.4"),
        ("deviation", -1.0, "'deviation' must be at least 1e-09, found -1"),
        ("evidence_deviation", 0.0, "'evidence_deviation' must be at least 1e-09, found 0"),
        ("mean", 3e38, "'mean' reach 3e"),
        ("mean", -3e38, "'mean' reach 3e"),
        ("projection", 1e30, "'projection' reach 1e"),
        ("bias", np.nan, "'bias' are not finite"),
        ("bias", np.inf, "'bias' are not finite"),
        ("bias", 1e300, "'bias' are not finite"),  # in float32
    ],
)
def test_f34_weights_that_no_training_gives_are_refused_in_memory_and_in_files(name, value, message, tmp_path):
    weights = some_weights(evidence=True)
    weights[name].flat[1] = value
    with pytest.raises(ValueError, match=message):
        HeadRouter.of(some_pool(), weights, state=QueryState(0))
    with np.errstate(over="ignore"):
        rewrite_weights(tmp_path, {own: array.astype(np.float32) for own, array in weights.items()})
    with pytest.raises(ArtifactError, match=f"mine/router.safetensors is no readable router: .*{message}"):
        HeadRouter(tmp_path / "mine")


def test_f34_logits_that_are_not_finite_are_an_error_when_routing():
    router = some_router(evidence=True)
    state, features = some_inputs()
    for use in (router.logits, router.probabilities, router.route):
        with pytest.raises(ValueError, match=r"logit of head \d-\d is not finite: the query embedding reaches 3e\+38"):
            use(np.float32([3e38, -3e38, 3e38, 3e38, -3e38]), features)
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="the query embedding is not finite"):
                use(np.where(np.arange(5) == 1, value, state), features)
            with pytest.raises(ValueError, match="the evidence is not finite"):
                use(state, np.where(np.arange(4) == 1, value, features))
        with pytest.raises(ValueError, match=r"the evidence has the shape \(\), not \(3, 4\)"):
            use(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pool": "0-1"}, "pool must be a HeadSet, got '0-1'"),
        ({"state": 2}, "state must be a QueryState, got 2"),
        ({"selection": {}}, "selection must be a Selection, got {}"),
        ({"report": {"x": {1}}}, "report: "),
    ],
)
def test_f44_a_router_of_wrong_types_is_refused_when_it_is_made(wrong, message):
    given = {"pool": some_pool(), "weights": some_weights(), "state": QueryState(0)} | wrong
    with pytest.raises(TypeError, match=message):
        HeadRouter.of(**given)


def test_f22_a_routers_path_is_expanded_and_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert some_router().save("~/router").path == HeadRouter("~/router").path == tmp_path / "home" / "router"
    near = some_router().save("near")
    monkeypatch.chdir("/")
    same_routers(HeadRouter(near.path), near)


def test_f44_whatever_stands_in_the_weights_place_is_named(tmp_path):
    path = some_router().save(tmp_path / "mine").path
    file = path / "router.safetensors"
    for make in (lambda: file.mkdir(), lambda: file.symlink_to(file), lambda: os.mkfifo(file)):
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        with pytest.raises(ArtifactError, match=r"mine/router.safetensors cannot be read: \w"):
            HeadRouter(path)


def test_weights_cut_short_are_refused(tmp_path):
    path = some_router().save(tmp_path / "mine").path
    file = path / "router.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"mine/router.safetensors is no readable router: it is damaged"):
        HeadRouter(path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no router"):
        HeadRouter(tmp_path / "nowhere")


# Training

LEARNT = Selection(max_heads=2)
POOL = some_pool(",".join(f"{layer}-{head}" for layer in range(2) for head in range(4)))


def planted(seed, count, hidden=12, documents=12, rule=True):
    """Of heads 2 and 5 one ranks the positive first and the other last; which of them, the query says (or chance)."""
    generator = np.random.default_rng(seed)
    states = generator.normal(3, 2, size=(count, hidden)).astype(np.float32)
    scores, labels = generator.normal(size=(count, documents, 8)), np.zeros((count, documents))
    labels[np.arange(count), generator.integers(documents, size=count)] = 1
    right = states[:, 4] > 3 if rule else generator.random(count) < 0.5
    sign = np.where(right, 1, -1)[:, None]
    scores[:, :, 2] += 8 * sign * labels
    scores[:, :, 5] -= 8 * sign * labels
    return RoutingData(states, PaddedLists.of(list(scores), list(labels)))


def with_labels(data, recipe="search", most=2):
    return RoutingData(data.states, data.lists, data.evidence, make_labels(recipe, data.lists, most).targets)


def routed(weights, data, selection=LEARNT):
    """nDCG@10 of each query by the router's own sum."""
    router = HeadRouter.of(POOL, weights, state=QueryState(0), selection=selection)
    evidence = [None] * len(data.states) if data.evidence is None else data.evidence
    chosen = np.stack([router.route(state, features) for state, features in zip(data.states, evidence, strict=True)])
    return list_ndcg(data.lists, np.einsum("qdh,qh->qd", data.lists.scores, chosen)[..., None])[:, 0]


def best_static(data, test, most=2):
    """nDCG@10 of each query by the one set of heads that ranks the training queries best, of all sets."""

    def quality(lists, heads):
        return list_ndcg(lists, lists.scores[:, :, list(heads)].sum(axis=2)[..., None])[:, 0]

    sets = [own for size in range(1, most + 1) for own in combinations(range(8), size)]
    return quality(test.lists, max(sets, key=lambda own: quality(data.lists, own).mean()))


TRAIN, VALID, TEST = with_labels(planted(0, 300)), planted(1, 100), planted(2, 200)
FAST = RouterTraining(epochs=40, patience=10, learning_rate=1e-2)


@pytest.fixture(scope="module")
def learnt():
    return train(TRAIN, VALID, LEARNT, FAST)


def test_a_planted_rule_is_learnt(learnt):
    weights, report = learnt
    quality = routed(weights, TEST).mean()
    assert quality > 0.94
    assert quality > best_static(TRAIN, TEST).mean() + 0.3
    assert report["loss"].iloc[-1] < report["loss"].iloc[1]


@pytest.mark.parametrize("labels", ["search", "shrunk"])
def test_a_random_rule_is_not_learnt(labels):
    data = with_labels(planted(3, 300, rule=False), labels)
    weights, _ = train(data, planted(4, 100, rule=False), LEARNT, FAST)
    test = planted(5, 400, rule=False)
    gain = routed(weights, test) - best_static(data, test)
    assert gain.mean() <= 3 * gain.std() / len(gain) ** 0.5


def test_the_list_itself_can_tell_which_heads_to_take():
    """One of the four numbers says which of the two heads is right; the query says nothing."""

    def make_data(data):
        generator = np.random.default_rng(len(data.states))
        evidence = generator.normal(size=(len(data.states), 8, 4))
        right = (data.lists.scores * data.lists.gains[..., None]).sum(axis=1) > 4
        evidence[:, :, 1] = 5 * right + 20
        return RoutingData(data.states, data.lists, evidence, data.targets)

    data, valid, test = (make_data(planted(seed, count, rule=False)) for seed, count in ((6, 300), (7, 100), (8, 200)))
    weights, _ = train(with_labels(data), valid, LEARNT, RouterTraining(epochs=40, learning_rate=3e-2))
    assert set(EVIDENCE_NAMES) <= set(weights)
    quality = routed(weights, test).mean()
    assert quality > 0.85
    assert quality > best_static(data, test).mean() + 0.2


def test_the_seed_decides_the_weights(learnt):
    weights, report = learnt
    again, again_report = train(TRAIN, VALID, LEARNT, FAST)
    assert report.equals(again_report)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, again[name])
    other, _ = train(TRAIN, VALID, LEARNT, RouterTraining(epochs=2), seed=1)
    for name in ("projection", "head_embeddings"):
        assert not np.allclose(weights[name], other[name])


def test_torchs_own_random_numbers_are_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train(TRAIN, VALID, LEARNT, RouterTraining(epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    # ... and do not matter.
    reports = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        reports.append(train(TRAIN, VALID, LEARNT, RouterTraining(epochs=2))[1])
    assert reports[0].equals(reports[1])


def by_chance(share, count=200):
    """Labels that no query predicts, for this share of the heads."""
    data = planted(9, count)
    targets = (np.random.default_rng(0).random((count, 8)) < share).astype(float)
    return RoutingData(data.states, data.lists, None, targets)


def test_sparsity_leaves_fewer_heads():
    sizes = []
    for sparsity in (0.0, 1.0, 10.0):
        settings = RouterTraining(epochs=20, patience=20, learning_rate=1e-2, sparsity=sparsity)
        _, report = train(by_chance(0.55), VALID, Selection(), settings)
        sizes.append(report["chosen heads"].iloc[-1])
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] > sizes[2] + 3


@pytest.mark.parametrize(
    ("balance", "threshold", "heads"), [(1.0, 0.265, 1), (2.0, 0.265, 8), (2.0, 0.415, 1), (10.0, 0.415, 8)]
)
def test_positive_labels_weigh_as_much_as_negatives_up_to_a_limit(balance, threshold, heads):
    """A fifth of the labels is positive: probabilities go to .2 unweighted, to .33 at weight 2, to .5 at most."""
    settings = RouterTraining(
        epochs=40, patience=40, learning_rate=3e-2, sparsity=0.0, balance=balance, query_ridge=100.0
    )
    _, report = train(by_chance(0.2), VALID, Selection(threshold=threshold), settings)
    assert round(report["chosen heads"].iloc[-1]) == heads


def test_dropout_makes_it_harder_to_learn_by_heart():
    losses = []
    for share in (0.0, 0.5):
        settings = RouterTraining(epochs=60, patience=60, learning_rate=3e-2, dropout=share)
        _, report = train(by_chance(0.5, count=20), VALID, Selection(), settings)
        losses.append(report["labels"].iloc[1:].min())
    assert losses[0] < losses[1] - 0.1


@pytest.mark.parametrize("target", [2, 6])
def test_a_target_size_draws_the_probabilities_sum_towards_it(target):
    settings = RouterTraining(
        epochs=40, patience=40, learning_rate=1e-2, dropout=0.0, sparsity=200.0, target_size=target
    )
    _, report = train(by_chance(0.5), VALID, Selection(), settings)
    distance = report["sparsity"] ** 0.5 * 8  # of the mean number of heads from the target
    assert distance.iloc[-1] < 0.5
    assert distance.iloc[1] > 1.0


def test_a_ranking_loss_can_stand_beside_the_labels():
    weights, report = train(TRAIN, VALID, LEARNT, replace(FAST, ranking=1.0))
    assert report["ranking"].iloc[-1] < report["ranking"].iloc[1]
    assert routed(weights, TEST).mean() > best_static(TRAIN, TEST).mean() + 0.25


def test_the_ranking_loss_takes_lists_of_unlike_lengths():
    data = planted(10, 30)
    there = np.ones_like(data.lists.mask)
    there[::2, 8:] = False
    gains = np.where(there, data.lists.gains, 0)
    lists = PaddedLists(data.lists.scores * there[..., None], gains, there, candidates_ideal(gains))
    data = with_labels(RoutingData(data.states, lists))
    weights, report = train(data, VALID, LEARNT, RouterTraining(epochs=3, ranking=1.0))
    assert np.isfinite(report.to_numpy()).all()
    assert all(np.isfinite(array).all() for array in weights.values())


def test_the_report_has_a_row_for_each_epoch_and_the_best_epoch_is_kept(learnt):
    weights, report = learnt
    quality = report["held-out nDCG@10"]
    assert report["epoch"].tolist() == list(range(len(report)))
    assert routed(weights, VALID).mean() == pytest.approx(quality.max(), abs=1e-6)
    best = int(quality.idxmax())
    assert best > 0
    assert quality.iloc[best] > quality.iloc[0] + 0.2
    # Training up to that epoch gives the same weights.
    shorter, _ = train(TRAIN, VALID, LEARNT, replace(FAST, epochs=best, patience=best + 1))
    for name, array in weights.items():
        np.testing.assert_array_equal(array, shorter[name])


def test_training_ends_when_held_out_queries_have_not_been_ranked_better_for_some_epochs():
    data = with_labels(planted(3, 60, rule=False))
    settings = RouterTraining(epochs=60, patience=3)
    weights, report = train(data, planted(4, 40, rule=False), LEARNT, settings)
    quality = report["held-out nDCG@10"]
    best = int(quality.idxmax())
    assert len(report) < 61
    assert len(report) == best + 1 + settings.patience + 1
    assert routed(weights, planted(4, 40, rule=False)).mean() == pytest.approx(quality.max(), abs=1e-6)


def test_without_epochs_a_router_follows_the_labels_frequencies():
    weights, report = train(TRAIN, VALID, LEARNT, RouterTraining(epochs=0))
    assert len(report) == 1
    rate = np.clip(TRAIN.targets.mean(axis=0), 0.01, 0.99)
    np.testing.assert_allclose(1 / (1 + np.exp(-weights["bias"])), rate, atol=1e-5)


# Logits as weights, trained on the ranking


@pytest.mark.parametrize("evidence", [False, True])
def test_logits_are_weights_whatever_else_is_chosen_by(evidence):
    state, features = some_inputs(3)
    features = features if evidence else None
    for choice in ({}, {"threshold": 1.0, "max_heads": 1}, {"unsure": 1.0}, {"static_heads": 2}):
        router = some_router(evidence, weighting="logit", **choice)
        assert router.standardises
        weights = router.route(state, features)
        np.testing.assert_array_equal(weights, router.logits(state, features))
        np.testing.assert_allclose(1 / (1 + np.exp(-weights)), router.probabilities(state, features), atol=1e-12)
        assert weights.min() < 0
    even = router.with_selection(Selection())
    assert not even.standardises
    assert set(even.route(state, features)) <= {0.0, 1.0}
    np.testing.assert_array_equal(even.with_selection(router.selection).route(state, features), weights)


def test_saved_weights_are_the_same(tmp_path):
    router = some_router(evidence=True, weighting="logit", max_heads=2)
    loaded = router.save(tmp_path / "router")
    assert loaded.standardises
    same_routers(loaded, router)
    np.testing.assert_array_equal(loaded.route(*some_inputs()), router.route(*some_inputs()))


LOGITS = Selection(weighting="logit")
ON_RANKING = RouterTraining(epochs=40, learning_rate=1e-2, **FOR_LOGITS | {"query_ridge": 0.0, "weight_decay": 0.0})


def signed_lists(seed, count=200, documents=8):
    """Relevant documents stand high in heads 0 and 1 and low in head 2; head 2 also carries head 0's noise."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(count, documents, 8)) * np.logspace(-4, 2, 8)
    gains = np.zeros((count, documents))
    gains[np.arange(count), generator.integers(documents, size=count)] = 1
    shared = generator.normal(size=(count, documents)) * 3
    scores[:, :, 0] = 1e-4 * (gains * 2 + shared)
    scores[:, :, 2] = 1e-2 * shared
    states = generator.normal(size=(count, HIDDEN)).astype(np.float32)
    lists = PaddedLists(scores, gains, np.ones_like(gains, dtype=bool), candidates_ideal(gains))
    return RoutingData(states, lists, None, np.zeros((count, 8)))


def ranked_by(weights, data):
    router = HeadRouter.of(POOL, weights, state=QueryState(0), selection=LOGITS)
    found = []
    for i, state in enumerate(data.states):
        own = data.lists.scores[i]
        scores = (own - own.mean(axis=0)) / own.std(axis=0) @ router.route(state)
        found.append(list_ndcg(data.lists[np.array([i])], scores[None, :, None])[0, 0])
    return np.array(found)


def test_a_logit_may_be_a_negative_weight():
    weights, report = train(signed_lists(0), signed_lists(1), LOGITS, ON_RANKING)
    assert set(weights) == set(WEIGHT_NAMES)
    assert weights["bias"][0] > 0.1
    assert weights["bias"][2] < -0.1
    test = signed_lists(2)
    quality = ranked_by(weights, test).mean()
    single = max(list_ndcg(test.lists, test.lists.scores[:, :, [h]])[:, 0].mean() for h in range(8))
    assert quality > single + 0.03
    held_out = ranked_by(weights, signed_lists(1)).mean()
    assert held_out == pytest.approx(report["held-out nDCG@10"].max(), abs=1e-6)


def test_weights_are_learnt_beside_the_first_stages_score():
    """A first stage that is right half the time: what is learnt is how far to trust it."""

    def make_data(seed, strength):
        data = signed_lists(seed)
        generator = np.random.default_rng(seed + 100)
        first = strength * data.lists.gains + generator.normal(size=data.lists.gains.shape)
        return replace(data, first_stage=standardised_lists(first, data.lists.mask))

    sums = {}
    for strength in (0.0, 4.0):
        weights, report = train(make_data(0, strength), make_data(1, strength), LOGITS, ON_RANKING)
        sums[strength] = abs(weights["bias"][0])
        lists = make_data(1, strength)
        by_heads = np.einsum("qdh,qh->qd", lists.lists.standardised().scores, np.stack([
            HeadRouter.of(POOL, weights, state=QueryState(0), selection=LOGITS).route(state)
            for state in lists.states
        ]))
        quality = list_ndcg(lists.lists, (by_heads + lists.first_stage)[..., None])[:, 0].mean()
        assert quality == pytest.approx(report["held-out nDCG@10"].max(), abs=1e-6)
    assert sums[0.0] > 2 * sums[4.0]  # next to a first stage that says nothing, heads weigh more


def test_evidence_is_weighed_beside_the_first_stages_score():
    def make_data(seed):
        data = signed_lists(seed)
        generator = np.random.default_rng(seed + 100)
        evidence = generator.normal(size=(len(data.states), 8, 4))
        evidence[:, :, 2] += 0.3 * np.einsum("qdh,qd->qh", data.lists.standardised().scores, data.lists.gains)
        first = 4 * data.lists.gains + generator.normal(size=data.lists.gains.shape)
        return replace(data, evidence=evidence, first_stage=standardised_lists(first, data.lists.mask))

    data, test = make_data(0), make_data(1)
    weights, report = train(data, test, LOGITS, ON_RANKING)
    assert abs(weights["evidence_weights"][2]) > 3 * np.abs(weights["evidence_weights"][[0, 1, 3]]).max()
    router = HeadRouter.of(POOL, weights, state=QueryState(0), selection=LOGITS)
    routed = np.stack([router.route(*own) for own in zip(test.states, test.evidence, strict=True)])
    by_heads = np.einsum("qdh,qh->qd", test.lists.standardised().scores, routed)
    quality = list_ndcg(test.lists, (by_heads + test.first_stage)[..., None])[:, 0].mean()
    assert quality == pytest.approx(report["held-out nDCG@10"].max(), abs=1e-6)
    assert quality > list_ndcg(test.lists, test.first_stage[..., None])[:, 0].mean() + 0.002


def test_ridge_keeps_what_the_query_adds_small():
    spread = {}
    for ridge in (0.0, 100.0):
        settings = replace(ON_RANKING, query_ridge=ridge, epochs=15, patience=99)
        weights, _ = train(with_labels(planted(0, 300)), planted(1, 100), LOGITS, settings)
        router = HeadRouter.of(POOL, weights, state=QueryState(0), selection=LOGITS)
        spread[ridge] = np.stack([router.route(state) for state in TEST.states]).std(axis=0).mean()
    assert spread[100.0] < 0.2 * spread[0.0]


def test_padding_has_no_part_in_the_ranking_loss():
    data = signed_lists(0, 30)
    scores, gains, there = (
        np.concatenate([own, np.full_like(own[:, :3], fill)], axis=1)
        for own, fill in ((data.lists.scores, 0), (data.lists.gains, 0), (data.lists.mask, False))
    )
    padded = PaddedLists(scores, gains, there, data.lists.ideal)
    settings = replace(ON_RANKING, epochs=3)
    for selection in (LOGITS, Selection(weighting="probability", min_heads=8)):
        one, _ = train(data, signed_lists(1), selection, settings)
        other, _ = train(replace(data, lists=padded), signed_lists(1), selection, settings)
        np.testing.assert_allclose(one["bias"], other["bias"], atol=1e-5)


# From a ridge regression


def test_the_ridge_regression_is_the_textbooks_with_the_penalty_of_the_least_gcv():
    generator = np.random.default_rng(0)
    x, rule = generator.normal(size=(60, 30)), generator.normal(size=(30, 4))
    x, y = x - x.mean(axis=0), x @ rule + 3 * generator.normal(size=(60, 4))
    y = y - y.mean(axis=0)

    def solved(penalty):
        return np.linalg.solve(x.T @ x + penalty * np.eye(30), x.T @ y)

    def gcv(penalty):
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(30), x.T)
        return ((y - hat @ y) ** 2).mean() / (1 - np.trace(hat) / 60) ** 2

    best = min(np.geomspace(1, 1e6, 13) * 60, key=gcv)
    np.testing.assert_allclose(ridge_regression(x, y), solved(best), atol=1e-8)
    noise = ridge_regression(x, generator.normal(size=(60, 4)))
    assert np.abs(noise).max() < 0.2 * np.abs(ridge_regression(x, y)).max()


@pytest.mark.parametrize("size", [2, 32])
def test_a_router_can_start_from_the_ridge_regression(size):
    settings = RouterTraining(start="ridge", epochs=0, size=size)
    data = with_labels(planted(0, 300), "utility")
    weights, report = train(data, VALID, LEARNT, settings)
    assert len(report) == 1
    router = HeadRouter.of(POOL, weights, state=QueryState(0), selection=LEARNT)
    log_odds = np.log(data.targets / (1 - data.targets))
    states = (data.states - weights["mean"]) / weights["deviation"]
    expected = states @ ridge_regression(states, log_odds - log_odds.mean(axis=0)) + log_odds.mean(axis=0)
    logits = np.stack([router.logits(state) for state in data.states])
    if size == 32:
        np.testing.assert_allclose(logits, expected, atol=1e-3)
    else:  # the best of that rank
        assert 0.5 < np.corrcoef(logits.ravel(), expected.ravel())[0, 1] < 0.99999
    assert np.isfinite(logits).all()


def test_a_planted_rule_is_learnt_from_the_ridge_regression():
    data = with_labels(planted(0, 300), "utility")
    weights, _ = train(data, VALID, LEARNT, replace(FAST, start="ridge", balance=1.0))
    assert routed(weights, TEST).mean() > best_static(TRAIN, TEST).mean() + 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": "warm"}, "start is one of 'frequency', 'ridge', got 'warm'"),
        ({"epochs": -1}, "epochs must be an integer >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"size": 0}, "size must be an integer >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
        ({"sparsity": -0.5}, "sparsity must be a number >= 0, got -0.5"),
        ({"learning_rate": float("inf")}, "learning_rate is a finite number, got inf"),
    ],
)
def test_settings_of_training_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        RouterTraining(**wrong)


@pytest.mark.parametrize("name", [field.name for field in fields(RouterTraining)])
def test_f23_settings_of_training_of_another_type_are_refused(name):
    wrong = [True, [1], "3", None]
    if name in ("size", "batch_size", "epochs", "patience"):
        wrong.append(2.0)
    for value in wrong:
        if value is None and name in ("target_size", *FOR_LABELS):
            continue
        if name == "start" and value == "3":
            continue
        with pytest.raises(TypeError, match=f"^{name} (is|must be) .*, got {re.escape(repr(value))}$"):
            RouterTraining(**{name: value})


def test_defaults_of_training_depend_on_the_weighting_of_heads():
    assert RouterTraining(epochs=3).resolved(by_logits=False) == RouterTraining(epochs=3, **FOR_LABELS)
    assert RouterTraining(ridge=2.0).resolved(by_logits=True) == RouterTraining(**FOR_LOGITS | {"ridge": 2.0})
    assert FOR_LABELS.keys() == FOR_LOGITS.keys()


def test_a_list_that_all_heads_score_alike_does_not_spoil_training():
    lists = replace(TRAIN.lists, scores=TRAIN.lists.scores.copy())
    lists.scores[0] = 0
    _, report = train(replace(TRAIN, lists=lists), VALID, LEARNT, RouterTraining(epochs=2))
    assert np.isfinite(report.to_numpy()).all()
