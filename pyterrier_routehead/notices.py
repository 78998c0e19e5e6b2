"""Warnings that point at the user's own line."""

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path

import pyterrier as pt
import tqdm

_INSIDE = (
    *(str(Path(module).parent) + os.sep for module in (__file__, pt.__file__, tqdm.__file__)),
    *(module.__file__ for module in (contextlib, functools)),  # cached properties are computed in functools
)


def warn(message: str) -> None:
    """A UserWarning at the innermost line outside of this package, of PyTerrier and of what both call through."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
