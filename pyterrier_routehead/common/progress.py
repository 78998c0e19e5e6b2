"""Progress bars: shown in terminals and notebooks, for what takes more than a few seconds."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import pyterrier as pt

_Item = TypeVar("_Item")
_DELAY = 2.0
"""Seconds before a bar appears without ``verbose=True``."""


def with_progress(
    items: Iterable[_Item], *, total: int | None, desc: str, unit: str = "q", verbose: bool | None = None
) -> Iterable[_Item]:
    """The items, with a bar.

    Args:
        items: what to iterate over.
        total: the number of items; None where it is not known.
        desc: the bar's label.
        unit: the name of an item.
        verbose: True shows the bar; False does not; None shows it in a terminal or notebook after two seconds.
    """
    if not shows_progress(verbose) or total == 0:
        return items
    bar: Iterable[_Item] = pt.tqdm(items, total=total, unit=unit, desc=desc, delay=0 if verbose else _DELAY)
    return bar


def shows_progress(verbose: bool | None) -> bool:
    """Whether bars are shown: as asked, or where standard error is a terminal or this is a notebook."""
    if verbose is not None:
        return verbose
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return (shell is not None and hasattr(shell, "kernel")) or bool(getattr(sys.stderr, "isatty", lambda: False)())
