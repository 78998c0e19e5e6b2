"""Hides transformers' load reports and progress bars while a model is loaded, except those of downloads."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import NamedTuple

from ..common.locks import new_lock
from ..common.progress import shows_progress


class _Settings(NamedTuple):
    """Logging settings of transformers and of the hub's client."""

    verbosity: int
    bars: bool
    download_bars: bool


_lock = new_lock()
_active_threads = 0
_saved: _Settings | None = None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors of transformers are shown inside; its settings are restored when the last thread leaves.

    The progress bars of downloads, which may take gigabytes, are shown if bars are enabled and not switched off.
    """
    global _active_threads, _saved
    with _lock:
        if _active_threads == 0:
            _saved = _settings()
            downloads = _saved.download_bars and shows_progress(None)
            _apply(_Settings(ERROR, bars=False, download_bars=downloads))
        _active_threads += 1
    try:
        yield
    finally:
        with _lock:
            _active_threads -= 1
            if _active_threads == 0:
                assert _saved is not None, "set by the first thread"
                _apply(_saved)


def _settings() -> _Settings:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    return _Settings(logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled())


def _apply(settings: _Settings) -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity(settings.verbosity)
    with warnings.catch_warnings():
        # If HF_HUB_DISABLE_PROGRESS_BARS is set, the hub's client warns of each attempt to change the bars.
        warnings.simplefilter("ignore")
        # transformers' function switches the hub's bars too, which are therefore set last.
        switch_bars: Callable[[], None] = logging.enable_progress_bar if settings.bars else logging.disable_progress_bar
        switch_bars()
        (enable_progress_bars if settings.download_bars else disable_progress_bars)()
