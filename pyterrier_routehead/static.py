"""Re-rankers with a fixed set of heads: `StaticHeadReranker`, and `ICRReranker`, which sums all of them."""

from dataclasses import KW_ONLY, dataclass, field

from .common.arguments import argument, by_value, check_flag, traits
from .detection.head_set import HeadSet
from .heads import HeadsLike
from .ranking.options import Method
from .ranking.policy import FixedHeads, shown_heads
from .ranking.reranker import HeadReranker


def given_heads(reranker: "StaticHeadReranker", document_attention: str) -> FixedHeads:
    """The heads that the re-ranker was given."""
    return FixedHeads.of(
        reranker.heads, document_attention=document_attention, allow_mismatch=reranker.allow_mismatch
    )


@dataclass(eq=False, repr=False)
class StaticHeadReranker(HeadReranker):
    """Ranks by the sum of a fixed set of attention heads.

    Behind an :class:`AttentionHeadScorer` it sums the scores that the scorer has read, and needs no model. On text it
    reads the heads itself, running no layer above the deepest of them.

    Columns and further arguments as for :class:`HeadReranker`.

    Args:
        heads: ``"all"``, heads as (layer, head) pairs or ``"layer-head"`` strings; a :class:`HeadSet`, of which the
            first ``k`` heads rank, and which also states its model and settings; or the name of a set with its method:
            ``"core-llama-3.1-8b"``.
        allow_mismatch: use a head set with other weights of its model's shape, or on head scores that were read with
            other settings than the set's.
    """

    schematic = {"label": "StaticHeads", "help_url": "https://arxiv.org/abs/2506.09944"}
    _method = Method(given_heads)

    heads: HeadsLike | HeadSet = field(metadata=traits(shown=by_value(shown_heads)))
    _: KW_ONLY
    allow_mismatch: bool = argument(False, check_flag)


def every_head(reranker: "ICRReranker", document_attention: str) -> FixedHeads:
    """All heads of all layers."""
    return FixedHeads("all")


@dataclass(eq=False, repr=False)
class ICRReranker(HeadReranker):
    """In-context re-ranking (ICR, arXiv 2410.02642): ranks by the sum of all heads of all layers.

    Columns and arguments as for :class:`HeadReranker`. ``ICRReranker(**paper_settings("icr"))`` uses the prompt, order
    and token filter of the paper's code.
    """

    schematic = {"label": "ICR", "help_url": "https://arxiv.org/abs/2410.02642"}
    _method = Method(every_head)
