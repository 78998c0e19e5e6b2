"""Compatibility of a head set with a model and with head scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import MismatchError
from ..common.notices import warn
from ..reading.reading import ModelIdentity, ReadingSettings, shown_settings


def check_same_model(expected: ModelIdentity, model: ModelIdentity, *, allow_mismatch: bool) -> None:
    """Raise an error for a model that differs from a set's; see :meth:`HeadSet.check_model`, which calls this.

    Args:
        expected: the set's model.
        model: the model in use.
        allow_mismatch: accept other weights of the same shape.

    Raises:
        MismatchError: naming both models.
    """
    message = f"the head set is for {expected}, not for {model}"
    if (expected.num_layers, expected.num_heads) != (model.num_layers, model.num_heads):
        raise MismatchError(message)
    if allow_mismatch:
        return
    if expected.fingerprint and model.fingerprint:
        same = expected.is_same(model)
    elif same := expected.name == model.name:
        pass
    elif same := Path(model.name).is_dir():
        warn(f"{message}, as far as their shapes tell: nothing else can be compared")
    if not same:
        raise MismatchError(f"{message}; allow_mismatch=True uses it anyway")


def check_same_settings(expected: Mapping[str, Any], settings: ReadingSettings, *, allow_mismatch: bool) -> None:
    """Raise an error for head scores whose settings differ from a set's.

    Args:
        expected: the set's settings, without unknown ones.
        settings: those of the head scores.
        allow_mismatch: accept them anyway.

    Raises:
        MismatchError: naming the settings that differ, with both values.
    """
    differing = {name: value for name, value in expected.items() if getattr(settings, name) != value}
    if differing and not allow_mismatch:
        actual = {name: getattr(settings, name) for name in differing}
        raise MismatchError(
            f"head_scores was computed with different settings than the head set: {shown_settings(actual, differing)}; "
            "allow_mismatch=True uses the set anyway"
        )
