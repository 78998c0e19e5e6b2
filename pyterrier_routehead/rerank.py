"""Re-rankers with a fixed set of heads: `StaticHeadReranker`, and `ICRReranker`, which sums all of them."""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any

from .arguments import check_flag
from .head_set import HeadSet
from .heads import HeadsLike, describe_heads, is_all, kept_heads, parse_heads
from .options import shown_depth
from .policy import FixedHeads, HeadPolicy
from .reading import ReadingSettings, resolve_settings
from .registry import is_bundled, named_heads
from .reranker import HeadReranker

_NAMED = re.compile(r"(core|qr)-(.*[a-z].*)")


@dataclass(eq=False, repr=False)
class StaticHeadReranker(HeadReranker):
    """Ranks by the sum of a fixed set of attention heads.

    Behind an :class:`AttentionHeadScorer` it sums what the scorer has read and needs no model. On text it reads the
    heads itself, running no layer above the deepest of them.

    Columns and further arguments as for :class:`HeadReranker`.

    Args:
        heads: ``"all"``, heads as (layer, head) pairs or ``"layer-head"`` strings; a :class:`HeadSet`, of which the
            first ``k`` heads rank, and which also says which model it is for and how to read it; or the name of one
            with its method: ``"core-llama-3.1-8b"``.
        allow_mismatch: use a head set with other weights of its model's shape, or on head scores that were read
            otherwise than the set's.
    """

    schematic = {"label": "StaticHeads", "help_url": "https://arxiv.org/abs/2506.09944"}

    heads: HeadsLike | HeadSet
    _: KW_ONLY
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        self.heads = kept_heads(self.heads)
        super().__post_init__()

    def __repr__(self) -> str:
        if isinstance(self.heads, str) and _NAMED.fullmatch(self.heads):
            shown = repr(self.heads)
        else:
            shown = describe_heads(self.heads.ranking.heads if isinstance(self.heads, HeadSet) else self.heads)
        return f"StaticHeadReranker({shown}{shown_depth(self)})"

    def _policy(self, document_attention: str) -> HeadPolicy:
        if isinstance(self.heads, str) and (named := _NAMED.fullmatch(self.heads)):
            method, name = named.groups()
            return FixedHeads.of(
                named_heads(method, name, document_attention),
                bundled=is_bundled(method, name),
                allow_mismatch=self.allow_mismatch,
            )
        return FixedHeads.of(self.heads, allow_mismatch=self.allow_mismatch)

    def _check(self) -> ReadingSettings:
        settings = super()._check()
        check_heads(self.heads)
        check_flag("allow_mismatch", self.allow_mismatch)
        return checked_with_set(self._given(), self._policy(self.document_attention or "listwise"), settings)


@dataclass(eq=False, repr=False)
class ICRReranker(HeadReranker):
    """In-context re-ranking (ICR, arXiv 2410.02642): ranks by the sum of all heads of all layers.

    Columns and arguments as for :class:`HeadReranker`. ``ICRReranker(**paper_settings("icr"))`` takes the prompt, order
    and token filter of the paper's own code.
    """

    schematic = {"label": "ICR", "help_url": "https://arxiv.org/abs/2410.02642"}

    def __repr__(self) -> str:
        return f"ICRReranker({shown_depth(self).removeprefix(', ')})"

    def _policy(self, document_attention: str) -> HeadPolicy:
        return FixedHeads.of("all")


def check_heads(heads: object) -> None:
    """Refuse what names no heads.

    Raises:
        TypeError: for None or another type.
        ValueError: for heads that do not exist.
    """
    if heads is None:
        raise TypeError("heads are missing: 'all', a list of heads, a HeadSet, or the name of one")
    if isinstance(heads, HeadSet) or (isinstance(heads, str) and (is_all(heads) or _NAMED.fullmatch(heads))):
        return
    parse_heads(heads)


def checked_with_set(given: dict[str, Any], policy: HeadPolicy, settings: ReadingSettings) -> ReadingSettings:
    """The settings that text is read with, which those of a head set may contradict."""
    return settings if policy.head_set is None else resolve_settings(given, policy.head_set.settings)
