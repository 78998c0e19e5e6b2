"""Runs passes over a decoder: on its twin, one at a time, independent of settings of its owner and of the caller.

A pass computes the same inside autocast, under a different default dtype or device, in training mode and while the
model's owner uses it.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakValueDictionary

import torch

from ..common.errors import MismatchError, UnsupportedArchitectureError
from ..common.locks import new_lock
from ..kernel.attention import ATTENTION_NAME, ForwardDone, ReadingPass, hidden_state_hook, under_way
from ..kernel.visibility import NOT_REGISTERED
from .counting import ListCounter
from .loaded import LoadedModel
from .twin import Twin

# By the decoder's id; a lock is freed with the last engine that holds it.
_locks: "WeakValueDictionary[int, threading.RLock]" = WeakValueDictionary()
_locks_guard = new_lock()


class Engine:
    """Runs passes over one decoder, one at a time, and counts the lists that they encode.

    Engines over the same decoder wait for each other, so that memory stays bounded.

    Args:
        model: the decoder, which is not changed.
        lists: counter of the lists; it may outlive the engine.

    Attributes:
        model: the decoder.
    """

    def __init__(self, model: LoadedModel, lists: ListCounter) -> None:
        self.model = model
        self._lists = lists
        self._kept_twin: torch.nn.Module | None = None  # None for a live model, which gets a new twin for every pass
        with _locks_guard:
            self._lock = _locks.setdefault(id(model.decoder), new_lock())

    def count_lists(self, count: int) -> None:
        """Count candidate lists that have been encoded."""
        self._lists.add(count)

    def forward(self, this_pass: ReadingPass) -> None:
        """Run one pass over its ids, up to the deepest layer that it needs; the pass collects the results.

        Raises:
            MismatchError: for a token without an embedding in the model.
            UnsupportedArchitectureError: naming the architecture, if its attention cannot be read.
        """
        self._check_ids(this_pass.ids)
        self.run(this_pass)

    def _check_ids(self, ids: list[int]) -> None:
        """Raise an error for a token without an embedding, which would abort the process on a GPU."""
        vocabulary_size = self.model.vocabulary_size
        if (largest := max(ids)) >= vocabulary_size:
            tokenizer = self.model.encoder.tokenizer
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise MismatchError(
                f"the tokenizer {name!r} gives token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but "
                f"{self.model.name} has {vocabulary_size} embeddings: give the model's tokenizer or resize them"
            )

    def run(self, this_pass: ReadingPass) -> None:
        """Run one pass whose ids are known to have embeddings.

        The model is not changed, not even temporarily.

        Raises:
            UnsupportedArchitectureError: naming the architecture, if its attention cannot be read.
        """
        device = self.model.input_device
        architecture = self.model.architecture
        with self._lock, _default_settings(device), under_way(this_pass):
            ids = torch.tensor([this_pass.ids], device=device)
            positions = torch.tensor([this_pass.positions], device=device)
            # All-ones mask: without a mask, transformers treats positions that restart as packed training examples.
            all_ones = torch.ones_like(ids)
            try:
                self._twin()(input_ids=ids, attention_mask=all_ones, position_ids=positions, use_cache=False)
                missing = True
            except ForwardDone:
                missing = not this_pass.attended >= set(range(this_pass.deepest + 1))
            except UnsupportedArchitectureError as error:
                raise UnsupportedArchitectureError(f"{architecture} cannot be read: {error}") from None
        if missing:
            reason = "some layers have no attention" if this_pass.attended else NOT_REGISTERED
            raise UnsupportedArchitectureError(f"{architecture} cannot be read: {reason}")

    def _twin(self) -> torch.nn.Module:
        """The twin on which a pass runs."""
        if self._kept_twin is not None:
            return self._kept_twin
        twin = Twin(self.model.decoder, ATTENTION_NAME)
        for index, layer in enumerate(self.model.layers):
            twin_layer = twin.of(layer)
            if twin_layer is layer:
                raise UnsupportedArchitectureError(f"its layer {index} is a {type(layer).__name__}")
            twin_layer.register_forward_hook(hidden_state_hook(index))
        if not self.model.live:  # its owner may train it, switch its adapters or replace its modules
            self._kept_twin = twin.decoder
        return twin.decoder


@contextmanager
def _default_settings(device: torch.device) -> Iterator[None]:
    """Inference without autocast and without a default device."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
