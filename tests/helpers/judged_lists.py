"""Candidate lists of random words with judgements, in training and validation parts, and a comparison of rankings."""

import numpy as np
import pandas as pd

from toys import frame


def some_lists(seed, queries, documents=5):
    """Candidates of random words, and for each query one relevant document, somewhere."""
    generator = np.random.default_rng(seed)
    words = ["cats", "sleep", "moon", "far", "paris", "rain", "tea", "whale", "blue", "night"]
    qids = [f"{seed}-{i}" for i in range(queries)]
    texts = {
        qid: [" ".join(generator.choice(words, generator.integers(1, 6))) for _ in range(documents)] for qid in qids
    }
    relevant = {qid: f"{qid}-d{generator.integers(documents)}" for qid in qids}
    return frame(texts, {qid: str(generator.choice(words)) for qid in qids}), judged(relevant)


def judged(relevant):
    """Judgements: for each query a relevant document, or documents with labels."""
    rows = []
    for qid, docnos in relevant.items():
        labels = docnos if isinstance(docnos, dict) else {docnos: 1}
        rows += [{"qid": qid, "docno": docno, "label": label} for docno, label in labels.items()]
    return pd.DataFrame(rows)


QRELS = judged({"q1": {"q1-d2": 2, "q1-d4": 1, "q1-d0": 0}, "q2": "q2-d1"})
TRAIN, TRAIN_QRELS = some_lists(1, 4)
VALID, VALID_QRELS = some_lists(2, 6, documents=7)


def same_ranking(ranked, expected, atol=1e-6):
    np.testing.assert_allclose(ranked["score"], expected["score"], atol=atol)
    assert ranked["rank"].tolist() == expected["rank"].tolist()
