"""Warnings that point at the user's own line."""

import sys
import warnings

_INSIDE = (__package__.partition(".")[0], "pyterrier", "tqdm", "functools", "contextlib")
"""Packages whose frames are none of the user's: ours, PyTerrier's, and what our calls go through."""


def warn(message: str) -> None:
    """A UserWarning at the innermost line of the call stack that is the user's."""
    frame, level = sys._getframe(1), 2
    # By module, not by file: a dataclass's __init__ has no file.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
