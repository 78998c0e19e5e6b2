"""The one door through which a model's attention comes in.

transformers lets a registered function take the place of every model's attention. Ours receives queries and keys with
positions and norms already applied, and the model's own scaling, soft cap and window, so it follows every architecture
that uses the registry. What is done with them is up to the pass that is under way: :mod:`.passes` has those that read
lists whose tails see the documents, :mod:`.late` those of late reading.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ..common.errors import UnsupportedArchitectureError
from .exact import LayerAttention
from .visibility import Visibility, layer_visibility

ATTENTION_NAME = "routehead"
"""Name in transformers' registries."""


class ReadingPass(Protocol):
    """One forward of a model, of which something is read.

    A pass ends the forward at its deepest layer as soon as that layer has given what is needed.

    Attributes:
        ids: token ids, packed into one sequence.
        positions: the position of each.
        deepest: number of the last layer to run.
        attended: the layers whose attention has come here.
        hidden_layers: layers whose output is read.
    """

    @property
    def ids(self) -> list[int]: ...  # noqa: D102
    @property
    def positions(self) -> list[int]: ...  # noqa: D102
    @property
    def deepest(self) -> int: ...  # noqa: D102
    @property
    def attended(self) -> set[int]: ...  # noqa: D102
    @property
    def hidden_layers(self) -> Collection[int]: ...  # noqa: D102

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attention output of a layer, [1, tokens, heads, value dim], from [1, heads, tokens, dim] of each.

        Raises:
            ForwardDone: where nothing behind this attention is needed.
        """

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """Take in a layer's output, [1, tokens, hidden size].

        Raises:
            ForwardDone: where nothing behind this layer is needed.
        """


# Not a keyword argument of the forward, which some architectures (StableLM) do not hand down to their attention. A
# context variable is a thread's own.
_under_way: ContextVar[ReadingPass | None] = ContextVar("routehead_pass", default=None)


class ForwardDone(Exception):  # noqa: N818 - not an error: it ends a forward that has given all that is needed
    """Raised inside a model once the deepest layer that is needed has been read."""


def attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Visibility,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it: query [1, heads, tokens, dim], key and value alike."""
    this_pass = _under_way.get()
    if this_pass is None:
        raise RuntimeError("the attention function of pyterrier_routehead was called outside of one of its passes")
    if not isinstance(attention_mask, Visibility):
        raise UnsupportedArchitectureError("its attention mask does not come from transformers' mask registry")
    if not attention_mask.plain:
        raise UnsupportedArchitectureError("its attention mask is neither causal nor a sliding window")
    for name, argument in others.items():
        if isinstance(argument, torch.Tensor) and name not in ("position_ids", "cache_position"):
            what = "attention sinks" if name == "s_aux" else f"an attention term that is not supported, {name!r}"
            raise UnsupportedArchitectureError(f"it uses {what}")
    layer = LayerAttention(
        scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, attention_mask.window, module
    )
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise UnsupportedArchitectureError("its attention does not say to which layer it belongs")
    return this_pass.attend(index, layer, query, key, value), None


@contextmanager
def under_way(this_pass: ReadingPass) -> Iterator[None]:
    """Inside, whatever attention this thread computes is that pass's."""
    token = _under_way.set(this_pass)
    try:
        yield
    finally:
        _under_way.reset(token)


def hidden_state_hook(index: int) -> Callable[..., None]:
    """A forward hook for a layer, which hands its output to the pass that is under way if that reads the layer."""

    def hook(module: object, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        this_pass = _under_way.get()
        if this_pass is None or index not in this_pass.hidden_layers:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.dim() != 3:
            raise UnsupportedArchitectureError("its layers give more than one hidden state per token")
        this_pass.read_hidden(index, hidden)

    return hook


AttentionInterface.register(ATTENTION_NAME, attention_function)
AttentionMaskInterface.register(ATTENTION_NAME, layer_visibility)
