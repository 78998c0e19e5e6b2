"""Attention heads and the ways to name them.

A head is a (layer, head) pair, both counted from 0, written ``"layer-head"`` as in the published head lists
(QRHead, arXiv 2506.09944; CoRe, arXiv 2510.02219).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias


class Head(NamedTuple):
    """One attention head of a decoder: its layer and its number in that layer, both from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}-{self.head}"


HeadsLike: TypeAlias = str | Sequence[tuple[int, int] | str]


def parse_heads(heads: HeadsLike) -> tuple[Head, ...]:
    """Turn any accepted naming of heads into a tuple of distinct heads, in the order given.

    Args:
        heads: (layer, head) pairs, ``"layer-head"`` strings, a mixture of both, or one comma-separated string of
            ``"layer-head"`` items. ``"all"`` needs a model's shape: use :func:`resolve_heads`.

    Raises:
        TypeError: for what is not iterable.
        ValueError: for an item that names no head, a head named twice, or no heads at all.
    """
    if not isinstance(heads, Iterable):
        raise TypeError(f"heads are (layer, head) pairs or 'layer-head' strings, got {heads!r}")
    items = heads.split(",") if isinstance(heads, str) else list(heads)
    parsed = tuple(_parse_head(item) for item in items)
    if not parsed:
        raise ValueError("the set of heads is empty")
    if len(set(parsed)) < len(parsed):
        twice = next(head for i, head in enumerate(parsed) if head in parsed[:i])
        raise ValueError(f"head {twice} is named twice")
    return parsed


def _parse_head(item: tuple[int, int] | str) -> Head:
    try:
        layer, head = item.strip().split("-") if isinstance(item, str) else item
        if isinstance(layer, bool) or isinstance(head, bool):
            raise TypeError
        named = Head(int(layer), int(head))
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"{item!r} does not name a head: give (layer, head) or 'layer-head'") from None
    if named.layer < 0 or named.head < 0 or (not isinstance(item, str) and named != tuple(item)):
        raise ValueError(f"{item!r} does not name a head: layer and head are integers from 0")
    return named


def is_all(heads: HeadsLike) -> bool:
    """Whether heads are named as ``"all"``, which needs a model's shape to be resolved."""
    return isinstance(heads, str) and heads == "all"


def all_heads(num_layers: int, num_heads: int) -> tuple[Head, ...]:
    """All heads of a model of that shape, layer by layer."""
    return tuple(Head(layer, head) for layer in range(num_layers) for head in range(num_heads))


def resolve_heads(heads: HeadsLike, num_layers: int, num_heads: int) -> tuple[Head, ...]:
    """Heads by name for a model of a known shape; ``"all"`` means every head.

    Raises:
        ValueError: naming the first head that such a model does not have.
    """
    if is_all(heads):
        return all_heads(num_layers, num_heads)
    named = parse_heads(heads)
    for head in named:
        if head.layer >= num_layers or head.head >= num_heads:
            raise ValueError(f"there is no head {head} among {num_layers} layers with {num_heads} heads each")
    return named


def layers_needed(heads: HeadsLike) -> int | None:
    """How many layers must run to read these heads; None when that is all of them (``"all"``)."""
    if is_all(heads):
        return None
    return max(head.layer for head in parse_heads(heads)) + 1


def describe_heads(heads: HeadsLike) -> str:
    """A short description of some heads, for the repr of a transformer."""
    if is_all(heads):
        return "'all'"
    try:
        named = parse_heads(heads)
    except (TypeError, ValueError):
        return "<no heads>"  # a repr must not fail
    return repr(",".join(map(str, named))) if len(named) <= 3 else f"<{len(named)} heads>"
