"""Whether a head set fits a model, and head scores that have been computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import MismatchError
from ..common.notices import warn
from ..reading.reading import ModelIdentity, ReadingSettings, shown_settings


def check_same_model(expected: ModelIdentity, model: ModelIdentity, *, allow_mismatch: bool) -> None:
    """Refuse another model than a set's; see :meth:`HeadSet.check_model`, which calls this.

    Args:
        expected: the set's model.
        model: the model to be used.
        allow_mismatch: accept other weights of the same shape.

    Raises:
        MismatchError: naming both models.
    """
    both = f"the head set is for {expected}, not for {model}"
    if (expected.num_layers, expected.num_heads) != (model.num_layers, model.num_heads):
        raise MismatchError(both)
    if allow_mismatch:
        return
    if expected.fingerprint and model.fingerprint:
        same = expected.is_same(model)
    elif same := expected.name == model.name:
        pass
    elif same := Path(model.name).is_dir():
        warn(f"{both}, as far as their shapes tell: nothing else can be compared")
    if not same:
        raise MismatchError(f"{both}; allow_mismatch=True uses it all the same")


def check_same_settings(expected: Mapping[str, Any], settings: ReadingSettings, *, allow_mismatch: bool) -> None:
    """Refuse head scores whose settings differ from a set's.

    Args:
        expected: the set's settings; what is not known of them is left out.
        settings: those of the head scores.
        allow_mismatch: accept them all the same.

    Raises:
        MismatchError: naming the settings that differ, with both values.
    """
    differing = {name: value for name, value in expected.items() if getattr(settings, name) != value}
    if differing and not allow_mismatch:
        found = {name: getattr(settings, name) for name in differing}
        raise MismatchError(
            f"head_scores was computed with different settings than the head set: {shown_settings(found, differing)}; "
            "allow_mismatch=True uses the set all the same"
        )
