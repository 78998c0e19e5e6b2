"""Layer pruning: only heads of the lower layers, as if the upper ones were removed (CoRe, arXiv 2510.02219)."""

import numbers

from .head_set import HeadSet


def check_max_layer(max_layer: object) -> None:
    """Raise an error for any value but a number of layers, a share of them or None."""
    if max_layer is None:
        return
    message = f"max_layer must be a number of layers >= 1, or a share of them up to 1.0, got {max_layer!r}"
    if isinstance(max_layer, bool) or not isinstance(max_layer, numbers.Real):
        raise TypeError(message)
    number, layers = float(max_layer), isinstance(max_layer, numbers.Integral)
    if not (number >= 1 if layers else 0 < number <= 1):
        raise ValueError(message)


def within(head_set: HeadSet, max_layer: int | float | None) -> HeadSet:
    """The heads of the layers that ``max_layer`` keeps."""
    if max_layer is None:
        return head_set
    if isinstance(max_layer, numbers.Integral):
        return head_set.below(int(max_layer))
    # CoRe's code: int(layers * (1 - pruned share)); with a tolerance, since .29 * 100 is just below 29.
    return head_set.below(max(1, int(head_set.model.num_layers * max_layer + 1e-9)))
