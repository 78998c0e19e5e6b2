"""Late reading: documents that no query has seen, queries that have seen no document, and the attention between them.

* :class:`KeyPass` encodes documents behind the prompt's prefix and keeps the keys of the wanted heads: nothing else of
  a document is ever needed;
* :class:`BlindTailPass` runs many tails, each of which sees the prefix and itself, and keeps the queries of the wanted
  heads' rows, with what prefix and tail weigh in their softmax;
* :func:`late_attention` puts the two together: one softmax over prefix, documents and tail, as if the tail had seen
  them.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..common.errors import UnsupportedArchitectureError
from ..heads import Head
from ..prompt.build import DocumentBlock
from .aggregate import DocumentTokens
from .attention import ForwardDone
from .exact import LayerAttention, LogitRule, blocks_attention
from .keys import DocumentKeys, KeyHead
from .passes import ListAttention, running_ends

_LOGITS_KEPT = 1 << 25
_LOGITS_AT_A_TIME, _LOGITS_AT_A_TIME_ON_CPU = 1 << 25, 1 << 18
_HEADS_AT_A_TIME = 32


def _by_layer(heads: Iterable[Head]) -> dict[int, list[Head]]:
    found: dict[int, list[Head]] = {}
    for head in sorted(set(heads)):
        found.setdefault(head.layer, []).append(head)
    return found


def _packed(prefix: list[int], parts: Sequence[list[int]], position: int) -> tuple[list[int], list[int]]:
    """Ids and positions of a prefix with parts behind it, each of which starts at the same position."""
    ids = [*prefix, *(i for part in parts for i in part)]
    return ids, [*range(len(prefix)), *(position + i for part in parts for i in range(len(part)))]


def _key_head(head: Head, query: torch.Tensor, key: torch.Tensor) -> KeyHead:
    """By whose keys a head attends: query [1, heads, tokens, dim], key [1, key-value heads, tokens, dim]."""
    return KeyHead(head.layer, head.head * key.shape[1] // query.shape[1])


class KeyPass:
    """Encodes documents, packed behind one prefix, up to the deepest head; they do not see each other.

    Args:
        prefix: ids before the documents.
        blocks: the documents.
        heads: the heads that will attend to them.

    Attributes:
        keys: by key-value head, [tokens of all blocks, dim] in the model's dtype.
        key_heads: by whose keys each of the heads attends.
    """

    hidden_layers: frozenset[int] = frozenset()

    def __init__(self, prefix: list[int], blocks: Sequence[DocumentBlock], heads: Iterable[Head]) -> None:
        documents = [block.ids for block in blocks]
        self.lengths = [len(ids) for ids in documents]
        self.ids, self.positions = _packed(prefix, documents, len(prefix))
        self.attended: set[int] = set()
        self.keys: dict[KeyHead, torch.Tensor] = {}
        self.key_heads: dict[Head, KeyHead] = {}
        self._prefix = len(prefix)
        self._heads = _by_layer(heads)
        self.deepest = max(self._heads)

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """Nothing of the documents' hidden states is read."""

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Keep the wanted keys; attend block by block unless this is the deepest layer."""
        if index in self.attended:
            raise UnsupportedArchitectureError("a layer of it calls attention more than once")
        self.attended.add(index)
        for head in self._heads.get(index, ()):
            key_head = self.key_heads[head] = _key_head(head, query, key)
            if key_head not in self.keys:
                self.keys[key_head] = key[0, key_head.head, self._prefix :].clone()  # not a view of all heads
        if index >= self.deepest:
            raise ForwardDone
        return blocks_attention(layer, query, key, value, self._prefix, self.lengths)


@dataclass
class TailStates:
    """What one tail brings to late attention.

    Attributes:
        ids: of its tokens, all of which are read.
        positions: of its rows.
        queries: by head, fp32 [rows, dim].
        log_mass: by head, fp32 [rows]: log-sum-exp of the logits on prefix and tail.
        rules: how each layer that is read makes logits.
        key_heads: by whose keys each head attends.
        hidden: mean hidden state of the rows after a layer, fp32 [hidden size] per layer.
    """

    ids: Sequence[int]
    positions: range
    queries: dict[Head, torch.Tensor] = field(default_factory=dict)
    log_mass: dict[Head, torch.Tensor] = field(default_factory=dict)
    rules: dict[int, LogitRule] = field(default_factory=dict)
    key_heads: dict[Head, KeyHead] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the queries."""
        return sum(states.numel() * states.element_size() for states in self.queries.values())


class BlindTailPass:
    """Runs tails, packed behind one prefix, that see the prefix and themselves alone.

    Args:
        prefix: ids before the documents.
        tails: ids of each tail.
        position: where each tail starts.
        heads: heads to read.
        hidden_layers: layers after which to read the mean hidden state of each tail's rows.

    Attributes:
        states: what was read of each tail.
    """

    def __init__(
        self,
        prefix: list[int],
        tails: Sequence[list[int]],
        position: int,
        heads: Iterable[Head],
        hidden_layers: Iterable[int] = (),
    ) -> None:
        self.lengths = [len(tail) for tail in tails]
        self.ids, self.positions = _packed(prefix, tails, position)
        self.hidden_layers: Collection[int] = frozenset(hidden_layers)
        self.attended: set[int] = set()
        self.states = [TailStates(tail, range(position, position + len(tail))) for tail in tails]
        self._prefix, self._gap = len(prefix), position - len(prefix)
        self._heads = _by_layer(heads)
        self.deepest = max([*self._heads, *self.hidden_layers])
        ends = [len(prefix) + end for end in running_ends(self.lengths)]
        self._rows = [slice(start, stop) for start, stop in zip([len(prefix), *ends], ends, strict=False)]

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Read the layer's chosen heads; then attend, unless nothing behind this attention is needed."""
        if index in self.attended:
            raise UnsupportedArchitectureError("a layer of it calls attention more than once")
        self.attended.add(index)
        if index in self._heads:
            self._read(self._heads[index], layer, query, key)
        if index >= self.deepest and index not in self.hidden_layers:
            raise ForwardDone
        return blocks_attention(layer, query, key, value, self._prefix, self.lengths, self._gap)

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """The mean over each tail's rows of a layer's output [1, tokens, hidden size]."""
        for states, rows in zip(self.states, self._rows, strict=True):
            states.hidden[index] = hidden[0, rows].float().mean(dim=0)
        if index >= self.deepest:
            raise ForwardDone

    def _read(self, heads: list[Head], layer: LayerAttention, query: torch.Tensor, key: torch.Tensor) -> None:
        chosen = [head.head for head in heads]
        key_heads = [_key_head(head, query, key) for head in heads]
        places = [key_head.head for key_head in key_heads]
        for states, rows in zip(self.states, self._rows, strict=True):
            queries = query[0, chosen, rows].float()
            seen = torch.cat([key[0, places, : self._prefix], key[0, places, rows]], dim=1)
            logits = layer.logits(queries, seen)
            visible = self._visible(rows.stop - rows.start, layer.window, logits.device)
            log_mass = torch.logsumexp(logits.masked_fill_(~visible, -torch.inf), dim=-1)
            states.queries.update(zip(heads, queries, strict=True))
            states.log_mass.update(zip(heads, log_mass, strict=True))
            states.rules[heads[0].layer] = layer.rule
            states.key_heads.update(zip(heads, key_heads, strict=True))

    def _visible(self, rows: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Which tokens of prefix and tail each row sees: bool [rows, prefix + rows]."""
        row = torch.arange(self._prefix, self._prefix + rows, device=device)[:, None]
        column = torch.arange(self._prefix + rows, device=device)
        visible = column <= row
        if window is not None:
            visible &= row - column + self._gap * (column < self._prefix) < window
        return visible


def late_attention(
    tail: TailStates,
    null: TailStates | None,
    documents: DocumentKeys,
    heads: Sequence[Head],
    device: torch.device | str,
) -> ListAttention:
    """The attention that a tail's rows would pay to documents, and the content-free tail's, per document and head.

    Args:
        tail: the query's states.
        null: those of the content-free query; None without calibration.
        documents: the keys.
        heads: heads to read, of those that the tails were run for.
        device: where to compute.
    """
    tails = [tail] if null is None else [tail, null]
    counted = documents.counted().to(device)
    read = ListAttention(DocumentTokens(documents.counts().tolist(), device))
    shared: dict[KeyHead, list[Head]] = {}
    for head in heads:
        shared.setdefault(tail.key_heads[head], []).append(head)
    done: list[tuple[list[Head], torch.Tensor]] = []
    for key_head, of_key_head in shared.items():
        attention = _token_attention(tails, of_key_head, key_head, documents, device)
        done.append((of_key_head, attention[..., counted]))
        if sum(len(these) for these, _ in done) >= _HEADS_AT_A_TIME:
            _add(read, done)
    _add(read, done)
    read.hidden = dict(tail.hidden)
    return read


def _add(read: ListAttention, done: list[tuple[list[Head], torch.Tensor]]) -> None:
    """Take in what is done, [heads, tails, counted tokens]: few large steps, in memory that does not grow."""
    if done:
        attention = torch.cat([part for _, part in done])
        read.add(
            [head for heads, _ in done for head in heads],
            attention[:, 0],
            attention[:, 1] if attention.shape[1] > 1 else None,
        )
        done.clear()


def _token_attention(
    tails: Sequence[TailStates],
    heads: Sequence[Head],
    key_head: KeyHead,
    documents: DocumentKeys,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean attention of each tail's rows to each token of the documents, fp32 [heads, tails, tokens].

    The heads attend by the same keys. Logits are made piece by piece; where all of them would take too much memory,
    they are made twice, first for the softmax's denominator.
    """
    rule = tails[0].rules[key_head.layer]
    # The instruction stands before the query, so its rows are the same in both tails: they are made once.
    common = 0 if len(tails) == 1 else _common(tails[0].ids, tails[1].ids)
    new = [slice(0, None), slice(common, None)][: len(tails)]
    read = list(zip(tails, new, strict=True))
    rows = torch.cat([tail.queries[head][at].to(device) for head in heads for tail, at in read])
    log_mass = torch.cat([tail.log_mass[head][at].to(device) for head in heads for tail, at in read])
    positions = [position for tail, at in read for position in tail.positions[at]]
    of_tail = _row_weights([len(tail.ids) for tail in tails], common, device)
    rows = rows * rule.scaling
    at_a_time = _LOGITS_AT_A_TIME_ON_CPU if torch.device(device).type == "cpu" else _LOGITS_AT_A_TIME
    tokens = max(256, at_a_time // len(rows))
    kept = len(rows) * int(documents.lengths.sum()) <= _LOGITS_KEPT
    hidden = _hidden_tokens(rule, positions, documents)

    def weighed() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Exponentials [rows, tokens] of the logits less their maximum [rows], piece by piece."""
        start = 0
        for key in documents.pieces(key_head, tokens):
            if not len(key):
                continue
            logits = rule.capped(rows @ key.to(device).float().T)
            if hidden is not None:
                mask = hidden[:, start : start + len(key)].to(device).repeat(len(heads), 1)
                logits.masked_fill_(mask, -torch.inf)
                start += len(key)
            highest = logits.amax(dim=1).clamp_(min=torch.finfo(torch.float32).min)
            yield logits.sub_(highest[:, None]).exp_(), highest

    pieces, total = [], log_mass
    for weights, highest in weighed():
        total = torch.logaddexp(total, highest + weights.sum(dim=1).log())
        if kept:
            pieces.append((weights, highest))
    means = [log_mass.new_zeros(len(heads), len(tails), 0)]
    for weights, highest in pieces if kept else weighed():
        # mean over a tail's rows of exp(logit - total), for each head a product of [tails, rows] with [rows, tokens]
        share = (highest - total).exp().reshape(len(heads), 1, -1) * of_tail
        means.append(share @ weights.reshape(len(heads), -1, weights.shape[1]))
    return torch.cat(means, dim=-1)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two tails begin with alike."""
    count = 0
    for left_id, right_id in zip(left, right, strict=False):
        if left_id != right_id:
            break
        count += 1
    return count


def _row_weights(lengths: Sequence[int], common: int, device: torch.device | str) -> torch.Tensor:
    """What each row counts in each tail's mean, [tails, rows]: rows of the first tail, then what the second has new."""
    if len(lengths) == 1:
        return torch.full((1, lengths[0]), 1 / lengths[0], device=device)
    first, second = lengths
    weights = torch.zeros(2, first + second - common, device=device)
    weights[0, :first] = 1 / first
    weights[1, :common] = 1 / second
    weights[1, first:] = 1 / second
    return weights


def _hidden_tokens(rule: LogitRule, rows: list[int], documents: DocumentKeys) -> torch.Tensor | None:
    """Which tokens a sliding window hides from each row: bool [rows, tokens]; None where it hides none."""
    if rule.window is None or max(rows) - documents.prefix < rule.window:
        return None
    return torch.tensor(rows)[:, None] - documents.positions() >= rule.window
