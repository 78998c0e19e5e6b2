"""Frames of any kind: what is read from them, what is refused by name, and what comes back."""

import copy
import datetime
import decimal
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_routehead import AttentionHeadScorer, ICRReranker, ListTooLongError, Reading, StaticHeadReranker
from pyterrier_routehead.common.standard import standardised
from pyterrier_routehead.ranking.frames import (
    candidate_lists,
    check_columns,
    documents,
    first_stage_scores,
    query_text,
    used_title_field,
    vector_rows,
    with_ranking,
)
from pyterrier_routehead.ranking.windows import slide_windows
from toys import frame, toy_llm, two_queries

LLM = toy_llm()
HEADS = "1-0,2-3"
TRANSFORMERS = [AttentionHeadScorer(HEADS, llm=LLM), StaticHeadReranker(HEADS, llm=LLM)]
SHUFFLED = [6, 2, 0, 7, 1, 5, 3, 4]


@pytest.fixture
def strict_sort(monkeypatch):
    monkeypatch.setattr(pt.model, "STRICT_SORT", True)


def three() -> pd.DataFrame:
    return frame({"q": ["cats", "dogs", "rain"]})


def with_value(inp: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    values = inp[column].astype(object).to_numpy().copy()
    values[row] = value
    return inp.assign(**{column: values})


# Ranking


def plain_ranks(qids, scores):
    """By loops: how many of the same query are better, or as good and earlier."""
    rows = range(len(qids))
    return [
        sum(qids[j] == qids[i] and (scores[j] > scores[i] or (scores[j] == scores[i] and j < i)) for j in rows)
        for i in rows
    ]


def test_ranking_is_by_score_within_the_query_and_ties_keep_the_rows_order():
    inp = two_queries().assign(url="x").iloc[SHUFFLED]
    scores = np.array([1.0, 5.0, 5.0, 1.0, -2.0, 7.0, 5.0, 1e-300])
    out = with_ranking(inp, scores)
    assert out["rank"].tolist() == plain_ranks(inp["qid"].tolist(), scores.tolist())
    assert out["score"].tolist() == scores.tolist()
    assert list(out.columns) == ["qid", "query", "docno", "text", "url", "score", "rank"]
    assert (out["score"].dtype, out["rank"].dtype) == ("float64", "int64")
    pd.testing.assert_frame_equal(out.drop(columns=["score", "rank"]), inp.drop(columns=["score", "rank"]))


def test_ranks_are_those_of_pyterrier():
    generator = np.random.default_rng(3)
    inp = pd.DataFrame({"qid": generator.choice(list("abc"), 60), "docno": np.arange(60).astype(str)})
    scores = generator.integers(0, 9, 60).astype(float)
    expected = inp.assign(score=scores).groupby("qid")["score"].rank(ascending=False, method="first").astype(int) - 1
    assert with_ranking(inp, scores)["rank"].tolist() == expected.tolist()


INDEXES = {
    "duplicate": lambda rows: pd.Index([0, 1] * (rows // 2)),
    "named like a column": lambda rows: pd.Index(range(rows), name="qid"),
    "named like another": lambda rows: pd.Index(list("abcdefgh"), name="score"),
    "categorical": lambda rows: pd.CategoricalIndex(["b", "a"] * (rows // 2)),
    "dates": lambda rows: pd.date_range("2020-01-01", periods=rows),
    "tuples": lambda rows: pd.Index([(i, "x") for i in range(rows)], tupleize_cols=False),
    "missing": lambda rows: pd.Index([np.nan] * rows),
    "levels": lambda rows: pd.MultiIndex.from_arrays([["a", "b"] * (rows // 2), range(rows)], names=["qid", None]),
    "intervals": lambda rows: pd.interval_range(0, rows),
}


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_f16_any_index_stays(transformer, kind):
    inp = two_queries().iloc[SHUFFLED]
    index = INDEXES[kind](len(inp))
    expected = transformer(inp.reset_index(drop=True))
    out = transformer(inp.set_axis(index))
    pd.testing.assert_index_equal(out.index, index)
    assert list(out.columns) == list(expected.columns)
    if "rank" in expected and "head_scores" not in expected:
        assert out["rank"].tolist() == expected["rank"].tolist()
        np.testing.assert_allclose(out["score"], expected["score"], atol=1e-6)


def test_f16_what_concat_and_groupby_leave_can_be_ranked():
    inp = two_queries()
    expected = StaticHeadReranker(HEADS, llm=LLM)(inp)
    parts = dict(list(inp.groupby("qid")))
    top = inp.groupby("qid")[list(inp.columns)].apply(lambda own: own.head(9))
    for other in (pd.concat(parts), pd.concat(parts, names=["qid", "rank"]), top):
        out = StaticHeadReranker(HEADS, llm=LLM)(other)
        pd.testing.assert_index_equal(out.index, other.index)
        np.testing.assert_allclose(out["score"], expected["score"], atol=1e-6)


@pytest.mark.parametrize("index", ["duplicate", "levels", "named like a column"])
@pytest.mark.usefixtures("strict_sort")
def test_f37_a_strict_sort_moves_whole_rows_with_their_labels(index):
    inp = two_queries().iloc[SHUFFLED].assign(place=range(8))
    inp = inp.set_axis(INDEXES[index](8))
    scores = np.array([1.0, 5.0, 5.0, 1.0, -2.0, 7.0, 5.0, 1e-300])
    marks = np.array([f"row {i}" for i in range(8)], dtype=object)
    out = with_ranking(inp, scores, {"mark": marks})
    assert out["qid"].tolist() == ["q1"] * 5 + ["q2"] * 3
    assert out["rank"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert out["score"].tolist() == scores[out["place"]].tolist()
    assert out["mark"].tolist() == marks[out["place"]].tolist()
    assert out["docno"].tolist() == inp["docno"].iloc[out["place"]].tolist()
    assert out.index.equals(inp.index[out["place"]])


@pytest.mark.usefixtures("strict_sort")
def test_f37_a_strict_sort_is_pyterriers():
    for qids in (list("baab"), [10, 9, 9, 10], pd.Categorical(list("baab"), ["b", "a"])):
        inp = pd.DataFrame({"qid": qids, "docno": list("abcd")})
        scores = np.array([1.0, 2.0, 3.0, 4.0])
        expected = inp.assign(score=scores, rank=[1, 1, 0, 0]).sort_values(["qid", "rank"])
        pd.testing.assert_frame_equal(with_ranking(inp, scores), expected, check_dtype=False)
    mixed = pd.DataFrame({"qid": pd.Series(["b", 1, 1, "b"], dtype=object), "docno": list("abcd")})
    assert with_ranking(mixed, scores)["docno"].tolist() == ["c", "b", "d", "a"]


@pytest.mark.usefixtures("strict_sort")
def test_f37_rerankers_under_a_strict_sort():
    inp = two_queries().iloc[SHUFFLED].set_axis(list("abcdefgh"))
    out = StaticHeadReranker(HEADS, llm=LLM, first_stage_weight=1.0)(inp)
    assert out["docno"].to_dict() == inp["docno"].to_dict()
    assert out["rank"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize("strict", [False, True])
def test_an_empty_frame_has_the_same_columns(strict, monkeypatch):
    monkeypatch.setattr(pt.model, "STRICT_SORT", strict)
    inp = two_queries().assign(url="x", when=pd.Timestamp("2020-01-01"))
    none, some = (with_ranking(part, np.zeros(len(part))) for part in (inp.iloc[:0], inp))
    assert none.dtypes.equals(some.dtypes)
    assert list(none.columns) == list(some.columns)


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_frames_are_left_as_they_are(transformer):
    inp = two_queries().assign(url="x")
    inp.attrs["source"] = {"index": "bm25"}
    before = copy.deepcopy(inp)
    out = transformer(inp)
    pd.testing.assert_frame_equal(inp, before)
    assert inp.attrs == before.attrs == out.attrs
    out.loc[0, "text"] = "changed"
    out.attrs["source"]["index"] = "changed"
    pd.testing.assert_frame_equal(inp, before)
    assert inp.attrs == before.attrs


def test_scores_that_are_not_finite_name_the_candidate():
    with pytest.raises(ValueError, match="query 'q', document 'q-d1': its new score is nan"):
        with_ranking(three(), [1.0, np.nan, np.inf])


# Columns


@pytest.mark.parametrize("column", ["qid", "query", "docno", "text", "title", "score", "rank"])
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_f35_a_used_column_that_stands_twice_is_refused_by_name(transformer, column):
    inp = two_queries().assign(title="t")
    twice = pd.concat([inp, inp[[column]]], axis=1)
    for part in (twice, twice.iloc[:2], twice.iloc[:0]):
        with pytest.raises(ValueError, match=f"the frame has 2 columns '{column}': rename or drop"):
            transformer(part)


@pytest.mark.parametrize("column", ["head_scores", "head_reading", "hidden_state"])
def test_f35_columns_of_a_scorer_that_stand_twice(column):
    scored = AttentionHeadScorer(HEADS, llm=LLM, hidden_layers=[1])(two_queries())
    twice = pd.concat([scored, scored[[column]]], axis=1)
    for transformer in (StaticHeadReranker(HEADS), AttentionHeadScorer(HEADS, llm=LLM, hidden_layers=[1])):
        with pytest.raises(ValueError, match=f"the frame has 2 columns '{column}'"):
            transformer(twice)


def test_f35_other_columns_may_stand_twice():
    inp = pd.concat([two_queries(), *[pd.DataFrame({"url": range(8)})] * 2], axis=1)
    assert list(StaticHeadReranker(HEADS, llm=LLM)(inp).columns) == [
        "qid", "query", "docno", "text", "url", "url", "score", "rank",
    ]


def test_columns_of_several_levels_are_refused():
    inp = two_queries()
    inp.columns = pd.MultiIndex.from_product([inp.columns, ["x"]])
    with pytest.raises(ValueError, match=r"columns have 2 levels, such as \('qid', 'x'\)"):
        check_columns(inp, ["qid"])
    with pytest.raises(ValueError, match="columns have 2 levels"):
        StaticHeadReranker(HEADS, llm=LLM)(inp)


# Titles


def test_f8_a_column_of_titles_is_used_unless_told_otherwise():
    inp = frame({"q": ["cats", "dogs", ""]}).assign(title=["Pets", None, "Birds"])
    joined = frame({"q": ["Pets\ncats", "dogs", "Birds"]})
    for make in (AttentionHeadScorer, StaticHeadReranker):
        column = "head_scores" if make is AttentionHeadScorer else "score"
        expected = np.stack(make(HEADS, llm=LLM)(joined)[column])
        plain = np.stack(make(HEADS, llm=LLM)(inp.drop(columns="title"))[column])
        for options, wanted in (({}, expected), ({"title_field": "title"}, expected), ({"title_field": None}, plain)):
            np.testing.assert_allclose(np.stack(make(HEADS, llm=LLM, **options)(inp)[column]), wanted, atol=2e-5)
        renamed = make(HEADS, llm=LLM, title_field="headline")(inp.rename(columns={"title": "headline"}))
        np.testing.assert_allclose(np.stack(renamed[column]), expected, atol=2e-5)
    assert not np.allclose(expected, plain, atol=1e-3)


def test_f8_which_column_that_is():
    assert used_title_field(["text", "title"], "auto") == "title"
    assert used_title_field(["text"], "auto") is None
    assert used_title_field(["text", "title"], None) is None
    assert used_title_field(["text", "title"], "headline") == "headline"
    assert used_title_field(["title"], "auto", "title") is None  # titles alone are ranked
    with pytest.raises(pt.validate.InputValidationError, match="headline"):
        AttentionHeadScorer(llm=LLM, title_field="headline")(two_queries())


def test_f8_a_reading_says_whether_titles_were_read():
    inp = two_queries().assign(title="Pets")
    scorers = AttentionHeadScorer(HEADS, llm=LLM), AttentionHeadScorer(HEADS, llm=LLM, title_field=None)
    read, unread = (scorer(inp)["head_reading"].iloc[0] for scorer in scorers)
    assert (read.title_field, unread.title_field) == ("title", None)
    assert not read.same_but_heads(unread)
    assert read.same_but_heads(replace(read, title_field="headline"))
    mixed = pd.concat([scorers[0](inp).iloc[:2], scorers[1](inp).iloc[2:]])
    with pytest.raises(ValueError, match=r"query 'q1', document 'q1-d2': .*read with other settings"):
        StaticHeadReranker(HEADS)(mixed)


def test_f8_readings_of_before_still_work():
    reading = AttentionHeadScorer(HEADS, llm=LLM)(three())["head_reading"].iloc[0]
    old = object.__new__(Reading)
    old.__dict__.update({name: value for name, value in vars(reading).items() if name != "title_field"})
    old = pickle.loads(pickle.dumps(old))
    assert "title_field" not in vars(old)
    assert old == reading
    assert old.same_but_heads(reading)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"title_field": 1}, TypeError, "title_field is a string"),
        ({"title_field": ""}, ValueError, "title_field is empty"),
        ({"text_field": None}, TypeError, "text_field is a string"),
        ({"depth": 2.0}, TypeError, "depth must be an integer >= 1"),
        ({"depth": True}, TypeError, "depth must be an integer >= 1"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer >= 1"),
        ({"raw": "yes"}, TypeError, "raw is True or False"),
        ({"features": 1}, TypeError, "features is True or False"),
        ({"verbose": "no"}, TypeError, "verbose is True or False"),
        ({"hidden_layers": "12"}, TypeError, "hidden_layers is a sequence of layers"),
        ({"hidden_layers": [1.5]}, TypeError, r"hidden_layers\[0\] must be an integer >= 0"),
        ({"hidden_layers": [1, -1]}, ValueError, r"hidden_layers\[1\] must be an integer >= 0"),
    ],
    ids=str,
)
def test_wrong_arguments_of_the_scorer_are_named(options, error, message):
    with pytest.raises(error, match=message):
        AttentionHeadScorer(HEADS, llm=LLM, **options)


# Texts


NO_TEXTS = {
    "bytes": b"cats",
    "number": 7,
    "float": 7.5,
    "numpy's": np.int64(7),
    "dict": {"text": "cats"},
    "list": ["cats"],
    "tuple": ("cats",),
    "array": np.array(["cats", "dogs"]),
    "empty list": [],
    "date": datetime.date(2020, 1, 1),
}


@pytest.mark.parametrize("column", ["text", "title", "query"])
@pytest.mark.parametrize("value", NO_TEXTS.values(), ids=NO_TEXTS)
def test_f11_what_is_no_text_is_refused_by_column_qid_and_docno(column, value):
    inp = with_value(three().assign(title="t"), column, 1, value)
    message = rf"query 'q', document 'q-d1': column '{column}' has .*\({type(value).__name__}\)"
    for transformer in TRANSFORMERS:
        with pytest.raises(TypeError, match=message):
            transformer(inp)


def test_f11_the_remedy_fits():
    for value, remedy in ((7, "astype(str)"), (b"x", "str.decode('utf-8')"), (["x"], "make one string of it")):
        with pytest.raises(TypeError) as refused:
            documents(with_value(three(), "text", 1, value), np.arange(3), "text", None)
        assert remedy in str(refused.value)
    with pytest.raises(TypeError, match=r"column 'title' has .*; title_field=None reads no titles"):
        StaticHeadReranker(HEADS, llm=LLM)(three().assign(title=[["t"]] * 3))
    numbered = three().assign(query=[5, 5, 5])  # topics whose queries pandas read as numbers
    with pytest.raises(TypeError, match=r"column 'query' has 5 \(int\).*frame\['query'\].astype\(str\)"):
        StaticHeadReranker(HEADS, llm=LLM)(numbered)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, np.float32("nan"), decimal.Decimal("nan")])
def test_f11_missing_texts_and_titles_count_as_empty(missing):
    inp = with_value(with_value(three().assign(title="t"), "title", 1, missing), "text", 2, missing)
    assert [(own.text, own.title) for own in documents(inp, np.arange(3), "text", "title")] == [
        ("cats", "t"), ("dogs", ""), ("", "t"),
    ]


def test_strings_of_numpy_and_of_categories_are_strings():
    inp = three().assign(text=pd.Series([np.str_("cats"), "dogs", "rain"], dtype=object))
    inp["query"] = pd.Categorical(inp["query"])
    assert {type(own.text) for own in documents(inp, np.arange(3), "text", None)} == {str}
    assert query_text(inp, *candidate_lists(inp)) == "what is q"


# Ids, ranks and scores


@pytest.mark.parametrize("column", ["qid", "docno"])
@pytest.mark.parametrize(
    "value", [["q"], {"q": 1}, ("q",), 1.5, np.float32(2), b"q", True, np.array([1]), datetime.date.max], ids=str
)
def test_f45_ids_are_strings_or_whole_numbers(column, value):
    inp = with_value(three(), column, 2, value)
    for transformer in TRANSFORMERS:
        with pytest.raises(TypeError, match=rf"column '{column}' has .*\({type(value).__name__}\) in row 2.*'q"):
            transformer(inp)


@pytest.mark.parametrize("column", ["qid", "docno"])
@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT])
def test_f45_missing_ids_are_refused(column, value):
    with pytest.raises(ValueError, match=f"column '{column}' has a missing value in row 1"):
        StaticHeadReranker(HEADS, llm=LLM)(with_value(three(), column, 1, value))


def test_f45_numbers_that_a_merge_made_floats_are_told_how_to_repair_them():
    with pytest.raises(TypeError, match=r"1.0 \(float\).*frame\['qid'\]\.astype\(int\)\.astype\(str\)"):
        candidate_lists(three().assign(qid=1.0))


@pytest.mark.parametrize("kind", [np.int32, np.uint8, "Int64", object])
def test_whole_numbers_are_ids(kind):
    inp = two_queries()
    inp["qid"] = inp["qid"].str[1:].astype(int).astype(kind)
    inp["docno"] = np.arange(8).astype(np.int16)
    assert [(own.qid, own.rows.tolist()) for own in candidate_lists(inp)] == [
        ("1", [0, 1, 2, 3, 4]), ("2", [5, 6, 7]),
    ]
    expected = StaticHeadReranker(HEADS, llm=LLM)(two_queries())["score"]
    np.testing.assert_allclose(StaticHeadReranker(HEADS, llm=LLM)(inp)["score"], expected, atol=1e-6)


def test_f45_two_qids_that_become_one_string_are_refused():
    inp = two_queries().assign(qid=pd.Series(["1"] * 5 + [1] * 3, dtype=object))
    with pytest.raises(ValueError, match="column 'qid' has '1' both as a string and as a number, in row 5"):
        StaticHeadReranker(HEADS, llm=LLM)(inp)
    qids = [1, np.int64(1), np.uint8(1), 1, 1, "2", np.str_("2"), "2"]
    same = two_queries().assign(qid=pd.Series(qids, dtype=object))
    assert [own.qid for own in candidate_lists(same)] == ["1", "2"]


def test_f45_qids_that_no_file_could_hold_are_only_names():
    inp = two_queries()
    odd = inp.assign(qid=pd.Series(["\ud800"] * 5 + ["\udc00\n'"] * 3, dtype=object))
    expected = StaticHeadReranker(HEADS, llm=LLM)(inp)
    out = StaticHeadReranker(HEADS, llm=LLM)(odd)
    np.testing.assert_allclose(out["score"], expected["score"], atol=1e-6)
    assert out["rank"].tolist() == expected["rank"].tolist()


def test_f45_strings_of_pyarrow():
    pytest.importorskip("pyarrow")
    inp = two_queries()
    expected = StaticHeadReranker(HEADS, llm=LLM)(inp)
    arrow = inp.astype(dict.fromkeys(("qid", "query", "docno", "text"), "string[pyarrow]"))
    out = StaticHeadReranker(HEADS, llm=LLM)(arrow)
    np.testing.assert_allclose(out["score"], expected["score"], atol=1e-6)
    odd = arrow.assign(qid=pd.Series(["\ud800"] * 5 + ["\udc00"] * 3, dtype=object))
    assert StaticHeadReranker(HEADS, llm=LLM)(odd)["rank"].tolist() == expected["rank"].tolist()


@pytest.mark.parametrize("column", ["rank", "score"])
@pytest.mark.parametrize("value", [[1], 1j, datetime.datetime(2020, 1, 1), pd.Timestamp(5), b"1", {}, True], ids=repr)
def test_f45_ranks_and_scores_are_numbers(column, value):
    inp = with_value(three() if column == "rank" else three().drop(columns="rank"), column, 1, value)
    with pytest.raises(TypeError, match=f"query 'q', document 'q-d1': column '{column}' has .*which is no number"):
        candidate_lists(inp)
    if not isinstance(value, list | dict):
        with pytest.raises(TypeError, match=f"column '{column}' has .*no number"):
            candidate_lists(inp.assign(**{column: pd.Series([value] * 3)}))


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, "first", "nan", ""], ids=repr)
def test_missing_ranks_name_the_document(value):
    with pytest.raises(ValueError, match="query 'q', document 'q-d1': column 'rank' has "):
        candidate_lists(with_value(three(), "rank", 1, value))


@pytest.mark.parametrize("kind", [np.float32, "Int64", str, "category", object, np.uint8])
def test_ranks_of_any_kind(kind):
    inp = three().iloc[[2, 0, 1]]
    for column, change in (("rank", lambda one: one), ("score", lambda one: one.drop(columns="rank"))):
        own = change(inp.assign(**{column: inp[column].astype(int).astype(kind)}))
        assert [one.rows.tolist() for one in candidate_lists(own)] == [[1, 2, 0]]
    decimals = inp.drop(columns="rank").assign(score=[decimal.Decimal(8), decimal.Decimal(10), decimal.Decimal(9)])
    assert candidate_lists(decimals)[0].rows.tolist() == [1, 2, 0]


# First stage


@pytest.mark.parametrize("scale", [1e200, 1e-170, 1e-320, 1e307, 1.0])
def test_f36_scores_of_any_size_are_standardised(scale):
    scores = np.array([3.0, -1.0, 4.0, 1.0])
    expected = (scores - scores.mean()) / scores.std()
    np.testing.assert_allclose(standardised(scores * scale), expected, atol=1e-3 if scale == 1e-320 else 1e-12)
    both = standardised(np.stack([scores * scale, scores, np.full(4, scale)], axis=1))
    np.testing.assert_allclose(both[:, 1], expected, atol=1e-12)
    assert not both[:, 2].any()


def test_f36_the_largest_numbers_and_equal_ones():
    largest = np.finfo(float).max
    assert standardised(np.array([largest, -largest])).tolist() == [1, -1]
    for equal in (0.0, 0.1 + 0.2, largest, 5e-324, -1e-200):
        assert standardised(np.full(3, equal)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e200, 1e-170])
def test_f36_the_first_stage_weighs_the_same_whatever_its_scale(scale):
    reranker = StaticHeadReranker(HEADS, llm=LLM, first_stage_weight=2.0)
    inp = two_queries()
    expected = reranker(inp)["score"]
    np.testing.assert_allclose(reranker(inp.assign(score=inp["score"] * scale))["score"], expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 10**400])
def test_f36_what_cannot_be_standardised_is_refused_where_it_enters(value):
    inp = with_value(three(), "score", 1, value)
    with pytest.raises(ValueError, match="query 'q', document 'q-d1': column 'score' has "):
        StaticHeadReranker(HEADS, llm=LLM, first_stage_weight=1.0)(inp)
    assert first_stage_scores(inp, *candidate_lists(inp), 1).tolist() == [10.0]  # below the depth it does not matter


# Head scores


@pytest.mark.parametrize(
    "value",
    [
        "0.5 0.5",
        b"12",
        3.5,
        np.array([1 + 1j, 2]),
        np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[D]"),
        np.array([0.5, "x"], dtype=object),
        np.array([True, False]),
        [[1.0], [1.0, 2.0]],
        {"1-0": 0.5},
        pd.Timestamp("2020-01-01"),
    ],
    ids=repr,
)
def test_f45_head_scores_are_arrays_of_real_numbers(value):
    scored = AttentionHeadScorer(HEADS, llm=LLM)(three())
    with pytest.raises(TypeError, match=r"query 'q', document 'q-d1': head_scores has .*no array of real numbers"):
        StaticHeadReranker(HEADS)(with_value(scored, "head_scores", 1, value))


@pytest.mark.parametrize("value", [[np.nan, 1.0], [1.0, np.inf]])
def test_head_scores_that_are_not_finite_name_the_document(value):
    scored = AttentionHeadScorer(HEADS, llm=LLM)(three())
    with pytest.raises(ValueError, match="query 'q', document 'q-d2': head_scores has numbers that are not finite"):
        StaticHeadReranker(HEADS)(with_value(scored, "head_scores", 2, np.array(value)))


def test_lists_of_numbers_are_head_scores_too():
    scored = AttentionHeadScorer(HEADS, llm=LLM)(three())
    expected = StaticHeadReranker(HEADS)(scored)["score"]
    listed = scored.assign(head_scores=pd.Series([vector.tolist() for vector in scored["head_scores"]], dtype=object))
    np.testing.assert_allclose(StaticHeadReranker(HEADS)(listed)["score"], expected, atol=1e-6)
    missing = with_value(scored, "head_scores", 2, pd.NA)
    assert len(vector_rows(missing, *candidate_lists(missing))[1]) == 2


@pytest.mark.parametrize("settings", [{}, {"calibrate": False}, {"token_filter": "none"}], ids=str)
def test_a_row_edited_in_place_changes_no_other(settings, tmp_path):
    scorer = AttentionHeadScorer(
        HEADS, llm=LLM, raw=True, features=True, hidden_layers=[1], store=str(tmp_path), **settings
    )
    inp = frame({"q": ["cats", "cats", "rain"]}).assign(docno="same")
    for _ in range(2):  # read, then found in the store
        out, again = scorer(inp), scorer(inp)
        columns = ["head_scores", "head_scores_raw", "features"]
        before = {name: [vector.copy() for vector in out[name]] for name in columns}
        out["head_scores"].iloc[0][:] = 99.0
        for name in columns:
            for row in range(3):
                assert (name, row) == ("head_scores", 0) or np.array_equal(out[name].iloc[row], before[name][row])
                assert np.array_equal(again[name].iloc[row], before[name][row])
    with pytest.raises(ValueError, match="read-only"):
        out["hidden_state"].iloc[0][:] = 0.0


# Windows


def test_f20_a_query_that_leaves_no_room_is_what_is_too_long():
    for budget in (0, -312):
        with pytest.raises(ListTooLongError, match=f"the prompt without documents leaves {budget} tokens.*query"):
            slide_windows([24, 30], budget, lambda numbers: np.zeros(len(numbers)))
    with pytest.raises(ListTooLongError, match="candidate 1 takes 9 tokens, but only 8"):
        slide_windows([3, 9], 8, lambda numbers: np.zeros(len(numbers)))


def test_rerankers_and_scorer_take_one_frame_alike():
    """Text and vectors of the same frame, shuffled, with titles, under any index: the same scores."""
    inp = two_queries().assign(title=[None, "a", "b", "c", "d", "e", "f", "g"]).iloc[SHUFFLED]
    inp = inp.set_axis(pd.MultiIndex.from_arrays([[0] * 8, range(8)]))
    behind = (AttentionHeadScorer(llm=LLM) >> ICRReranker())(inp)
    np.testing.assert_allclose(behind["score"], ICRReranker(llm=LLM)(inp)["score"], atol=1e-5)
