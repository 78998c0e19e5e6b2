"""Re-rankers with a fixed set of heads: `StaticHeadReranker`, and `ICRReranker`, which sums all of them."""

from dataclasses import KW_ONLY, dataclass

from .common.arguments import check_flag
from .detection.head_set import HeadSet
from .heads import HeadsLike, kept_heads
from .kernel.patterns import DEFAULT_PATTERN
from .ranking.options import shown_depth
from .ranking.policy import FixedHeads, HeadPolicy, shown_heads
from .ranking.reranker import HeadReranker
from .reading.reading import ReadingSettings


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
        return f"StaticHeadReranker({shown_heads(self.heads)}{shown_depth(self)})"

    def _policy(self, document_attention: str) -> HeadPolicy:
        return FixedHeads.of(
            self.heads, document_attention=document_attention, allow_mismatch=self.allow_mismatch
        )

    def _check(self) -> ReadingSettings:
        check_flag("allow_mismatch", self.allow_mismatch)
        super()._check()
        return self._settings(self._policy(self.document_attention or DEFAULT_PATTERN))


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
