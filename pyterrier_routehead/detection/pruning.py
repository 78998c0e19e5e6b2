"""Layer pruning: only heads of the lower layers, as if the others were cut off (CoRe, arXiv 2510.02219)."""

import numbers

from .head_set import HeadSet


def check_max_layer(max_layer: object) -> None:
    """Refuse what is neither a number of layers nor a share of them."""
    if max_layer is None:
        return
    said = f"max_layer is a number of layers from 1, or a share of them up to 1.0, got {max_layer!r}"
    if isinstance(max_layer, bool) or not isinstance(max_layer, numbers.Real):
        raise TypeError(said)
    number, layers = float(max_layer), isinstance(max_layer, numbers.Integral)
    if not (number >= 1 if layers else 0 < number <= 1):
        raise ValueError(said)


def within(head_set: HeadSet, max_layer: int | float | None) -> HeadSet:
    """The heads in the layers that ``max_layer`` keeps."""
    if max_layer is None:
        return head_set
    if isinstance(max_layer, numbers.Integral):
        return head_set.below(int(max_layer))
    # CoRe's code: int(layers * (1 - pruned share)); a hair above, since .29 * 100 is just below 29.
    return head_set.below(max(1, int(head_set.model.num_layers * max_layer + 1e-9)))
