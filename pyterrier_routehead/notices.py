"""Warnings that point at the user's own line."""

import sys
import warnings
from pathlib import Path

import pyterrier as pt

_INSIDE = (str(Path(__file__).parent), str(Path(pt.__file__).parent))


def warn(message: str) -> None:
    """A UserWarning at the first line of the call stack outside of this package and of PyTerrier."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
