"""Uploading head sets and routers: what goes over the network, with the hub's and Zenodo's own calls replaced."""

import html
import json
import shutil
import tarfile
from pathlib import Path

import pyterrier as pt
import pytest
import requests
from lz4.frame import LZ4FrameFile

from pyterrier_routehead import ArtifactError, Detection, HeadRouter, HeadSet, ReadingSettings, named_router
from pyterrier_routehead.reading.reading import ModelIdentity

FOUND = Detection("core", {"temperature": 0.1, "calibrated": False}, "some train <a>", 12, "a paper", "a note")


def some_set():
    model = ModelIdentity("org/model", ("aa", "bb"), 4, 4, "v2")
    return HeadSet.of("3-1,0-2,2-0", model=model, settings=ReadingSettings(), detection=FOUND, k=2)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What is uploaded lies in a folder."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "create_branch", lambda *_, **__: None)
    monkeypatch.setattr(
        huggingface_hub, "upload_folder", lambda *, folder_path, **_: str(shutil.copytree(folder_path, folder))
    )
    return folder


def unpacked(package, folder):
    with LZ4FrameFile(str(package)) as content, tarfile.open(fileobj=content) as files:
        files.extractall(folder, filter="data")
    return pt.Artifact.load(str(folder))


@pytest.mark.parametrize("saved", [False, True])
def test_f26_a_set_can_be_uploaded_saved_or_not(saved, hub, tmp_path):
    own = some_set()
    there = own.save(tmp_path / "set")
    (there if saved else own).to_hf("me/my-heads")
    assert not isinstance(own.path, Path)  # a value does not change
    found = unpacked(hub / "artifact.tar.lz4", tmp_path / "there")
    assert type(found) is HeadSet
    assert found == own


def test_f26_the_card_says_what_the_set_knows(hub):
    some_set().to_hf("me/my-heads@v1", pretty_name="My heads")
    card = (hub / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert "pretty_name: 'My heads'" in front
    assert "- pyterrier-artifact.head_set.json" in front
    assert "# license: " in front
    assert text.startswith("\n# My heads\n")
    for known in (
        "3 attention heads of org/model, best first, of which the first 2 rank",
        "HeadSet.from_hf('me/my-heads@v1')",
        "pip install pyterrier-routehead",
        "model: org/model",
        "revision: v2",
        "shape: 4 layers with 4 heads each",
        "heads that rank (k): 2",
        "criterion (measure of a head): core",
        "temperature=0.1",
        "data: some train <a>",
        "judged queries: 12",
        "source: a paper",
        "note: a note",
        "prompt: default",
        "document_order: best_last",
        f"pyterrier-routehead: {some_set().version}",
    ):
        assert known in text
    assert "TODO" not in card
    assert "tokenizer: " not in text  # what is not known is not there


@pytest.mark.parametrize("saved", [False, True])
def test_f26_a_router_is_uploaded_with_what_it_knows(saved, hub, tmp_path):
    router = named_router("smollm2-135m")
    own = router if saved else router.with_selection(router.selection)
    own.to_hf("me/router")
    card = (hub / "README.md").read_text()
    for known in (
        "A router over 64 attention heads of SmolLM2-135M-Instruct",
        "RouteHeadReranker(HeadRouter.from_hf('me/router'))",
        "query embedding: layer=15, pooling=mean, source=query",
        "choice of heads: threshold=0.5",
        "training: held-out nDCG@10: 0.83",
        "data: SciFact train (clean of test)",
    ):
        assert known in card
    found = unpacked(hub / "artifact.tar.lz4", tmp_path / "there")
    assert type(found) is HeadRouter
    assert found.pool == router.pool
    assert found.report == router.report


@pytest.mark.parametrize("own", [some_set(), named_router("smollm2-135m")], ids=["set", "router"])
def test_f26_the_code_of_the_card_is_python(own):
    code = own._usage("load()")
    compile(code, "card", "exec")
    exec(code.split("\n")[0], {})


def test_f26_zenodos_form_says_the_same(monkeypatch):
    sent = {}

    class Reply:
        def raise_for_status(self):
            pass

        def json(self):
            links = {name: f"https://zenodo.invalid/{name}" for name in ("html", "latest_draft", "bucket", "discard")}
            return {"id": 17, "links": links}

    def put(url, *, json=None, data=None, params=None):
        sent[url] = json if data is None else data.read()
        return Reply()

    monkeypatch.setattr(requests, "post", lambda *_, **__: Reply())
    monkeypatch.setattr(requests, "put", put)
    some_set().to_zenodo(pretty_name="My heads")
    form = sent["https://zenodo.invalid/latest_draft"]["metadata"]
    assert form["title"] == "My heads"
    assert "HeadSet.from_zenodo('17')" in html.unescape(form["description"])
    assert "data: some train &lt;a&gt;" in form["description"]
    assert "TODO" not in form["description"]
    assert len(sent["https://zenodo.invalid/bucket/artifact.tar.lz4"]) > 100


def test_f26_a_package_of_what_was_never_saved_needs_a_path(tmp_path):
    for own in (some_set(), named_router("smollm2-135m").with_selection(named_router("smollm2-135m").selection)):
        with pytest.raises(ArtifactError, match=r"lies in no folder: give package_path, or use what save\(path\)"):
            own.build_package()
        with pytest.raises(ArtifactError, match=r"lies in no folder: use what save\(path\) returns"):
            own.to_p2p()
        metadata = {}
        package = str(tmp_path / f"{type(own).__name__}.tar.lz4")
        assert own.build_package(package, metadata_out=metadata, verbose=False) == package
        assert metadata["package_hint"] == "pyterrier-routehead"
        assert json.loads(Path(f"{package}.json").read_text())["total_size"] > 100
