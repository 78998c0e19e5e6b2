"""Exact attention of few rows, or of a sequence in pieces: never a matrix of tokens x tokens."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class LogitRule:
    """How an attention layer of a model makes logits of queries and keys.

    Attributes:
        scaling: factor on the dot products.
        softcap: bound of the soft cap on the scaled dot products (Gemma2), or None.
        window: a key is visible at a distance below it (sliding window), or None for all keys.
    """

    scaling: float
    softcap: float | None
    window: int | None

    def logits(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scaled, soft-capped dot products in fp32; query [..., rows, dim], key [..., keys, dim]."""
        return self.capped(query.float() @ key.float().transpose(-1, -2) * self.scaling)

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Scaled dot products under the soft cap, if there is one."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


@dataclass(frozen=True)
class LayerAttention(LogitRule):
    """The rules of one attention layer of a model.

    Attributes:
        module: the model's attention module.
    """

    module: torch.nn.Module

    @property
    def rule(self) -> LogitRule:
        """How it makes logits, without the module."""
        return LogitRule(self.scaling, self.softcap, self.window)


def masked_attention(
    layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """Attention under an explicit mask, for few rows.

    Args:
        layer: the layer's own rules; its window must already be part of ``visible``.
        query: [batch, heads, rows, dim].
        key: [batch, key-value heads, keys, dim].
        value: [batch, key-value heads, keys, value dim].
        visible: bool [rows, keys]; every row sees at least one key.

    Returns:
        [batch, rows, heads, value dim].
    """
    if layer.softcap is None:
        return _sdpa(layer, query, key, value, visible[None, None])
    # torch's fast attention knows no soft cap: exact attention, one group of heads a key-value head.
    batch, heads, rows, dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, rows, dim)
    logits = layer.logits(grouped, key[:, :, None]).masked_fill_(~visible, -torch.inf)
    output = torch.softmax(logits, dim=-1) @ value[:, :, None].float()
    return output.reshape(batch, heads, rows, -1).transpose(1, 2).to(query.dtype)


def causal_attention(
    layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gap: int = 0
) -> torch.Tensor:
    """Causal attention of the last tokens of a sequence: row r of R sees keys up to K - R + r, window permitting.

    A window counts positions: with a gap, the rows stand that many positions farther from the keys before them.

    Shapes as in :func:`masked_attention`. Where torch's fast causal attention does not apply (sliding window shorter
    than the sequence, soft cap, keys before the first row), rows are taken some at a time.
    """
    rows, keys = query.shape[2], key.shape[2]
    if rows == 0:
        return query.new_empty((query.shape[0], 0, query.shape[1], value.shape[-1]))
    window = layer.window if layer.window is not None and layer.window < keys + gap else None
    if rows == keys and window is None and layer.softcap is None:
        return _sdpa(layer, query, key, value, None)
    past = keys - rows
    parts = []
    for start in range(0, rows, ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, rows)
        first = 0 if window is None or gap else max(0, past + start - window + 1)
        row = torch.arange(past + start, past + stop, device=query.device)[:, None]
        column = torch.arange(first, past + stop, device=query.device)
        visible = column <= row
        if window is not None:
            visible &= row - column + gap * (column < past) < window
        seen = slice(first, past + stop)
        parts.append(masked_attention(layer, query[:, :, start:stop], key[:, :, seen], value[:, :, seen], visible))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _sdpa(
    layer: LayerAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    output, _ = sdpa_attention_forward(
        layer.module, query, key, value, visible, scaling=layer.scaling, is_causal=visible is None
    )
    return output


def blocks_attention(
    layer: LayerAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: int,
    blocks: list[int],
    gap: int = 0,
) -> torch.Tensor:
    """Causal attention of a prefix, and of blocks that each see the prefix, a gap of positions before, and themselves.

    Shapes as in :func:`masked_attention`, with one batch and all tokens packed one after another. Blocks of like length
    are taken together.
    """
    head = causal_attention(layer, query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix])
    output = head.new_empty((1, query.shape[2], *head.shape[2:]))
    output[:, :prefix] = head
    for group in _groups(prefix, tuple(blocks), query.device):
        # [1, heads, tokens, dim] -> [blocks, heads, length, dim], with the prefix in front of the keys
        group_query, group_key, group_value = (
            states[0][:, group.tokens].transpose(0, 1) for states in (query, key, value)
        )
        seen_key, seen_value = (
            torch.cat([states[:, :, :prefix].expand(len(block), -1, -1, -1), block], dim=2)
            for states, block in ((key, group_key), (value, group_value))
        )
        attended = causal_attention(layer, group_query, seen_key, seen_value, gap)
        output[0, group.targets] = attended.flatten(0, 1)[group.real]
    return output


@dataclass(frozen=True)
class _Group:
    """Blocks of like length, laid out as a batch.

    Attributes:
        tokens: [blocks, length] number of each token in the packed sequence; padding stands behind a block's end.
        real: numbers, in the flattened layout, of the tokens that are no padding.
        targets: their numbers in the packed sequence.
    """

    tokens: torch.Tensor
    real: torch.Tensor
    targets: torch.Tensor


@lru_cache(maxsize=8)
def _groups(prefix: int, blocks: tuple[int, ...], device: torch.device, slack: float = 1.25) -> list[_Group]:
    """Groups the blocks so that padding stays small. The same for all layers, hence cached."""
    starts = [prefix + sum(blocks[:i]) for i in range(len(blocks))]
    members: list[list[int]] = []
    for i in sorted((i for i, length in enumerate(blocks) if length), key=lambda i: -blocks[i]):
        if members and blocks[i] * slack + 8 >= blocks[members[-1][0]]:
            members[-1].append(i)
        else:
            members.append([i])
    groups = []
    for group in members:
        start = torch.tensor([starts[i] for i in group])[:, None]
        length = torch.tensor([blocks[i] for i in group])[:, None]
        offset = torch.arange(blocks[group[0]])
        tokens = start + torch.where(offset < length, offset, 0)
        real = (offset < length).flatten().nonzero()[:, 0]
        groups.append(_Group(*(t.to(device) for t in (tokens, real, tokens.flatten()[real]))))
    return groups
