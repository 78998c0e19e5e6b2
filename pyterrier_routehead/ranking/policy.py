"""Which heads rank a query: the same ones for all queries, or those that a router selects per query."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from ..common.errors import NotFittedError
from ..common.notices import warn
from ..detection.head_set import HeadSet
from ..heads import Head, HeadsLike, describe_heads, is_all, layers_needed, parse_heads
from ..kernel.patterns import DEFAULT_PATTERN
from ..registry import is_set_name, set_by_name
from ..routing.evidence import list_evidence
from ..routing.router import HeadRouter
from ..routing.state import QueryState


@dataclass(frozen=True)
class QueryList:
    """A query with the candidates that are to be ranked.

    Attributes:
        qid: the query's id.
        rows: positions of the candidates in the frame, best of the first stage first.
        query: its text; None unless it was requested.
        first_stage: the first stage's scores, float64 [candidates]; None unless they were requested.
        tail: positions of the query's other rows, which keep their order below the candidates.
        part_of: for a part, the complete list, with the numbers of the part's candidates in it.
    """

    qid: str
    rows: np.ndarray
    query: str | None = None
    first_stage: np.ndarray | None = None
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    part_of: "tuple[QueryList, list[int]] | None" = None

    @property
    def known_query(self) -> str:
        """The query, where it was requested."""
        assert self.query is not None, "the query was not requested"
        return self.query

    @property
    def known_first_stage(self) -> np.ndarray:
        """The first stage's scores, where they were requested."""
        assert self.first_stage is not None, "the first stage's scores were not requested"
        return self.first_stage

    def part(self, numbers: Sequence[int] | np.ndarray) -> "QueryList":
        """Some of the candidates, by number, in that order."""
        first = None if self.first_stage is None else self.first_stage[numbers]
        part_of = self, [int(number) for number in numbers]
        return QueryList(self.qid, self.rows[numbers], self.query, first, part_of=part_of)


@dataclass(frozen=True)
class Choice:
    """The heads that rank a query.

    Attributes:
        heads: the heads, or ``"all"``.
        weights: the weight of each head in the sum, float64 [heads]; None for 1 each.
        standardise: whether each head's scores are standardised within the list before they are summed; the first
            stage's scores are then added to a sum that is not standardised again.
    """

    heads: HeadsLike
    weights: np.ndarray | None = None
    standardise: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The heads with a weight other than 0, as ``"layer-head"`` strings."""
        weights = np.ones(len(self.heads)) if self.weights is None else self.weights
        return tuple(str(head) for head, weight in zip(self.heads, weights, strict=True) if weight)


class EmbedsQueries(Protocol):
    """Gives a router the hidden state that represents a query."""

    def embed(self, lists: "Sequence[QueryList]", state: QueryState) -> np.ndarray:
        """Float32 [lists, hidden size]."""


class HeadPolicy(Protocol):
    """Which heads rank a query.

    Attributes:
        heads: all that it may choose, or ``"all"``.
        head_set: the set that the heads are from, with its model and settings; None for heads by number.
        bundled: whether that set is bundled with the package: other weights of its model are then only a warning.
        allow_mismatch: whether to accept other weights of the model's shape, and scores read with other settings.
        needs_query: whether it requires queries behind a scorer too.
        needs_hidden_state: whether it requires the scorer's ``hidden_state``.
        needs_first_stage: whether it requires the first stage's scores.
        hidden_layers: layers whose hidden state embeds the query, where the pass that reads the heads gives it.
    """

    @property
    def heads(self) -> HeadsLike: ...  # noqa: D102

    @property
    def head_set(self) -> HeadSet | None: ...  # noqa: D102

    @property
    def bundled(self) -> bool: ...  # noqa: D102

    @property
    def allow_mismatch(self) -> bool: ...  # noqa: D102

    @property
    def needs_query(self) -> bool: ...  # noqa: D102

    @property
    def needs_hidden_state(self) -> bool: ...  # noqa: D102

    @property
    def needs_first_stage(self) -> bool: ...  # noqa: D102

    @property
    def hidden_layers(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def layers(self) -> int | None:
        """How many of the model's layers are needed at most; None for all."""

    def before_ranking(self, first_stage_weight: float) -> None:
        """Raise an error if there are no heads yet; warn of a first stage's weight that does not suit them."""

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """The heads to read of a list, before it is read."""

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """The heads to rank by once the list has been read, float32 [candidates, heads] of the choice."""


@dataclass(frozen=True)
class FixedHeads:
    """The same heads for every query."""

    heads: HeadsLike
    head_set: HeadSet | None = None
    bundled: bool = False
    allow_mismatch: bool = False
    needs_query: bool = False
    needs_hidden_state: bool = False
    needs_first_stage: bool = False
    hidden_layers: ClassVar[tuple[int, ...]] = ()

    @classmethod
    def of(
        cls,
        heads: HeadsLike | HeadSet,
        *,
        document_attention: str = DEFAULT_PATTERN,
        bundled: bool = False,
        allow_mismatch: bool = False,
    ) -> "FixedHeads":
        """Heads by number, the ranking heads of a set, or those of a set by its name with its method.

        Args:
            heads: ``"all"``, heads, a set, or a name such as ``"core-llama-3.1-8b"``.
            document_attention: how lists are read: there is a bundled set for each pattern.
            bundled: whether a set is bundled with the package.
            allow_mismatch: see :class:`HeadPolicy`.

        Raises:
            TypeError: for None.
            ValueError: for a name or list that names no heads.
        """
        if heads is None:
            raise TypeError("heads are missing: 'all', a list of heads, a HeadSet, or the name of one")
        if (named := set_by_name(heads, document_attention)) is not None:
            heads, bundled = named
        if not isinstance(heads, HeadSet):
            return cls(heads if is_all(heads) else parse_heads(heads))
        ranking = heads.ranking
        return cls(ranking.heads, ranking, bundled, allow_mismatch)

    @property
    def layers(self) -> int | None:
        """Up to the deepest head."""
        return layers_needed(self.heads)

    def before_ranking(self, first_stage_weight: float) -> None:
        """Any weight suits fixed heads."""

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """The heads."""
        return Choice(self.heads)

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """As chosen."""
        return choice


@dataclass(frozen=True)
class RoutedHeads:
    """The heads that a router selects per query (RouteHead, arXiv 2604.24608)."""

    router: HeadRouter
    bundled: bool = False
    allow_mismatch: bool = False

    @property
    def head_set(self) -> HeadSet:
        """The pool."""
        return self.router.pool

    @property
    def heads(self) -> tuple[Head, ...]:
        """The pool's heads."""
        return self.router.pool.heads

    @property
    def needs_query(self) -> bool:
        """To embed the query alone."""
        return self.router.state.source == "query"

    @property
    def needs_hidden_state(self) -> bool:
        """To embed the query by the pass that read the heads."""
        return not self.needs_query

    @property
    def needs_first_stage(self) -> bool:
        """As evidence, if the router uses the list's evidence."""
        return self.router.uses_evidence

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The router's, unless it embeds the query alone."""
        return (self.router.state.layer,) if self.needs_hidden_state else ()

    @property
    def layers(self) -> int:
        """Enough for every head of the pool, so that the model is loaded once."""
        return max(*(head.layer + 1 for head in self.heads), self.router.state.layer + 1)

    def before_ranking(self, first_stage_weight: float) -> None:
        """Warn of a first stage's weight that the heads' weights were not trained for."""
        if not self.router.standardises:
            return
        trained_for = self.router.report.get("first stage's weight", first_stage_weight)
        if trained_for != first_stage_weight:
            warn(
                f"the router's weights were learnt for first_stage_weight={trained_for:g}, not {first_stage_weight:g}"
            )

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """The heads with a weight; all of the pool if the router uses the list's evidence."""
        state = embedder.embed([candidates], self.router.state)[0]
        if self.router.uses_evidence:
            return _Undecided(self.router.pool.heads, state=state)
        return self._weighed(self.router.route(state))

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """As chosen, or by the list's evidence."""
        if not isinstance(choice, _Undecided):
            return choice
        evidence = list_evidence(vectors, candidates.known_first_stage)
        return self._weighed(self.router.route(choice.state, evidence), self.router.pool.heads)

    def _weighed(self, weights: np.ndarray, read: Sequence[Head] | None = None) -> Choice:
        pool, standardise = self.router.pool.heads, self.router.standardises
        if read is not None:
            return Choice(read, weights, standardise)
        weighted = np.flatnonzero(weights)
        if not len(weighted):
            weighted = np.array([0])  # at least one head must be read, even with a weight of 0
        return Choice(tuple(pool[i] for i in weighted), weights[weighted], standardise)


@dataclass(frozen=True)
class _Undecided(Choice):
    """Heads whose weights depend on the list's evidence, with the query's embedding."""

    state: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Unfitted:
    """No heads yet: states which columns will be needed, and cannot rank.

    Attributes:
        message: the error that ranking raises.
    """

    message: str
    needs_query: bool = False
    needs_hidden_state: bool = False
    needs_first_stage: bool = False
    hidden_layers: ClassVar[tuple[int, ...]] = ()
    heads: HeadsLike = "all"
    head_set: ClassVar[HeadSet | None] = None
    layers: ClassVar[int | None] = None
    bundled: ClassVar[bool] = False
    allow_mismatch: ClassVar[bool] = False

    def before_ranking(self, first_stage_weight: float) -> None:
        """Raise the error."""
        raise NotFittedError(self.message)

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """Raise the error."""
        raise NotFittedError(self.message)

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """Raise the error."""
        raise NotFittedError(self.message)


def shown_heads(heads: HeadsLike | HeadSet) -> str:
    """A short description of a transformer's heads, for its repr."""
    if is_set_name(heads):
        return repr(heads)
    return describe_heads(heads.ranking.heads if isinstance(heads, HeadSet) else heads)
