"""What a head score describes: which heads of which model, under which settings. Every row of head scores carries it.

A vector of head scores means nothing without it, and the attributes of a frame do not survive merging, slicing or
``transform_iter``. So a scorer writes it into each row, as one shared value in the column ``head_reading``, and whoever
uses the vectors looks heads up by name and raises an error for scores that were computed with different settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..common.arguments import check_choice, check_flag, check_whole
from ..common.errors import MismatchError
from ..common.schema import typed_fields
from ..heads import Head, HeadsLike, is_all, resolve_heads
from ..kernel.aggregate import AGGREGATIONS, Aggregation, default_aggregation
from ..kernel.patterns import DEFAULT_PATTERN, PATTERNS
from ..model.fingerprint import same_weights, shown
from ..prompt.build import DOCUMENT_ORDERS
from ..template import DEFAULT_TEMPLATE, PromptTemplate, get_template


@dataclass(frozen=True)
class ReadingSettings:
    """How attention is read. The field defaults are the package's defaults.

    Args:
        prompt: the template.
        document_order: ``"best_last"`` (the first candidate stands next to the query) or ``"best_first"``.
        document_attention: ``"listwise"`` (each document sees those before it), ``"blockwise"`` (only itself) or
            ``"late"`` (only itself, and the query sees no document).
        max_doc_tokens: title and text of each document are truncated to this many tokens.
        calibrate: subtract what the content-free query pays.
        token_filter: the 2-sigma filter on calibrated tokens: ``"head"`` (per head, so scores add up over heads),
            ``"sum"`` (after summing the heads, as the papers' code does) or ``"none"``. None means ``"head"``, and
            ``"none"`` without calibration.

    Raises:
        TypeError: naming the setting, for a value of another type.
        ValueError: naming the setting, for a wrong value, or for a filter without calibration.
    """

    prompt: PromptTemplate = DEFAULT_TEMPLATE
    document_order: str = "best_last"
    document_attention: str = DEFAULT_PATTERN
    max_doc_tokens: int = 150
    calibrate: bool = True
    token_filter: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibrate", check_flag("calibrate", self.calibrate))
        if self.token_filter is None:
            object.__setattr__(self, "token_filter", default_aggregation(calibrate=self.calibrate).name)
        for name, allowed in (
            ("document_order", DOCUMENT_ORDERS),
            ("document_attention", tuple(PATTERNS)),
            ("token_filter", tuple(AGGREGATIONS)),
        ):
            check_choice(name, getattr(self, name), allowed)
        number = check_whole("max_doc_tokens", self.max_doc_tokens, what="number of tokens")
        object.__setattr__(self, "max_doc_tokens", number)
        if not self.calibrate and self.aggregation.needs_calibration:
            raise ValueError(
                f"token_filter={self.token_filter!r} filters calibrated scores, but calibrate=False: "
                "leave one of the two out"
            )

    @property
    def aggregation(self) -> Aggregation:
        """How the attention on a document's tokens becomes its score: what ``token_filter`` names."""
        assert self.token_filter is not None, "set on construction"
        return AGGREGATIONS[self.token_filter]


SETTING_NAMES = tuple(field.name for field in fields(ReadingSettings))


def resolve_settings(given: Mapping[str, Any], fallback: Mapping[str, Any] | None = None) -> ReadingSettings:
    """Settings set by hand (those that are not None), for the rest a head set's, and else the package's defaults."""
    by_hand = settings_by_hand(given)
    settings = {**(fallback or {}), **by_hand}
    # The default of the filter follows calibration, also where calibration alone was set by hand.
    if "calibrate" in by_hand and "token_filter" not in by_hand:
        settings.pop("token_filter", None)
    return ReadingSettings(**settings)


def settings_to_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, some may be left out, as plain JSON values. Templates are written out in full."""
    return {name: asdict(value) if name == "prompt" else value for name, value in settings.items()}


def settings_from_json(values: object) -> dict[str, Any]:
    """What :func:`settings_to_json` has written.

    Raises:
        ValueError: for settings that this version does not know, and for values of another type.
    """
    if isinstance(values, Mapping) and (unknown := sorted(set(values) - set(SETTING_NAMES))):
        raise ValueError(f"unknown settings {', '.join(unknown)}; known: {', '.join(SETTING_NAMES)}")
    return typed_fields(ReadingSettings, values, "settings")


def shown_settings(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """For a message: the settings that differ, with both values."""
    differing = [name for name in SETTING_NAMES if found.get(name) != expected.get(name)]
    pairs = {name: shown_pair(found.get(name), expected.get(name)) for name in differing}
    return ", ".join(f"{name}={value} instead of {wanted}" for name, (value, wanted) in pairs.items())


@dataclass(frozen=True)
class ModelIdentity:
    """Which model was read, and how to load it again; what else was given for loading (``model_kwargs``) is not kept.

    Args:
        name: its id, folder or file.
        fingerprint: a hash per layer over its weights, for the layers that were loaded.
        num_layers: layers of the complete model.
        num_heads: heads per layer.
        revision: branch, tag or commit on the hub, if one was given.
        tokenizer: id or folder of a tokenizer that replaces the model's, if one was given.
    """

    name: str
    fingerprint: tuple[str, ...]
    num_layers: int
    num_heads: int
    revision: str | None = None
    tokenizer: str | None = None

    def is_same(self, other: "ModelIdentity") -> bool:
        """Whether shape and weights agree (in the layers that both have loaded), whatever the names."""
        shapes = [(model.num_layers, model.num_heads) for model in (self, other)]
        return shapes[0] == shapes[1] and same_weights(self.fingerprint, other.fingerprint)

    def __str__(self) -> str:
        weights = f"weights {shown(self.fingerprint)}" if self.fingerprint else "weights unknown"
        return f"{self.name} ({self.num_layers} x {self.num_heads} heads, {weights})"


@dataclass(frozen=True)
class Reading:
    """What the vectors of head scores in a frame are: one number per head, in this order.

    Args:
        model: the model that was read.
        heads: the heads, in the order of a vector's numbers.
        settings: how they were read.
        complete: whether these are all heads of the layers that were to be used.
        hidden_layers: the layers of the rows of ``hidden_state``, if that was asked for.
        title_field: the column of titles that were read above the texts; None where none were.
    """

    model: ModelIdentity
    heads: tuple[Head, ...]
    settings: ReadingSettings
    complete: bool = False
    hidden_layers: tuple[int, ...] = ()
    title_field: str | None = None

    def __repr__(self) -> str:
        return f"Reading({len(self.heads)} heads of {self.model.name}, {self.settings.document_attention})"

    def columns(self, heads: HeadsLike) -> list[int]:
        """Places of some heads in a vector.

        Raises:
            ValueError: naming heads that the model does not have, or that were not read.
        """
        if self.complete and is_all(heads):
            return list(range(len(self.heads)))
        heads = resolve_heads(heads, self.model.num_layers, self.model.num_heads)
        place = {head: i for i, head in enumerate(self.heads)}
        if missing := [str(head) for head in heads if head not in place]:
            raise ValueError(
                f"head_scores lacks {len(missing)} of {len(heads)} heads: {_some(missing)}; "
                f"it has {len(self.heads)} heads of {self.model}"
            )
        return [place[head] for head in heads]

    def check_settings(self, given: Mapping[str, Any]) -> None:
        """Refuse settings set by hand that differ from those of the vectors.

        Raises:
            MismatchError: naming the setting and both values.
        """
        for name, value in settings_by_hand(given).items():
            found = getattr(self.settings, name)
            if value != found:
                wanted, read = shown_pair(value, found)
                raise MismatchError(f"{name}={wanted} was asked for, but head_scores was read with {read}")

    def same_but_heads(self, other: "Reading") -> bool:
        """Whether vectors of both may stand in one list: the same model, the same settings, both with titles or not."""
        titles = self.title_field is not None, other.title_field is not None
        return self.settings == other.settings and titles[0] == titles[1] and self.model.is_same(other.model)

    def check_model(self, model: ModelIdentity) -> None:
        """Refuse another model than the one that was read.

        Raises:
            MismatchError: naming both.
        """
        if not self.model.is_same(model):
            raise MismatchError(f"head_scores was read from {self.model}, which is not {model}")


def settings_by_hand(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings among some arguments that are not None, templates by name looked up."""
    chosen = {name: value for name, value in given.items() if name in SETTING_NAMES and value is not None}
    if "prompt" in chosen:
        chosen["prompt"] = get_template(chosen["prompt"])
    return chosen


def shown_pair(left: object, right: object) -> tuple[str, str]:
    """Two unlike values for a message: templates by name, and where that is the same by the field that differs."""
    if not isinstance(left, PromptTemplate) or not isinstance(right, PromptTemplate):
        return repr(left), repr(right)
    if left.name != right.name:
        return repr(left.name), repr(right.name)
    field = next(f.name for f in fields(PromptTemplate) if getattr(left, f.name) != getattr(right, f.name))
    return _with_field(left, field), _with_field(right, field)


def _with_field(template: PromptTemplate, field: str) -> str:
    return f"{template.name!r} with {field}={getattr(template, field)!r}"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
