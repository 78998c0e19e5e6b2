"""A decoder in memory: its size, context and weights."""

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, cast

from ..prompt.encoding import TextEncoder
from .fingerprint import ModelSnapshot, layer_sums, model_hashes, surroundings_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CONTEXT_NAMES = ("max_position_embeddings", "max_target_positions")
"""Names of the context length in configurations; the latter is Whisper's."""


@dataclass
class LoadedModel:
    """A decoder in memory.

    Attributes:
        name: id, folder or file.
        decoder: the model below its language-model head.
        layers: the decoder's stack of layers.
        encoder: its tokenizer.
        total_layers: number of layers of the complete model, loaded or not.
        num_heads: attention (query) heads per layer.
        max_layers: maximum number of layers to use; None for all that are loaded.
        live: whether its owner loaded it, and may change it at any time.
        early_fingerprint: a hash per layer, if it was computed before the weights were cast.
    """

    name: str
    decoder: "PreTrainedModel"
    layers: "torch.nn.ModuleList"
    encoder: TextEncoder
    total_layers: int
    num_heads: int
    max_layers: int | None = None
    live: bool = False
    early_fingerprint: tuple[str, ...] | None = None
    _snapshot: ModelSnapshot | None = field(default=None, init=False, repr=False)

    @property
    def is_current(self) -> bool:
        """Whether the decoder still has this stack of layers, which its owner may have replaced."""
        return not self.live or any(child is self.layers for child in self.decoder.children())

    @property
    def num_layers(self) -> int:
        """Number of layers to use."""
        loaded = len(self.layers)
        return loaded if self.max_layers is None else min(self.max_layers, loaded)

    @property
    def architecture(self) -> str:
        """Name of the decoder's class, for messages."""
        return type(self.decoder).__name__

    @property
    def weights_dtype(self) -> str:
        """The dtype of the weights in memory, such as ``"bfloat16"``."""
        return str(self.decoder.dtype).removeprefix("torch.")

    @property
    def input_device(self) -> "torch.device":
        """Where token ids go."""
        return self._embeddings.device

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that have an embedding."""
        return getattr(self.decoder.get_input_embeddings(), "num_embeddings", None) or len(self._embeddings)

    @property
    def _embeddings(self) -> "torch.Tensor":
        return cast("torch.Tensor", self.decoder.get_input_embeddings().weight)

    @property
    def context_length(self) -> int | None:
        """Number of positions that the model was made for; None if its configuration does not state it."""
        lengths = (getattr(self.decoder.config, name, None) for name in _CONTEXT_NAMES)
        return next((length for length in lengths if length is not None), None)

    @property
    def fixed_rope_length(self) -> int | None:
        """Number of positions up to which the rotary frequencies do not depend on the length; None for any number."""
        config = self.decoder.config
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
        lengths = [
            kind.get("original_max_position_embeddings") or config.max_position_embeddings
            for kind in kinds
            if kind.get("rope_type") == "longrope" or "dynamic" in str(kind.get("rope_type"))
        ]
        return min(lengths, default=None)

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """One short hash per loaded layer over its weights; recomputed each time for a live model."""
        return model_hashes(self.decoder, self.layers) if self.live else self.snapshot().fingerprint

    def snapshot(self) -> ModelSnapshot:
        """The current identity of the model; computed once unless it is live."""
        if self._snapshot is not None:
            return self._snapshot
        fingerprint = self.early_fingerprint or model_hashes(self.decoder, self.layers)
        sums = layer_sums(self.layers)
        kinds = getattr(self.decoder.config, "layer_types", None) or ()
        layers = zip_longest(fingerprint, sums, kinds[: len(sums)], fillvalue="")
        snapshot = ModelSnapshot(
            name=self.name,
            total_layers=self.total_layers,
            num_heads=self.num_heads,
            weights_dtype=self.weights_dtype,
            fingerprint=fingerprint,
            layer_fingerprint=tuple(" ".join(parts).strip() for parts in layers),
            surroundings=surroundings_hash(self.decoder, self.layers),
        )
        if not self.live:
            self._snapshot = snapshot
        return snapshot
