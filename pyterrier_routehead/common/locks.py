"""Locks that a forked process finds free.

A fork copies one thread alone: a lock that another thread held would stay locked for ever in the child.
"""

import os
import threading
from weakref import WeakSet

_locks: "WeakSet[threading.RLock]" = WeakSet()


def new_lock() -> "threading.RLock":
    """A lock that the thread which holds it may take again, and which is free in a process forked meanwhile."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _free_all() -> None:
    for lock in _locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # private: how threading frees its own locks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)
