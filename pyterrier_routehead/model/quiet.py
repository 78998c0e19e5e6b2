"""Keeps transformers' load reports and bars out of a user's output while a model is loaded; downloads show theirs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import NamedTuple

from ..common.locks import new_lock
from ..common.progress import shows_progress


class _Shown(NamedTuple):
    """Settings of transformers and of the hub's client."""

    verbosity: int
    bars: bool
    download_bars: bool


_lock = new_lock()
_inside = 0
_before: _Shown | None = None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors of transformers are shown inside; its settings are restored when the last thread leaves.

    The hub's bars, of downloads that may take gigabytes, are shown where bars are and they were not switched off.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = _shown()
            downloads = _before.download_bars and shows_progress(None)
            _show(_Shown(ERROR, bars=False, download_bars=downloads))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                assert _before is not None, "set by the first thread that came"
                _show(_before)


def _shown() -> _Shown:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    return _Shown(logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled())


def _show(settings: _Shown) -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity(settings.verbosity)
    with warnings.catch_warnings():
        # Where HF_HUB_DISABLE_PROGRESS_BARS decides, the hub's client warns of each try to set them.
        warnings.simplefilter("ignore")
        # transformers' switch turns the hub's as well, which therefore comes second.
        turn: Callable[[], None] = logging.enable_progress_bar if settings.bars else logging.disable_progress_bar
        turn()
        (enable_progress_bars if settings.download_bars else disable_progress_bars)()
