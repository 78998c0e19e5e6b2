"""Counts the candidate lists that passes have encoded, from any number of threads."""

from ..common.locks import new_lock


class ListCounter:
    """A thread-safe count of lists.

    Args:
        count: the initial count.

    Attributes:
        count: the number of lists so far.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._lock = new_lock()

    def add(self, lists: int) -> None:
        """Add to the count."""
        with self._lock:
            self.count += lists
