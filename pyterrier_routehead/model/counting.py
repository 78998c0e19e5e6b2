"""Counts the candidate lists that passes have encoded, from any number of threads."""

from ..common.locks import new_lock


class ListCounter:
    """A number of lists that threads may add to at the same time.

    Args:
        count: the number to start from.

    Attributes:
        count: the number of lists so far.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._lock = new_lock()

    def add(self, lists: int) -> None:
        """Count some more lists."""
        with self._lock:
            self.count += lists
