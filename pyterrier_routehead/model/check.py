"""Checks on a few tokens whether a model can be read exactly, so that loading raises an error if not."""

import inspect
from collections import Counter

import torch

from ..common.errors import UnsupportedArchitectureError
from ..heads import all_heads
from ..kernel.exact import LayerAttention
from ..kernel.passes import DocumentPass, EncodedDocuments, TailPass
from ..kernel.patterns import Listwise
from ..prompt.build import DocumentBlock, ListPrompt
from .engine import Engine
from .loaded import LoadedModel

_TRIES = 3


class _HeadCountingDocuments(DocumentPass):
    """Counts the heads of each layer's queries."""

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        self.num_heads = {**getattr(self, "num_heads", {}), index: query.shape[1]}
        return super().attend(index, layer, query, key, value)


class _KeyKeepingTails(TailPass):
    """Stores the keys of the tails' tokens, by layer."""

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        self.keys = {**getattr(self, "keys", {}), index: key}
        return super().attend(index, layer, query, key, value)


def check_readable(engine: Engine) -> None:
    """Read all heads once, and compare documents-then-tails with all tokens at once.

    The two must agree in every layer: a model in which tokens interact by more than attention (a parallel state-space
    model, a convolution) would need more than keys and values of the documents. Rounding may route a token to
    a different expert of a mixture, so only a difference in all tries counts.

    The number of heads is taken from the layers' queries, since the configuration may state a wrong one.

    Args:
        engine: runs the model; the model's number of heads is corrected.

    Raises:
        UnsupportedArchitectureError: naming architecture and reason.
    """
    try:
        _try_tokens(engine)
    except (UnsupportedArchitectureError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"trying a few tokens failed with {type(error).__name__}: {error}"
        raise UnsupportedArchitectureError(f"{engine.model.architecture} cannot be read: {reason}") from error


def _try_tokens(engine: Engine) -> None:
    model = engine.model
    num_layers = model.num_layers
    for attempt in range(_TRIES):
        start, *tokens = range(1 + 7 * attempt, 8 + 7 * attempt)
        all_tokens = EncodedDocuments([_prompt(start, tokens[:4], tokens[4:])], Listwise())
        documents = EncodedDocuments([_prompt(start, tokens[:2], tokens[2:])], Listwise())
        counting = _HeadCountingDocuments(all_tokens, num_layers - 1)
        engine.run(counting)
        model.num_heads = _common_number(counting.num_heads, model)
        heads = all_heads(num_layers, model.num_heads)
        tails = _KeyKeepingTails(documents, heads, calibrate=False, device=model.input_device)
        engine.run(DocumentPass(documents, tails.deepest))
        engine.run(tails)
        if not all(torch.isfinite(key).all() for key in tails.keys.values()):
            raise UnsupportedArchitectureError(
                f"{model.architecture} cannot be read in {model.weights_dtype}, where it is not finite: "
                "try another dtype"
            )
        if all(_close(all_tokens.keys[i][:, :, 3:5], key[:, :, :2], i) for i, key in tails.keys.items()):
            break
    else:
        takes_positions = "position_ids" in inspect.signature(type(model.decoder).forward).parameters
        interaction = "its tokens interact by more than attention"
        reason = interaction if takes_positions else "it takes no positions of tokens"
        raise UnsupportedArchitectureError(f"{model.architecture} cannot be read: {reason}")
    if getattr(model.decoder.config, "attn_temperature_tuning", False):  # Llama 4
        raise UnsupportedArchitectureError(
            f"{model.architecture} cannot be read: it scales queries by their row in the input, not by their position"
        )


def _common_number(num_heads: dict[int, int], model: LoadedModel) -> int:
    counts = Counter(num_heads.values())
    if len(counts) == 1:
        return next(iter(counts))
    numbers = ", ".join(f"{number} in {layers}" for number, layers in counts.items())
    raise UnsupportedArchitectureError(
        f"{model.architecture} cannot be read: its layers differ in their number of heads ({numbers} layers)"
    )


def _prompt(start: int, document: list[int], tail: list[int]) -> ListPrompt:
    return ListPrompt([start], [DocumentBlock(document, 0, len(document))], [0], tail, tail)


def _close(expected: torch.Tensor, actual: torch.Tensor, layer: int) -> bool:
    # Rounding of half precision adds up over the layers.
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.05 + 0.005 * layer
    return bool((expected.float() - actual.float()).norm() <= tolerance * expected.float().norm())
