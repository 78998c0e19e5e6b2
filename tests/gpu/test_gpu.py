"""Scores on a GPU are those on the CPU; all of these are skipped, and counted, where there is none."""

import numpy as np
import pytest
import torch

from pyterrier_routehead import AttentionHeadScorer, FrozenLLM
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.kernel.score import score_lists
from tiny import ARCHITECTURES, HEADS, LAYERS, random_prompt, tiny_model
from toys import byte_tokenizer, two_queries

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_gives_the_scores_of_a_cpu(architecture, document_attention):
    prompts = [random_prompt(1, [12, 30, 7]), random_prompt(2, [25, 3])]
    found = [
        score_lists(
            FrozenLLM(tiny_model(architecture).to(device), tokenizer=byte_tokenizer()),
            prompts,
            all_heads(LAYERS, HEADS),
            document_attention=document_attention,
            hidden_layers=[1],
        )
        for device in ("cpu", torch.accelerator.current_accelerator())
    ]
    for on_cpu, on_gpu in zip(*found, strict=True):
        np.testing.assert_allclose(on_gpu.raw, on_cpu.raw, atol=1e-4)
        np.testing.assert_allclose(on_gpu.raw - on_gpu.null, on_cpu.raw - on_cpu.null, atol=1e-4)
        np.testing.assert_allclose(on_gpu.hidden[1], on_cpu.hidden[1], atol=1e-3)


def test_a_scorer_finds_the_gpu_by_itself(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    llm = FrozenLLM(tmp_path)
    out = AttentionHeadScorer(llm=llm)(two_queries())
    assert llm.input_device.type == torch.accelerator.current_accelerator().type
    assert np.isfinite(np.stack(out["head_scores"])).all()
