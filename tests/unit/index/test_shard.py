"""Shards without a model: whatever documents are called, they are found again."""

import errno
import gc
import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyterrier_routehead.common.errors import ArtifactError, MismatchError
from pyterrier_routehead.heads import Head
from pyterrier_routehead.index import shard as shard_module
from pyterrier_routehead.index.description import IndexDescription
from pyterrier_routehead.index.quantising import as_rows
from pyterrier_routehead.index.shard import DOCUMENT, Shard, ShardWriter, link_shard
from pyterrier_routehead.index.view import open_view
from pyterrier_routehead.kernel.keys import KeyHead
from pyterrier_routehead.reading.reading import ModelIdentity, ReadingSettings

KEY_HEAD = KeyHead(0, 0)
DESCRIPTION = IndexDescription(
    ModelIdentity("model", ("a",), 1, 1),
    "around",
    "float32",
    ReadingSettings(document_attention="late"),
    (1, 2),
    9,
    None,
    {Head(0, 0): KEY_HEAD},
    {KEY_HEAD: 4},
    "int8",
)


def write(folder: Path, docnos: list[str], number: int = 0) -> Shard:
    """A shard of documents of 0, 1, 2, ... tokens, whose keys are their numbers."""
    writer = ShardWriter(folder, DESCRIPTION)
    documents = np.array([(i, 0, i, i) for i in range(len(docnos))], DOCUMENT)
    keys = np.repeat(np.arange(len(docnos), dtype=np.float32), documents["tokens"])[:, None].repeat(4, axis=1)
    writer.add(docnos, documents, {KEY_HEAD: as_rows(keys, "int8")})
    return Shard(writer.finish(number), DESCRIPTION)


DOCNOS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        st.integers(0, 10**12).map(str),
        st.integers(0, 99).map("doc{:05d}".format),
        st.integers(0, 99).map("MED-{}".format),
    ),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(DOCNOS)
@example([""])
@example(["0", "00", "000"])
@example(["À", "Á"])
@example(["~0"])
@example([str(i) for i in range(300)])
@example([f"d{i:04d}" for i in range(300)] + ["d0300x"])
@settings(max_examples=60, deadline=None)
def test_documents_are_found_by_their_docnos(docnos):
    with tempfile.TemporaryDirectory() as folder:
        shard = write(Path(folder), docnos)
        assert shard.docnos == docnos
        assert shard.find(docnos).tolist() == list(range(len(docnos)))
        strangers = [f"{docno} and more" for docno in docnos if f"{docno} and more" not in docnos]
        assert (shard.find([*strangers, f"not {docnos[0]}x"]) == -1).all()
        view = open_view(Path(folder), DESCRIPTION)
        numbers = np.arange(len(docnos))[::-1].copy()
        keys = view.keys(numbers, np.arange(len(docnos)))
        assert keys.order.tolist() == numbers.tolist()  # as stored
        assert keys.lengths.tolist() == list(range(len(docnos)))


def test_a_shard_without_documents_is_not_written(tmp_path):
    writer = ShardWriter(tmp_path, DESCRIPTION)
    writer.discard()
    assert not any(tmp_path.iterdir())


def test_links_are_whole_shards(tmp_path):
    shard = write(tmp_path / "one", ["a", "b", "c"])
    other = DESCRIPTION.renewed()
    link_shard(shard, tmp_path / "two", 7, other.id)
    (copy,) = open_view(tmp_path / "two", other).shards
    assert copy.folder.name == "000007"
    assert copy.docnos == ["a", "b", "c"]
    assert not copy.check()


def test_a_view_keeps_the_shards_that_it_knows(tmp_path):
    write(tmp_path, ["a", "b"])
    before = open_view(tmp_path, DESCRIPTION)
    assert open_view(tmp_path, DESCRIPTION, before) is before
    write(tmp_path, ["c"], 1)
    (tmp_path / ".being-written").mkdir()
    after = open_view(tmp_path, DESCRIPTION, before)
    assert after.shards[0] is before.shards[0]
    assert after.docnos() == ["a", "b", "c"]
    assert after.find(["c", "a", "x"]).tolist() == [2, 0, -1]
    assert len(before) == 2


@pytest.mark.parametrize("file", ["documents.npy", "0-0.keys", "docnos.npids"])
def test_a_cut_file_is_named(tmp_path, file):
    folder = write(tmp_path, ["a", "b"]).folder
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=file):
        Shard(folder, DESCRIPTION)


# Files


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def few_files():
    """This process may open 40 files more than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_shards_take_few_open_files(tmp_path, monkeypatch, few_files):
    monkeypatch.setattr(shard_module, "MOST_MAPPED", 8)
    for number in range(60):
        write(tmp_path, [f"d{number}", f"e{number}"], number)
    view, before = open_view(tmp_path, DESCRIPTION), open_files()
    numbers = np.arange(len(view))[::-1].copy()
    (keys,) = view.keys(numbers, np.arange(len(view))).pieces(KEY_HEAD, 10**6)
    np.testing.assert_allclose(keys, np.ones((60, 4)), rtol=1e-2)  # of documents of 0 tokens and of 1
    assert open_files() <= before + 8
    held = [shard.rows(KEY_HEAD) for shard in view.shards[:20]]  # whoever holds rows can go on reading them
    assert all(rows.tobytes() == held[0].tobytes() for rows in held)


def test_many_key_heads_take_few_open_files(tmp_path, few_files):
    heads = {Head(layer, 0): KeyHead(layer, 0) for layer in range(60)}
    description = replace(DESCRIPTION, key_heads=heads, dims=dict.fromkeys(heads.values(), 4))
    writer = ShardWriter(tmp_path, description)
    for docno in ("a", "b"):
        rows = as_rows(np.ones((3, 4), np.float32), "int8")
        writer.add([docno], np.array([(3, 0, 3, 0)], DOCUMENT), dict.fromkeys(heads.values(), rows))
    shard = Shard(writer.finish(0), description)
    assert len(shard.rows(KeyHead(59, 0))) == 6
    assert not shard.check()


def test_mappings_of_shards_that_are_gone_are_given_back(tmp_path):
    for number in range(30):
        write(tmp_path, [f"d{number}", f"e{number}"], number)
    gc.collect()
    before = open_files()
    view = open_view(tmp_path, DESCRIPTION)
    for shard in view.shards:
        shard.rows(KEY_HEAD)
    assert open_files() == before + 30
    del view, shard
    gc.collect()
    assert open_files() == before


def test_a_file_that_vanished_is_named(tmp_path):
    shard = write(tmp_path, ["a", "b"])
    (shard.folder / "0-0.keys").unlink()
    with pytest.raises(ArtifactError, match=r"0-0\.keys cannot be read"):
        shard.rows(KEY_HEAD)
    assert ["0-0.keys cannot be read" in problem for problem in shard.check()] == [True]


# Writing


def one_document(writer: ShardWriter) -> None:
    rows = {KEY_HEAD: as_rows(np.ones((1, 4), np.float32), "int8")}
    writer.add(["a"], np.array([(1, 0, 1, 0)], DOCUMENT), rows)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_fails_in_writing_leaves_nothing(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path, DESCRIPTION)
    one_document(writer)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="cannot be written: No space left"):
            writer.finish(0)
    assert not any(tmp_path.iterdir())
    writer = ShardWriter(tmp_path, DESCRIPTION)
    (tmp_path / next(tmp_path.iterdir()).name / "0-0.keys").mkdir()
    with pytest.raises(ArtifactError, match=r"0-0\.keys cannot be written: Is a directory"):
        one_document(writer)
    assert not any(tmp_path.iterdir())
    with pytest.raises(KeyError):
        ShardWriter(tmp_path, DESCRIPTION).add(["a"], np.array([(1, 0, 1, 0)], DOCUMENT), {})
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
        ShardWriter(tmp_path / "file", DESCRIPTION)
    shard = write(tmp_path / "one", ["a", "b"])
    with pytest.raises(ArtifactError, match="cannot be linked or copied: Not a directory"):
        link_shard(shard, tmp_path / "file", 0, DESCRIPTION.id)


def test_a_number_is_taken_once(tmp_path):
    write(tmp_path, ["b", "c"], 3)
    writer = ShardWriter(tmp_path, DESCRIPTION)
    one_document(writer)
    with pytest.raises(FileExistsError):
        writer.finish(3)
    assert Shard(writer.finish(4), DESCRIPTION).docnos == ["a"]
    assert open_view(tmp_path, DESCRIPTION).docnos() == ["b", "c", "a"]


def test_a_writer_shows_that_it_lives(tmp_path):
    writer = ShardWriter(tmp_path, DESCRIPTION)
    (scratch,) = tmp_path.iterdir()
    one_document(writer)
    os.utime(scratch, (0, 0))
    one_document(writer)
    assert scratch.stat().st_mtime > 0


# Names and owners


def test_docnos_that_cannot_be(tmp_path):
    shard = write(tmp_path, ["a", "b"])
    assert shard.find(["a\0", "b\ud800", "b", "\0"]).tolist() == [-1, -1, 1, -1]
    assert shard.find([]).tolist() == []
    assert open_view(tmp_path, DESCRIPTION).find(["a\0", "a"]).tolist() == [-1, 0]


def test_a_shard_of_another_index_is_named(tmp_path):
    write(tmp_path, ["a", "b"])
    with pytest.raises(ArtifactError, match="000000 is a shard of another index"):
        open_view(tmp_path, DESCRIPTION.renewed())


def test_a_folder_of_shards_that_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match="shards is missing"):
        open_view(tmp_path / "shards", DESCRIPTION)


def test_what_makes_keys_other_keys():
    DESCRIPTION.check_same(DESCRIPTION.renewed(), "it")
    for change, message in [
        ({"surroundings": "x"}, "it was made with another configuration or other embeddings of model"),
        ({"weights_dtype": "bfloat16"}, "it was made with weights in float32, not in bfloat16"),
        ({"title_field": "title"}, "it was made without titles, not with"),
    ]:
        with pytest.raises(MismatchError, match=message):
            DESCRIPTION.check_same(replace(DESCRIPTION, **change), "it")
    titled = replace(DESCRIPTION, title_field="title")
    assert titled.titles
    titled.check_same(replace(titled, title_field="headline"), "it")
