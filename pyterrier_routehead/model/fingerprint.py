"""Identifies the weights of a model by short hashes: an id is not enough, since one id can name several weights.

SmolLM2-135M-Instruct from the hub and from a Q4_1 GGUF file differ, and so do the heads that rank well in them. A model
loaded by its user may be trained further, or change its adapters, so its hashes are valid only at that moment.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .adapters import adapters_in_effect, settings_in_effect, weights_in_effect

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SAMPLES = 64
"""Number of weights sampled from each tensor of a layer, evenly spaced."""


@dataclass(frozen=True)
class ModelSnapshot:
    """The identity of a model at one moment.

    Attributes:
        name: id, folder or file.
        total_layers: number of layers of the complete model, loaded or not.
        num_heads: attention (query) heads per layer.
        weights_dtype: dtype of the weights in memory, such as ``"bfloat16"``.
        fingerprint: a hash per loaded layer over samples of its weights.
        layer_fingerprint: the fingerprint with everything else that distinguishes a layer's scores: the kind of its
            attention, if layers are of several kinds, and a sum over all weights.
        surroundings: a hash over embeddings and configuration.
    """

    name: str
    total_layers: int
    num_heads: int
    weights_dtype: str
    fingerprint: tuple[str, ...]
    layer_fingerprint: tuple[str, ...]
    surroundings: str


def layer_hashes(layers: "Iterable[torch.nn.Module]") -> tuple[str, ...]:
    """Eight hexadecimal digits per layer over samples of the weights that are in effect.

    Floating-point weights are cast to bf16 first, so that device and load dtype do not matter; packed weights of
    quantised models count as their bytes. fp16 cannot hold all of bf16: a model that FrozenLLM loads in fp16 is hashed
    before the cast, but a loaded model that was cast to fp16 elsewhere may differ from the same in bf16 or fp32.
    """
    layers = list(layers)
    states = [sorted(weights_in_effect(layer).items()) for layer in layers]
    samples = iter(_on_cpu([_sample(weights) for state in states for _, weights in state]))
    hashes = []
    for layer, state in zip(layers, states, strict=True):
        digest = hashlib.sha256()
        for name, weights in state:
            sample = next(samples)
            if weights.numel():
                digest.update(f"{name}:{tuple(weights.shape)}".encode() + sample)
        for setting in settings_in_effect(layer):
            digest.update(setting.encode())
        hashes.append(digest.hexdigest()[:8])
    return tuple(hashes)


def model_hashes(decoder: "torch.nn.Module", layers: "torch.nn.ModuleList") -> tuple[str, ...]:
    """:func:`layer_hashes`; the first hash also covers adapters on the embeddings, if any are in effect."""
    hashes = layer_hashes(layers)
    adapted = [module for module in _around(decoder, layers) if adapters_in_effect(module)]
    if not adapted:
        return hashes
    combined = "".join((hashes[0], *layer_hashes(adapted)))
    return (hashlib.sha256(combined.encode()).hexdigest()[:8], *hashes[1:])


def layer_sums(layers: "Iterable[torch.nn.Module]") -> tuple[str, ...]:
    """Eight hexadecimal digits per layer over all bytes of its weights, summed by tensor.

    They detect the change of a single weight, which samples do not; unlike these they depend on the dtype.
    """
    states = [sorted(weights_in_effect(layer).items()) for layer in layers]
    sums = iter(_on_cpu([_sum(weights) for state in states for _, weights in state]))
    return tuple(hashlib.sha256(b"".join(next(sums) for _ in state)).hexdigest()[:8] for state in states)


def _sample(weights: "torch.Tensor") -> "torch.Tensor":
    """Sampled weights of a tensor, as bytes on its device."""
    import torch

    if not weights.numel():
        return torch.empty(0, dtype=torch.uint8, device=weights.device)
    flat = weights.detach().reshape(-1)
    sample = flat[_sample_indices(flat.numel(), flat.device)]
    return (sample.to(torch.bfloat16) if sample.is_floating_point() else sample).contiguous().view(torch.uint8)


@lru_cache(maxsize=256)
def _sample_indices(count: int, device: "torch.device") -> "torch.Tensor":
    """Indices of the samples of a tensor with this many weights."""
    import torch

    with torch.inference_mode(False):
        indices = torch.linspace(0, count - 1, min(SAMPLES, count), dtype=torch.float64, device="cpu").long()
        return indices.to(device)


def _sum(weights: "torch.Tensor") -> "torch.Tensor":
    """Sum of a tensor's bytes, eight at a time: eight bytes on its device."""
    import torch

    flat = weights.detach().contiguous().reshape(-1).view(torch.uint8)
    multiple = flat.numel() // 8 * 8
    if flat.storage_offset() % 8:
        flat = flat.clone()
    return (flat[:multiple].view(torch.int64).sum() + flat[multiple:].sum()).reshape(1).view(torch.uint8)


def _on_cpu(pieces: "list[torch.Tensor]") -> list[bytes]:
    """The content of byte tensors, copied to the CPU in one transfer per device."""
    import torch

    contents = [b""] * len(pieces)
    for device in {piece.device for piece in pieces}:
        indices = [i for i, piece in enumerate(pieces) if piece.device == device]
        transferred, start = torch.cat([pieces[i] for i in indices]).cpu().numpy().tobytes(), 0
        for i in indices:
            stop = start + pieces[i].numel()
            contents[i], start = transferred[start:stop], stop
    return contents


_IGNORED_CONFIG = {
    # Entries about where a model comes from, how many of its layers are loaded, or how to generate.
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
_FINAL_NORMS = {"norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm"}


def surroundings_hash(decoder: "PreTrainedModel", layers: "torch.nn.Module") -> str:
    """Eight hexadecimal digits over what affects a decoder's states besides its layers: embeddings and configuration.

    Args:
        decoder: the model below its language-model head.
        layers: its stack of layers, which is left out, as is the final norm.
    """
    config = {name: value for name, value in decoder.config.to_dict().items() if name not in _IGNORED_CONFIG}
    around = _around(decoder, layers)
    content = json.dumps(config, sort_keys=True, default=str) + "".join((*layer_hashes(around), *layer_sums(around)))
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _around(decoder: "torch.nn.Module", layers: "torch.nn.Module") -> "list[torch.nn.Module]":
    """The decoder's modules with weights that the layers depend on."""
    return [
        module
        for name, module in decoder.named_children()
        if module is not layers and name not in _FINAL_NORMS and weights_in_effect(module)
    ]


def same_weights(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two fingerprints agree in their common layers; False without any."""
    common = min(len(left), len(right))
    return common > 0 and tuple(left[:common]) == tuple(right[:common])


def shown(fingerprint: Sequence[str]) -> str:
    """A fingerprint for a message, truncated to its first layers."""
    return "-".join(fingerprint[:2]) + ("…" if len(fingerprint) > 2 else "")
