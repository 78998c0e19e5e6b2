"""Clean splits: on small frames, against plain searches on random ones, and on SciFact."""

import os
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_routehead.evaluation.splits import (
    NEAR,
    document_groups,
    near_duplicates,
    sharing_relevant,
    split_by_group,
    without,
)

quick = settings(max_examples=100, deadline=None)


def topics_of(*queries, start=1):
    return pd.DataFrame({"qid": [str(i) for i in range(start, start + len(queries))], "query": list(queries)})


def qrels_of(*judgements):
    """Judgements such as ``"1 a"`` (relevant) or ``"1 a 0"``."""
    rows = [(*judgement.split(), "1")[:3] for judgement in judgements]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"]).astype({"label": int})


def words(count, start=0):
    return " ".join(f"w{i}" for i in range(start, start + count))


# Near-duplicates


def is_near(one, other, **threshold):
    found = near_duplicates(topics_of(one), topics_of(other, start=9), **threshold)
    assert found == near_duplicates(topics_of(one), topics_of("xyz", other, start=9), **threshold)
    assert (found == {"1"}) == (near_duplicates(topics_of(other, start=9), topics_of(one), **threshold) == {"9"})
    return found == {"1"}


def test_seven_of_ten_words_are_near_and_fewer_are_not():
    assert NEAR == 0.7
    assert is_near(words(10), words(7))
    assert is_near(words(20), words(14))
    assert is_near(words(8), words(9, start=1))  # 7 shared of 10
    assert not is_near(words(10), words(6))
    assert not is_near(words(100), words(69))
    assert not is_near(words(13), words(9))  # 0.692
    assert not is_near(words(8), words(10, start=1))  # 7 of 11


def test_another_threshold():
    assert is_near(words(10), words(6), threshold=0.6)
    assert not is_near(words(10), words(9), threshold=0.95)
    assert is_near(words(10), words(10), threshold=1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Vitamin D Helps", "vitamin d helps"),
        ("vitamin-D, helps!", "«Vitamin» (D) helps?"),
        ("helps vitamin d", "d vitamin helps"),
        ("d d d vitamin helps", "vitamin helps d"),
        ("snake_case word", "snake case WORD"),
        ("  a\tb\nc ", "a b c"),
        ("1/2000 in UK", "1 2000 in uk"),
        ("ÉCOLE über 東京", "école ÜBER 東京"),
    ],
)
def test_case_punctuation_order_and_repetition_do_not_matter(one, other):
    assert is_near(one, other, threshold=1.0)


def test_words_are_compared_whole():
    assert not is_near("alpha", "alphabet", threshold=0.01)
    assert not is_near("10", "100", threshold=0.01)
    assert not is_near("a1", "a 1", threshold=0.01)
    assert is_near("東京 für", "für 東京")
    assert not is_near("東京 für", "大阪 für")
    assert not is_near("über", "ber", threshold=0.01)


@pytest.mark.parametrize("empty", ["", "   ", "?!", "___"])
def test_queries_without_words_are_near_to_nothing(empty):
    assert not is_near(empty, empty)
    assert not is_near(empty, "")
    assert not is_near(empty, "cats")


def test_one_near_query_is_enough_and_any_number_of_topics_may_have_one():
    topics = topics_of("cats sleep", "dogs bark", "cats, sleep!", "rain")
    assert near_duplicates(topics, topics_of("nothing here", "sleep cats", "rain", start=50)) == {"1", "3", "4"}
    assert near_duplicates(topics, topics) == {"1", "2", "3", "4"}


@quick
@given(st.lists(st.text("abcd ,", max_size=12), max_size=6), st.lists(st.text("abcd ,", max_size=12), max_size=6))
def test_near_duplicates_by_counting_one_by_one(own, others):
    expected = set()
    for number, query in enumerate(own, start=1):
        mine = set(query.replace(",", " ").split())
        for other in others:
            theirs = set(other.replace(",", " ").split())
            if mine and 10 * sum(word in theirs for word in mine) >= 7 * len([*mine, *(theirs - mine)]):
                expected.add(str(number))
    assert near_duplicates(topics_of(*own), topics_of(*others)) == expected


# Shared documents


def test_labels_of_0_do_not_make_documents_shared():
    own = qrels_of("1 a", "2 b 0", "3 c", "4 d -1", "5 e 2", "6 f")
    other = qrels_of("7 a 3", "8 b", "8 c 0", "9 d", "9 e", "9 f -1")
    assert sharing_relevant(own, other) == {"1", "5"}
    assert sharing_relevant(other, own) == {"7", "9"}
    assert sharing_relevant(own, qrels_of("7 z")) == set()


def test_without_drops_qids_and_numbers_rows_anew():
    topics = topics_of("a", "b", "c", "d").set_index(pd.Index([9, 8, 7, 6]))
    before = topics.copy()
    left = without(topics, {"2", "77"}, ["4"])
    assert left.to_dict("list") == {"qid": ["1", "3"], "query": ["a", "c"]}
    assert left.index.tolist() == [0, 1]
    assert without(topics)["qid"].tolist() == without(topics, set(), [])["qid"].tolist() == ["1", "2", "3", "4"]
    assert without(topics, topics["qid"]).columns.tolist() == ["qid", "query"]
    assert without(topics, topics["qid"]).empty
    pd.testing.assert_frame_equal(topics, before)


# Groups

JUDGED = st.lists(st.tuples(st.integers(1, 15), st.integers(0, 12), st.sampled_from([-1, 0, 1, 1, 3])), max_size=40)


def frames(judged, count=12):
    """Topics 1 to ``count``; some judgements are of queries that are not among them."""
    rows = [(str(qid), f"d{doc}", label) for qid, doc, label in judged]
    qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
    return topics_of(*["q"] * count), qrels


def reachable(start, judged, qids):
    """All queries that one gets to from a query by way of relevant documents: breadth-first search."""
    found, frontier = {start}, [start]
    while frontier:
        own = frontier.pop()
        documents = {doc for qid, doc, label in judged if qid == own and label > 0}
        for qid, doc, label in judged:
            if qid in qids and doc in documents and label > 0 and qid not in found:
                found.add(qid)
                frontier.append(qid)
    return found


def test_groups_in_order_of_first_appearance():
    topics = topics_of("a", "b", "c", "d", "e").set_index(pd.Index([5, 3, 3, 1, 0]))
    groups = document_groups(topics, qrels_of("5 x", "2 x", "1 y 0", "3 y", "4 z", "3 z"))
    assert groups.tolist() == [0, 1, 2, 2, 1]
    assert groups.index.tolist() == [5, 3, 3, 1, 0]
    assert groups.name == "group"


def test_a_query_that_is_not_among_the_topics_joins_no_others():
    assert document_groups(topics_of("a", "b"), qrels_of("1 x", "99 x", "99 y", "2 y")).tolist() == [0, 1]


@quick
@given(JUDGED)
def test_groups_are_what_can_be_reached_by_shared_documents(judged):
    topics, qrels = frames(judged)
    groups = document_groups(topics, qrels).tolist()
    for i in range(12):
        own = reachable(i + 1, judged, range(1, 13))
        assert {j + 1 for j in range(12) if groups[j] == groups[i]} == own
    firsts = list(dict.fromkeys(groups))
    assert firsts == list(range(len(firsts)))


# Splits


@quick
@given(JUDGED, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_parts_share_no_relevant_document_and_every_topic_is_in_one(judged, share, seed):
    topics, qrels = frames(judged)
    parts = split_by_group(topics, qrels, share, seed)
    qids = [set(part["qid"]) for part in parts]
    assert sorted([*parts[0]["qid"], *parts[1]["qid"]]) == sorted(topics["qid"])
    documents = [set(qrels[qrels["qid"].isin(own) & (qrels["label"] > 0)]["docno"]) for own in qids]
    assert not documents[0] & documents[1]
    for part in parts:
        assert part.index.tolist() == list(range(len(part)))
        assert part["qid"].tolist() == sorted(part["qid"], key=int)  # the topics' order
    # Whole groups go over until the share is reached: it is, by less than the largest group too many.
    largest = document_groups(topics, qrels).value_counts().max()
    assert share * 12 <= len(parts[1]) < share * 12 + largest


def test_a_share_of_single_queries_is_reached_exactly():
    topics, none = topics_of(*["q"] * 200), qrels_of()
    for share, count in ((0.25, 50), (0.5, 100), (0.001, 1), (0.875, 175)):
        assert [len(part) for part in split_by_group(topics, none, share, 3)] == [200 - count, count]


def test_splits_follow_their_seed_and_leave_the_topics_alone():
    topics, qrels = frames([(i, i // 2, 1) for i in range(1, 41)], count=40)
    topics = topics.assign(extra=range(40)).set_index(pd.Index(range(100, 140)))
    before = topics.copy(), qrels.copy()
    splits = [split_by_group(topics, qrels, 0.3, seed) for seed in (1, 1, 2, 3)]
    for one, other in zip(splits[0], splits[1], strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert len({tuple(second["qid"]) for _, second in splits}) == 3
    pd.testing.assert_frame_equal(topics, before[0])
    pd.testing.assert_frame_equal(qrels, before[1])
    for part in splits[0]:
        assert part.columns.tolist() == ["qid", "query", "extra"]
        assert (part["extra"] == part["qid"].astype(int) - 1).all()


def test_every_query_is_drawn_at_some_seed():
    topics, qrels = frames([(1, 1, 1), (2, 1, 1)], count=6)
    drawn = [set(split_by_group(topics, qrels, 0.2, seed)[1]["qid"]) for seed in range(60)]
    assert set.union(*drawn) == set(topics["qid"])
    assert all(("1" in own) == ("2" in own) for own in drawn)


def test_one_group_is_never_torn_apart():
    topics, qrels = topics_of("a", "b", "c"), qrels_of("1 x", "2 x", "2 y", "3 y")
    first, second = split_by_group(topics, qrels, 0.1, 0)
    assert (len(first), second["qid"].tolist()) == (0, ["1", "2", "3"])


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0, -0.5, 1.5, 30, float("nan")])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="share must be between 0 and 1, got"):
        split_by_group(topics_of("a", "b"), qrels_of("1 x"), share, 0)


# Empty frames

SOME, SOME_QRELS = topics_of("a b", "c"), qrels_of("1 x", "2 x")


@pytest.mark.parametrize("qrels", [SOME_QRELS, SOME_QRELS[:0], pd.DataFrame(columns=["qid", "docno", "label"])])
@pytest.mark.parametrize("topics", [SOME[:0], pd.DataFrame(columns=["qid", "query"])])
def test_no_topics_give_no_groups_and_two_empty_parts(topics, qrels):
    assert document_groups(topics, qrels).tolist() == []
    for part in split_by_group(topics, qrels, 0.5, 1):
        assert (len(part), part.columns.tolist()) == (0, ["qid", "query"])
    assert near_duplicates(topics, SOME) == near_duplicates(SOME, topics) == set()
    assert without(topics, {"1"}).columns.tolist() == ["qid", "query"]


@pytest.mark.parametrize("none", [SOME_QRELS[:0], pd.DataFrame(columns=["qid", "docno", "label"]), qrels_of("1 x 0")])
def test_without_judgements_every_query_is_a_group_of_its_own(none):
    assert document_groups(SOME, none).tolist() == [0, 1]
    assert sharing_relevant(none, SOME_QRELS) == sharing_relevant(SOME_QRELS, none) == set()
    assert [len(part) for part in split_by_group(SOME, none, 0.5, 1)] == [1, 1]


# A real collection

SCIFACT = Path(os.environ.get("IR_DATASETS_HOME", "~/.ir_datasets")).expanduser() / "beir" / "scifact"


@pytest.mark.skipif(
    not all((SCIFACT / name).exists() for name in ("queries.json", "train.qrels", "test.qrels")),
    reason="SciFact is not in IR_DATASETS_HOME",
)
def test_scifact_leaks_and_how_much_is_left_without_that():
    train, test = (pt.get_dataset(f"irds:beir/scifact/{part}") for part in ("train", "test"))
    topics, others = train.get_topics(), test.get_topics()
    qrels, other_qrels = train.get_qrels(), test.get_qrels()
    assert (len(topics), len(others)) == (809, 300)
    assert len(near_duplicates(others, topics)) == 91
    sharing = sharing_relevant(qrels, other_qrels)
    assert len(sharing) == 272
    clean = without(topics, near_duplicates(topics, others), sharing)
    assert len(clean) == 536
    assert document_groups(clean, qrels).nunique() == 327
    # What is left shares nothing with the test queries, and a validation part of it nothing with the rest.
    assert not sharing_relevant(qrels[qrels["qid"].isin(clean["qid"])], other_qrels)
    parts = split_by_group(clean, qrels, 0.3, 42)
    own = [qrels[qrels["qid"].isin(part["qid"])] for part in parts]
    assert not sharing_relevant(own[0], own[1])
    assert 0.3 * 536 <= len(parts[1]) < 0.3 * 536 + document_groups(clean, qrels).value_counts().max()
