"""Tries on a few tokens whether a model can be read exactly, so that one which cannot is refused when it is loaded."""

from typing import TYPE_CHECKING

import torch

from .attention import DocumentPass, EncodedDocuments, TailPass
from .document_attention import LayerAttention
from .errors import UnsupportedArchitectureError
from .heads import all_heads
from .prompt import DocumentBlock, ListPrompt

if TYPE_CHECKING:
    from .llm import FrozenLLM

_TRIES = 3


class _KeyKeepingTails(TailPass):
    """Keeps the keys of the tails' own tokens, by layer."""

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        self.keys = {**getattr(self, "keys", {}), index: key}
        return super().attend(index, layer, query, key, value)


def check_readable(llm: "FrozenLLM") -> None:
    """Read all heads once, and compare documents-then-tails with all tokens at once.

    The two must agree in every layer: a model in which a token sees others by more than attention (a state-space model
    beside it, a convolution) would need more than keys and values of the documents. Rounding may send a token to
    another expert of a mixture, so only a difference that other tokens show too counts.

    Raises:
        UnsupportedArchitectureError: naming architecture and reason.
    """
    heads = all_heads(llm.num_layers, llm.num_heads)
    for attempt in range(_TRIES):
        start, *tokens = range(1 + 7 * attempt, 8 + 7 * attempt)
        whole = EncodedDocuments([_prompt(start, tokens[:4], tokens[4:])], "listwise")
        documents = EncodedDocuments([_prompt(start, tokens[:2], tokens[2:])], "listwise")
        tails = _KeyKeepingTails(documents, heads, calibrate=False, device=llm.input_device)
        llm.forward(DocumentPass(whole, tails.deepest))
        llm.forward(DocumentPass(documents, tails.deepest))
        llm.forward(tails)
        if len(tails.lists[0].raw) < len(heads):
            raise UnsupportedArchitectureError(f"{llm.architecture} cannot be read: some layers have no attention")
        if not all(torch.isfinite(key).all() for key in tails.keys.values()):
            raise UnsupportedArchitectureError(
                f"{llm.architecture} cannot be read in {llm.weights_dtype}, where it is not finite: try another dtype"
            )
        if all(_close(whole.keys[i][:, :, 3:5], key[:, :, :2], i) for i, key in tails.keys.items()):
            break
    else:
        raise UnsupportedArchitectureError(
            f"{llm.architecture} cannot be read: its tokens see each other by more than attention"
        )
    if llm.scales_by_row:
        raise UnsupportedArchitectureError(
            f"{llm.architecture} cannot be read: it scales queries by their row in the input, not by their position"
        )


def _prompt(start: int, document: list[int], tail: list[int]) -> ListPrompt:
    return ListPrompt([start], [DocumentBlock(document, 0, len(document))], [0], tail, tail)


def _close(one: torch.Tensor, other: torch.Tensor, layer: int) -> bool:
    # Rounding of half precision adds up over the layers.
    tolerance = 1e-3 if one.dtype == torch.float32 else 0.05 + 0.005 * layer
    return bool((one.float() - other.float()).norm() <= tolerance * one.float().norm())
