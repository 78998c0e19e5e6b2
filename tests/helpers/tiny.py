"""Tiny random models of many architectures, and prompts of random ids for them."""

import random
from dataclasses import replace

import torch
import transformers

from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.prompt.build import DocumentBlock, ListPrompt

VOCABULARY = 320
LAYERS = 4
HEADS = 4
ALL = all_heads(LAYERS, HEADS)

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # far from uniform attention
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

ARCHITECTURES = {
    "Llama": {},
    "Mistral": {"sliding_window": 40, "head_dim": 12},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {
        "layer_types": _ALTERNATING,
        "sliding_window": 16,
        "attn_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 24,
        "head_dim": 16,
    },
    "Gemma3Text": {
        "layer_types": _ALTERNATING,
        "sliding_window": 16,
        "query_pre_attn_scalar": 10,
        "head_dim": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "Phi3": {"sliding_window": 48},
    "Granite": {"attention_multiplier": 0.17, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "Olmo2": {},
    "Olmo3": {"layer_types": _ALTERNATING, "sliding_window": 16},
    "GPTNeoX": {"num_key_value_heads": None},
    "GPT2": {"num_key_value_heads": None, "scale_attn_by_inverse_layer_idx": True},
    "StableLm": {"use_qkv_bias": True},
    "Starcoder2": {"sliding_window": 40},
    "Cohere2": {"layer_types": _ALTERNATING, "sliding_window": 16},
    "SmolLM3": {"no_rope_layers": [1, 0, 1, 0]},
    "Ministral3": {
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "llama_4_scaling_beta": 0.1,  # queries grow with the position
        },
    },
    "Exaone4": {"layer_types": _ALTERNATING, "sliding_window": 16},
    "DeepseekV3": {  # values of another size than keys; experts
        "num_key_value_heads": HEADS,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "Gemma4Text": {  # full layers with larger heads; ids go into every layer
        "layer_types": _ALTERNATING,
        "sliding_window": 16,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
}
"""What is particular to each architecture's attention, away from its defaults: windows shorter than the prompts,
scaling other than 1/sqrt(head size), positions."""

_CAUSAL_LM = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def tiny_config(architecture: str, **changes):
    """A configuration of that architecture with the particulars above, and changes to it."""
    options = {**_COMMON, **ARCHITECTURES.get(architecture, {}), **changes}
    options = {name: value for name, value in options.items() if value is not None}
    return getattr(transformers, f"{architecture}Config")(**options)


def tiny_model(architecture: str, *, attention: str | None = None, causal_lm: bool = False, **changes):
    """A random fp32 model; the same weights each time, whatever the attention implementation."""
    config = tiny_config(architecture, **changes)
    if attention is not None:
        config._attn_implementation = attention
    name = _CAUSAL_LM.get(architecture, f"{architecture}ForCausalLM") if causal_lm else f"{architecture}Model"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return getattr(transformers, name)(config).float().eval()


def random_ids(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(3, VOCABULARY) for _ in range(count)]


def random_prompt(
    seed: int,
    lengths: list[int],
    *,
    best_last: bool = False,
    query: int = 9,
    null: int = 6,
    capacity: int | None = None,
) -> ListPrompt:
    """A prompt of random ids. Each document is its tag (two tokens), this many tokens that count, and a separator."""
    generator = random.Random(seed)
    blocks = [DocumentBlock(random_ids(generator, 2 + length + 1), 2, 2 + length) for length in lengths]
    order = list(range(len(lengths)))
    if best_last:
        order.reverse()
    instruction = random_ids(generator, 3)
    return ListPrompt(
        prefix=random_ids(generator, 7),
        blocks=[blocks[i] for i in order],
        order=order,
        query=instruction + random_ids(generator, query - 3),
        null=instruction + random_ids(generator, null - 3),
        block_capacity=capacity,
    )


def permuted(prompt: ListPrompt, order: list[int]) -> ListPrompt:
    """The same candidates, with the blocks in another order."""
    by_candidate = dict(zip(prompt.order, prompt.blocks, strict=True))
    return replace(prompt, blocks=[by_candidate[i] for i in order], order=order)


PROMPTS = [
    # of 30, 17, ... tokens that count: among them a document of one token and one of none
    random_prompt(1, [30, 17, 22, 1, 0, 48], best_last=True),
    random_prompt(2, [40, 12, 25], capacity=60),
    # very uneven, the longest first or last
    random_prompt(3, [1, 3, 90, 2, 1], best_last=True, query=4, null=11),
]
"""Longer than every sliding window in ``ARCHITECTURES``."""
