"""Locks that a forked process finds free, and values that are computed once without any.

A fork copies one thread alone: a lock that another thread held would stay locked for ever in the child.
"""

import functools
import os
import threading
from typing import Any, TypeVar, overload
from weakref import WeakSet

_Value = TypeVar("_Value")

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


class cached_property(functools.cached_property[_Value]):  # noqa: N801
    """functools', without the lock that it holds over all objects of a class before Python 3.12.

    Under that lock, no other model could be opened while one is, nor any in a process forked meanwhile. Threads that
    come at once may each compute the value; all get the same one.
    """

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> "cached_property[_Value]": ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> _Value: ...

    def __get__(self, instance: object, owner: type[Any] | None = None) -> "cached_property[_Value] | _Value":
        """The value, computed if it is not there yet."""
        if instance is None:
            return self
        name, kept = self.attrname or self.func.__name__, vars(instance)
        if name not in kept:
            kept.setdefault(name, self.func(instance))
        value: _Value = kept[name]
        return value
