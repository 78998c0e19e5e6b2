"""Paths as users type them: ``~`` is expanded, and a relative one is made absolute once, when it is given."""

import os
import stat
from pathlib import Path


def absolute_path(name: str, path: object) -> Path:
    """A path that means the same after a change of folder.

    Args:
        name: what the argument is called.
        path: a string or a path object; relative ones are relative to the folder of the moment.

    Raises:
        TypeError: for anything else.
        ValueError: for an empty path, or a home that is not known.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name} is a path, got {path!r}")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"{name} is a path, got {path!r}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{name}={path!r}: the home that it names is not known") from None


def read_bytes(file: Path) -> bytes:
    """The contents of an ordinary file.

    Raises:
        FileNotFoundError: where there is none.
        OSError: for whatever else keeps it from being read.
    """
    check_ordinary(file)
    return file.read_bytes()


def check_ordinary(file: Path) -> None:
    """Check that a path is an ordinary file (no folder, pipe or the like) that can be opened.

    Raises:
        FileNotFoundError: where there is nothing.
        OSError: for whatever else keeps it from being read.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("it is no ordinary file")
    with file.open("rb"):
        pass


def reason(error: OSError) -> str:
    """Why something cannot be read or written, without the path, which the message names anyhow."""
    return error.strerror or str(error)
