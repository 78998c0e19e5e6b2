"""From attention on tokens to scores of documents: calibration and the 2-sigma token filter.

With a[j] the attention that the query rows pay to document token j (mean over rows) and n[j] the same for the
content-free query, the calibrated score of a token is c[j] = a[j] - n[j]. In each document the tokens with
c[j] < mean - 2 sd (sd with n - 1 in the denominator) are dropped, and the rest is summed (ICR, arXiv 2410.02642, and
its code). A document of one token or of equal tokens has sd 0 and keeps all its tokens; the papers' code gives it 0.
"""

import torch


class DocumentTokens:
    """Which token belongs to which document of a list.

    Args:
        counts: how many tokens count in each document.
        device: where the attention is.
    """

    def __init__(self, counts: list[int], device: torch.device) -> None:
        self.num_documents = len(counts)
        self._document = torch.repeat_interleave(torch.tensor(counts, device="cpu")).to(device)
        self._counts = torch.tensor(counts, dtype=torch.float32, device=device)

    def sum(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sum over each document's tokens: fp32 [..., tokens] to [..., documents]; 0 for a document without any."""
        sums = tokens.new_zeros((*tokens.shape[:-1], self.num_documents))
        return sums.index_add_(-1, self._document, tokens)

    def filtered_sum(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sum over each document's tokens that the 2-sigma filter keeps: fp32 [..., tokens] to [..., documents]."""
        mean = self.sum(tokens) / self._counts.clamp(min=1)
        deviation = tokens - mean[..., self._document]
        variance = self.sum(deviation**2) / (self._counts - 1).clamp(min=1)
        variance = variance[..., self._document]
        kept = (deviation >= -2 * variance.sqrt()) | (variance == 0)
        return self.sum(tokens * kept)
