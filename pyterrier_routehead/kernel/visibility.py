"""What stands in a pass for the masks that transformers would build: a description, not tokens x tokens of numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..common.errors import UnsupportedArchitectureError

NOT_REGISTERED = "its attention does not go through transformers' attention registry"

_FAR = 1 << 24


class MaskUsedError(UnsupportedArchitectureError, AttributeError):
    """Our mask is in the hands of an attention that is not ours. ``hasattr`` takes it for an attribute not there."""


@dataclass(frozen=True)
class Visibility:
    """What a layer's mask lets a token see: itself and what is before it, at a distance below ``window`` if set.

    A mask that is neither causal nor a sliding window is not ``plain``. It matters only if a layer uses it:
    transformers may build masks that no layer does. Whatever takes it for a tensor is attention that is not ours.
    """

    window: int | None
    plain: bool = True

    def __getitem__(self, rows: object) -> "Visibility":
        return self  # some architectures (Gemma4) slice the mask to the rows at hand

    @classmethod
    def __torch_function__(cls, *_: object, **__: object) -> None:
        raise MaskUsedError(NOT_REGISTERED)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MaskUsedError(NOT_REGISTERED)


def layer_visibility(
    *, mask_function: Callable[..., torch.Tensor], local_size: int | None = None, **_: object
) -> Visibility:
    """Stand-in for transformers' mask builders: describes the mask instead of building tokens x tokens of it.

    The mask is given as a function of two positions. It is tried at some pairs, so that a pattern other than causal or
    sliding (chunked, bidirectional) is noticed.
    """

    def sees(row: int, column: int) -> bool:
        zero = torch.tensor(0)
        return bool(mask_function(zero, zero, torch.tensor(row), torch.tensor(column)))

    rows = (0, 1, 7) if local_size is None else (0, local_size, local_size + 1, 2 * local_size, _FAR + local_size)
    for row in (*rows, _FAR):
        oldest = 0 if local_size is None else max(0, row - local_size + 1)
        expected = {row: True, row + 1: False, oldest: True, oldest - 1: False}
        if any(sees(row, column) != seen for column, seen in expected.items() if column >= 0):
            return Visibility(local_size, plain=False)
    return Visibility(local_size)
