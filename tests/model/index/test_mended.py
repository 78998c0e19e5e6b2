"""Indexes when things go wrong: other models, other folders, other corpora, full disks, several writers."""

import os
import re
import shutil

import pandas as pd
import pytest
import torch

from pyterrier_routehead import ArtifactError, HeadIndex, ListTooLongError, MismatchError
from pyterrier_routehead import registry as registry_module
from pyterrier_routehead.index import indexer as indexer_module
from pyterrier_routehead.index.shard import ShardWriter
from pyterrier_routehead.reading.reading import ModelIdentity
from toys import toy_llm

HEADS = "1-0,2-3"


def corpus(count: int = 4, start: int = 0) -> list[dict[str, str]]:
    return [{"docno": f"d{i}", "text": f"text number {i}"} for i in range(start, start + count)]


@pytest.fixture(scope="module")
def llm():
    return toy_llm()


@pytest.fixture
def indexer(llm, tmp_path):
    return HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, shard_documents=2)


# Another model


def test_other_embeddings_are_refused(llm, indexer):
    index, other = indexer.index(corpus()), toy_llm()
    assert index.description.surroundings == llm.snapshot().surroundings
    with torch.no_grad():
        other.model.get_input_embeddings().weight[5] += 1
    with pytest.raises(MismatchError, match="was made with another configuration or other embeddings of"):
        index.indexer(HEADS, llm=other).index(corpus())
    index.description.check_surroundings(llm.snapshot().surroundings, repr(index))
    with pytest.raises(MismatchError, match="or other embeddings"):
        index.description.check_surroundings(other.snapshot().surroundings, repr(index))


def test_weights_in_another_dtype_are_refused(indexer):
    index, other = indexer.index(corpus()), toy_llm()
    other.model.to(torch.bfloat16)
    with pytest.raises(MismatchError, match="weights in float32, not in bfloat16"):
        index.indexer(HEADS, llm=other).index(corpus())


def test_documents_that_do_not_fit_are_refused_before_there_is_an_index(tmp_path):
    small, index = toy_llm(200), HeadIndex(tmp_path / "i")
    with pytest.raises(ListTooLongError, match=r"the context of .* has 200 .* lower max_doc_tokens"):
        index.indexer(HEADS, llm=small).index(corpus())
    assert not index.path.exists()


def test_bundled_heads_are_indexed_with_the_weights_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(registry_module, "packaged_gguf", lambda: None)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    of_the_hub = ModelIdentity(name, ("another",), 30, 9)
    monkeypatch.setattr(indexer_module, "model_identity", lambda llm: of_the_hub)
    opened = []
    monkeypatch.setattr(indexer_module.FrozenLLM, "of", lambda llm, **options: opened.append((llm, options)))
    indexer = HeadIndex(tmp_path / "i").indexer("core-smollm2-135m")
    with pytest.warns(UserWarning, match="the bundled heads were found in"):
        indexer._open()
    assert [llm for llm, _ in opened] == [None, None]  # the default model
    assert "revision" not in opened[-1][1]
    indexer._bundled = False
    with pytest.raises(MismatchError):
        indexer._open()


# Another folder


def test_an_index_that_took_the_place_of_another_is_read_as_it_is(llm, indexer):
    index = indexer.index(corpus())
    assert (index.docnos, index.description.dtype) == (["d0", "d1", "d2", "d3"], "int8")
    shutil.rmtree(index.path)
    HeadIndex(index.path).indexer("1-0", llm=llm, dtype="float16").index(corpus(2, 7))
    assert index.docnos == ["d7", "d8"]
    assert (index.description.dtype, len(index.heads)) == ("float16", 1)
    assert index.check() == 2


def test_shards_of_another_index_are_named(llm, indexer, tmp_path):
    index = indexer.index(corpus())
    other = HeadIndex(tmp_path / "other").indexer(HEADS, llm=llm).index(corpus(2, 7))
    assert index.description.id != other.description.id
    shutil.copytree(other.shards / "000000", index.shards / "000009")
    with pytest.raises(ArtifactError, match="000009 is the shard 000000"):
        len(HeadIndex(index.path))
    shutil.rmtree(index.shards / "000009")
    shutil.rmtree(index.shards / "000000")
    shutil.copytree(other.shards / "000000", index.shards / "000000")
    with pytest.raises(ArtifactError, match="000000 is a shard of another index"):
        len(HeadIndex(index.path))
    copy = other.save(tmp_path / "copy")
    assert copy.description.id != other.description.id
    assert copy.check() == 2


def test_an_index_without_its_shards_is_no_empty_one(indexer, tmp_path):
    index = indexer.index(corpus())
    index.shards.rename(index.path / "elsewhere")
    with pytest.raises(ArtifactError, match="shards is missing"):
        len(index)
    with pytest.raises(ArtifactError, match="shards is missing"):
        indexer.index(corpus())
    index.path.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="holds no head index"):
        len(index)


def test_an_index_appears_with_its_folder_of_shards(indexer, monkeypatch):
    index = indexer.index([])
    assert index.shards.is_dir()
    assert "shards/.empty" in dict(index._package_files())


# Another corpus


def test_a_frame_is_a_corpus(indexer):
    assert indexer.index(pd.DataFrame(corpus())).docnos == ["d0", "d1", "d2", "d3"]


@pytest.mark.parametrize("wrong", ["d0", {"docno": "d0", "text": "x"}, 5, None, [("d0", "text")], ["d0"]])
def test_what_is_no_corpus(indexer, wrong):
    with pytest.raises(TypeError, match="a corpus is an iterable of dictionaries with docno and text"):
        indexer.index(wrong)
    assert not indexer._index.path.exists()


@pytest.mark.parametrize("document", [{"docno": None, "text": "x"}, {"docno": "a"}, {"docno": "a", "text": 5}])
def test_a_wrong_first_document_makes_no_index(indexer, document):
    with pytest.raises((TypeError, ValueError)):
        indexer.index([document])
    assert not indexer._index.path.exists()


@pytest.mark.parametrize("docno", ["a\0", "a\ud800"])
def test_docnos_that_cannot_be_kept(indexer, docno):
    with pytest.raises(ValueError, match=f"docno {re.escape(repr(docno))}, which cannot be kept"):
        indexer.index([*corpus(), {"docno": docno, "text": "x"}])


def test_titles_that_the_first_document_lacks(llm, indexer, tmp_path):
    explicit = HeadIndex(tmp_path / "explicit").indexer(HEADS, llm=llm, title_field="headline")
    with pytest.raises(ValueError, match="document 'd0', the first of the corpus, has no 'headline': it has"):
        explicit.index(corpus())
    assert not explicit._index.path.exists()
    with pytest.raises(ValueError, match="document 'late' has a title, but the first document of the corpus had none"):
        indexer.index([*corpus(), {"docno": "late", "text": "x", "title": "y"}])
    indexer.index([*corpus(), {"docno": "later", "text": "x", "title": ""}])
    without = HeadIndex(tmp_path / "without").indexer(HEADS, llm=llm, title_field=None)
    assert len(without.index([*corpus(), {"docno": "late", "text": "x", "title": "y"}])) == 5
    titled = HeadIndex(tmp_path / "titled").indexer(HEADS, llm=llm, title_field="headline")
    index = titled.index([{**document, "headline": "h"} for document in corpus()])
    assert index.description.title_field == "headline"
    assert HeadIndex(index.path).description.titles


def test_an_index_without_documents_may_become_another(llm, indexer):
    index = indexer.index([])
    before = index.description
    again = index.indexer("1-0", llm=llm, dtype="float16").index([{"docno": "a", "title": "t", "text": "x"}])
    assert (again.description.dtype, again.description.title_field, again.docnos) == ("float16", "title", ["a"])
    assert index.description.id != before.id
    assert index.docnos == ["a"]
    assert index.check() == 1
    index.indexer("1-0", llm=llm, dtype="float16").index([])  # says nothing of titles
    with pytest.raises(MismatchError, match="dtype='float16', not 'int8'"):
        index.indexer("1-0", llm=llm).index([])


def test_numbers_are_docnos(indexer):
    index = indexer.index([{"docno": 5, "text": "x"}])
    assert 5 in index
    assert 6 not in index
    assert True not in index


def test_one_index_is_no_list_to_merge(indexer, tmp_path):
    index = indexer.index(corpus())
    for one in (index, index.path, str(index.path)):
        with pytest.raises(TypeError, match="indexes is a list of indexes"):
            HeadIndex.merge(tmp_path / "merged", one)


# Full disks, several writers


def test_a_full_disk_is_an_error_and_leaves_nothing(indexer, monkeypatch):
    indexer.index(corpus(2))
    finish, calls = ShardWriter.finish, []

    def full(*_):
        raise OSError(28, "No space left on device")

    def counted(self, number):
        calls.append(number)
        return finish(self, number)

    monkeypatch.setattr(ShardWriter, "finish", counted)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            indexer.index(corpus())
    assert calls == [1]
    assert [folder.name for folder in indexer._index.shards.iterdir()] == ["000000"]
    assert indexer.index(corpus()).docnos == ["d0", "d1", "d2", "d3"]


def test_an_index_that_may_not_be_written(indexer, monkeypatch):
    index = indexer.index(corpus(2))
    mkdir = type(index.path).mkdir

    def refused(self, *options, **more):
        if self.parent == index.shards:
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *options, **more)

    monkeypatch.setattr(type(index.path), "mkdir", refused)
    assert len(indexer.index(corpus(2))) == 2  # nothing to write
    with pytest.raises(ArtifactError, match="cannot be written: Permission denied"):
        indexer.index(corpus())


def test_of_two_writers_of_a_document_one_stays(llm, indexer, monkeypatch):
    """The other writer is whole between the look at its shards and the shard's getting its place."""
    finish, rival = ShardWriter.finish, HeadIndex(indexer._index.path).indexer(HEADS, llm=llm)

    def beaten(self, number):
        monkeypatch.setattr(ShardWriter, "finish", finish)
        rival.index(corpus(3, 1))
        return finish(self, number)

    monkeypatch.setattr(ShardWriter, "finish", beaten)
    with pytest.raises(ValueError, match=r"document 'd1' was written into .* by another process meanwhile"):
        indexer.index(corpus())
    index = indexer._index
    assert index.docnos == ["d1", "d2", "d3"]
    assert index.check() == 3
    assert indexer.index(corpus()).docnos == ["d1", "d2", "d3", "d0"]


def test_two_writers_of_other_documents_both_stay(llm, indexer, monkeypatch):
    finish, rival = ShardWriter.finish, HeadIndex(indexer._index.path).indexer(HEADS, llm=llm)

    def beaten(self, number):
        monkeypatch.setattr(ShardWriter, "finish", finish)
        rival.index(corpus(2, 7))
        return finish(self, number)

    monkeypatch.setattr(ShardWriter, "finish", beaten)
    assert indexer.index(corpus()).docnos == ["d7", "d8", "d0", "d1", "d2", "d3"]


def test_an_index_that_was_made_anew_meanwhile(llm, indexer):
    def documents():
        yield from corpus()
        index = indexer._index
        shutil.rmtree(index.path)
        HeadIndex(index.path).indexer(HEADS, llm=llm).index(corpus(1, 9))

    with pytest.raises((ValueError, ArtifactError)):
        indexer.index(documents())
    assert indexer._index.docnos == ["d9"]
    assert indexer._index.check() == 1


def test_two_makers_of_an_index(llm, indexer, monkeypatch):
    create = HeadIndex.create

    def beaten(self, description):
        create(HeadIndex(self.path), description.renewed())
        create(self, description)

    monkeypatch.setattr(HeadIndex, "create", beaten)
    assert len(indexer.index(corpus())) == 4


def test_what_a_live_writer_writes_is_not_swept(indexer):
    index = indexer.index(corpus(2))
    live, dead = index.shards / ".live", index.shards / ".dead"
    for scratch in (live, dead):
        scratch.mkdir()
        (scratch / "0-0.keys").touch()
        os.utime(scratch / "0-0.keys", (0, 0))
        os.utime(scratch, (0, 0))
    os.utime(live / "0-0.keys")
    indexer.index(corpus(2))
    assert live.exists()
    assert not dead.exists()
