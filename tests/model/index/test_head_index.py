"""Indexes of head keys: what is in them, ranking from them against late reading of the text, and what is refused."""

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_routehead import (
    ArtifactError,
    AttentionHeadScorer,
    CoReHeadReranker,
    HeadIndex,
    HeadSet,
    ICRReranker,
    MismatchError,
    RouteHeadReranker,
    StaticHeadReranker,
    get_template,
)
from pyterrier_routehead.index import indexer as indexer_module
from toys import frame, toy_llm, two_queries

HEADS = "1-0,2-3,0-2,2-2"
FRAME = two_queries()


def corpus(of: pd.DataFrame = FRAME) -> list[dict[str, str]]:
    return of[["docno", "text"]].to_dict("records")


@pytest.fixture(scope="module")
def llm():
    return toy_llm()


@pytest.fixture(scope="module")
def index(llm, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "exact"
    return HeadIndex(path).indexer(HEADS, llm=llm, dtype="float16").index(corpus())


@pytest.fixture(scope="module")
def complete(llm, tmp_path_factory):
    """An index for all heads."""
    path = tmp_path_factory.mktemp("index") / "complete"
    return HeadIndex(path).indexer("all", llm=llm, dtype="float16", shard_documents=3).index(corpus())


def without_text(of: pd.DataFrame = FRAME) -> pd.DataFrame:
    return of.drop(columns="text")


def assert_ranks_alike(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 3e-3):
    largest = expected["score"].abs().max()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=tolerance * largest)


# What is in it


def test_an_index_says_what_it_is(index, llm):
    assert (len(index), index.docnos) == (8, FRAME["docno"].tolist())
    assert index.heads == StaticHeadReranker(HEADS)._policy().heads
    assert index.model.fingerprint[:3] == llm.fingerprint[:3]
    assert index.settings.document_attention == "late"
    assert index.settings.max_doc_tokens == 150
    assert "q1-d0" in index
    assert "q1-d9" not in index
    assert index.check() == 8
    files = [file for file in index.path.rglob("*") if file.suffix in (".keys", ".npy", ".npids")]
    assert index.size == sum(file.stat().st_size for file in files)
    assert index.size_per_document == index.size / 8
    assert repr(index) == f"HeadIndex({str(index.path)!r})"


def test_heads_that_share_keys_are_written_once(index):
    # 2-2 and 2-3 attend by the keys of the second of two key-value heads
    (shard,) = index.shards.iterdir()
    assert sorted(file.name for file in shard.glob("*.keys")) == ["0-1.keys", "1-0.keys", "2-1.keys"]


def test_int8_takes_about_half_of_float16(index, llm, tmp_path):
    small = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index(corpus())
    dim = 8
    keys = [sum(f.stat().st_size for f in i.path.rglob("*.keys")) for i in (small, index)]
    assert keys[0] * 2 * dim == keys[1] * (dim + 2)


def test_it_is_an_artifact(index, llm, tmp_path, monkeypatch, address):
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    assert isinstance(pt.Artifact.load(str(index.path)), HeadIndex)
    copy = index.save(tmp_path / "copy")
    assert copy.docnos == index.docnos
    assert copy.check() == 8
    copy.build_package(verbose=False)
    loaded = HeadIndex.from_url(f"{address}/copy.tar.lz4")
    assert loaded.docnos == index.docnos
    assert pickle.loads(pickle.dumps(loaded)).docnos == index.docnos
    card = index._hf_readme(repo="me/index", metadata={})
    assert "8 documents" in card
    assert "documents: 8" in card


# Ranking from it


@pytest.mark.parametrize("first_stage_weight", [0.0, 1.0])
@pytest.mark.parametrize("calibrate", [True, False])
def test_ranking_equals_late_reading_of_the_text(index, llm, first_stage_weight, calibrate):
    options = {"llm": llm, "first_stage_weight": first_stage_weight, "calibrate": calibrate}
    expected = StaticHeadReranker(HEADS, document_attention="late", **options)(FRAME)
    found = StaticHeadReranker(HEADS, index=index, **options)(without_text())
    assert list(found.columns) == [name for name in expected.columns if name != "text"]
    assert_ranks_alike(found, expected)


def test_all_heads_and_the_sum_filter(complete, llm):
    for token_filter in ("sum", "none"):
        options = {"llm": llm, "token_filter": token_filter}
        expected = ICRReranker(document_attention="late", **options)(FRAME)
        assert_ranks_alike(ICRReranker(index=complete, **options)(without_text()), expected)


def test_some_of_its_heads_can_rank(complete, index, llm):
    for heads in ("2-3", "1-0,0-2"):
        of_all = StaticHeadReranker(heads, llm=llm, index=complete)(without_text())
        of_some = StaticHeadReranker(heads, llm=llm, index=index)(without_text())
        assert_ranks_alike(of_all, of_some, 1e-5)


def test_the_model_is_found_by_name(llm, tmp_path):
    from toys import byte_tokenizer

    llm.model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=str(tmp_path / "model")).index(corpus())
    expected = StaticHeadReranker(HEADS, llm=str(tmp_path / "model"), index=index)(without_text())
    pd.testing.assert_frame_equal(StaticHeadReranker(HEADS, index=str(index.path))(without_text()), expected)


def test_batches_and_neighbours_change_nothing(complete, llm):
    reranker = StaticHeadReranker(HEADS, llm=llm, index=complete)
    together = reranker(without_text())
    for qid, alone in without_text().groupby("qid"):
        assert_ranks_alike(reranker(alone), together[together["qid"] == qid], 1e-5)
    shuffled = reranker(without_text().sample(frac=1, random_state=3)).sort_index()
    assert_ranks_alike(shuffled, together, 1e-5)


def test_a_list_of_a_shard_or_of_several(complete, llm, tmp_path):
    assert len(complete.view().shards) == 3
    one = HeadIndex(tmp_path / "one").indexer("all", llm=llm, dtype="float16").index(corpus())
    found = StaticHeadReranker(HEADS, llm=llm, index=complete)(without_text())
    assert_ranks_alike(found, StaticHeadReranker(HEADS, llm=llm, index=one)(without_text()), 1e-5)


def test_few_logits_at_a_time_change_nothing(complete, llm, monkeypatch):
    from pyterrier_routehead.kernel import late

    expected = StaticHeadReranker(HEADS, llm=llm, index=complete)(without_text())
    monkeypatch.setattr(late, "_LOGITS_AT_A_TIME_ON_CPU", 1)
    in_pieces = StaticHeadReranker(HEADS, llm=llm, index=complete)(without_text())
    assert_ranks_alike(in_pieces, expected, 1e-5)
    monkeypatch.setattr(late, "_LOGITS_KEPT", 1)  # made twice
    assert_ranks_alike(StaticHeadReranker(HEADS, llm=llm, index=complete)(without_text()), expected, 1e-5)


def test_a_scorer_reads_from_it_too(index, llm):
    layers = [1, 3]
    options = {"llm": llm, "raw": True, "hidden_layers": layers}
    expected = AttentionHeadScorer(HEADS, document_attention="late", **options)(FRAME)
    found = AttentionHeadScorer(index=index, **options)(without_text())  # "all" that are in the index
    for column in ("head_scores", "head_scores_raw"):
        np.testing.assert_allclose(np.stack(found[column]), np.stack(expected[column]), atol=1e-3)
    np.testing.assert_allclose(np.stack(found["hidden_state"]), np.stack(expected["hidden_state"]), atol=1e-6)
    reading = found["head_reading"].iloc[0]
    assert reading.heads == index.heads
    assert reading.settings == expected["head_reading"].iloc[0].settings
    ranked = StaticHeadReranker("2-3")(found)
    assert_ranks_alike(ranked, StaticHeadReranker("2-3", llm=llm, index=index)(without_text()), 1e-5)


def test_depth_and_the_rest(index, llm):
    found = StaticHeadReranker(HEADS, llm=llm, index=index, depth=2)(without_text())
    expected = StaticHeadReranker(HEADS, llm=llm, document_attention="late", depth=2)(FRAME)
    assert found["rank"].tolist() == expected["rank"].tolist()


# fit


def judged():
    texts = {f"q{i}": [f"text {i} {j} " + "word " * (j + 1) for j in range(4)] for i in range(8)}
    qrels = pd.DataFrame([{"qid": qid, "docno": f"{qid}-d{(i * 7) % 4}", "label": 1} for i, qid in enumerate(texts)])
    return frame(texts), qrels


def test_fit_from_an_index_equals_fit_on_the_text(llm, tmp_path):
    train, qrels = judged()
    index = HeadIndex(tmp_path / "i").indexer("all", llm=llm, dtype="float16").index(corpus(train))
    found = CoReHeadReranker(llm=llm, index=index).fit(without_text(train), qrels)
    expected = CoReHeadReranker(llm=llm, document_attention="late").fit(train, qrels)
    assert found.head_set_.settings == expected.head_set_.settings
    np.testing.assert_allclose(sorted(found.head_set_.scores), sorted(expected.head_set_.scores), atol=2e-3)
    assert_ranks_alike(found(without_text(train)), expected(train), 5e-3)


@pytest.mark.filterwarnings("ignore:no epoch of training:UserWarning")
def test_a_router_is_fitted_and_routes_from_an_index(llm, tmp_path):
    train, qrels = judged()
    index = HeadIndex(tmp_path / "i").indexer("all", llm=llm, dtype="float16").index(corpus(train))
    passes = []
    forward = type(llm).forward
    type(llm).forward = lambda self, this_pass: (passes.append(type(this_pass).__name__), forward(self, this_pass))[1]
    try:
        reranker = RouteHeadReranker(llm=llm, index=index, pool_size=5, max_heads=2).fit(without_text(train), qrels)
        assert reranker.router_.state.source == "tail"
        passes.clear()
        found = reranker(without_text(train))
    finally:
        type(llm).forward = forward
    assert passes == ["BlindTailPass"]  # all queries, routed and read
    on_text = RouteHeadReranker(reranker.router_, llm=llm, document_attention="late")(train)
    assert_ranks_alike(found, on_text, 5e-3)


# Documents that are not in it, or have other texts


def test_missing_documents_are_named(index, llm):
    more = frame({"q1": ["cats sleep all day", "a new one"]})
    more.loc[1, "docno"] = "new"
    with pytest.raises(ValueError, match=r"1 candidates are not in HeadIndex\(.*\), such as 'new'"):
        StaticHeadReranker(HEADS, llm=llm, index=index)(more)
    with pytest.raises(ValueError, match="missing='encode' needs their texts"):
        StaticHeadReranker(HEADS, llm=llm, index=index, missing="encode")(without_text(more))


def test_missing_documents_are_encoded(index, llm):
    more = FRAME.copy()
    more.loc[[0, 3, 6], "docno"] = ["new1", "new2", "new3"]
    more.loc[[0, 3, 6], "text"] = ["seven seas", "eight days a week", "nine lives"]
    found = StaticHeadReranker(HEADS, llm=llm, index=index, missing="encode")(more)
    assert_ranks_alike(found, StaticHeadReranker(HEADS, llm=llm, document_attention="late")(more))


def test_other_texts_are_noticed(index, llm):
    changed = FRAME.copy()
    changed.loc[2, "text"] = "paris is in texas"
    reranker = StaticHeadReranker(HEADS, llm=llm, index=index)
    with pytest.raises(ValueError, match="document 'q1-d2': its text in the frame is not what is in HeadIndex"):
        reranker(changed)
    reranker(FRAME)
    reranker(without_text(changed))


def test_titles_are_part_of_the_text(llm, tmp_path):
    with_titles = FRAME.assign(title=[f"title {i}" for i in range(8)])
    documents = with_titles[["docno", "title", "text"]].to_dict("records")
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, dtype="float16").index(documents)
    assert index.description.titles
    reranker = StaticHeadReranker(HEADS, llm=llm, index=index)
    expected = StaticHeadReranker(HEADS, llm=llm, document_attention="late")(with_titles)
    assert_ranks_alike(reranker(without_text()), expected)
    reranker(FRAME)  # without the titles nothing can be compared
    with pytest.raises(ValueError, match="document 'q1-d0': its text in the frame"):
        reranker(with_titles.assign(title="another"))


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document_attention": "blockwise"}, "document_attention='blockwise' was asked for, but HeadIndex.*='late'"),
        ({"store": "somewhere"}, "give an index or a store"),
        ({"max_doc_tokens": 20}, "max_doc_tokens=20 was asked for, but HeadIndex.* was made with max_doc_tokens=150"),
        ({"prompt": "icr"}, "prompt='icr' was asked for, but HeadIndex.* was made with prompt='default'"),
        ({"missing": "skip"}, "missing is one of 'error', 'encode'"),
    ],
)
def test_arguments_that_contradict_an_index(index, llm, options, message):
    with pytest.raises((ValueError, MismatchError), match=message):
        StaticHeadReranker(HEADS, llm=llm, index=index, **options)


def test_heads_that_are_not_in_it(index, llm):
    with pytest.raises(MismatchError, match=r"lacks 1 of 2 heads: 2-1; it is for 1-0, 2-3, 0-2, 2-2"):
        StaticHeadReranker("2-1,2-3", llm=llm, index=index)(without_text())
    with pytest.raises(MismatchError, match="lacks 12 of 16 heads"):
        ICRReranker(llm=llm, index=index)(without_text())


def test_another_model(index):
    with pytest.raises(MismatchError, match="was made with"):
        StaticHeadReranker(HEADS, llm=toy_llm(architecture="Qwen3"), index=index)(without_text())


def test_no_index(tmp_path):
    with pytest.raises(ArtifactError, match="holds no head index: make one by"):
        StaticHeadReranker(HEADS, index=tmp_path / "none")
    with pytest.raises(TypeError, match="index is a path"):
        StaticHeadReranker(HEADS, index=5)


# Appending, resuming, merging


def test_documents_are_appended_and_passed_over(llm, tmp_path):
    indexer = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm)
    indexer.index(corpus()[:3])
    before = llm.model.config.to_dict()
    index = indexer.index(corpus())
    assert index.docnos == FRAME["docno"].tolist()
    passes = []
    forward = type(llm).forward
    type(llm).forward = lambda self, this_pass: (passes.append(this_pass), forward(self, this_pass))[1]
    try:
        index = indexer.index(corpus())
    finally:
        type(llm).forward = forward
    assert len(passes) == 1  # the one that tells what the index would be
    assert index.check() == 8
    assert before == llm.model.config.to_dict()


def test_what_contradicts_an_index_is_not_appended(index, llm, tmp_path):
    copy = index.save(tmp_path / "copy")
    for options, message in [
        ({"dtype": "int8"}, "dtype='float16', not 'int8'"),
        ({"max_doc_tokens": 9}, "max_doc_tokens=150, not 9"),
        ({"llm": toy_llm(architecture="Qwen3")}, "was made with"),
        ({"prompt": "icr"}, "prompt='default', not 'icr'"),
    ]:
        with pytest.raises(MismatchError, match=re.escape(message)):
            copy.indexer(HEADS, **{"llm": llm, "dtype": "float16", **options}).index(corpus())
    with pytest.raises(MismatchError, match="is for the heads 1-0, 2-3, 0-2, 2-2, not 1-0"):
        copy.indexer("1-0", llm=llm, dtype="float16").index(corpus())
    with pytest.raises(ValueError, match=r"document 'q1-d0' is in HeadIndex.* already, with another text"):
        copy.indexer(HEADS, llm=llm, dtype="float16").index([{"docno": "q1-d0", "text": "something else"}])
    assert copy.docnos == index.docnos


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([{"docno": "a", "text": "x"}, {"docno": "a", "text": "x"}], ValueError, "document 'a' comes twice"),
        ([{"docno": None, "text": "x"}], TypeError, "docno None"),
        ([{"docno": "a"}], ValueError, "document 'a' has no 'text': it has docno"),
        ([{"docno": "a", "text": 5}], TypeError, "document 'a': 'text' is no string, but int"),
        ([{"docno": "a", "text": "x", "title": 5}], TypeError, "document 'a': 'title' is no string, but int"),
    ],
)
def test_a_wrong_corpus(llm, tmp_path, documents, error, message):
    with pytest.raises(error, match=message):
        HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index(documents)


def test_odd_documents_and_docnos(llm, tmp_path):
    docnos = ["007", "7", "a b", "ü/é", "0" * 300, "-1", "1e5", "x\ny"]
    documents = [{"docno": docno, "text": text} for docno, text in zip(docnos, ["", None, *"abcdef"], strict=True)]
    documents.append({"docno": 12, "text": "a number"})
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, dtype="float16").index(documents)
    assert index.docnos == [*docnos, "12"]
    assert all(docno in index for docno in index.docnos)
    texts = frame({"q": ["", None, *"abcdef", "a number"]}).assign(docno=index.docnos)
    expected = StaticHeadReranker(HEADS, llm=llm, document_attention="late")(texts)
    assert_ranks_alike(StaticHeadReranker(HEADS, llm=llm, index=index)(without_text(texts)), expected)


def test_no_documents(llm, tmp_path):
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index([])
    assert (len(index), index.docnos, index.size_per_document, index.check()) == (0, [], 0.0, 0)
    assert len(StaticHeadReranker(HEADS, llm=llm, index=index)(without_text().iloc[:0])) == 0


def test_an_error_in_the_corpus_loses_nothing(llm, tmp_path, monkeypatch):
    def broken():
        yield from corpus()[:5]
        raise RuntimeError("the line dropped")

    indexer = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, shard_documents=2)
    monkeypatch.setattr(indexer_module, "_DOCUMENTS_AT_ONCE", 1)
    monkeypatch.setattr(indexer_module, "_TOKENS_AT_ONCE", 1)
    with pytest.raises(RuntimeError, match="the line dropped"):
        indexer.index(broken())
    assert HeadIndex(tmp_path / "i").docnos == FRAME["docno"].tolist()[:5]
    assert indexer.index(corpus()).docnos == FRAME["docno"].tolist()


def test_merging(index, llm, tmp_path):
    parts = [
        HeadIndex(tmp_path / f"part{i}").indexer(HEADS, llm=llm, dtype="float16").index(corpus()[i * 4 : i * 4 + 4])
        for i in range(2)
    ]
    merged = HeadIndex.merge(tmp_path / "merged", parts)
    assert merged.docnos == index.docnos
    assert merged.check() == 8
    keys = [min(i.shards.rglob("0-1.keys")) for i in (parts[0], merged)]
    assert keys[0].samefile(keys[1])  # a link, no copy
    expected = StaticHeadReranker(HEADS, llm=llm, index=index)(without_text())
    assert_ranks_alike(StaticHeadReranker(HEADS, llm=llm, index=merged)(without_text()), expected, 1e-5)
    with pytest.raises(ValueError, match=r"document 'q1-d0' is in HeadIndex.*part0.* and in HeadIndex.*index"):
        HeadIndex.merge(tmp_path / "again", [parts[0], index])
    with pytest.raises(FileExistsError):
        HeadIndex.merge(tmp_path / "merged", parts)
    other = HeadIndex(tmp_path / "other").indexer(HEADS, llm=llm).index(corpus())
    with pytest.raises(MismatchError, match="dtype='float16', not 'int8'"):
        HeadIndex.merge(tmp_path / "unlike", [index, other])


# Damage


def shard_of(index: HeadIndex) -> Path:
    return sorted(index.shards.iterdir())[0]


def cut(shard):
    file = shard / "0-1.keys"
    file.write_bytes(file.read_bytes()[:-1])


def flip(shard):
    file = shard / "0-1.keys"
    data = bytearray(file.read_bytes())
    data[5] ^= 64
    file.write_bytes(data)


def remove(shard):
    (shard / "2-1.keys").unlink()


def rename(shard):
    shard.rename(shard.with_name("000009"))


def garble(shard):
    (shard / "shard.json").write_text("{")


def garble_docnos(shard):
    file = shard / "docnos.npids"
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"0-1.keys has \d+ bytes instead of \d+"),
        (remove, "2-1.keys cannot be read"),
        (rename, "000009 is the shard 000000: shards were swapped or renamed"),
        (garble, "shard.json is no readable shard of a head index"),
        (garble_docnos, "docnos.npids is no readable list of docnos: its checksum differs"),
    ],
)
def test_damage_is_named_when_it_is_met(index, llm, tmp_path, damage, message):
    copy = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, dtype="float16").index(corpus())
    damage(shard_of(copy))
    with pytest.raises(ArtifactError, match=message):
        StaticHeadReranker(HEADS, llm=llm, index=str(copy.path))(without_text())


def test_check_finds_a_flipped_bit(llm, tmp_path):
    copy = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index(corpus())
    flip(shard_of(copy))
    with pytest.raises(ArtifactError, match=r"0-1\.keys is damaged"):
        copy.check()


def test_swapped_shards_are_named(complete, tmp_path):
    copy = complete.save(tmp_path / "copy")
    first, second, _ = sorted(copy.shards.iterdir())
    first.rename(copy.shards / "x")
    second.rename(first)
    (copy.shards / "x").rename(second)
    with pytest.raises(ArtifactError, match="shards were swapped or renamed"):
        len(HeadIndex(copy.path))


# Heads by name, sets and routers


def test_an_index_for_a_head_set_takes_its_model_and_prompt(llm, tmp_path):
    train, qrels = judged()
    fitted = CoReHeadReranker(llm=llm, document_attention="late", prompt="icr", max_doc_tokens=20, k=3)
    head_set = fitted.fit(train, qrels).head_set_
    index = HeadIndex(tmp_path / "i").indexer(head_set, llm=llm, dtype="float16").index(corpus(train))
    assert index.heads == head_set.heads[:3]
    assert index.settings.prompt == get_template("icr")
    assert index.settings.max_doc_tokens == 20
    assert_ranks_alike(StaticHeadReranker(head_set, llm=llm, index=index)(without_text(train)), fitted(train))
    assert isinstance(head_set, HeadSet)


def test_heads_found_for_another_pattern_warn(index, llm):
    train, qrels = judged()
    head_set = CoReHeadReranker(llm=llm, document_attention="blockwise").fit(train, qrels).head_set_
    some = HeadSet.of(index.heads, model=head_set.model, settings=head_set.settings)
    with pytest.warns(UserWarning, match="document_attention='late' instead of 'blockwise'"):
        StaticHeadReranker(some, llm=llm, index=index)(without_text())
