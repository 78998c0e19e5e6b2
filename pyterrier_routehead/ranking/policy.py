"""Who says which heads rank a query: a fixed set for all of them, or a router for each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from ..common.errors import NotFittedError
from ..detection.head_set import HeadSet
from ..heads import Head, HeadsLike, describe_heads, is_all, layers_needed, parse_heads
from ..kernel.patterns import DEFAULT_PATTERN
from ..routing.evidence import list_evidence
from ..routing.router import HeadRouter
from ..routing.state import QueryState
from .registry import is_bundled, named_heads, names

_NAMED = re.compile(r"(core|qr)-(.*[a-z].*)")

@dataclass(frozen=True)
class QueryList:
    """A query with the candidates that are to be ranked.

    Attributes:
        qid: the query's id.
        rows: positions of the candidates in the frame, best of the first stage first.
        query: its text; None where nobody asks for it.
        first_stage: the first stage's scores, float64 [candidates]; None where nobody asks for them.
        tail: positions of the query's other rows, which keep their order behind those.
        part_of: of a part, the list that it is of, with the numbers of its candidates there.
    """

    qid: str
    rows: np.ndarray
    query: str | None = None
    first_stage: np.ndarray | None = None
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    part_of: "tuple[QueryList, list[int]] | None" = None

    @property
    def known_query(self) -> str:
        """The query, for who asked for it."""
        assert self.query is not None, "the query was not asked for"
        return self.query

    @property
    def known_first_stage(self) -> np.ndarray:
        """The first stage's scores, for who asked for them."""
        assert self.first_stage is not None, "the first stage's scores were not asked for"
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
        weights: of each in the sum, float64 [heads]; None for 1 each.
        standardise: whether each head's scores are standardised within the list before they are summed, and the first
            stage's are added to the sum as it is.
    """

    heads: HeadsLike
    weights: np.ndarray | None = None
    standardise: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The heads that count, as ``"layer-head"`` strings."""
        weights = np.ones(len(self.heads)) if self.weights is None else self.weights
        return tuple(str(head) for head, weight in zip(self.heads, weights, strict=True) if weight)


class EmbedsQueries(Protocol):
    """What gives a router the hidden state that stands for a query."""

    def embed(self, candidates: QueryList, state: QueryState) -> np.ndarray:
        """Float32 [hidden size]."""


class HeadPolicy(Protocol):
    """Which heads rank a query.

    Attributes:
        heads: all that it may choose, or ``"all"``.
        head_set: the set that the heads are of, with its model and settings; None for heads by number.
        bundled: whether that set came with the package: then other weights of its model are a warning, no error.
        allow_mismatch: whether other weights of the model's shape, or scores that were read otherwise, will do.
        needs_query: whether queries are wanted behind a scorer too.
        needs_hidden_state: whether the scorer's ``hidden_state`` is.
        needs_first_stage: whether the first stage's scores are.
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
    def layers(self) -> int | None:
        """Of how many layers the model is needed at most; None for all."""

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

    @classmethod
    def of(
        cls,
        heads: HeadsLike | HeadSet,
        *,
        document_attention: str = DEFAULT_PATTERN,
        bundled: bool = False,
        allow_mismatch: bool = False,
    ) -> "FixedHeads":
        """Heads by number; those of a set that rank; or those of a set by its name with its method.

        Args:
            heads: ``"all"``, heads, a set, or a name such as ``"core-llama-3.1-8b"``.
            document_attention: how lists are read: bundled sets by name differ in this.
            bundled: whether a set came with the package.
            allow_mismatch: see :class:`HeadPolicy`.

        Raises:
            TypeError: for None.
            ValueError: for what names no heads.
        """
        if heads is None:
            raise TypeError("heads are missing: 'all', a list of heads, a HeadSet, or the name of one")
        if isinstance(heads, str) and (named := _NAMED.fullmatch(heads)):
            method, name = named.groups()
            heads, bundled = named_heads(method, name, document_attention), is_bundled(method, name)
        if not isinstance(heads, HeadSet):
            if isinstance(heads, str) and (meant := _with_method(heads)):
                raise ValueError(f"{heads!r} is given with its method: {' or '.join(map(repr, meant))}")
            return cls(heads if is_all(heads) else parse_heads(heads))
        ranking = heads.ranking
        return cls(ranking.heads, ranking, bundled, allow_mismatch)

    @property
    def layers(self) -> int | None:
        """Up to the deepest head."""
        return layers_needed(self.heads)

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """The heads."""
        return Choice(self.heads)

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """As chosen."""
        return choice


@dataclass(frozen=True)
class RoutedHeads:
    """A router's heads for every query (RouteHead, arXiv 2604.24608)."""

    router: HeadRouter
    bundled: bool = False
    allow_mismatch: bool = False

    @property
    def head_set(self) -> HeadSet:
        """The pool."""
        return self.router.pool

    @property
    def heads(self) -> tuple[Head, ...]:
        """Those of the pool."""
        return self.router.pool.heads

    @property
    def needs_query(self) -> bool:
        """To embed it by itself."""
        return self.router.state.source == "query"

    @property
    def needs_hidden_state(self) -> bool:
        """Of the pass that read the heads."""
        return not self.needs_query

    @property
    def needs_first_stage(self) -> bool:
        """For a router that looks at the list."""
        return self.router.uses_evidence

    @property
    def layers(self) -> int:
        """Whichever heads the next query is given, the model is loaded once."""
        return max(*(head.layer + 1 for head in self.heads), self.router.state.layer + 1)

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """The heads with a weight; all of the pool where the router looks at the list too."""
        state = embedder.embed(candidates, self.router.state)
        if self.router.uses_evidence:
            return _Asked(self.router.pool.heads, state=state)
        return self._weighed(self.router.route(state))

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """As chosen, or as the list's own evidence says."""
        if not isinstance(choice, _Asked):
            return choice
        evidence = list_evidence(vectors, candidates.known_first_stage)
        return self._weighed(self.router.route(choice.state, evidence), self.router.pool.heads)

    def _weighed(self, weights: np.ndarray, read: Sequence[Head] | None = None) -> Choice:
        pool, standardise = self.router.pool.heads, self.router.standardises
        if read is not None:
            return Choice(read, weights, standardise)
        there = np.flatnonzero(weights)
        if not len(there):
            there = np.array([0])  # something must be read, if only to weigh nothing
        return Choice(tuple(pool[i] for i in there), weights[there], standardise)


@dataclass(frozen=True)
class _Asked(Choice):
    """Heads whose weights the list itself will tell."""

    state: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Unfitted:
    """No heads yet: says what columns will be needed, and ranks nothing.

    Attributes:
        message: what to say to who would rank by it.
    """

    message: str
    needs_query: bool = False
    needs_hidden_state: bool = False
    needs_first_stage: bool = False
    heads: HeadsLike = "all"
    head_set: ClassVar[HeadSet | None] = None
    layers: ClassVar[int | None] = None
    bundled: ClassVar[bool] = False
    allow_mismatch: ClassVar[bool] = False

    def choose(self, candidates: QueryList, embedder: EmbedsQueries) -> Choice:
        """Refused."""
        raise NotFittedError(self.message)

    def refine(self, choice: Choice, candidates: QueryList, vectors: np.ndarray) -> Choice:
        """Refused."""
        raise NotFittedError(self.message)


def _with_method(name: str) -> list[str]:
    """The head sets that a model's name without a method may mean."""
    return [f"{method}-{name}" for method in ("core", "qr") if name in names(method)]


def shown_heads(heads: HeadsLike | HeadSet) -> str:
    """A few words on what a transformer was given as heads, for its repr."""
    if isinstance(heads, str) and _NAMED.fullmatch(heads):
        return repr(heads)
    return describe_heads(heads.ranking.heads if isinstance(heads, HeadSet) else heads)
