"""Models that must not load, and how many lists a model reads."""

from collections.abc import Callable

from pyterrier_routehead import FrozenLLM


class NeverLoaded(FrozenLLM):
    """Inspection, validation, empty frames and errors must not load a model."""

    def _load(self):
        raise AssertionError("the model was loaded")


UNLOADED = NeverLoaded("no/such-model")


def passes(llm: FrozenLLM, run: Callable[[], object]) -> int:
    """The number of candidate lists that a model reads during a call."""
    before = llm.document_passes
    run()
    return llm.document_passes - before
