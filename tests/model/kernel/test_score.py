"""The kernel's own choices of how much to do at once change nothing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from transformers import LlamaModel

from pyterrier_routehead import FrozenLLM, UnsupportedArchitectureError
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.kernel import passes
from pyterrier_routehead.kernel import score as kernel
from pyterrier_routehead.kernel.parts import in_parts
from pyterrier_routehead.prompt.build import DocumentBlock
from tiny import random_prompt, tiny_config, tiny_model
from toys import byte_tokenizer, toy_llm

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
    parts = list(in_parts(blocks, 5))
    assert [len(part) for part in parts] == [1, 1, 2, 1]
    assert [block for part in parts for block in part] == blocks
    assert list(in_parts([], 5)) == [[]]


def test_two_models_of_one_configuration_in_two_threads():
    config = tiny_config("Llama")
    llms = [FrozenLLM(LlamaModel(config).eval(), tokenizer=byte_tokenizer()) for _ in range(2)]
    expected = [scores(llm)[0].raw for llm in llms]
    before = config._attn_implementation
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: scores(llms[i % 2])[0].raw, range(20)))
    for i, own in enumerate(found):
        np.testing.assert_allclose(own, expected[i % 2], atol=1e-6)
    assert config._attn_implementation == before


def test_what_is_not_finite_says_so():
    model = tiny_model("Llama").half()
    model.layers[1].mlp.down_proj.weight.data.mul_(1e5)
    with pytest.raises(UnsupportedArchitectureError, match="LlamaModel cannot be read in float16, where it is not"):
        scores(FrozenLLM(model, tokenizer=byte_tokenizer()))


@pytest.mark.parametrize("logits", [1, 1 << 12, 1 << 30])
def test_heads_read_in_batches_give_the_same(monkeypatch, logits):
    llm = toy_llm()
    expected = scores(llm)
    monkeypatch.setattr(passes, "LOGITS_AT_A_TIME_ON_CPU", logits)
    for own, other in zip(scores(llm), expected, strict=True):
        np.testing.assert_allclose(own.filtered, other.filtered, atol=1e-5)
