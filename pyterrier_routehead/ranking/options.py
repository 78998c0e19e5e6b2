"""How transformers read candidate lists: their common arguments, declared once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..common.arguments import (
    argument,
    by_value,
    check_arguments,
    check_choice,
    check_flag,
    check_text,
    check_whole,
    keep_iterators,
    optional,
    shown_arguments,
    shown_if_set,
)
from ..common.errors import MismatchError
from ..common.notices import warn
from ..detection.head_set import HeadSet
from ..heads import is_all, layers_needed, resolve_heads
from ..index.head_index import HeadIndex
from ..index.reader import IndexReader
from ..kernel.parts import QUERIES_AT_ONCE
from ..kernel.patterns import DEFAULT_PATTERN, PATTERNS, Late
from ..model.frozen import FrozenLLM
from ..reading.reader import ListReader, model_identity
from ..reading.reading import (
    SETTING_NAMES,
    ModelIdentity,
    ReadingSettings,
    resolve_settings,
    settings_by_hand,
    shown_pair,
    shown_settings,
)
from ..reading.store import HeadScoreStore, kept_store
from ..registry import is_bundled_model, named_model
from ..template import PromptTemplate
from .frames import used_title_field
from .index_source import IndexSource
from .model_slot import ModelSlot
from .policy import HeadPolicy

INDEX_SETTINGS = ("prompt", "max_doc_tokens", "document_attention")
"""The settings that an index fixes."""


@dataclass(frozen=True)
class Method:
    """How a transformer finds its heads.

    Attributes:
        policy: makes the policy from the transformer, with its arguments and what it learnt, and the pattern in which
            lists are read.
    """

    policy: Callable[[Any, str], HeadPolicy]


@dataclass(kw_only=True, eq=False, repr=False)
class ReadsLists(pt.Transformer):
    """What all transformers of this package have in common that read candidate lists.

    Each argument is declared with its check, which runs in the constructor and again at each call, since arguments may
    be set in between. Those without one are settings, which :class:`ReadingSettings` checks.

    Args:
        llm: a :class:`FrozenLLM` to share, a model's name, or None: on head scores the model that was read, on text the
            model that the heads belong to, else SmolLM2-135M-Instruct.
        prompt: a :class:`PromptTemplate` or the name of one. None, here as for the next five, means on head scores the
            value that they were read with, on text that of the head set, else the package's default (``"default"``). A
            value that differs from the frame's is an error, one that differs from the head set's on text a warning.
        document_order: ``"best_last"`` (the default) or ``"best_first"``.
        document_attention: ``"listwise"`` (the default: each document sees those before it), ``"blockwise"`` (only
            itself) or ``"late"`` (only itself, and the query sees no document, so that each is encoded once).
        max_doc_tokens: title and text of each document are truncated to this many tokens (150).
        calibrate: whether to subtract the scores of the content-free query (True).
        token_filter: ``"head"`` (the default: 2-sigma filter per head), ``"sum"`` (after summing the heads, as the
            papers' code does; for re-rankers on text only) or ``"none"``.
        depth: maximum number of candidates per query.
        store: a :class:`HeadScoreStore`, or the folder of one: lists in the store are not read again, others are added,
            with all heads of the layers that are run. Not used with ``token_filter="sum"``.
        index: a :class:`HeadIndex`, or the folder of one: lists are read late, by the keys in it, and need ``qid``,
            ``query`` and ``docno``, but no texts. If the frame has texts, they are compared with what was indexed.
        missing: candidates that are not in the index: ``"error"``, or ``"encode"`` to encode their texts.
        batch_size: number of lists that are read in one pass; in late reading, queries without documents, at least 32.
        text_field: column of the documents' text.
        title_field: column of the documents' titles; ``"auto"`` means ``title`` if there is such a column, None that
            titles are not read.
        verbose: whether to show progress; None shows it in a terminal or notebook.
    """

    llm: FrozenLLM | str | None = argument(None, by_value(FrozenLLM.of))
    prompt: PromptTemplate | str | None = None
    document_order: str | None = None
    document_attention: str | None = None
    max_doc_tokens: int | None = None
    calibrate: bool | None = None
    token_filter: str | None = None
    depth: int | None = argument(None, optional(check_whole))
    store: HeadScoreStore | str | Path | None = argument(None, by_value(kept_store))
    index: HeadIndex | str | Path | None = argument(None, by_value(HeadIndex.of))
    missing: str = argument("error", partial(check_choice, allowed=("error", "encode")))
    batch_size: int = argument(1, check_whole)
    text_field: str = argument("text", check_text)
    title_field: str | None = argument("auto", optional(check_text))
    verbose: bool | None = argument(None, optional(check_flag))
    _models: ModelSlot = field(init=False, default_factory=ModelSlot)
    _method: ClassVar[Method]

    __hash__ = object.__hash__  # PyTerrier's follows the repr, which settings change

    def __post_init__(self) -> None:
        keep_iterators(self)
        self.store = kept_store(self.store)  # the same folder if the process changes its directory
        self.index = HeadIndex.of(self.index)
        self._check()  # raises an error for a wrong value here, not in the middle of a run

    def __repr__(self) -> str:
        shown = [*shown_arguments(self), shown_if_set("depth", self.depth)]
        return f"{type(self).__name__}({', '.join(filter(None, shown))})"

    def _check(self) -> ReadingSettings:
        """Raise an error for wrong arguments; the settings for text."""
        check_arguments(self)
        if self.index is not None:
            self._check_index()
        resolve_settings(self._given())  # before heads are looked up by them
        return self._settings(self._policy())

    def _policy(self, document_attention: str | None = None) -> HeadPolicy:
        """The heads for lists that are read in this pattern, or in that of the arguments."""
        pattern = document_attention or self.document_attention
        return self._method.policy(self, pattern or (DEFAULT_PATTERN if self.index is None else Late.name))

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTING_NAMES}

    def _settings(self, policy: HeadPolicy) -> ReadingSettings:
        """How lists are read for a policy: as set by hand, else as the index is, else as its head set states."""
        expected = dict({} if policy.head_set is None else policy.head_set.settings)
        if (index := HeadIndex.of(self.index)) is not None:
            indexed = index.settings
            expected |= {name: getattr(indexed, name) for name in INDEX_SETTINGS}
        return resolve_settings(self._given(), expected)

    def _check_index(self) -> None:
        """Raise an error for arguments that an index excludes."""
        index = HeadIndex.of(self.index)
        assert index is not None, "looked at before"
        if self.store is not None:
            raise ValueError("store keeps lists that were read from text: give an index or a store")
        by_hand, indexed = settings_by_hand(self._given()), index.settings
        for name in INDEX_SETTINGS:
            if name in by_hand and by_hand[name] != getattr(indexed, name):
                wanted, found = shown_pair(by_hand[name], getattr(indexed, name))
                raise MismatchError(f"{name}={wanted} was asked for, but {index} was made with {name}={found}")

    def _reader(self, policy: HeadPolicy, hidden_layers: Sequence[int] = ()) -> ListReader:
        """What reads text for a policy; opens the model."""
        head_set, named, layers = policy.head_set, None, policy.layers
        if head_set is not None:
            named = named_model(head_set, policy.bundled)
            _warn_of_other_settings(self._given(), head_set)
        if layers is not None:
            layers = max([layers, *(layer + 1 for layer in hidden_layers)])
        llm = self._models.open(self.llm, named=named, max_layers=layers)
        check_model(policy, model_identity(llm))
        if self._reads_late(policy):
            hidden_layers = tuple(dict.fromkeys((*hidden_layers, *policy.hidden_layers)))
        store = HeadScoreStore.of(self.store)
        return ListReader(llm, policy.heads, self._settings(policy), hidden_layers=hidden_layers, store=store)

    def _lists_at_once(self, policy: HeadPolicy) -> int:
        """How many lists are best read at once."""
        return max(self.batch_size, QUERIES_AT_ONCE) if self._reads_late(policy) else self.batch_size

    def _reads_late(self, policy: HeadPolicy) -> bool:
        """Whether queries and documents do not see each other."""
        return not PATTERNS[self._settings(policy).document_attention].tail_sees_documents

    def _index_source(
        self, inp: pd.DataFrame, open_reader: Callable[[], IndexReader], *, by_head: bool = False
    ) -> IndexSource:
        """Head scores of a frame from the index; its texts are looked at if there are any."""
        index = HeadIndex.of(self.index)
        assert index is not None, "asked for with an index alone"
        titles, title = index.description.titles, None
        if titles:
            title = used_title_field(inp.columns, self.title_field, self.text_field)
        elif self.title_field not in (None, "auto"):
            raise MismatchError(f"title_field={self.title_field!r} was asked for, but {index} was made without titles")
        comparable = self.text_field in inp.columns and (not titles or title in inp.columns)
        return IndexSource(
            inp,
            open_reader,
            text_field=self.text_field if comparable else None,
            title_field=title if comparable else None,
            encode_missing=self.missing == "encode",
            batch_size=self.batch_size,
            by_head=by_head,
        )

    def _index_reader(
        self, policy: HeadPolicy, hidden_layers: Sequence[int] = (), *, indexed: bool = False
    ) -> IndexReader:
        """What reads the index for a policy; opens the model.

        Args:
            policy: the heads.
            hidden_layers: layers after which to read hidden states, beside those that the policy needs.
            indexed: whether ``"all"`` heads mean those of the index, not of the model.
        """
        index = HeadIndex.of(self.index)
        assert index is not None, "asked for with an index alone"
        if policy.head_set is not None:
            _warn_of_other_settings({**self._given(), "document_attention": Late.name}, policy.head_set)
        hidden_layers = tuple(dict.fromkeys((*hidden_layers, *policy.hidden_layers)))
        heads = index.heads if indexed and is_all(policy.heads) else policy.heads
        layers = layers_needed(heads)
        if layers is not None:
            layers = max([layers, policy.layers or 0, *(layer + 1 for layer in hidden_layers)])
        llm = self._models.open(self.llm, named=index.model, max_layers=layers)
        check_model(policy, model_identity(llm))
        resolved = resolve_heads(heads, llm.num_layers, llm.num_heads)
        return IndexReader(index, llm, resolved, self._settings(policy), hidden_layers=hidden_layers)


def check_model(policy: HeadPolicy, model: ModelIdentity) -> None:
    """Raise an error for a model that a policy's heads are not for; warn of other weights of a bundled set's model."""
    head_set = policy.head_set
    if head_set is None:  # heads by number belong to no model
        return
    if not policy.bundled or not is_bundled_model(model.name):
        head_set.check_model(model, allow_mismatch=policy.allow_mismatch)
    elif not head_set.model.is_same(model):
        warn(f"the bundled heads were found in {head_set.model}, not in {model}")


def _warn_of_other_settings(given: Mapping[str, Any], head_set: HeadSet) -> None:
    by_hand = {name: value for name, value in settings_by_hand(given).items() if name in head_set.settings}
    expected = {name: head_set.settings[name] for name in by_hand}
    if by_hand != expected:
        different = shown_settings(by_hand, expected)
        warn(f"the head set's scores were read with other settings than set by hand: {different}")


def as_depth(depth: int | np.integer | None) -> int | None:
    """A depth as a plain int."""
    return None if depth is None else int(depth)
