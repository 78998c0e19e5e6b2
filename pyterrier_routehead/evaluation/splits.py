"""Clean splits: training and validation queries without leakage from the test queries.

Collections leak. A third of SciFact's test claims have a near-duplicate among the train claims, often the negated claim
with the same gold document, and heads, routers or settings chosen on such queries look better than they are. These
functions work on PyTerrier's frames: topics with ``qid`` and ``query``, qrels with ``qid``, ``docno`` and ``label``.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR = 0.7
"""Minimum token Jaccard similarity of near-duplicates."""


def near_duplicates(topics: pd.DataFrame, others: pd.DataFrame, threshold: float = NEAR) -> set[str]:
    """The qids of topics that are near-duplicates of one of the other queries.

    Two queries are near-duplicates if the Jaccard similarity of their word sets (lower case, runs of letters and
    digits) is at least the threshold.
    """
    others_words = list(_words_by_qid(others).values())
    return {
        qid
        for qid, words in _words_by_qid(topics).items()
        if any(_jaccard(words, other_words) >= threshold for other_words in others_words)
    }


def sharing_relevant(qrels: pd.DataFrame, others: pd.DataFrame) -> set[str]:
    """The qids of qrels with a relevant document (label above 0) that is also relevant to one of the other queries."""
    taken = set(others.loc[others["label"] > 0, "docno"])
    return set(qrels.loc[(qrels["label"] > 0) & qrels["docno"].isin(taken), "qid"].astype(str))


def without(topics: pd.DataFrame, *dropped: Iterable[str]) -> pd.DataFrame:
    """The topics without some qids."""
    return topics[~topics["qid"].astype(str).isin(set().union(*dropped))].reset_index(drop=True)


def document_groups(topics: pd.DataFrame, qrels: pd.DataFrame) -> pd.Series:
    """The group of each topic, by row: queries that share a relevant document, directly or transitively, form a group.

    Groups are numbered in order of first appearance; a query without relevant documents forms a separate group.
    """
    qids = topics["qid"].astype(str)
    if qids.duplicated().any():
        raise ValueError(f"qid {qids[qids.duplicated()].iloc[0]!r} occurs in several rows of the topics")
    judged = qrels[(qrels["label"] > 0) & qrels["qid"].astype(str).isin(qids)]
    number = {qid: i for i, qid in enumerate(qids)}
    documents, _ = pd.factorize(judged["docno"])
    size = len(number) + len(judged)
    queries = judged["qid"].astype(str).map(number).to_numpy(dtype=int)
    edges = coo_matrix((np.ones(len(judged)), (queries, len(number) + documents)), (size, size))
    component = connected_components(edges, directed=False)[1][: len(number)]
    return pd.Series(pd.factorize(component)[0], index=topics.index, name="group")


def split_by_group(
    topics: pd.DataFrame, qrels: pd.DataFrame, share: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics in two parts that share no relevant document: complete groups go to the second until it has its share."""
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share!r}")
    groups = document_groups(topics, qrels).to_numpy()
    order = np.random.default_rng(seed).permutation(groups.max(initial=-1) + 1)
    sizes = np.bincount(groups, minlength=len(order))[order]
    # The second part ends with the group that fills its share.
    taken = order[: int(np.searchsorted(np.cumsum(sizes), share * len(topics))) + 1]
    second = np.isin(groups, taken)
    return topics[~second].reset_index(drop=True), topics[second].reset_index(drop=True)


def _words_by_qid(topics: pd.DataFrame) -> dict[str, frozenset[str]]:
    if topics["query"].isna().any():
        raise ValueError(f"query {topics['qid'][topics['query'].isna()].iloc[0]!r} has no text")
    return {str(qid): _words(query) for qid, query in zip(topics["qid"], topics["query"], strict=True)}


def _words(query: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", query.lower()))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 0.0
