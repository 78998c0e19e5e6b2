"""The kernel's own choices of how much to do at once change nothing."""

import numpy as np
import pytest

from pyterrier_routehead import attention, kernel
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.prompt import DocumentBlock
from tiny import random_prompt
from toys import toy_llm

PROMPTS = [random_prompt(1, [30, 4, 25, 60, 1, 9]), random_prompt(2, [12, 50], best_last=True)]


def scores(llm):
    return kernel.score_lists(llm, PROMPTS, all_heads(4, 4), document_attention="blockwise", hidden_layers=[2])


@pytest.mark.parametrize("tokens", [1, 40, 90])
def test_blocks_encoded_in_parts_give_the_same(monkeypatch, tokens):
    llm = toy_llm(architecture="Mistral")
    expected = scores(llm)
    before = llm.document_passes
    monkeypatch.setattr(kernel, "TOKENS_AT_A_TIME", tokens)
    for own, other in zip(scores(llm), expected, strict=True):
        for name in ("raw", "null", "filtered", "summed"):
            np.testing.assert_allclose(getattr(own, name), getattr(other, name), atol=1e-5)
        np.testing.assert_allclose(own.hidden[2], other.hidden[2], atol=1e-4)
    assert llm.document_passes - before == len(PROMPTS)  # parts of a list are no lists of their own


def test_parts_keep_all_blocks_in_order():
    blocks = [DocumentBlock([i] * length, 0, length) for i, length in enumerate([3, 9, 1, 1, 4])]
    parts = list(kernel._in_parts(blocks, 5))
    assert [len(part) for part in parts] == [1, 1, 2, 1]
    assert [block for part in parts for block in part] == blocks
    assert list(kernel._in_parts([], 5)) == [[]]


@pytest.mark.parametrize("logits", [1, 1 << 12, 1 << 30])
def test_heads_read_in_batches_give_the_same(monkeypatch, logits):
    llm = toy_llm()
    expected = scores(llm)
    monkeypatch.setattr(attention, "_LOGITS_AT_A_TIME_ON_CPU", logits)
    for own, other in zip(scores(llm), expected, strict=True):
        np.testing.assert_allclose(own.filtered, other.filtered, atol=1e-5)
