"""Late reading and indexes behind the transformers: what is checked, how many passes are run, what is warned of."""

import copy

import numpy as np
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    HeadIndex,
    ICRReranker,
    ListTooLongError,
    MismatchError,
    PromptTemplate,
    StaticHeadReranker,
)
from tiny import tiny_model
from toys import byte_tokenizer, frame, toy_llm, two_queries

HEADS = "1-0,2-3,0-2,2-2"
FRAME = two_queries()
MANY = frame({f"q{i}": [f"text {i}", "another text", f"word {i % 3}"] for i in range(70)})


def without_text(of=FRAME):
    return of.drop(columns="text")


def corpus(of):
    return of[["docno", "text"]].to_dict("records")


@pytest.fixture(scope="module")
def llm():
    return toy_llm()


@pytest.fixture(scope="module")
def index(llm, tmp_path_factory):
    return HeadIndex(tmp_path_factory.mktemp("index") / "i").indexer(HEADS, llm=llm).index(corpus(FRAME))


@pytest.fixture(scope="module")
def index_of_many(llm, tmp_path_factory):
    return HeadIndex(tmp_path_factory.mktemp("index") / "many").indexer("all", llm=llm).index(corpus(MANY))


@pytest.fixture
def passes(llm, monkeypatch):
    """The names of the passes that the model runs."""
    found, forward = [], type(llm).forward

    def recording(self, this_pass):
        found.append(type(this_pass).__name__)
        forward(self, this_pass)

    monkeypatch.setattr(type(llm), "forward", recording)
    return found


def test_head_scores_that_were_read_otherwise_than_the_index_are_refused(index, llm):
    reranker = StaticHeadReranker("1-0", llm=llm, index=index)
    with pytest.raises(MismatchError, match="document_attention='late', not 'listwise'"):
        reranker(AttentionHeadScorer("1-0", llm=llm)(FRAME))
    late = AttentionHeadScorer("1-0", llm=llm, document_attention="late", max_doc_tokens=9)(FRAME)
    with pytest.raises(MismatchError, match="max_doc_tokens=150, not 9"):
        reranker(late)
    read = AttentionHeadScorer("1-0", llm=llm, index=index)(without_text())
    assert reranker(read)["score"].tolist() == reranker(without_text())["score"].tolist()


def test_a_title_that_is_not_in_the_index(index, llm):
    titled = FRAME.assign(title="t", text="wrong")
    with pytest.raises(ValueError, match="document 'q1-d0': its text in the frame is not"):
        StaticHeadReranker(HEADS, llm=llm, index=index)(titled)
    more = FRAME.assign(title="t")
    more.loc[0, "docno"] = "new"
    StaticHeadReranker(HEADS, llm=llm, index=index, missing="encode")(more)
    with pytest.raises(MismatchError, match=r"title_field='headline' was asked for, but .* was made without titles"):
        StaticHeadReranker(HEADS, llm=llm, index=index, title_field="headline")(FRAME)


def test_every_row_of_a_document_is_compared(index, llm):
    twice = FRAME.copy()
    twice.loc[6, "docno"] = "q1-d0"
    with pytest.raises(ValueError, match="document 'q1-d0': its text in the frame"):
        StaticHeadReranker(HEADS, llm=llm, index=index)(twice)


@pytest.mark.parametrize("batch_size", [1, 33, 64, 100])
def test_queries_run_once_in_batches_of_any_size(index_of_many, llm, passes, batch_size):
    reranker = StaticHeadReranker(HEADS, llm=llm, index=index_of_many, batch_size=batch_size)
    reranker(without_text(MANY))
    assert passes == ["BlindTailPass"] * -(-70 // max(batch_size, 32))


def test_fit_runs_queries_in_batches(index_of_many, llm, passes):
    qrels = MANY[MANY["rank"] == 1][["qid", "docno"]].assign(label=1)
    CoReHeadReranker(llm=llm, index=index_of_many).fit(without_text(MANY), qrels)
    assert passes == ["BlindTailPass"] * 3


def test_lists_in_a_store_need_no_pass(llm, passes, tmp_path):
    reranker = StaticHeadReranker(HEADS, llm=llm, document_attention="late", store=tmp_path / "store")
    expected = reranker(FRAME)
    assert passes == ["BlindTailPass", "KeyPass", "KeyPass"]
    passes.clear()
    assert reranker(FRAME)["score"].tolist() == expected["score"].tolist()
    assert not passes


def test_other_surroundings_are_refused_and_another_dtype_warns(index, llm):
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
    model = tiny_model("Llama", max_position_embeddings=4096, rope_parameters=rope)
    with pytest.raises(MismatchError, match="another configuration or other embeddings"):
        StaticHeadReranker(HEADS, llm=FrozenLLM(model, tokenizer=byte_tokenizer()), index=index)(without_text())
    halved = FrozenLLM(copy.deepcopy(llm.model).bfloat16(), tokenizer=byte_tokenizer())
    with pytest.warns(UserWarning, match="was made in float32, but queries are run in bfloat16"):
        StaticHeadReranker(HEADS, llm=halved, index=index)(without_text())


def test_a_part_of_the_model_has_the_same_surroundings(index, llm):
    shallow = FrozenLLM(llm.model, tokenizer=byte_tokenizer(), max_layers=3)
    expected = StaticHeadReranker(HEADS, llm=llm, index=index)(without_text())
    found = StaticHeadReranker(HEADS, llm=shallow, index=index)(without_text())
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6)


def test_the_reading_says_that_titles_were_read(llm, tmp_path):
    titled = FRAME.assign(title=[f"title {i}" for i in range(8)])
    records = titled[["docno", "title", "text"]].to_dict("records")
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index(records)
    scored = AttentionHeadScorer(llm=llm, index=index)(without_text())
    assert scored["head_reading"].iloc[0].title_field == "title"
    StaticHeadReranker("1-0", title_field="title")(scored)
    with pytest.raises(MismatchError, match="title_field=None was asked for"):
        StaticHeadReranker("1-0", title_field=None)(scored)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_long_queries_are_named(architecture, tmp_path):
    small = toy_llm(400, architecture)
    queries = frame({"q1": ["a", "b"]}, {"q1": "why " * 125})
    index = HeadIndex(tmp_path / "i").indexer("all", llm=small).index(corpus(queries))
    qrels = queries.head(1)[["qid", "docno"]].assign(label=1)
    for run in (
        lambda: StaticHeadReranker(HEADS, llm=small, index=index)(without_text(queries)),
        lambda: CoReHeadReranker(llm=small, index=index).fit(without_text(queries), qrels),
        lambda: StaticHeadReranker(HEADS, llm=small, document_attention="late")(queries),
    ):
        with pytest.raises(ListTooLongError, match="query 'q1'"):
            run()


def test_a_tail_without_tokens_is_named(llm, tmp_path):
    bare = PromptTemplate("bare", instruction="", query_label="", separator="", suffix_rows=0)
    queries = frame({"q1": ["a", "b"]}, {"q1": ""})
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm, prompt=bare).index(corpus(queries))
    for reranker in (
        StaticHeadReranker(HEADS, llm=llm, index=index),
        StaticHeadReranker(HEADS, llm=llm, prompt=bare, document_attention="late"),
    ):
        with pytest.raises(ValueError, match="query 'q1': the prompt has no tokens after the documents"):
            reranker(queries)


def test_all_heads_behind_a_scorer_with_a_shallow_model(tmp_path):
    shallow = toy_llm(max_layers=2)
    index = HeadIndex(tmp_path / "i").indexer("all", llm=shallow, dtype="float16").index(corpus(FRAME))
    scored = AttentionHeadScorer(llm=shallow, index=index)(without_text())
    expected = ICRReranker(llm=shallow, document_attention="late")(FRAME)
    np.testing.assert_allclose(ICRReranker()(scored)["score"], expected["score"], atol=1e-4)


def test_a_window_that_does_not_reach_the_documents_warns():
    mistral = toy_llm(architecture="Mistral")  # 40 positions
    with pytest.warns(UserWarning, match="a sliding window of 40 positions does not reach .* lower max_doc_tokens"):
        StaticHeadReranker(HEADS, llm=mistral, document_attention="late")(FRAME)
    StaticHeadReranker(HEADS, llm=mistral, document_attention="late", max_doc_tokens=8)(FRAME)
