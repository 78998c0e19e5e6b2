"""Aggregations: from attention on the tokens of a list to scores of its documents.

With a[j] the attention that the query rows pay to document token j (mean over rows) and n[j] the same for the
content-free query, the calibrated score of a token is c[j] = a[j] - n[j] (ICR, arXiv 2410.02642). How the tokens of a
document become its score is a replaceable step of the kernel, like reading patterns. Whatever depends on it is asked of
the aggregation; no other module compares an aggregation's name.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class DocumentTokens:
    """Which token belongs to which document of a list.

    Args:
        counts: how many tokens count in each document.
        device: where the attention is.
    """

    def __init__(self, counts: list[int], device: "torch.device | str") -> None:
        import torch

        self.num_documents = len(counts)
        self.document = torch.repeat_interleave(torch.tensor(counts, device="cpu")).to(device)
        """The document of each token: int64 [tokens]."""
        self.counts = torch.tensor(counts, dtype=torch.float32, device=device)
        """The number of tokens of each document: fp32 [documents]."""

    def sum(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """Sum over each document's tokens: fp32 [..., tokens] to [..., documents]; 0 for a document without any."""
        sums = tokens.new_zeros((*tokens.shape[:-1], self.num_documents))
        return sums.index_add_(-1, self.document, tokens)


class Aggregation(Protocol):
    """A way from attention on tokens to scores of documents.

    Attributes:
        name: what the argument ``token_filter``, results and files call it.
        per_head: whether every head is aggregated by itself, so that heads have scores which add up. If not, the
            attention is first summed over the heads, token by token, and there is one score per document.
        needs_calibration: whether it is meant for calibrated attention alone.
        linear: whether the score is the plain sum over the tokens, which ``raw`` and ``null`` already give.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def per_head(self) -> bool: ...  # noqa: D102
    @property
    def needs_calibration(self) -> bool: ...  # noqa: D102
    @property
    def linear(self) -> bool: ...  # noqa: D102

    def aggregate(self, tokens: DocumentTokens, attention: "torch.Tensor") -> "torch.Tensor":
        """From tokens, calibrated where that is asked for, to documents: fp32 [..., tokens] to [..., documents].

        Leading dimensions, such as the heads', do not see each other.
        """


class PlainSum:
    """The sum over a document's tokens, without any filter."""

    name = "none"
    per_head = True
    needs_calibration = False
    linear = True

    def aggregate(self, tokens: DocumentTokens, attention: "torch.Tensor") -> "torch.Tensor":
        """Sum over each document's tokens."""
        return tokens.sum(attention)


class TwoSigma:
    """The 2-sigma token filter: a document's tokens with c[j] < mean - 2 sd are dropped, and the rest is summed.

    The standard deviation has n - 1 in its denominator (ICR's code). A document of one token or of equal tokens has
    sd 0 and keeps all its tokens; the papers' code gives it 0.

    Args:
        name: what arguments, results and files call it.
        per_head: True filters every head's tokens (QRHead, arXiv 2506.09944); False the tokens' sums over the heads
            (ICR).
    """

    needs_calibration = True
    linear = False

    def __init__(self, name: str, *, per_head: bool) -> None:
        self.name = name
        self.per_head = per_head

    def aggregate(self, tokens: DocumentTokens, attention: "torch.Tensor") -> "torch.Tensor":
        """Sum over each document's tokens that the filter keeps."""
        mean = tokens.sum(attention) / tokens.counts.clamp(min=1)
        deviation = attention - mean[..., tokens.document]
        variance = tokens.sum(deviation**2) / (tokens.counts - 1).clamp(min=1)
        variance = variance[..., tokens.document]
        kept = (deviation >= -2 * variance.sqrt()) | (variance == 0)
        return tokens.sum(attention * kept)


FILTERED = TwoSigma("head", per_head=True)
"""The default with calibration."""

FILTERED_SUM = TwoSigma("sum", per_head=False)
"""ICR's own."""

PLAIN = PlainSum()
"""The default without calibration."""

AGGREGATIONS: dict[str, Aggregation] = {
    aggregation.name: aggregation for aggregation in (FILTERED, FILTERED_SUM, PLAIN)
}
"""The aggregations by name."""


def default_aggregation(*, calibrate: bool) -> Aggregation:
    """The aggregation where none is named."""
    return FILTERED if calibrate else PLAIN
