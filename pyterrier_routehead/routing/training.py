"""Trains a router's weights on pseudo labels, or on the ranking itself.

A loss on pseudo labels plus a regulariser towards few heads (RouteHead, arXiv 2604.24608). That the loss is binary
cross-entropy with upweighted positive labels, and that the regulariser is L1 on the probabilities, is inferred. Sizes,
optimiser and early stopping by nDCG@10 of the routed ranking on held-out queries are our choice. The loss on the
ranking, with which a router that weights the full pool by logits is trained, is an extension.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from scipy.special import logit
from torch import nn

from .router import Selection, weigh
from .search import PaddedLists, list_ndcg, standardised_lists
from .settings import RouterTraining


@dataclass(frozen=True)
class RoutingData:
    """Training queries or held-out queries.

    Attributes:
        states: query embeddings, float32 [queries, hidden].
        lists: their judged lists over the pool's heads.
        evidence: float64 [queries, heads, 4], or None.
        targets: labels, float64 [queries, heads]; None for held-out queries.
        first_stage: the first stage's part of each document's score, float64 [queries, documents], 0 in padding; None
            without one.
    """

    states: np.ndarray
    lists: PaddedLists
    evidence: np.ndarray | None = None
    targets: np.ndarray | None = None
    first_stage: np.ndarray | None = None

    @property
    def known_targets(self) -> np.ndarray:
        """The labels of training queries."""
        assert self.targets is not None, "these queries have no labels"
        return self.targets


class _Router(nn.Module):
    mean: torch.Tensor
    deviation: torch.Tensor
    evidence_mean: torch.Tensor
    evidence_deviation: torch.Tensor

    def __init__(self, data: RoutingData, selection: Selection, settings: RouterTraining) -> None:
        super().__init__()
        heads, hidden = data.known_targets.shape[1], data.states.shape[1]
        as_weights = selection.by_logits
        self.register_buffer("mean", torch.tensor(data.states.mean(axis=0)))
        self.register_buffer("deviation", torch.tensor(data.states.std(axis=0) + 1e-6))
        self.projection = nn.Parameter(torch.randn(hidden, settings.size) / hidden**0.5)
        self.head_embeddings = nn.Parameter(torch.randn(heads, settings.size) * (1e-3 if as_weights else 0.1))
        rate = np.clip(data.known_targets.mean(axis=0), 0.01, 0.99)
        start = np.full(heads, 1 / heads) if as_weights else logit(rate)
        self.bias = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        if settings.start == "ridge":
            self._start_from_ridge(data)
        self.dropout = nn.Dropout(settings.dropout)
        if data.evidence is not None:
            flat = data.evidence.reshape(-1, data.evidence.shape[-1])
            self.register_buffer("evidence_mean", torch.tensor(flat.mean(axis=0), dtype=torch.float32))
            self.register_buffer("evidence_deviation", torch.tensor(flat.std(axis=0) + 1e-6, dtype=torch.float32))
            self.evidence_weights = nn.Parameter(torch.zeros(flat.shape[1]))

    def _start_from_ridge(self, data: RoutingData) -> None:
        log_odds = logit(np.clip(data.known_targets, 0.02, 0.98))
        states = (data.states - self.mean.numpy()) / self.deviation.numpy()
        left, spread, right = np.linalg.svd(
            ridge_regression(states, log_odds - log_odds.mean(axis=0)), full_matrices=False
        )
        size = self.projection.shape[1]
        rank, root = min(size, len(spread)), np.sqrt(spread[:size])
        with torch.no_grad():
            self.bias.copy_(torch.tensor(log_odds.mean(axis=0)))
            self.projection[:, :rank] = torch.tensor(left[:, :rank] * root * size**0.5)
            self.head_embeddings[:, :rank] = torch.tensor(right[:rank].T * root)
            self.head_embeddings[:, rank:] = 0

    def forward(self, states: torch.Tensor, evidence: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and their part that depends on the query: both [queries, heads]."""
        query = self.dropout((states - self.mean) / self.deviation @ self.projection)
        by_query = query @ self.head_embeddings.T / query.shape[1] ** 0.5
        logits = by_query + self.bias
        if evidence is not None:
            logits = logits + (evidence - self.evidence_mean) / self.evidence_deviation @ self.evidence_weights
        return logits, by_query

    def weights(self, sharpness: float) -> dict[str, np.ndarray]:
        """The router's arrays, with logits divided by the sharpness of the softmax of the training."""
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in self.state_dict().items()}
        for name in {"head_embeddings", "bias", "evidence_weights"} & arrays.keys():
            arrays[name] /= sharpness
        return arrays


def ridge_regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients [columns of x, columns of y] that predict centred y from centred x, the penalty chosen by GCV.

    Generalised cross-validation (Golub, Heath and Wahba, 1979) over penalties from 1 to 10^6 per row.
    """
    left, spread, right = np.linalg.svd(x, full_matrices=False)
    projected = left.T @ y
    lowest = np.inf
    for penalty in np.geomspace(1, 1e6, 13) * len(x):
        kept = spread**2 / (spread**2 + penalty)
        error = ((y - left @ (kept[:, None] * projected)) ** 2).mean() / (1 - kept.sum() / len(x)) ** 2
        if error < lowest:
            lowest, best = error, penalty
    coefficients: np.ndarray = right.T @ ((spread / (spread**2 + best))[:, None] * projected)
    return coefficients


def train(
    data: RoutingData,
    held_out: RoutingData,
    selection: Selection,
    settings: RouterTraining,
    *,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Train on queries and keep the epoch with the best routed ranking of the held-out queries.

    Args:
        data: the training queries.
        held_out: the held-out queries, for early stopping.
        selection: how heads are selected.
        settings: see the class.
        seed: seed of the weights, the order of queries and dropout.
        progress: show a progress bar over the epochs.

    Returns:
        The weights, as :class:`~pyterrier_routehead.routing.router.HeadRouter` takes them, and a report: for each epoch
        the loss, its parts, the mean number of chosen heads, and nDCG@10 of the routed ranking on the held-out queries.
    """
    settings = settings.resolved(selection.by_logits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(data, held_out, selection, settings, progress)


def _train(
    data: RoutingData, held_out: RoutingData, selection: Selection, settings: RouterTraining, progress: bool
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    model = _Router(data, selection, settings)
    ranked = _RankedLists(data, selection)
    held_out = replace(held_out, lists=_summed_lists(held_out.lists, selection))
    # Where logits are weights, the sharpness of the softmax, which contains the first stage's score, is learned too.
    log_sharpness = nn.Parameter(torch.zeros(()), requires_grad=ranked.as_weights and data.first_stage is not None)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), log_sharpness], lr=settings.learning_rate, weight_decay=settings.weight_decay or 0.0
    )
    states, targets = torch.tensor(data.states), torch.tensor(data.known_targets, dtype=torch.float32)
    evidence = None if data.evidence is None else torch.tensor(data.evidence, dtype=torch.float32)
    positive = targets.mean().item()
    balance = torch.tensor(min((1 - positive) / max(positive, 1e-6), settings.balance))
    parts_of_loss = {"labels": settings.labels, "sparsity": settings.sparsity, "ranking": settings.ranking,
                     "ridge": settings.ridge, "query ridge": settings.query_ridge}
    factors = {name: factor for name, factor in parts_of_loss.items() if factor}
    best, rows = -1.0, []
    epochs = pt.tqdm(range(settings.epochs + 1), unit="epoch", desc="router", disable=not progress)
    for epoch in epochs:
        sums = dict.fromkeys(["loss", *factors], 0.0)
        if epoch:  # the first row is the untrained router
            model.train()
            for batch in torch.split(torch.randperm(len(states)), settings.batch_size):
                logits, by_query = model(states[batch], None if evidence is None else evidence[batch])
                parts = {
                    name: _part(name, logits, by_query, targets[batch], balance, settings)
                    if name != "ranking" else ranked.loss(batch, logits, log_sharpness)
                    for name in factors
                }
                loss = sum((factor * parts[name] for name, factor in factors.items()), start=torch.zeros(()))
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                for name, value in {**parts, "loss": loss}.items():
                    sums[name] += value.item() * len(batch) / len(states)
        chosen = _routed(model, held_out, selection, log_sharpness.exp().item())
        quality = float(_routed_ndcg(held_out, chosen, selection).mean())
        size = float((chosen != 0).sum(axis=1).mean())
        rows.append({"epoch": epoch, **sums, "chosen heads": size, "held-out nDCG@10": quality})
        epochs.set_postfix({"held-out nDCG@10": f"{quality:.4f}"}, refresh=False)
        if quality > best + 1e-9:
            best, best_weights, epochs_since_best = quality, model.weights(log_sharpness.exp().item()), 0
        else:
            epochs_since_best += 1
            if epochs_since_best > settings.patience:
                break
    return best_weights, pd.DataFrame(rows)


def _part(
    name: str, logits: torch.Tensor, by_query: torch.Tensor, targets: torch.Tensor, balance: torch.Tensor,
    settings: RouterTraining,
) -> torch.Tensor:
    """A part of the loss, except that on the ranking."""
    if name == "labels":
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=balance)
    if name == "sparsity":
        mean = logits.sigmoid().mean()
        return mean if settings.target_size is None else (mean - settings.target_size / logits.shape[1]) ** 2
    return ((logits if name == "ridge" else by_query) ** 2).sum(dim=1).mean()


def _routed(model: _Router, data: RoutingData, selection: Selection, sharpness: float) -> np.ndarray:
    model.eval()
    with torch.inference_mode():
        evidence = None if data.evidence is None else torch.tensor(data.evidence, dtype=torch.float32)
        logits = model(torch.tensor(data.states), evidence)[0].double().numpy() / sharpness
    return np.stack([weigh(query_logits, selection) for query_logits in logits])


def _routed_ndcg(data: RoutingData, weights: np.ndarray, selection: Selection) -> np.ndarray:
    """The nDCG@10 of each list when a re-ranker ranks it by these weights [lists, heads]."""
    sums = np.einsum("qdh,qh->qd", data.lists.scores, weights)
    if data.first_stage is not None:
        sums = (sums if selection.by_logits else standardised_lists(sums, data.lists.mask)) + data.first_stage
    return list_ndcg(data.lists, sums[..., None])[:, 0]


def _summed_lists(lists: PaddedLists, selection: Selection) -> PaddedLists:
    """The lists with their scores as a re-ranker sums them."""
    return lists.standardised() if selection.by_logits else lists


class _RankedLists:
    """The lists as tensors, and the loss on their ranking."""

    def __init__(self, data: RoutingData, selection: Selection) -> None:
        self.as_weights = selection.by_logits
        lists = _summed_lists(data.lists, selection)
        scores = lists.scores
        if not self.as_weights:  # one scale for all heads of a list: raw attention is too small for single precision
            total = np.abs(scores).sum(axis=2).max(axis=1)[:, None, None]
            scores = scores / np.where(total > 0, total, 1)
        gains = lists.gains / np.maximum(lists.gains.sum(axis=1, keepdims=True), 1e-12)
        first_stage = np.zeros_like(gains) if data.first_stage is None else data.first_stage
        self.scores, self.gains, self.first_stage = (
            torch.tensor(array, dtype=torch.float32) for array in (scores, gains, first_stage)
        )
        self.mask = torch.tensor(lists.mask)

    def loss(self, lists: torch.Tensor, head_logits: torch.Tensor, log_sharpness: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the gains with a softmax over the weighted sums, the first stage's part included."""
        mask = self.mask[lists]
        weights = head_logits if self.as_weights else head_logits.sigmoid()
        logits = torch.einsum("qdh,qh->qd", self.scores[lists], weights)
        if self.as_weights:
            logits = logits + log_sharpness.exp() * self.first_stage[lists]
        else:
            count = mask.sum(dim=1, keepdim=True)
            centred = (logits - logits.mul(mask).sum(dim=1, keepdim=True) / count) * mask
            # Clamped before the root, whose gradient at 0 is infinite: the scores of a list may all be equal.
            deviation = (centred**2).sum(dim=1, keepdim=True).div(count).clamp(min=1e-12).sqrt()
            logits = 2 * (centred / deviation + self.first_stage[lists])
        shares = torch.log_softmax(logits.masked_fill(~mask, -torch.inf), dim=1).masked_fill(~mask, 0)
        return -(self.gains[lists] * shares).sum(dim=1).mean()
