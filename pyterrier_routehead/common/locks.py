"""Locks that a forked process finds free, and values that are computed once without any.

A fork copies one thread alone: a lock that another thread held would stay locked for ever in the child.
"""

import functools
import os
import threading
from typing import Any
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


class cached_property(functools.cached_property):  # noqa: N801
    """functools', without the lock that it holds over all objects of a class before Python 3.12.

    Under that lock, no other model could be opened while one is, nor any in a process forked meanwhile. Threads that
    come at once may each compute the value; all get the same one.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The value, computed if it is not there yet."""
        if instance is None:
            return self
        kept = vars(instance)
        if self.attrname not in kept:
            kept.setdefault(self.attrname, self.func(instance))
        return kept[self.attrname]
