"""How the heads of a set were found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.arguments import check_whole


@dataclass(frozen=True)
class Detection:
    """How the heads of a set were found.

    Args:
        criterion: name of the criterion.
        settings: settings of the criterion, and whether it used calibrated scores.
        data: the name of the judged queries.
        queries: number of informative queries.
        source: where a published set comes from: paper and repository.
        note: remarks for users.

    Raises:
        TypeError: for a number of queries that is not an integer.
        ValueError: for a negative number of queries.
    """

    criterion: str
    settings: Mapping[str, Any]
    data: str
    queries: int
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", check_whole("queries", self.queries, least=0))
