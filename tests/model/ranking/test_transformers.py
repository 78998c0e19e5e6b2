"""The transformers in pipelines: columns, settings, errors, sharing."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    FrozenLLM,
    Head,
    ICRReranker,
    ListTooLongError,
    ReadingSettings,
    StaticHeadReranker,
    get_template,
    paper_settings,
)
from pyterrier_routehead.kernel.patterns import PATTERNS
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.prompt.build import Candidate, PromptBuilder
from tiny import tiny_model
from toys import byte_tokenizer, frame, toy_llm, two_queries

SOME_HEADS = [(1, 0), (2, 3), (0, 2)]


def kernel_scores(llm, query, texts, heads, **settings):
    """Head scores of one list by the kernel, without any transformer."""
    settings = ReadingSettings(**settings)
    builder = PromptBuilder(
        settings.prompt,
        llm.encoder,
        document_order=settings.document_order,
        numbered=PATTERNS[settings.document_attention].numbered,
        max_doc_tokens=settings.max_doc_tokens,
    )
    prompt = builder.build(query, [Candidate(text) for text in texts])
    return score_lists(llm, [prompt], heads, document_attention=settings.document_attention)[0]


@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
def test_scorer_writes_the_kernels_scores_and_keeps_everything_else(llm, document_attention):
    inp = two_queries().assign(url="http://x")
    before = inp.copy(deep=True)
    scorer = AttentionHeadScorer(SOME_HEADS, llm=llm, document_attention=document_attention, raw=True)
    out = scorer(inp)
    pd.testing.assert_frame_equal(inp, before)
    pd.testing.assert_frame_equal(out[inp.columns], inp)
    heads = [Head(*head) for head in SOME_HEADS]
    for qid, own in out.groupby("qid"):
        expected = kernel_scores(
            llm, f"what is {qid}", own["text"].tolist(), heads, document_attention=document_attention
        )
        np.testing.assert_allclose(np.stack(own["head_scores"]), expected.filtered, atol=1e-6)
        np.testing.assert_allclose(np.stack(own["head_scores_raw"]), expected.raw, atol=1e-6)
    assert all(vector.dtype == np.float32 and vector.shape == (3,) for vector in out["head_scores"])
    reading = out["head_reading"].iloc[0]
    assert reading.heads == tuple(heads)
    assert reading.settings.document_attention == document_attention
    assert reading.model.fingerprint == llm.fingerprint


@pytest.mark.parametrize("heads", ["all", SOME_HEADS, "1-0,2-3", [(3, 1)]])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"document_attention": "blockwise"},
        {"document_order": "best_first", "max_doc_tokens": 5},
        {"calibrate": False},
        {"token_filter": "none"},
        {"prompt": "core"},
    ],
    ids=str,
)
def test_behind_a_scorer_and_on_text_gives_the_same(llm, heads, settings):
    inp = two_queries()
    behind = (AttentionHeadScorer(llm=llm, **settings) >> StaticHeadReranker(heads, first_stage_weight=0.5))(inp)
    on_text = StaticHeadReranker(heads, llm=llm, first_stage_weight=0.5, **settings)(inp)
    np.testing.assert_allclose(behind["score"], on_text["score"], atol=1e-5)
    assert behind["rank"].tolist() == on_text["rank"].tolist()


def test_static_sums_its_heads_and_ranks(llm):
    inp = two_queries()
    out = StaticHeadReranker(SOME_HEADS, llm=llm)(inp)
    vectors = AttentionHeadScorer(SOME_HEADS, llm=llm)(inp)["head_scores"]
    np.testing.assert_allclose(out["score"], [vector.sum(dtype=float) for vector in vectors], atol=1e-6)
    assert out["docno"].tolist() == inp["docno"].tolist()
    assert out["score"].dtype == np.float64
    assert out["rank"].dtype == np.int64
    for _, own in out.groupby("qid"):
        assert own.sort_values("rank")["score"].is_monotonic_decreasing


def test_token_filter_sum_is_the_kernels(llm):
    inp = two_queries()
    out = ICRReranker(llm=llm, token_filter="sum")(inp)
    heads = [Head(layer, head) for layer in range(llm.num_layers) for head in range(llm.num_heads)]
    for qid, own in out.groupby("qid"):
        expected = kernel_scores(llm, f"what is {qid}", own["text"].tolist(), heads)
        np.testing.assert_allclose(own["score"], expected.summed, atol=1e-5)


def test_paper_settings_are_accepted(llm):
    for method in ("icr", "icr-qa", "qr", "core"):
        out = ICRReranker(llm=llm, **paper_settings(method))(two_queries())
        assert np.isfinite(out["score"]).all()
        assert out["score"].nunique() == len(out)


def test_order_comes_from_rank_then_score_then_rows(llm):
    inp = two_queries()
    reranker = StaticHeadReranker(SOME_HEADS, llm=llm)  # list-wise: the order changes the scores
    expected = reranker(inp).set_index("docno")["score"]
    shuffled = inp.sample(frac=1, random_state=1)
    for columns in (["score"], ["rank"], []):
        out = reranker(shuffled.drop(columns=columns)).set_index("docno")["score"]
        if len(columns) == 1:
            np.testing.assert_allclose(out[expected.index], expected, atol=1e-6)
    by_rows = reranker(inp.drop(columns=["rank", "score"])).set_index("docno")["score"]
    np.testing.assert_allclose(by_rows[expected.index], expected, atol=1e-6)
    against = inp.assign(score=-inp["score"])  # rank wins over score
    np.testing.assert_allclose(reranker(against).set_index("docno")["score"][expected.index], expected, atol=1e-6)


def test_ranks_that_are_no_numbers_name_the_query(llm):
    with pytest.raises(ValueError, match=r"'q1'.*'rank'"):
        ICRReranker(llm=llm)(two_queries().assign(rank=[0, None, 1, 2, 3, 0, 1, 2]))


def test_depth_keeps_the_tail_in_order_below(llm):
    inp = two_queries()
    out = StaticHeadReranker(SOME_HEADS, llm=llm, depth=2)(inp)
    alone = StaticHeadReranker(SOME_HEADS, llm=llm)(inp[inp["rank"] < 2])
    top = out[out["docno"].isin(alone["docno"])]
    np.testing.assert_allclose(top["score"], alone["score"], atol=1e-6)
    for _, own in out.groupby("qid"):
        tail = own.iloc[2:]
        assert tail["score"].is_monotonic_decreasing
        assert tail["score"].max() < own["score"].iloc[:2].min()
        assert tail["rank"].tolist() == list(range(2, len(own)))
    assert np.isfinite(out["score"]).all()


def test_scorer_with_depth_leaves_none_below_and_rerankers_take_it_as_tail(llm):
    inp = two_queries()
    scored = AttentionHeadScorer(llm=llm, depth=2)(inp)
    assert [vector is None for vector in scored["head_scores"]] == [False, False, True, True, True, False, False, True]
    behind = StaticHeadReranker(SOME_HEADS)(scored)
    on_text = StaticHeadReranker(SOME_HEADS, llm=llm, depth=2)(inp)
    np.testing.assert_allclose(behind["score"], on_text["score"], atol=1e-5)


def test_a_gap_in_the_vectors_names_query_and_document(llm):
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    scored.at[1, "head_scores"] = None
    with pytest.raises(ValueError, match=r"'q1': document 'q1-d1'"):
        ICRReranker()(scored)
    scored["head_scores"] = None
    with pytest.raises(ValueError, match=r"'q1': no candidate"):
        ICRReranker()(scored)


def test_first_stage_weight_standardises_both_sides(llm):
    inp = two_queries()
    plain = StaticHeadReranker(SOME_HEADS, llm=llm)(inp)
    mixed = StaticHeadReranker(SOME_HEADS, llm=llm, first_stage_weight=2.0)(inp)
    for qid, own in plain.groupby("qid"):
        first = inp[inp["qid"] == qid]["score"]
        z = [(s - s.mean()) / s.std(ddof=0) for s in (own["score"], first)]
        np.testing.assert_allclose(mixed[mixed["qid"] == qid]["score"], z[0] + 2 * z[1], atol=1e-5)


def test_equal_first_stage_scores_count_as_nothing(llm):
    inp = frame({"q1": ["one text", "another text", "third"]}).assign(score=0.1 + 0.2)
    mixed = StaticHeadReranker(SOME_HEADS, llm=llm, first_stage_weight=5.0)(inp)["score"].to_numpy()
    plain = StaticHeadReranker(SOME_HEADS, llm=llm)(inp)["score"].to_numpy()
    np.testing.assert_allclose(mixed, (plain - plain.mean()) / plain.std(), atol=1e-9)


def test_first_stage_weight_needs_finite_scores(llm):
    reranker = StaticHeadReranker(SOME_HEADS, llm=llm, first_stage_weight=1.0)
    with pytest.raises(pt.validate.InputValidationError):
        reranker(two_queries().drop(columns="score"))
    with pytest.raises(ValueError, match=r"'q1'.*'score'"):
        reranker(two_queries().assign(score=np.inf))


def test_readings_survive_what_frames_go_through(llm):
    inp = two_queries()
    scored = AttentionHeadScorer(llm=llm)(inp)
    expected = StaticHeadReranker(SOME_HEADS)(scored)["score"].to_numpy()
    halves = pd.concat([scored.iloc[5:], scored.iloc[:5]]).sort_index()
    merged = inp.merge(scored[["qid", "docno", "head_scores", "head_reading"]], on=["qid", "docno"])
    pickled = pickle.loads(pickle.dumps(scored))
    for other in (halves, merged, pickled, scored.copy(deep=True)):
        np.testing.assert_allclose(StaticHeadReranker(SOME_HEADS)(other)["score"], expected, atol=1e-9)
    rows = StaticHeadReranker(SOME_HEADS)(scored.to_dict("records"))  # transform_iter
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-9)
    streamed = list(AttentionHeadScorer(llm=llm)(inp.to_dict("records")))
    assert streamed[0]["head_reading"] == scored["head_reading"].iloc[0]


def test_heads_are_selected_by_name_not_by_place(llm):
    inp = two_queries()
    forwards = AttentionHeadScorer(SOME_HEADS, llm=llm)(inp)
    backwards = AttentionHeadScorer(SOME_HEADS[::-1], llm=llm)(inp)
    mixed = pd.concat([forwards.iloc[:2], backwards.iloc[2:]])
    expected = StaticHeadReranker(SOME_HEADS[:1])(forwards)["score"]
    for other in (backwards, mixed):
        np.testing.assert_allclose(StaticHeadReranker(SOME_HEADS[:1])(other)["score"], expected, atol=1e-6)


def test_vectors_without_the_heads_are_refused(llm):
    scored = AttentionHeadScorer(SOME_HEADS, llm=llm)(two_queries())
    with pytest.raises(ValueError, match="head_scores lacks 1 of 2 heads: 3-3"):
        StaticHeadReranker("2-3,3-3")(scored)
    with pytest.raises(ValueError, match="lacks 13 of 16 heads"):
        ICRReranker()(scored)
    with pytest.raises(ValueError, match="no head 9-0"):
        StaticHeadReranker("9-0")(scored)


def test_all_heads_of_a_model_used_in_part(llm):
    part = FrozenLLM(llm.model, tokenizer=llm.tokenizer, max_layers=2)
    inp = two_queries()
    behind = (AttentionHeadScorer(llm=part) >> ICRReranker())(inp)
    np.testing.assert_allclose(behind["score"], ICRReranker(llm=part)(inp)["score"], atol=1e-6)
    assert not np.allclose(behind["score"], ICRReranker(llm=llm)(inp)["score"], atol=1e-3)


def test_vectors_of_another_model_are_refused(llm):
    scored = AttentionHeadScorer(llm=toy_llm(architecture="Qwen3"))(two_queries())
    with pytest.raises(ValueError, match=r"Qwen3Model .*is not LlamaModel"):
        ICRReranker(llm=llm)(scored)
    same_weights = toy_llm()
    assert len(ICRReranker(llm=same_weights)(AttentionHeadScorer(llm=llm)(two_queries()))) == 8


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("prompt", "icr"),
        ("document_order", "best_first"),
        ("document_attention", "blockwise"),
        ("max_doc_tokens", 7),
        ("calibrate", False),
        ("token_filter", "none"),
    ],
)
def test_settings_by_hand_that_differ_from_the_frames_are_refused(llm, setting, value):
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    own = getattr(ReadingSettings(), setting)
    with pytest.raises(ValueError, match=f"{setting}={value!r}.*{getattr(own, 'name', own)!r}"):
        ICRReranker(**{setting: value})(scored)
    assert len(ICRReranker(**{setting: own})(scored)) == 8


def test_filter_sum_is_refused_where_it_does_not_exist(llm):
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    with pytest.raises(ValueError, match="token_filter='sum'"):
        ICRReranker(token_filter="sum")(scored.drop(columns="text"))
    with pytest.raises(ValueError, match="token_filter='sum'"):
        AttentionHeadScorer(token_filter="sum")


def test_vectors_that_lost_their_reading_are_refused(llm):
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    with pytest.raises(pt.validate.InputValidationError, match="head_reading"):
        ICRReranker(llm=llm)(scored.drop(columns="head_reading"))
    with pytest.raises(ValueError, match="document 'q1-d1': head_reading does not say"):
        ICRReranker()(scored.assign(head_reading=[*scored["head_reading"][:1], *[None] * 7]))
    cut = scored.assign(head_scores=[vector[:-1] for vector in scored["head_scores"]])
    with pytest.raises(ValueError, match=r"document 'q1-d0': \(15,\) head_scores, but .* 16 heads"):
        ICRReranker()(cut)


def test_a_list_of_two_readings_is_refused(llm):
    scored = [AttentionHeadScorer(llm=llm, document_order=o)(two_queries()) for o in ("best_last", "best_first")]
    with pytest.raises(ValueError, match=r"'q1', document 'q1-d2'.*read with other settings"):
        ICRReranker()(pd.concat([scored[0].iloc[:2], scored[1].iloc[2:]]))
    across_queries = pd.concat([scored[0].iloc[:5], scored[1].iloc[5:]])
    assert len(ICRReranker()(across_queries)) == 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"document_order": "best"},
        {"document_attention": "diagonal"},
        {"token_filter": "2sigma"},
        {"prompt": "nonsense"},
        {"max_doc_tokens": 0},
        {"depth": 0},
        {"batch_size": 0},
        {"calibrate": False, "token_filter": "head"},
        {"heads": "1-2-3"},
        {"heads": []},
        {"heads": [(1, 2), "1-2"]},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_at_once(wrong):
    for transformer in (AttentionHeadScorer, StaticHeadReranker):
        name = next(reversed(wrong)).removesuffix("s")
        with pytest.raises(ValueError, match=f"{name}|prompt"):
            transformer(**{"heads": "all", **wrong})


def test_wrong_arguments_set_later_are_refused_too(llm):
    reranker = ICRReranker(llm=llm)
    reranker.depth = -1
    with pytest.raises(ValueError, match="depth"):
        reranker(two_queries())
    with pytest.raises(TypeError, match="FrozenLLM"):
        ICRReranker(llm=llm.model)(two_queries())


def test_grid_scan_sets_public_attributes(llm):
    inp = two_queries()
    reranker = StaticHeadReranker(SOME_HEADS, llm=llm)
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["q1-d2", "q2-d1"], "label": [1, 1]})
    scan = pt.GridScan(
        pt.Transformer.from_df(inp) >> reranker,
        {reranker: {"depth": [1, 3], "first_stage_weight": [0.0, 100.0]}},
        inp[["qid", "query"]].drop_duplicates(),
        qrels,
        ["map"],
        verbose=False,
    )
    assert len(scan) == 4
    assert scan[scan.filter(like="first_stage_weight").iloc[:, 0] == 100.0]["map"].nunique() == 1


def test_one_scorer_object_means_one_document_pass_a_query():
    llm = toy_llm()
    inp = two_queries()
    scorer = AttentionHeadScorer(llm=llm)
    first = pt.Transformer.from_df(inp)
    systems = [first, first >> scorer >> ICRReranker(), first >> scorer >> StaticHeadReranker(SOME_HEADS)]
    systems.append(first >> scorer >> StaticHeadReranker("3-3", first_stage_weight=1.0))
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["q1-d2", "q2-d1"], "label": [1, 1]})
    topics = inp[["qid", "query"]].drop_duplicates()
    llm.document_passes = 0
    table = pt.Experiment(systems, topics, qrels, ["map"], plan="tree", verbose=False)
    assert len(table) == 4
    assert llm.document_passes == 2


def test_batches_give_what_single_lists_give(llm):
    inp = two_queries()
    one = AttentionHeadScorer(llm=llm, hidden_layers=[1])(inp)
    both = AttentionHeadScorer(llm=llm, hidden_layers=[1], batch_size=2)(inp)
    for column in ("head_scores", "hidden_state"):
        np.testing.assert_allclose(np.stack(one[column]), np.stack(both[column]), atol=1e-5)
    reranked = [ICRReranker(llm=llm, token_filter="sum", batch_size=b)(inp)["score"] for b in (1, 2, 5)]
    np.testing.assert_allclose(reranked[0], reranked[1], atol=1e-5)
    np.testing.assert_allclose(reranked[0], reranked[2], atol=1e-5)


def test_hidden_state_is_one_matrix_a_query(llm):
    out = AttentionHeadScorer(SOME_HEADS, llm=llm, hidden_layers=[3, 0])(two_queries())
    assert out["hidden_state"].iloc[0].shape == (2, 32)
    for _, own in out.groupby("qid"):
        assert all(np.array_equal(state, own["hidden_state"].iloc[0]) for state in own["hidden_state"])
    assert out["head_reading"].iloc[0].hidden_layers == (3, 0)
    with pytest.raises(ValueError, match="no layer 4"):
        AttentionHeadScorer(SOME_HEADS, llm=llm, hidden_layers=[4])(two_queries())



def test_features_are_the_vectors(llm):
    out = AttentionHeadScorer(llm=llm, features=True)(two_queries())
    assert all(np.array_equal(a, b) for a, b in zip(out["features"], out["head_scores"], strict=True))
    with pytest.raises(ValueError, match="features=True"):
        AttentionHeadScorer(llm=llm, features=True, depth=2)


class LeastSquares:
    """The smallest learner that PyTerrier takes."""

    def fit(self, x, y):
        self.weights = np.linalg.lstsq(x, y, rcond=None)[0]
        return self

    def predict(self, x):
        return x @ self.weights


def test_pyterriers_learners_take_the_features(llm):
    inp = two_queries()
    qrels = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["q1-d2", "q2-d1"], "label": [1, 1]})
    pipeline = AttentionHeadScorer(llm=llm, features=True) >> pt.ltr.apply_learned_model(LeastSquares())
    topics = inp[["qid", "query"]].drop_duplicates()
    (pt.Transformer.from_df(inp) >> pipeline).fit(topics, qrels, topics, qrels)
    out = pipeline(inp)
    best = out.sort_values(["qid", "rank"]).groupby("qid")["docno"].first()  # more heads than rows: it learns by heart
    assert best.tolist() == ["q1-d2", "q2-d1"]


def test_a_list_beyond_the_context_names_query_and_tokens():
    llm = toy_llm(context=300)
    long = frame({"short": ["a", "b"], "long": ["x" * 140] * 3})
    with pytest.raises(ListTooLongError, match=r"query 'long' with 3 candidates: \d+ tokens.*300"):
        AttentionHeadScorer(llm=llm)(long)
    assert len(AttentionHeadScorer(llm=llm, document_attention="blockwise", max_doc_tokens=60)(long)) == 5
    with pytest.raises(ListTooLongError, match="query 'long'"):
        ICRReranker(llm=llm, document_attention="blockwise", max_doc_tokens=1000)(frame({"long": ["x" * 400]}))


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # PyTerrier's own, raised again by pytest.warns
def test_rerankers_slide_a_window_over_lists_beyond_the_context():
    llm = toy_llm(context=420)
    texts = [f"document {i} says {'x' * i}" for i in range(20)]
    inp = frame({"short": texts[:3], "long": texts})
    reranker = StaticHeadReranker(SOME_HEADS, llm=llm)
    with pytest.warns(UserWarning, match=r"query 'long': its 20 candidates take \d+ tokens.*420.*sliding windows"):
        out = reranker(inp)
    long = out[out["qid"] == "long"]
    assert sorted(long["rank"]) == list(range(20))
    assert np.isfinite(long["score"]).all()
    assert long["score"].nunique() == 20
    np.testing.assert_allclose(
        out[out["qid"] == "short"]["score"], reranker(inp[inp["qid"] == "short"])["score"], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"'long': document 'long-d1' takes \d+ tokens.*max_doc_tokens"):
        StaticHeadReranker(SOME_HEADS, llm=llm, max_doc_tokens=1000)(frame({"long": ["x", "y" * 900, "z"]}))
    StaticHeadReranker(SOME_HEADS, llm=llm, document_attention="blockwise")(inp)  # needs no window, so no warning


def test_pickles_without_the_live_model(llm, tmp_path):
    inp = two_queries()
    reranker = ICRReranker(llm=llm, depth=3)
    thawed = pickle.loads(pickle.dumps(reranker))
    assert len(pickle.dumps(reranker)) < 5_000
    assert repr(thawed) == "ICRReranker(depth=3)"
    with pytest.raises(RuntimeError, match="which is not pickled"):
        thawed(inp)
    llm.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    by_path = ICRReranker(llm=FrozenLLM(tmp_path, dtype="float32"), depth=3)
    expected = by_path(inp)["score"]
    np.testing.assert_allclose(pickle.loads(pickle.dumps(by_path))(inp)["score"], expected, atol=1e-6)
    assert copy.deepcopy(by_path).llm is by_path.llm


def test_a_model_by_name_is_loaded_as_far_as_needed_and_once(llm, tmp_path):
    llm.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    inp = two_queries()
    reranker = StaticHeadReranker("1-0", llm=str(tmp_path))
    first = reranker(inp)["score"]
    loaded = reranker._models.open(str(tmp_path), max_layers=2)  # what the next call takes
    assert loaded.is_loaded
    assert loaded.num_layers == 2
    np.testing.assert_allclose(reranker(inp)["score"], first, atol=1e-6)
    assert reranker._models.open(str(tmp_path), max_layers=2) is loaded
    reranker.heads = "3-0"  # GridScan may ask for more
    reranker(inp)
    deeper = reranker._models.open(str(tmp_path), max_layers=2)
    assert deeper.is_loaded
    assert deeper.num_layers == 4
    whole = FrozenLLM(str(tmp_path), dtype="float32")
    StaticHeadReranker("1-0", llm=whole)(inp)
    assert whole.num_layers == 4


def test_identity_equality_and_short_reprs(llm):
    assert ICRReranker(llm=llm) != ICRReranker(llm=llm)
    assert repr(StaticHeadReranker("1-0,2-1", llm=llm)) == "StaticHeadReranker('1-0,2-1')"
    assert repr(AttentionHeadScorer(depth=5)) == "AttentionHeadScorer('all', depth=5)"
    assert repr(StaticHeadReranker([(0, i) for i in range(9)])) == "StaticHeadReranker(<9 heads>)"


def saved(model, folder):
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_other_weights_under_the_same_name_are_refused(llm, tmp_path):
    folder = saved(llm.model, tmp_path)
    scored = AttentionHeadScorer(llm=FrozenLLM(folder, dtype="float32"))(two_queries())
    assert len(ICRReranker(llm=FrozenLLM(folder))(scored)) == len(ICRReranker(llm=folder)(scored)) == 8
    saved(tiny_model("Llama", tie_word_embeddings=True, initializer_range=0.2), tmp_path)
    for other in (folder, FrozenLLM(folder)):
        with pytest.raises(ValueError, match="which is not"):
            ICRReranker(llm=other)(scored)


def test_vectors_of_a_part_are_no_sum_of_the_whole(llm):
    part = FrozenLLM(llm.model, tokenizer=llm.tokenizer, max_layers=2)
    scored = AttentionHeadScorer(llm=part)(two_queries())
    with pytest.raises(ValueError, match="lacks 8 of 16 heads"):
        ICRReranker(llm=llm)(scored)
    assert len(ICRReranker(llm=part)(scored)) == 8


def test_vectors_of_models_loaded_to_unlike_depths_mix(llm, tmp_path):
    folder = saved(llm.model, tmp_path)
    shallow, deep = (AttentionHeadScorer(heads, llm=folder)(two_queries()) for heads in ("0-0,1-0", "0-0,3-0"))
    mixed = pd.concat([shallow.iloc[:2], deep.iloc[2:]])
    expected = StaticHeadReranker("0-0")(deep)["score"]
    np.testing.assert_allclose(StaticHeadReranker("0-0")(mixed)["score"], expected, atol=1e-6)


def test_a_model_by_name_does_not_take_over_a_users_object(llm, tmp_path):
    folder = saved(llm.model, tmp_path)
    own = FrozenLLM(folder, dtype="float16")
    reranker = StaticHeadReranker(SOME_HEADS, llm=own)
    reranker(two_queries())
    reranker.llm = folder
    reranker(two_queries())
    assert reranker._models.open(folder) is not own
    assert own.weights_dtype == "float16"


def test_what_an_earlier_scorer_wrote_does_not_stay(llm):
    first = AttentionHeadScorer(llm=llm, raw=True, hidden_layers=[1])(two_queries())
    second = AttentionHeadScorer("1-0,2-3", llm=llm)(first)
    assert "head_scores_raw" not in second
    assert "hidden_state" not in second
    with pytest.raises(ValueError, match="'features'"):
        AttentionHeadScorer(llm=llm, features=True)(first.assign(features=None))


@pytest.mark.parametrize("layers", [np.array([0]), np.array([0, 1]), (1,), [np.int64(1)]])
def test_hidden_layers_of_any_kind(llm, layers):
    out = AttentionHeadScorer(SOME_HEADS, llm=llm, hidden_layers=layers)(two_queries())
    assert out["hidden_state"].iloc[0].shape == (len(layers), 32)


def test_hidden_layers_that_are_none(llm):
    assert "hidden_state" not in AttentionHeadScorer(llm=llm, hidden_layers=[])(two_queries())
    with pytest.raises(TypeError, match="hidden_layers is a sequence"):
        AttentionHeadScorer(llm=llm, hidden_layers=1)


def test_numbers_of_numpy_and_heads_read_only_once(llm):
    reranker = StaticHeadReranker(
        zip([1, 2], [0, 3], strict=True), llm=llm, max_doc_tokens=np.int64(9), calibrate=np.bool_(False)
    )
    expected = StaticHeadReranker("1-0,2-3", llm=llm, max_doc_tokens=9, calibrate=False)(two_queries())["score"]
    np.testing.assert_allclose(reranker(two_queries())["score"], expected, atol=1e-6)
    assert ReadingSettings(calibrate=False).token_filter == "none"
    for wrong in ({"calibrate": "no"}, {"max_doc_tokens": True}, {"max_doc_tokens": 1.5}, {"document_order": 1}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            ReadingSettings(**wrong)


def test_categorical_and_missing_qids(llm):
    inp = two_queries()
    expected = ICRReranker(llm=llm)(inp)["score"]
    categorical = inp.assign(qid=pd.Categorical(inp["qid"], ["q0", "q2", "q1"]))
    np.testing.assert_allclose(ICRReranker(llm=llm)(categorical)["score"], expected, atol=1e-6)
    named = inp.set_index("qid", drop=False)
    np.testing.assert_allclose(ICRReranker(llm=llm)(named)["score"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="'qid' has a missing value in row 1"):
        ICRReranker(llm=llm)(inp.assign(qid=["q1", None, *inp["qid"][2:]]))


def test_scores_of_the_tail_stay_below_whatever_the_scale(llm):
    out = StaticHeadReranker(SOME_HEADS, llm=llm, depth=2, first_stage_weight=1e18)(two_queries())
    for _, own in out.groupby("qid"):
        assert own["score"].iloc[2:].is_monotonic_decreasing
        assert own["score"].iloc[2:].max() < own["score"].iloc[:2].min()
        assert own["score"].nunique() == len(own)


def test_first_stage_scores_below_the_depth_do_not_matter(llm):
    inp = frame({"q1": ["cats", "dogs", "rain"]}).assign(score=[2.0, 1.0, None])
    assert np.isfinite(StaticHeadReranker(SOME_HEADS, llm=llm, depth=2, first_stage_weight=1.0)(inp)["score"]).all()


def test_a_template_that_differs_says_in_what(llm):
    scored = AttentionHeadScorer(llm=llm)(two_queries())
    changed = replace(get_template("default"), null_query="")
    with pytest.raises(ValueError, match=r"'default' with null_query=''.*'default' with null_query='N/A'"):
        ICRReranker(prompt=changed)(scored)


def test_transformers_can_be_keys_whatever_is_set(llm):
    reranker = ICRReranker(llm=llm)
    kept = {reranker: 1}
    reranker.depth = 5
    assert kept[reranker] == 1


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # the cache's own
def test_retriever_cache_is_the_cache_to_use(llm, tmp_path):
    caching = pytest.importorskip("pyterrier_caching")
    inp = two_queries()
    pipeline = caching.RetrieverCache(tmp_path / "cache", pt.Transformer.from_df(inp) >> ICRReranker(llm=llm))
    topics = inp[["qid", "query"]].drop_duplicates()
    assert pipeline(topics)["score"].tolist() == pipeline(topics)["score"].tolist()
