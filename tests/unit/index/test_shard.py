"""Shards without a model: whatever documents are called, they are found again."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyterrier_routehead.common.errors import ArtifactError
from pyterrier_routehead.heads import Head
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
