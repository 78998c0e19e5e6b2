"""Which model a transformer uses: the given model, the model that its heads belong to, or the default model."""

from typing import Any

from ..common.locks import new_lock
from ..model.frozen import FrozenLLM
from ..reading.reader import model_identity
from ..reading.reading import ModelIdentity


class ModelSlot:
    """Holds the model that a transformer made by name, for its next call. Shared by threads, empty when pickled."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._made: FrozenLLM | None = None
        self._peeked: tuple[object, FrozenLLM] | None = None

    def open(
        self, llm: FrozenLLM | str | None, *, named: ModelIdentity | None = None, max_layers: int | None = None
    ) -> FrozenLLM:
        """The model that ``llm`` means, else the named model, else the default model; not loaded yet.

        Args:
            llm: a transformer's argument.
            named: the model that its heads belong to.
            max_layers: how many layers are needed; None for all.
        """
        with self._lock:
            if llm is not None or named is None:
                self._made = FrozenLLM.of(llm, max_layers=max_layers, reuse=self._made)
            else:
                self._made = FrozenLLM.of(
                    named.name,
                    revision=named.revision,
                    tokenizer=named.tokenizer,
                    max_layers=max_layers,
                    reuse=self._made,
                )
            return self._made

    def identity(self, llm: FrozenLLM | str) -> ModelIdentity:
        """Which model ``llm`` means; if it is not in memory, its first layer is loaded to identify it."""
        with self._lock:
            if self._peeked is None or self._peeked[0] is not llm:
                self._peeked = llm, FrozenLLM.of(llm).peek()
            peeked = self._peeked[1]
        return model_identity(peeked)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(ModelSlot().__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelSlot":
        return ModelSlot()
