"""Which weights a model has, told by short hashes: an id does not tell, since one id can name several weights.

SmolLM2-135M-Instruct from the hub and from a Q4_1 GGUF file differ, and so do the heads that rank well in them.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAMPLES = 64
"""Weights sampled from each tensor of a layer, evenly spaced."""


def layer_hash(layer: "torch.nn.Module") -> str:
    """Eight hexadecimal digits over sampled weights of one decoder layer.

    Floating-point weights are cast to bf16 first, so that device and load dtype do not matter; packed weights of
    quantised models count as their bytes. fp16 cannot hold all of bf16: a model that FrozenLLM loads in fp16 is hashed
    before the cast, but a loaded one that was cast to fp16 elsewhere may differ from its bf16 or fp32 self.
    """
    import torch

    digest = hashlib.sha256()
    for name, weights in sorted(layer.state_dict().items()):
        if not isinstance(weights, torch.Tensor) or weights.numel() == 0:
            continue
        flat = weights.detach().reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64).long()
        sample = flat[index.to(flat.device)].cpu()
        if sample.is_floating_point():
            sample = sample.to(torch.bfloat16)
        digest.update(f"{name}:{tuple(weights.shape)}".encode())
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


_NO_MATTER = {
    # What a configuration says about where a model comes from, how many of its layers are loaded, or how to generate.
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "layer_types",
    "max_window_layers",
    "num_hidden_layers",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def surroundings_hash(decoder: "torch.nn.Module") -> str:
    """Eight hexadecimal digits over what changes a decoder's states beside its layers: embeddings and configuration."""
    from torch import nn

    config = {name: value for name, value in decoder.config.to_dict().items() if name not in _NO_MATTER}
    embeddings = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]  # of positions too
    said = json.dumps(config, sort_keys=True, default=str) + "".join(layer_hash(module) for module in embeddings)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def same_weights(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two models agree in the layers that both have loaded; False where there are none."""
    common = min(len(one), len(other))
    return common > 0 and tuple(one[:common]) == tuple(other[:common])


def shown(fingerprint: Sequence[str]) -> str:
    """A fingerprint for a message: its first layers."""
    return "-".join(fingerprint[:2]) + ("…" if len(fingerprint) > 2 else "")
