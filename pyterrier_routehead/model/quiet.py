"""Keeps transformers' load reports and progress bars out of a user's output while a model is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..common.locks import new_lock

_lock = new_lock()
_inside = 0
_before: tuple[int, bool] = (0, True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors of transformers are shown inside; its settings are restored when the last thread leaves."""
    from transformers.utils import logging

    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
            logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                logging.set_verbosity(_before[0])
                if _before[1]:
                    logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
