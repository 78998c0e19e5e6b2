"""Trains a router's weights on pseudo labels.

Binary cross-entropy on the labels plus a regulariser that keeps few heads (RouteHead, arXiv 2604.24608); sizes,
optimiser and the choice of the epoch, by nDCG@10 of the routed ranking on held-out queries, are ours.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from .router import Selection, choose
from .search import JudgedLists, weighted_ndcg


@dataclass(frozen=True)
class TrainingSettings:
    """How a router is trained.

    Args:
        size: numbers in a head's embedding.
        dropout: on the projected query.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: queries in a step.
        epochs: at most so many.
        patience: epochs without a better held-out nDCG@10 after which training ends.
        sparsity: weight of the regulariser.
        target_size: None for the mean probability (L1); or the regulariser is the squared difference between the mean
            number of chosen heads and this number, as a share of the pool.
        balance: weight of positive labels at most; they weigh as much as the negatives up to this.
        ranking: weight of a listwise loss on the routed ranking itself beside the labels (an extension of ours).
        seed: of the weights, the order of queries and dropout.
    """

    size: int = 32
    dropout: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    epochs: int = 60
    patience: int = 12
    sparsity: float = 1e-2
    target_size: float | None = None
    balance: float = 10.0
    ranking: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class RoutingData:
    """Queries to learn from or to hold out.

    Attributes:
        states: query embeddings, float32 [queries, hidden].
        lists: their judged lists over the pool's heads.
        evidence: float64 [queries, heads, 4], or None.
        targets: labels, float64 [queries, heads]; None for held-out queries.
    """

    states: np.ndarray
    lists: JudgedLists
    evidence: np.ndarray | None = None
    targets: np.ndarray | None = None

    def part(self, queries: np.ndarray) -> "RoutingData":
        """Some of the queries."""
        evidence, targets = (None if own is None else own[queries] for own in (self.evidence, self.targets))
        return RoutingData(self.states[queries], self.lists[queries], evidence, targets)


class _Router(nn.Module):
    def __init__(self, data: RoutingData, settings: TrainingSettings) -> None:
        super().__init__()
        heads, hidden = data.targets.shape[1], data.states.shape[1]
        self.register_buffer("mean", torch.tensor(data.states.mean(axis=0)))
        self.register_buffer("deviation", torch.tensor(data.states.std(axis=0) + 1e-6))
        self.projection = nn.Parameter(torch.randn(hidden, settings.size) / hidden**0.5)
        self.head_embeddings = nn.Parameter(torch.randn(heads, settings.size) * 0.1)
        rate = np.clip(data.targets.mean(axis=0), 0.01, 0.99)
        self.bias = nn.Parameter(torch.tensor(np.log(rate / (1 - rate)), dtype=torch.float32))
        self.dropout = nn.Dropout(settings.dropout)
        if data.evidence is not None:
            flat = data.evidence.reshape(-1, data.evidence.shape[-1])
            self.register_buffer("evidence_mean", torch.tensor(flat.mean(axis=0), dtype=torch.float32))
            self.register_buffer("evidence_deviation", torch.tensor(flat.std(axis=0) + 1e-6, dtype=torch.float32))
            self.evidence_weights = nn.Parameter(torch.zeros(flat.shape[1]))

    def forward(self, states: torch.Tensor, evidence: torch.Tensor | None) -> torch.Tensor:
        query = self.dropout((states - self.mean) / self.deviation @ self.projection)
        logits = query @ self.head_embeddings.T / query.shape[1] ** 0.5 + self.bias
        if evidence is not None:
            logits = logits + (evidence - self.evidence_mean) / self.evidence_deviation @ self.evidence_weights
        return logits

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.state_dict().items()}


def train(
    data: RoutingData, held_out: RoutingData, selection: Selection, settings: TrainingSettings
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Train on some queries and keep the epoch that routes held-out queries best.

    Returns:
        The weights, as :class:`~pyterrier_routehead.router.HeadRouter` takes them, and a report: for each epoch the
        loss, its parts, the mean number of chosen heads, and nDCG@10 of the routed ranking on the held-out queries.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return _train(data, held_out, selection, settings)


def _train(
    data: RoutingData, held_out: RoutingData, selection: Selection, settings: TrainingSettings
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    model = _Router(data, settings)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    states, targets = torch.tensor(data.states), torch.tensor(data.targets, dtype=torch.float32)
    evidence = None if data.evidence is None else torch.tensor(data.evidence, dtype=torch.float32)
    positive = targets.mean().item()
    balance = torch.tensor(min((1 - positive) / max(positive, 1e-6), settings.balance))
    standard, gains = _standard_scores(data.lists)
    best, kept, rows = -1.0, model.weights(), []
    for epoch in range(settings.epochs + 1):
        sums = {"loss": 0.0, "labels": 0.0, "sparsity": 0.0, "ranking": 0.0}
        if epoch:  # the first row is the untrained router, which follows the labels' frequencies
            model.train()
            for batch in torch.randperm(len(states)).split(settings.batch_size):
                logits = model(states[batch], None if evidence is None else evidence[batch])
                parts = {"labels": nn.functional.binary_cross_entropy_with_logits(
                    logits, targets[batch], pos_weight=balance)}
                probabilities = logits.sigmoid()
                if settings.target_size is None:
                    parts["sparsity"] = probabilities.mean()
                else:
                    share = settings.target_size / targets.shape[1]
                    parts["sparsity"] = (probabilities.mean() - share) ** 2
                parts["ranking"] = _ranking_loss(standard[batch], gains[batch], probabilities)
                loss = parts["labels"] + settings.sparsity * parts["sparsity"] + settings.ranking * parts["ranking"]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                for name, value in {**parts, "loss": loss}.items():
                    sums[name] += value.item() * len(batch) / len(states)
        chosen = _routed(model, held_out, selection)
        quality = float(weighted_ndcg(held_out.lists, chosen).mean())
        size = float((chosen > 0).sum(axis=1).mean())
        rows.append({"epoch": epoch, **sums, "chosen heads": size, "held-out nDCG@10": quality})
        if quality > best + 1e-9:
            best, kept, since = quality, model.weights(), 0
        else:
            since += 1
            if since > settings.patience:
                break
    return kept, pd.DataFrame(rows)


def _routed(model: _Router, data: RoutingData, selection: Selection) -> np.ndarray:
    model.eval()
    with torch.inference_mode():
        evidence = None if data.evidence is None else torch.tensor(data.evidence, dtype=torch.float32)
        probabilities = model(torch.tensor(data.states), evidence).sigmoid().double().numpy()
    return np.stack([choose(own, selection) for own in probabilities])


def _standard_scores(lists: JudgedLists) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores on one scale for the ranking loss, and gains that sum to 1: heads differ by orders of magnitude."""
    there = lists.there[..., None]
    count = there.sum(axis=1, keepdims=True)
    centred = np.where(there, lists.scores - (lists.scores * there).sum(axis=1, keepdims=True) / count, 0)
    total = np.sqrt((centred.sum(axis=2, keepdims=True) ** 2).sum(axis=1, keepdims=True) / count)
    standard = np.where(there, centred / np.where(total > 0, total, 1), -np.inf)
    gains = lists.gains / np.maximum(lists.gains.sum(axis=1, keepdims=True), 1e-12)
    return torch.tensor(standard, dtype=torch.float32), torch.tensor(gains, dtype=torch.float32)


def _ranking_loss(standard: torch.Tensor, gains: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a softmax over the probability-weighted sums with the gains."""
    padding = torch.isinf(standard[..., 0])
    sums = torch.einsum("qdh,qh->qd", standard.masked_fill(padding[..., None], 0), probabilities)
    deviation = (sums**2).sum(dim=1, keepdim=True).div((~padding).sum(dim=1, keepdim=True)).sqrt().clamp(min=1e-6)
    logits = (2 * sums / deviation).masked_fill(padding, -torch.inf)
    return -(gains * torch.log_softmax(logits, dim=1).masked_fill(padding, 0)).sum(dim=1).mean()
