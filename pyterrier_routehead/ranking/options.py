"""How transformers read candidate lists: their common arguments, declared once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from ..common.arguments import check_flag, check_whole
from ..common.notices import warn
from ..detection.head_set import HeadSet
from ..model.frozen import FrozenLLM
from ..reading.reader import ListReader, model_identity
from ..reading.reading import (
    SETTING_NAMES,
    ModelIdentity,
    ReadingSettings,
    resolve_settings,
    settings_by_hand,
    shown_settings,
)
from ..reading.store import HeadScoreStore, kept_store
from ..template import PromptTemplate
from .frames import check_fields
from .model_slot import ModelSlot
from .policy import HeadPolicy
from .registry import is_bundled_model, named_model


@dataclass(kw_only=True, eq=False, repr=False)
class ReadsLists(pt.Transformer):
    """What all transformers of this package have in common that read candidate lists.

    Args:
        llm: a :class:`FrozenLLM` to share, a model's name, or None: on head scores for whichever model was read, on
            text for the model that the heads belong to, else for SmolLM2-135M-Instruct.
        prompt: a :class:`PromptTemplate` or the name of one. None, here as for the next five, means on head scores the
            value that they were read with, on text that of the head set, else the package's default (``"default"``). A
            value that differs from the frame's is an error, one that differs from the head set's on text a warning.
        document_order: ``"best_last"`` (the default) or ``"best_first"``.
        document_attention: ``"listwise"`` (the default) or ``"blockwise"``.
        max_doc_tokens: title and text of each document are cut to so many tokens (150).
        calibrate: whether to subtract the scores of the content-free query (True).
        token_filter: ``"head"`` (the default: 2-sigma filter per head), ``"sum"`` (after summing the heads, as the
            papers' code does; for re-rankers on text only) or ``"none"``.
        depth: only so many candidates per query.
        store: a :class:`HeadScoreStore`, or the folder of one: lists found there are not read again, others are added,
            with all heads of the layers that are run. Not used with ``token_filter="sum"``.
        batch_size: how many lists are read in one pass.
        text_field: column of the documents' text.
        title_field: column of the documents' titles; ``"auto"`` means ``title`` where there is such a column, None that
            titles are not read.
        verbose: whether to show progress; None shows it in a terminal or notebook.
    """

    llm: FrozenLLM | str | None = None
    prompt: PromptTemplate | str | None = None
    document_order: str | None = None
    document_attention: str | None = None
    max_doc_tokens: int | None = None
    calibrate: bool | None = None
    token_filter: str | None = None
    depth: int | None = None
    store: HeadScoreStore | str | Path | None = None
    batch_size: int = 1
    text_field: str = "text"
    title_field: str | None = "auto"
    verbose: bool | None = None
    _models: ModelSlot = field(init=False, default_factory=ModelSlot)

    __hash__ = object.__hash__  # PyTerrier's follows the repr, which settings change

    def __post_init__(self) -> None:
        self.store = kept_store(self.store)  # the same folder wherever the process goes later
        self._check()  # a wrong value is refused here, not in the middle of a run

    def _check(self) -> ReadingSettings:
        """Refuse wrong arguments; the settings as they are without a head set."""
        if self.depth is not None:
            check_whole("depth", self.depth)
        check_whole("batch_size", self.batch_size)
        check_fields(self.text_field, self.title_field)
        if self.verbose is not None:
            check_flag("verbose", self.verbose)
        kept_store(self.store)
        FrozenLLM.of(self.llm)
        return resolve_settings(self._given())

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTING_NAMES}

    def _settings(self, policy: HeadPolicy) -> ReadingSettings:
        """How text is read for a policy: as set by hand, else as its head set says."""
        return resolve_settings(self._given(), None if policy.head_set is None else policy.head_set.settings)

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
        store = HeadScoreStore.of(self.store)
        return ListReader(llm, policy.heads, self._settings(policy), hidden_layers=hidden_layers, store=store)


def check_model(policy: HeadPolicy, model: ModelIdentity) -> None:
    """Refuse a model that a policy's heads are not for; other weights of a bundled set's model are a warning."""
    head_set = policy.head_set
    if head_set is None:  # heads by number are of no model
        return
    if not policy.bundled or not is_bundled_model(model.name):
        head_set.check_model(model, allow_mismatch=policy.allow_mismatch)
    elif not head_set.model.is_same(model):
        warn(f"the heads that come with the package were found in {head_set.model}, not in {model}")


def _warn_of_other_settings(given: Mapping[str, Any], head_set: HeadSet) -> None:
    own = settings_by_hand(given)
    known = {name: head_set.settings[name] for name in own if name in head_set.settings}
    own = {name: own[name] for name in known}
    if own != known:
        warn(f"the head set's scores were read otherwise than set by hand: {shown_settings(own, known)}")


def shown_depth(transformer: ReadsLists) -> str:
    """For a repr: the depth, where there is one."""
    return "" if transformer.depth is None else f", depth={transformer.depth}"


def as_depth(depth: int | np.integer | None) -> int | None:
    """A depth as a plain int."""
    return None if depth is None else int(depth)
