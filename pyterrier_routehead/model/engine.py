"""Runs passes over a decoder: on its twin, alone, and whatever its owner and the caller have set.

A pass computes the same inside autocast, under another default dtype or device, in training mode and while the model's
owner uses it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from ..common.errors import UnsupportedArchitectureError
from ..kernel.attention import ATTENTION_NAME, ForwardDone, hidden_state_hook, under_way
from ..kernel.visibility import NOT_REGISTERED
from .loading import LoadedModel
from .twin import Twin

if TYPE_CHECKING:
    from ..kernel.attention import DocumentPass, QueryPass, TailPass


def run_pass(loaded: LoadedModel, this_pass: "DocumentPass | TailPass | QueryPass") -> None:
    """Run one pass over its ids, up to the deepest layer that it needs; the pass collects what is wanted.

    Nothing of the model is changed, not even for that time; passes over one model wait for each other.

    Raises:
        UnsupportedArchitectureError: naming the architecture, if its attention cannot be read.
    """
    device = loaded.input_device
    with loaded.lock, _as_if_nothing_was_set(device), under_way(this_pass):
        ids = torch.tensor([this_pass.ids], device=device)
        positions = torch.tensor([this_pass.positions], device=device)
        # All-ones mask: without one, transformers takes positions that start anew for packed training examples.
        whole = torch.ones_like(ids)
        try:
            _twin(loaded)(input_ids=ids, attention_mask=whole, position_ids=positions, use_cache=False)
            missing = True
        except ForwardDone:
            missing = not this_pass.attended >= set(range(this_pass.deepest + 1))
        except UnsupportedArchitectureError as error:
            raise UnsupportedArchitectureError(f"{loaded.architecture} cannot be read: {error}") from None
    if missing:
        reason = "some layers have no attention" if this_pass.attended else NOT_REGISTERED
        raise UnsupportedArchitectureError(f"{loaded.architecture} cannot be read: {reason}")


def _twin(loaded: LoadedModel) -> torch.nn.Module:
    """What a pass runs on."""
    if loaded.twin is not None:
        return loaded.twin
    twin = Twin(loaded.decoder, ATTENTION_NAME)
    for index, layer in enumerate(loaded.layers):
        own = twin.of(layer)
        if own is layer:
            raise UnsupportedArchitectureError(f"its layer {index} is a {type(layer).__name__}")
        own.register_forward_hook(hidden_state_hook(index))
    if not loaded.live:  # whoever loaded it may train it, switch its adapters or replace its modules
        loaded.twin = twin.decoder
    return twin.decoder


@contextmanager
def _as_if_nothing_was_set(device: torch.device) -> Iterator[None]:
    """Inference without autocast and without a default device."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
