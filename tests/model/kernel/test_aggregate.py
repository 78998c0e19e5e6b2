"""Aggregations of attention on tokens to scores of documents can be replaced and added to."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead import HeadScoreStore, ICRReranker, ReadingSettings
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.kernel.aggregate import AGGREGATIONS, PLAIN
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.prompt.build import Candidate
from pyterrier_routehead.reading.reader import CandidateList, ListReader
from tiny import random_prompt
from toys import toy_llm


class Mean:
    """The mean over a document's tokens."""

    name = "mean"
    linear = False

    def __init__(self, *, per_head, needs_calibration):
        self.per_head = per_head
        self.needs_calibration = needs_calibration

    def aggregate(self, tokens, attention):
        return tokens.sum(attention) / tokens.counts


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_an_aggregation_in_the_table_is_all_that_another_one_takes(monkeypatch, tmp_path, per_head, calibrate):
    monkeypatch.setitem(AGGREGATIONS, "mean", Mean(per_head=per_head, needs_calibration=False))
    settings = ReadingSettings(token_filter="mean", calibrate=calibrate)
    reader = ListReader(toy_llm(), "all", settings, store=HeadScoreStore(tmp_path / "store"))
    candidates = [Candidate("some words"), Candidate("others of a document, and more of them")]
    ((_, scores),) = reader.read([CandidateList("q", "query", candidates)], 1)
    prompt = reader.prompt(CandidateList("q", "query", candidates))
    lengths = np.array([block.stop - block.start for block in prompt.blocks])[prompt.order, None]
    plain = scores.vectors(PLAIN, calibrate=calibrate)
    plain = plain if per_head else plain.sum(axis=1, keepdims=True)
    found = scores.vectors(settings.aggregation, calibrate=calibrate)
    np.testing.assert_allclose(found, plain / lengths, atol=1e-5)
    inp = pd.DataFrame({"qid": "q", "query": "query", "docno": ["a", "b"], "score": [2.0, 1.0], "rank": [0, 1]})
    inp["text"] = [candidate.text for candidate in candidates]
    ranked = ICRReranker(llm=reader.llm, token_filter="mean", calibrate=calibrate)(inp).set_index("docno")["score"]
    np.testing.assert_allclose(ranked[["a", "b"]], found.sum(axis=1), atol=1e-5)


def test_an_aggregation_of_calibrated_attention_needs_calibration(monkeypatch):
    monkeypatch.setitem(AGGREGATIONS, "mean", Mean(per_head=True, needs_calibration=True))
    with pytest.raises(ValueError, match="token_filter='mean' filters calibrated scores, but calibrate=False"):
        ReadingSettings(token_filter="mean", calibrate=False)
    (scores,) = score_lists(toy_llm(), [random_prompt(1, [30, 4])], all_heads(4, 4), calibrate=False)
    for aggregation in AGGREGATIONS.values():
        if aggregation.needs_calibration:
            with pytest.raises(ValueError, match="there are no scores for token_filter="):
                scores.vectors(aggregation, calibrate=False)
    assert scores.vectors(PLAIN, calibrate=False) is scores.raw
