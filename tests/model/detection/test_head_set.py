"""Head sets: as values, as files, against models and frames, and those of the papers."""

import contextlib
import copy
import errno
import json
import os
import pickle
import tempfile
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from damage import DEEP, flips, of_format_1, sealed, unprivileged
from pyterrier_routehead import (
    PUBLISHED,
    ArtifactError,
    AttentionHeadScorer,
    ChatMarkup,
    Detection,
    FrozenLLM,
    Head,
    HeadSet,
    ICRReranker,
    MismatchError,
    PromptTemplate,
    ReadingSettings,
    StaticHeadReranker,
    __version__,
    get_template,
    named_heads,
    paper_settings,
    published_heads,
)
from pyterrier_routehead.ranking.options import check_model
from pyterrier_routehead.ranking.policy import FixedHeads
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.reading.reading import ModelIdentity
from tiny import tiny_model
from toys import byte_tokenizer, toy_llm, two_queries

WEIGHTS = ("aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd")
OTHER_WEIGHTS = ("eeeeeeee", "ffffffff", "cccccccc", "dddddddd")
MODEL = ModelIdentity("org/model", WEIGHTS, 4, 4, "v2")
HEADS = ["3-1", "0-2", "2-0", "0-0"]
FOUND = Detection("core", {"temperature": 0.1, "calibrated": False}, "some train", 12)


def some_set(heads=HEADS, *, model=MODEL, scores=(0.9, 0.5, 0.25, 0.125), settings=None, detection=FOUND):
    scores = None if scores is None else scores[: len(heads)]
    settings = ReadingSettings(max_doc_tokens=80) if settings is None else settings
    return HeadSet.of(heads, model=model, scores=scores, settings=settings, detection=detection)


@pytest.fixture(scope="module")
def folder(llm, tmp_path_factory):
    """The same weights in a local folder."""
    return saved(llm.model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other_llm():
    """Other weights of the same shape."""
    return FrozenLLM(tiny_model("Llama", initializer_range=0.2), tokenizer=byte_tokenizer())


def saved(model, path):
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def layers_entered(llm, run):
    """In which layers a live model computes while something runs."""
    entered = set()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, i=i: entered.add(i)) for i, layer in enumerate(llm.model.layers)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return sorted(entered)


# As a value


def test_a_set_says_heads_scores_model_reading_detection_and_version():
    own = some_set()
    assert list(own) == [Head(3, 1), Head(0, 2), Head(2, 0), Head(0, 0)] == list(own.heads)
    assert own.scores == (0.9, 0.5, 0.25, 0.125)
    assert len(own) == 4
    assert own.model == MODEL
    assert ReadingSettings(**own.settings) == ReadingSettings(max_doc_tokens=80)
    assert set(own.settings) >= {"prompt", "document_order", "document_attention", "token_filter", "calibrate"}
    assert own.detection == FOUND
    assert own.version == __version__
    assert repr(own) == "<HeadSet of 4 heads of org/model, core>"
    assert isinstance(own, pt.Artifact)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": ["4-0"], "scores": None}, r"no head 4-0 in org/model \(4 x 4 heads"),
        ({"heads": ["0-4"], "scores": None}, r"no head 0-4 in org/model"),
        ({"heads": ["0-1", "0-1"]}, "head 0-1 is named twice"),
        ({"heads": []}, "empty"),
        ({"heads": "all"}, "does not name a head"),
        ({"scores": (1.0, 2.0)}, "2 scores for 4 heads"),
        ({"settings": {"document_order": "any"}}, "document_order is one of"),
        ({"settings": {"max_doc_tokens": 0}}, "max_doc_tokens"),
        ({"settings": {"calibrate": False, "token_filter": "head"}}, "calibrate=False"),
    ],
    ids=str,
)
def test_a_set_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        some_set(**wrong)


def test_top_keeps_the_first_heads_and_all_that_is_known():
    own = some_set()
    top = own.top(2)
    assert [str(head) for head in top] == ["3-1", "0-2"]
    assert top.scores == (0.9, 0.5)
    assert (top.model, top.settings, top.detection, top.version) == (MODEL, own.settings, FOUND, own.version)
    assert own.top(4) == own.top(9) == own == some_set()
    assert own.top(2) != own
    assert some_set(scores=None).top(1).scores is None
    for k in (0, -1):
        with pytest.raises(ValueError, match="number of heads >= 1"):
            own.top(k)


def test_below_keeps_the_heads_of_the_first_layers_in_order():
    own = some_set()
    assert [str(head) for head in own.below(3)] == ["0-2", "2-0", "0-0"]
    assert own.below(3).scores == (0.5, 0.25, 0.125)
    assert [str(head) for head in own.below(1)] == ["0-2", "0-0"]
    assert own.below(4) == own.below(99) == own
    with pytest.raises(ValueError, match="no head of <HeadSet of 1 heads"):
        own.top(1).below(3)


def test_random_draws_evenly_from_all_heads_of_the_model():
    own = some_set(HEADS[:1])
    drawn = own.random(16, seed=3)
    assert sorted(drawn) == [Head(layer, head) for layer in range(4) for head in range(4)]
    assert drawn.scores is None
    assert own.random(5, 1) == own.random(5, seed=1) != own.random(5, seed=2)
    assert drawn.detection.criterion == "random"
    assert drawn.detection.settings["seed"] == 3
    assert (drawn.model, drawn.settings) == (MODEL, own.settings)
    counts = pd.Series([own.random(1, seed).heads[0] for seed in range(800)]).value_counts()
    assert len(counts) == 16
    assert counts.between(25, 80).all()  # 50 on average


def test_random_can_be_kept_to_the_first_layers():
    assert sorted(some_set().random(8, seed=0, below=2)) == [Head(layer, head) for layer in (0, 1) for head in range(4)]
    for k, below in ((0, None), (17, None), (9, 2)):
        with pytest.raises(ValueError, match=f"from 1 to the {16 if below is None else 8} heads"):
            some_set().random(k, 0, below=below)


def test_union_has_the_heads_of_both_own_ones_first():
    own, other = some_set(["3-1", "0-2"]), some_set(["2-2", "0-2", "1-1"])
    both = own.union(other)
    assert [str(head) for head in both] == ["3-1", "0-2", "2-2", "1-1"]
    assert both.scores is None
    assert (both.model, both.settings) == (MODEL, own.settings)
    assert both.detection.queries == 24
    assert both.detection.settings["of"] == ["core on some train", "core on some train"]
    assert own.union(own).heads == own.heads
    assert [str(head) for head in own] == ["3-1", "0-2"]
    assert some_set(detection=None).union(some_set(detection=None)).detection is None


def test_sets_of_other_models_or_readings_have_no_union():
    with pytest.raises(MismatchError, match=r"for org/model .*, not for org/other "):
        some_set().union(some_set(model=replace(MODEL, name="org/other", fingerprint=OTHER_WEIGHTS)))
    with pytest.raises(MismatchError, match="document_order='best_last' instead of 'best_first'"):
        some_set().union(some_set(settings=ReadingSettings(max_doc_tokens=80, document_order="best_first")))


def test_overlap_is_the_share_of_the_smaller_set():
    own = some_set()
    assert own.overlap(own) == own.overlap(own.top(1)) == own.top(1).overlap(own) == 1.0
    assert own.overlap(some_set(["0-2", "1-1"])) == 0.5
    assert own.overlap(some_set(["0-2", "2-0", "1-1"])) == pytest.approx(2 / 3)
    assert own.top(1).overlap(some_set(["0-2"])) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"heads": [*HEADS[1:], HEADS[0]]},
        {"scores": None},
        {"model": replace(MODEL, revision="v3")},
        {"settings": ReadingSettings()},
        {"detection": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_sets_are_equal_by_what_they_say(change):
    assert some_set(**change) != some_set()
    assert some_set(**change) == some_set(**change)
    assert hash(some_set()) == hash(some_set())
    assert some_set() != "3-1"


def test_sets_can_be_copied_and_pickled(tmp_path):
    for own in (some_set(), some_set().save(tmp_path / "set")):
        assert copy.deepcopy(own) == copy.copy(own) == pickle.loads(pickle.dumps(own)) == own


# How many of them rank


def test_f5_a_set_says_how_many_of_its_heads_rank(tmp_path):
    own = some_set()
    assert own.k is None
    assert own.ranking == own
    two = own.with_k(2)
    assert two == HeadSet.of(HEADS, model=MODEL, scores=own.scores, settings=own.settings, detection=FOUND, k=2)
    assert (two.k, len(two), list(two)) == (2, 4, list(own))  # the others are there as well
    assert two.ranking == own.top(2) == two.top(2)
    assert two != own
    assert two.with_k(None) == own
    assert repr(two) == "<HeadSet of 4 heads of org/model, core, the first 2 rank>"
    for other in (two.save(tmp_path / "set"), HeadSet.from_json(two.to_json()), pickle.loads(pickle.dumps(two))):
        assert other == two
        assert other.k == 2


def test_f5_of_a_part_of_a_set_all_heads_rank_and_pruning_keeps_k():
    own = some_set().with_k(2)
    parts = (own.top(3), own.subset(["0-2", "2-0"]), own.random(3, 0), own.union(own), own.ranking)
    assert [part.k for part in parts] == [None] * 5
    below = own.below(3)
    assert (below.k, [str(head) for head in below.ranking]) == (2, ["0-2", "2-0"])
    assert own.with_k(4).below(1).k == 2  # no more are left
    assert some_set().below(3).k is None


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be an integer number of heads >= 1, got 0"),
        (5, ValueError, "k must be at most the set's 4 heads, got 5"),
        (2.0, TypeError, "k must be an integer number of heads >= 1, got 2.0"),
        (True, TypeError, "k must be an integer number of heads >= 1, got True"),
        ("2", TypeError, "k must be an integer number of heads >= 1, got '2'"),
    ],
)
def test_f5_a_k_that_cannot_be_is_refused(k, error, message):
    with pytest.raises(error, match=message):
        some_set().with_k(k)
    if k != 5:
        with pytest.raises(error, match=message):
            some_set().top(k)


def test_f5_published_and_bundled_sets_rank_as_their_papers_do():
    for name in PUBLISHED:
        own = published_heads(name)
        assert own.k == (8 if name.startswith("core") else 32 if "70b" in name else 16)
        assert own.ranking == own.top(own.k)
    for document_attention in ("listwise", "blockwise"):
        assert named_heads("core", "smollm2-135m", document_attention).k == 8
        assert named_heads("qr", "smollm2-135m", document_attention).k == 16


def test_f34_what_comes_with_the_package_has_a_checksum():
    package = Path(named_heads("core", "smollm2-135m").path).parents[1]
    files = [*package.glob("sets/*/head_set.json"), *package.glob("routers/*/router.json")]
    assert len(files) == 9
    assert all("checksum" in json.loads(file.read_text()) for file in files)


# As a file


def test_f22_paths_mean_the_same_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    there = some_set().save("~/set")
    assert there.path == tmp_path / "home" / "set" == HeadSet("~/set").path == HeadSet(Path("~/set")).path
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    near = some_set().save("near")
    monkeypatch.chdir("/")
    assert HeadSet(near.path) == near
    assert near.path == tmp_path / "near"
    for path, error in ((3, TypeError), (b"set", TypeError), (None, TypeError), ("", ValueError), ("a\0b", ValueError)):
        for use in (some_set().save, HeadSet):
            with pytest.raises(error, match="path is a path, got"):
                use(path)
    with pytest.raises(ValueError, match="home that it names is not known"):
        HeadSet("~nobodyofthatname/set")


@pytest.mark.parametrize(
    "own",
    [
        some_set(),
        some_set(scores=None, detection=None),
        some_set(settings={}),
        some_set(settings={"document_order": "best_first", "calibrate": False}),
        some_set(settings={"prompt": replace(get_template("core"), chat=ChatMarkup("<a>", "<b>\n"), null_query="né")}),
        some_set(model=ModelIdentity("org/model", (), 4, 4)),
        some_set(detection=Detection("qr", {"depth": None, "of": ["a", "b"]}, "x", 3, "a paper", "a warning")),
    ],
)
def test_saved_and_loaded_sets_say_the_same(own, tmp_path):
    there = own.save(tmp_path / "deep" / "er" / "set")
    for loaded in (there, HeadSet(there.path), HeadSet.load(str(there.path)), pt.Artifact.load(str(there.path))):
        assert type(loaded) is HeadSet
        assert loaded == own
        for name in ("heads", "scores", "model", "settings", "detection", "version"):
            assert getattr(loaded, name) == getattr(own, name), name
        assert all(isinstance(head, Head) for head in loaded)
    assert there.path == tmp_path / "deep" / "er" / "set"
    assert [path.name for path in there.path.parent.iterdir()] == ["set"]


def test_the_file_is_json_for_people_to_read(tmp_path):
    said = json.loads((some_set().save(tmp_path / "set").path / "head_set.json").read_text())
    assert said["heads"] == HEADS
    assert said["scores"] == [0.9, 0.5, 0.25, 0.125]
    assert said["model"] == {
        "name": "org/model",
        "fingerprint": list(WEIGHTS),
        "num_layers": 4,
        "num_heads": 4,
        "revision": "v2",
        "tokenizer": None,
    }
    assert said["settings"]["prompt"]["name"] == "default"
    assert said["settings"]["document_attention"] == "listwise"
    assert said["detection"]["data"] == "some train"
    assert said["detection"]["queries"] == 12
    assert said["version"] == __version__


def test_saving_overwrites_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists already"):
        some_set().save(tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
    some_set().save(str(tmp_path / "set"))
    with pytest.raises(FileExistsError, match="set exists already"):
        some_set(HEADS[:2]).save(tmp_path / "set")
    assert HeadSet(tmp_path / "set") == some_set()


def test_a_criterions_settings_may_be_numpys(tmp_path):
    settings = {"share": np.float32(0.5), "heads": np.int64(3), "grid": np.arange(2), "strict": np.bool_(True)}
    own = HeadSet.of("0-0", model=some_set().model, detection=Detection("mine", settings, "some", 5))
    said = own.save(tmp_path / "set").detection.settings
    assert said == {"share": 0.5, "heads": 3, "grid": [0, 1], "strict": True}


def test_a_part_of_a_loaded_set_can_be_saved_and_keeps_the_version(tmp_path):
    there = some_set().save(tmp_path / "set")
    file = there.path / "head_set.json"
    file.write_text(sealed(file.read_text().replace(f'"version": "{__version__}"', '"version": "0.0.9"')))
    part = HeadSet(there.path).below(3).top(2).save(tmp_path / "part")
    assert HeadSet(tmp_path / "part") == part
    assert [str(head) for head in part] == ["0-2", "2-0"]
    assert part.version == "0.0.9"


def test_head_sets_are_known_to_pyterrier_by_their_entry_point(tmp_path):
    (own,) = entry_points(group="pyterrier.artifact", name="head_set.json")
    assert own.load() is HeadSet
    meta = json.loads((some_set().save(tmp_path / "set").path / "pt_meta.json").read_text())
    assert meta == {"type": "head_set", "format": "json", "package_hint": "pyterrier-routehead"}
    assert pt.inspect.artifact_type_format(some_set()) == ("head_set", "json")


def test_a_packed_set_comes_back_through_pyterriers_artifacts(tmp_path, monkeypatch, address):
    """The functions for the Hub and Zenodo build this package, and take it from an address."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    metadata = {}
    package = some_set().save(tmp_path / "set").build_package(metadata_out=metadata, verbose=False)
    assert package == f"{tmp_path / 'set'}.tar.lz4"
    assert (metadata["type"], metadata["format"]) == ("head_set", "json")
    for artifact in (pt.Artifact, HeadSet):
        loaded = artifact.from_url(f"{address}/set.tar.lz4")
        assert type(loaded) is HeadSet
        assert loaded == some_set()
        assert loaded.path.is_relative_to(tmp_path / "home")
    assert pt.Artifact.from_url(str(tmp_path / "set")) == some_set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: "{", "head_set.json is damaged"),
        (lambda said: "[1, 2]", "is no readable head set: it is an object with fields, found list"),
        (lambda said: json.dumps({"format": 1}), "is no readable head set: lacks heads, scores, model"),
        (lambda said: json.dumps({"heads": []}), "is no readable head set: it lacks format"),
        (lambda said: json.dumps(said | {"format": 3}), "its format is 3, this version reads 1 and 2"),
        (lambda said: json.dumps(said | {"heads": ["9-0"], "scores": None}), "no readable head set: .*no head 9-0"),
        (lambda said: json.dumps(said | {"heads": ["0-0", "0-0"]}), "no readable head set: .*named twice"),
        (lambda said: json.dumps(said | {"scores": [1.0]}), "1 scores for 4 heads"),
        (lambda said: json.dumps(said | {"scores": "abcd"}), "scores must be a list or null, found 'abcd'"),
        (lambda said: json.dumps(said | {"scores": [1, 2, None, 4]}), r"scores\[2\] must be a finite number"),
        (lambda said: json.dumps(said | {"model": said["model"] | {"num_heads": 2.5}}), "num_heads must be an integer"),
        (lambda said: json.dumps(said | {"model": {"name": "x"}}), "is no readable head set: model lacks fingerprint"),
        (lambda said: json.dumps(said | {"settings": {"colour": "red"}}), "unknown settings colour"),
        (lambda said: json.dumps(said | {"settings": {"token_filter": "3sigma"}}), "token_filter is one of"),
        (lambda said: json.dumps(said | {"detection": {"rule": 1}}), "detection has unknown fields rule"),
    ],
)
def test_files_that_hold_no_head_set_are_refused(change, message, tmp_path):
    file = some_set().save(tmp_path / "set").path / "head_set.json"
    file.write_text(sealed(change(json.loads(file.read_text()))))
    with pytest.raises(ArtifactError, match=message) as refused:
        HeadSet(tmp_path / "set")
    assert str(file) in str(refused.value)


def changed_at(said, place, value):
    """The same description with another value at a place such as ``model.name``; ``...`` takes it away."""
    said = copy.deepcopy(said)
    *way, last = place.split(".")
    inner = said
    for name in way:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return said


def read_or_refused(folder):
    """The set, or None where it is refused by the name of its file."""
    try:
        return HeadSet(folder)
    except ArtifactError as error:
        said = str(error)
    assert str(folder / "head_set.json") in said
    assert len(said) < 1000
    return None


WRONG = [
    *(None, True, 3, -1, 2.5, float("nan"), float("inf"), 10**400, 2**63),
    *("", "x", "\ud800", [], [None], [3], {}, {"a": 1}),
]
FIELDS = [
    "format", "heads", "k", "scores", "model", "settings", "detection", "version", "checksum",
    *(f"model.{name}" for name in ("name", "fingerprint", "num_layers", "num_heads", "revision", "tokenizer")),
    *(f"detection.{name}" for name in ("criterion", "settings", "data", "queries", "source", "note")),
    *(f"settings.{field.name}" for field in fields(ReadingSettings)),
    *(f"settings.prompt.{field.name}" for field in fields(PromptTemplate)),
    "settings.prompt.chat.prefix", "settings.prompt.chat.suffix",
]  # fmt: skip


@pytest.mark.parametrize("place", FIELDS)
def test_f44_every_field_has_one_type(place, tmp_path):
    """Whatever stands in a field either is refused by name or is kept as it is, with a checksum that fits."""
    prompt = replace(get_template("core"), chat=ChatMarkup("<a>", "<b>"))
    own = some_set(settings=ReadingSettings(prompt=prompt)).with_k(2)
    file = own.save(tmp_path / "set").path / "head_set.json"
    said = json.loads(file.read_text())
    accepted = []
    for value in [*WRONG, ...]:
        written = changed_at(said, place, value)
        file.write_text(json.dumps(written) if place == "checksum" else sealed(json.dumps(written)))
        found = read_or_refused(tmp_path / "set")
        if found is None:
            continue
        accepted.append(value)
        hash(found), repr(found), found.ranking, found.save(tmp_path / f"again{len(accepted)}")
        if value is not ...:
            kept = json.loads(json.dumps(found.to_json()))
            for name in place.split("."):
                kept = kept[name]
            if (place, value) != ("settings.token_filter", None):  # which means the default
                assert kept == value
                assert type(kept) is type(value)
    assert not {10**400, "\ud800"} & {value for value in accepted if isinstance(value, int | str)} or place == "scores"
    types = {type(value) for value in accepted}
    assert len(types - {type(None), type(...)}) <= 1 or place in ("detection.settings", "settings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * DEEP, "damaged: it is nested too deeply"),
        ("[" * 500 + "]" * 500, "damaged: it is nested too deeply"),
        ('{"detection": ' * DEEP, "damaged: it is nested too deeply"),
        ('{"format": ' + "9" * 5000 + "}", "damaged: .*digits"),
        ('{"format": 1, "scores": [1e999]}', "damaged: it has a number beyond all bounds"),
        ('{"format": 1, "scores": [NaN]}', "damaged: NaN is no number in JSON"),
        ('{"format": 1, "format": 1}', "damaged: 'format' is there twice"),
        (b"\xff\xfe{}", "damaged: .*utf-8"),
        (b"", "damaged: "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_f44_a_file_that_is_no_proper_json_is_refused_by_name(text, message, tmp_path):
    file = some_set().save(tmp_path / "set").path / "head_set.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=rf"head_set.json is {message}"):
        HeadSet(tmp_path / "set")


def test_f44_whatever_stands_in_the_files_place_is_named(tmp_path):
    folder = some_set().save(tmp_path / "set").path
    file = folder / "head_set.json"
    for make in (
        lambda: file.mkdir(),
        lambda: file.symlink_to(file),
        lambda: os.mkfifo(file),
    ):
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        with pytest.raises(ArtifactError, match=r"set/head_set.json cannot be read: \w"):
            HeadSet(folder)
    for path in (file, tmp_path / "loop"):
        with contextlib.suppress(FileExistsError):
            path.symlink_to(path)
        with pytest.raises(ArtifactError, match=str(path)):
            HeadSet(path)


def test_f44_permission_errors_name_the_file():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = some_set().save(Path(name) / "set").path
        (folder / "head_set.json").chmod(0)
        with unprivileged():
            with pytest.raises(ArtifactError, match=r"set/head_set.json cannot be read: Permission denied"):
                HeadSet(folder)
            with pytest.raises(ArtifactError, match=r"other cannot be written: Permission denied"):
                some_set().save(Path(name) / "other")


def test_f44_a_set_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(ArtifactError, match="set cannot be written: No space left on device"):
            some_set().save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file/set cannot be written: "):
        some_set().save(tmp_path / "file" / "set")
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(FileExistsError, match="link exists already"):
        some_set().save(tmp_path / "link")


def test_f34_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    own = some_set().with_k(2)
    file = own.save(tmp_path / "set").path / "head_set.json"
    data = file.read_bytes()
    equal = 0
    for flipped in flips(data, 600):
        file.write_bytes(flipped)
        found = read_or_refused(tmp_path / "set")
        assert found is None or found == own
        equal += found is not None
    assert equal < 60  # blanks between the values


def test_f34_a_set_without_its_checksum_is_refused_and_one_of_format_1_is_read(tmp_path):
    file = some_set().save(tmp_path / "set").path / "head_set.json"
    said = json.loads(file.read_text())
    assert len(said["checksum"]) == 64
    file.write_text(json.dumps(changed_at(said, "checksum", ...)))
    with pytest.raises(ArtifactError, match=r"head_set.json is no readable head set: it has no checksum"):
        HeadSet(tmp_path / "set")
    file.write_text(json.dumps(said | {"heads": HEADS[::-1]}))
    with pytest.raises(ArtifactError, match=r"checksum differs.*changed by hand"):
        HeadSet(tmp_path / "set")
    file.write_text(of_format_1(said))
    assert HeadSet(tmp_path / "set") == some_set()
    file.write_text(of_format_1(said | {"scores": [1, 2, 3, "4"]}))
    with pytest.raises(ArtifactError, match=r"scores\[3\]"):
        HeadSet(tmp_path / "set")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"model": "org/model"}, TypeError, "model must be a ModelIdentity, got 'org/model'"),
        ({"detection": "core"}, TypeError, "detection must be a Detection"),
        ({"settings": 3}, TypeError, "settings must be ReadingSettings or a mapping"),
        ({"scores": (0.5, float("nan"), 1, 1)}, ValueError, "the score of head 0-2 is a finite number, got nan"),
        ({"scores": (0.5, "a", 1, 1)}, TypeError, "the score of head 0-2 is a finite number, got 'a'"),
        ({"model": replace(MODEL, num_layers=2.5)}, TypeError, "model.num_layers must be an integer >= 1, got 2.5"),
        ({"detection": replace(FOUND, settings={"x": np.inf})}, ValueError, "detection.settings cannot be written"),
        ({"detection": replace(FOUND, settings={"x": {1}})}, TypeError, "detection.settings: "),
    ],
    ids=str,
)
def test_f44_a_set_of_wrong_types_is_refused_when_it_is_made(wrong, error, message):
    with pytest.raises(error, match=message):
        some_set(**wrong)


def test_folders_that_hold_no_head_set_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"holds no head set: there is no head_set.json"):
            HeadSet(path)


# Against models


@pytest.mark.parametrize("allow_mismatch", [False, True])
@pytest.mark.parametrize("other", [{"num_layers": 5}, {"num_heads": 8}], ids=str)
def test_a_model_of_another_shape_is_refused_whatever_is_allowed(other, allow_mismatch, tmp_path):
    for name in ("org/model", str(tmp_path)):
        model = replace(MODEL, name=name, **other)
        with pytest.raises(MismatchError, match=r"for org/model \(4 x 4 heads.*, not for .* \((5 x 4|4 x 8) heads"):
            some_set().check_model(model, allow_mismatch=allow_mismatch)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, name="other/name", revision=None),
        replace(MODEL, fingerprint=WEIGHTS[:2]),
    ],
    ids=["same", "other id", "part"],
)
def test_the_weights_decide_where_both_are_known(model):
    some_set().check_model(model)
    for named in (model, replace(model, name="org/model"), replace(model, name=".")):
        with pytest.raises(MismatchError, match=r"weights aaaaaaaa-b.*weights eeeeeeee-f.*allow_mismatch"):
            some_set().check_model(replace(named, fingerprint=OTHER_WEIGHTS))
        some_set().check_model(replace(named, fingerprint=OTHER_WEIGHTS), allow_mismatch=True)


def test_without_weights_the_id_decides(tmp_path):
    own = some_set(model=replace(MODEL, fingerprint=()))
    own.check_model(MODEL)
    own.check_model(replace(MODEL, revision="v3"))
    some_set().check_model(replace(MODEL, fingerprint=()))
    for name in ("org/model-base", str(tmp_path / "nowhere")):
        with pytest.raises(MismatchError, match=rf"org/model \(.*weights unknown\), not for {name} \(.*allow_mismatch"):
            own.check_model(replace(MODEL, name=name))
        own.check_model(replace(MODEL, name=name), allow_mismatch=True)


def test_without_weights_a_local_folder_is_used_with_a_warning(tmp_path):
    own = some_set(model=replace(MODEL, fingerprint=()))
    local = replace(MODEL, name=str(tmp_path))
    for check in (own.check_model, partial(check_model, FixedHeads.of(own))):  # called by us one step deeper
        with pytest.warns(UserWarning, match=rf"for org/model \(.*, not for {tmp_path} .*shapes") as caught:
            check(local)
        assert caught[0].filename == __file__, "f31: at the user's line, however deep it is found"
    own.check_model(local, allow_mismatch=True)  # what was asked for needs no warning
    some_set().check_model(local)  # the weights are known


def test_a_set_ranks_with_the_weights_it_is_for_under_any_name(llm, folder):
    own = HeadSet.of("1-0,2-3", model=model_identity(llm))
    expected = StaticHeadReranker("1-0,2-3", llm=llm)(two_queries())
    for model in (llm, toy_llm(), FrozenLLM(folder, dtype="float32", max_layers=3)):
        out = StaticHeadReranker(own, llm=model)(two_queries())
        np.testing.assert_allclose(out["score"], expected["score"], atol=1e-6)
    behind = StaticHeadReranker(own)(AttentionHeadScorer(llm=llm)(two_queries()))
    np.testing.assert_allclose(behind["score"], expected["score"], atol=1e-6)


def test_other_weights_are_refused_on_text_and_on_head_scores(llm, other_llm):
    own = HeadSet.of("1-0,2-3", model=model_identity(llm))
    scored = AttentionHeadScorer(llm=other_llm)(two_queries())
    expected = StaticHeadReranker("1-0,2-3", llm=other_llm)(two_queries())["score"]
    for inp, model in ((two_queries(), other_llm), (scored, None)):
        with pytest.raises(MismatchError, match=r"for LlamaModel .*, not for LlamaModel .*allow_mismatch"):
            StaticHeadReranker(own, llm=model)(inp)
        allowed = StaticHeadReranker(own, llm=model, allow_mismatch=True)(inp)
        np.testing.assert_allclose(allowed["score"], expected, atol=1e-6)


def test_another_shape_is_refused_on_text_and_on_head_scores(llm):
    own = HeadSet.of("1-0,2-3", model=ModelIdentity("big", (), 16, 4))
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    for inp in (two_queries(), scored):
        with pytest.raises(MismatchError, match=r"for big \(16 x 4 heads.*not for LlamaModel \(4 x 4"):
            StaticHeadReranker(own, llm=llm, allow_mismatch=True)(inp)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
def test_a_set_without_weights_warns_of_a_local_folder_when_ranking(folder):
    own = HeadSet.of("0-1", model=ModelIdentity("org/model", (), 4, 4))
    expected = StaticHeadReranker("0-1", llm=folder)(two_queries())["score"]
    with pytest.warns(UserWarning, match=rf"for org/model .*not for {folder}"):
        out = StaticHeadReranker(own, llm=folder)(two_queries())
    np.testing.assert_allclose(out["score"], expected, atol=1e-6)


# Against readings


@pytest.mark.parametrize(
    ("setting", "value", "values"),
    [
        ("prompt", "icr", "'icr' instead of 'default'"),
        ("document_order", "best_first", "'best_first' instead of 'best_last'"),
        ("document_attention", "blockwise", "'blockwise' instead of 'listwise'"),
        ("max_doc_tokens", 7, "7 instead of 150"),
        ("calibrate", False, "False instead of True"),
        ("token_filter", "none", "'none' instead of 'head'"),
    ],
)
def test_a_frame_read_otherwise_than_the_set_is_refused_unless_allowed(llm, setting, value, values):
    own = HeadSet.of("1-0,2-3", model=model_identity(llm), settings=ReadingSettings())
    assert len(StaticHeadReranker(own)(AttentionHeadScorer(llm=llm)(two_queries()))) == 8
    scored = AttentionHeadScorer(llm=llm, **{setting: value})(two_queries())
    with pytest.raises(MismatchError, match=rf"different settings.* {setting}={values}.*allow_mismatch=True"):
        StaticHeadReranker(own)(scored)
    allowed = StaticHeadReranker(own, allow_mismatch=True)(scored)
    np.testing.assert_allclose(allowed["score"], StaticHeadReranker("1-0,2-3")(scored)["score"], atol=1e-9)


def test_what_a_set_does_not_know_may_be_read_anyhow(llm):
    own = HeadSet.of("1-0", model=model_identity(llm), settings={"document_order": "best_first"})
    scored = AttentionHeadScorer(llm=llm, document_order="best_first", max_doc_tokens=3)(two_queries())
    assert len(StaticHeadReranker(own)(scored)) == 8
    scored = AttentionHeadScorer(llm=llm, max_doc_tokens=3)(two_queries())
    with pytest.raises(MismatchError, match="head set: document_order='best_last' instead of 'best_first';"):
        StaticHeadReranker(own)(scored)


def test_text_is_read_as_the_set_says(llm):
    settings = {"document_order": "best_first", "max_doc_tokens": 4, "document_attention": "blockwise"}
    own = HeadSet.of("1-0,2-3", model=model_identity(llm), settings=settings)
    expected = StaticHeadReranker("1-0,2-3", llm=llm, **settings)(two_queries())["score"]
    plain = StaticHeadReranker("1-0,2-3", llm=llm)(two_queries())["score"]
    assert not np.allclose(expected, plain, atol=1e-4)
    for by_hand in ({}, {"max_doc_tokens": 4}):  # the same value by hand is nothing to warn of
        out = StaticHeadReranker(own, llm=llm, **by_hand)(two_queries())
        np.testing.assert_allclose(out["score"], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("document_order", "best_first", "document_order='best_first' instead of 'best_last'"),
        ("max_doc_tokens", 4, "max_doc_tokens=4 instead of 150"),
        ("prompt", "icr", "prompt='icr' instead of 'default'"),
        ("calibrate", False, "calibrate=False instead of True"),
    ],
)
def test_a_value_by_hand_that_differs_from_the_sets_counts_and_warns(llm, setting, value, message):
    own = HeadSet.of("1-0,2-3", model=model_identity(llm), settings=ReadingSettings())
    expected = StaticHeadReranker("1-0,2-3", llm=llm, **{setting: value})(two_queries())["score"]
    with pytest.warns(UserWarning, match=f"read with other settings than set by hand: {message}"):
        out = StaticHeadReranker(own, llm=llm, **{setting: value})(two_queries())
    np.testing.assert_allclose(out["score"], expected, atol=1e-6)


# Which model, and how much of it


def test_without_llm_a_set_brings_its_model_loaded_as_far_as_needed(folder):
    own = HeadSet.of("1-0,0-3", model=replace(model_identity(FrozenLLM(folder)), revision="v2"))
    reranker = StaticHeadReranker(own)
    out = reranker(two_queries())
    expected = StaticHeadReranker("1-0,0-3", llm=folder)(two_queries())["score"]
    np.testing.assert_allclose(out["score"], expected, atol=1e-6)
    llm = reranker._models.open(None, named=own.model, max_layers=2)  # the one that it has made
    assert (llm.name, llm.revision) == (folder, "v2")
    assert llm.is_loaded
    assert llm.num_layers == len(llm.fingerprint) == 2
    assert llm.total_layers == 4


def test_a_folder_whose_weights_were_replaced_is_refused(llm, tmp_path):
    path = saved(llm.model, tmp_path)
    own = HeadSet.of("1-0", model=model_identity(FrozenLLM(path)))
    saved(tiny_model("Llama", initializer_range=0.2), tmp_path)
    with pytest.raises(MismatchError, match=f"the head set is for {path} .*not for {path} "):
        StaticHeadReranker(own)(two_queries())


@pytest.mark.parametrize(("heads", "layers"), [("0-1", 1), ("1-3,0-0", 2), ("3-0", 4)])
def test_layers_above_the_deepest_head_do_not_run(heads, layers):
    llm = toy_llm()
    own = HeadSet.of(heads, model=model_identity(llm))
    for document_attention in ("listwise", "blockwise"):
        reranker = StaticHeadReranker(own, llm=llm, document_attention=document_attention)
        assert layers_entered(llm, lambda reranker=reranker: reranker(two_queries())) == list(range(layers))
    assert layers_entered(llm, lambda: ICRReranker(llm=llm)(two_queries())) == [0, 1, 2, 3]


def test_a_set_of_a_model_loaded_in_part_serves_the_whole(llm, folder):
    part = model_identity(FrozenLLM(folder, max_layers=2))
    assert (part.num_layers, len(part.fingerprint)) == (4, 2)
    own = HeadSet.of("1-0", model=part)
    for model in (llm, folder, None):
        assert len(StaticHeadReranker(own, llm=model)(two_queries())) == 8


# Published sets

SHAPES = {
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 32, 32),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B-Instruct", 80, 64),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", 16, 32),
    "llama-3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", 28, 24),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 28, 28),
    "mistral-7b-v0.2": ("mistralai/Mistral-7B-Instruct-v0.2", 32, 32),
    "granite-3.2-8b": ("ibm-granite/granite-3.2-8b-instruct", 40, 32),
    "phi-4": ("microsoft/phi-4", 40, 40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_name_checkpoint_shape_reading_and_source(name, tmp_path):
    own = published_heads(name)
    method, model = next((name[: -len(model) - 1], model) for model in SHAPES if name.endswith(model))
    assert (own.model.name, own.model.num_layers, own.model.num_heads) == SHAPES[model]
    assert own.model.fingerprint == ()
    assert own.scores is None
    assert len(own) == (20 if method == "core" else 32 if "70b" in model else 16)
    assert own.detection.queries > 0
    assert own.detection.data
    number, repository = {
        "core": ("2510.02219", "linhhtran/CoRe-Reranking"),
        "qr": ("2506.09944", "princeton-pli/QRHead"),
    }[method.split("-")[0]]
    assert number in own.detection.source
    assert repository in own.detection.source
    variant = {"core-mistral-7b-v0.2": "core-mistral", "qr-nq-qwen2.5-7b": "qr-qwen"}
    assert own.settings == paper_settings(variant.get(f"{method}-{model}", method.split("-")[0]))
    assert own.save(tmp_path / "set") == own


def test_published_heads_are_those_of_the_repositories():
    firsts = {name: [str(head) for head in published_heads(name).top(3)] for name in PUBLISHED}
    assert firsts == {
        "qr-nq-llama-3.1-8b": ["14-22", "13-16", "14-28"],
        "qr-lme-llama-3.1-8b": ["13-18", "13-21", "8-11"],
        "qr-nq-llama-3.2-1b": ["8-21", "8-14", "7-22"],
        "qr-nq-llama-3.2-3b": ["13-16", "12-12", "13-23"],
        "qr-lme-llama-3.2-3b": ["15-18", "15-22", "16-15"],
        "qr-nq-qwen2.5-7b": ["16-19", "16-2", "16-20"],
        "qr-nq-llama-3.1-70b": ["31-32", "35-26", "35-25"],
        "qr-lme-llama-3.1-70b": ["35-17", "35-27", "31-33"],
        "core-llama-3.1-8b": ["13-18", "13-1", "14-13"],
        "core-mistral-7b-v0.2": ["15-21", "15-1", "16-12"],
        "core-granite-3.2-8b": ["19-1", "17-20", "19-19"],
        "core-phi-4": ["17-1", "23-1", "19-5"],
    }
    temperatures = {name: published_heads(name).detection.settings.get("temperature") for name in PUBLISHED}
    assert {name: value for name, value in temperatures.items() if value is not None} == {
        "core-llama-3.1-8b": 0.1,
        "core-mistral-7b-v0.2": 0.001,
        "core-granite-3.2-8b": 0.001,
        "core-phi-4": 0.1,
    }


def test_granites_published_set_comes_with_a_warning():
    noted = [name for name in PUBLISHED if "before relying on them" in published_heads(name).detection.note]
    assert noted == ["core-granite-3.2-8b"]


def test_published_sets_are_checked_by_shape_and_id(tmp_path):
    own = published_heads("core-llama-3.1-8b")
    model = ModelIdentity("meta-llama/Llama-3.1-8B-Instruct", ("12345678",), 32, 32)
    own.check_model(model)
    with pytest.raises(MismatchError, match=r"Llama-3.1-8B-Instruct .*not for meta-llama/Llama-3.1-8B "):
        own.check_model(replace(model, name="meta-llama/Llama-3.1-8B"))
    with pytest.warns(UserWarning, match=r"Llama-3.1-8B-Instruct .*not for"):
        own.check_model(replace(model, name=str(tmp_path)))
    with pytest.raises(MismatchError, match=r"\(32 x 32 heads.*\(28 x 24 heads"):
        own.check_model(replace(model, num_layers=28, num_heads=24), allow_mismatch=True)


def test_unknown_published_sets_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no published set 'core-gpt-5'; known: qr-nq-llama-3.1-8b, .*core-phi-4"):
        published_heads("core-gpt-5")
