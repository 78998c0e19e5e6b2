"""The passes that read lists whose tails see the documents (list-wise, block-wise), and a query by itself.

* :class:`DocumentPass` encodes the documents of one or more lists, packed into one sequence, and keeps their keys and
  values;
* :class:`TailPass` runs the ends of the prompts against those, two tails per list that are blind to each other, and
  reads the attention of their rows for the chosen heads alone;
* :class:`QueryPass` runs a query by itself, for its hidden states.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..common.errors import UnsupportedArchitectureError
from ..common.locks import cached_property
from ..heads import Head
from ..prompt.build import DocumentBlock, ListPrompt
from .aggregate import AGGREGATIONS, FILTERED, PLAIN, Aggregation, DocumentTokens
from .attention import ForwardDone
from .exact import LayerAttention, causal_attention, masked_attention
from .patterns import ReadingPattern
from .scores import ListScores

# A GPU is fastest with few large products, a CPU with products that stay in its cache.
LOGITS_AT_A_TIME, LOGITS_AT_A_TIME_ON_CPU = 1 << 25, 1 << 20


@dataclass
class EncodedDocuments:
    """Keys and values of the documents of some lists, by layer: [1, key-value heads, tokens of all lists, dim]."""

    prompts: list[ListPrompt]
    pattern: ReadingPattern
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def spans(self) -> list[slice]:
        """Where each list lies in the packed sequence."""
        ends = running_ends(len(p.prefix) + sum(p.block_lengths) for p in self.prompts)
        return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]

    def positions(self, prompt: ListPrompt) -> list[int]:
        """Position of every token of a list's documents."""
        return self.pattern.positions(len(prompt.prefix), prompt.block_lengths)

    def tail_position(self, prompt: ListPrompt) -> int:
        """Position of the first token of a list's tails."""
        return self.pattern.tail_position(prompt)


class DocumentPass:
    """Encodes the documents of some lists, up to the deepest layer that is needed.

    Args:
        documents: receives the keys and values.
        deepest: number of the last layer to run. It ends where its attention would begin: with its keys and values.
    """

    hidden_layers: frozenset[int] = frozenset()

    def __init__(self, documents: EncodedDocuments, deepest: int) -> None:
        self.documents = documents
        self.deepest = deepest
        self.ids = [i for p in documents.prompts for i in (*p.prefix, *(t for b in p.blocks for t in b.ids))]
        self.positions = [i for p in documents.prompts for i in documents.positions(p)]

    @property
    def attended(self) -> set[int]:
        """The layers whose attention has come here."""
        return set(self.documents.keys)

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """Nothing of the documents' hidden states is read."""

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Keep the layer's keys and values; attend within each list unless this is the deepest layer."""
        if index in self.documents.keys:
            raise UnsupportedArchitectureError("a layer of it calls attention more than once")
        self.documents.keys[index], self.documents.values[index] = key, value
        if index >= self.deepest:
            raise ForwardDone
        pattern = self.documents.pattern
        outputs = [
            pattern.attend(
                layer,
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                len(prompt.prefix),
                prompt.block_lengths,
            )
            for prompt, span in zip(self.documents.prompts, self.documents.spans, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@dataclass
class ListAttention:
    """The attention that has been read of one list so far, documents in prompt order; one entry per chosen head.

    Attributes:
        raw: attention of the query rows to each document, fp32 [documents] per head.
        null: the same of the content-free query's rows.
        aggregated: scores by the aggregations per head that are not linear, by name: fp32 [documents] per head;
            calibrated if there is a content-free query.
        token_sum: attention summed over the chosen heads, calibrated alike, fp32 [document tokens].
        hidden: mean hidden state of the query rows after a layer, fp32 [hidden size] per layer.
    """

    tokens: DocumentTokens
    raw: dict[Head, torch.Tensor] = field(default_factory=dict)
    null: dict[Head, torch.Tensor] = field(default_factory=dict)
    aggregated: dict[str, dict[Head, torch.Tensor]] = field(default_factory=dict)
    token_sum: torch.Tensor | float = 0.0
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, heads: list[Head], attention: torch.Tensor, null: torch.Tensor | None) -> None:
        """Take in the attention [heads, document tokens] of some heads, and that of the content-free query."""
        self.raw.update(zip(heads, PLAIN.aggregate(self.tokens, attention), strict=True))
        if null is not None:
            self.null.update(zip(heads, PLAIN.aggregate(self.tokens, null), strict=True))
            attention = attention - null
        for aggregation in nonlinear_aggregations(calibrate=null is not None):
            if aggregation.per_head:
                scores = zip(heads, aggregation.aggregate(self.tokens, attention), strict=True)
                self.aggregated.setdefault(aggregation.name, {}).update(scores)
        self.token_sum = self.token_sum + attention.sum(dim=0)


def nonlinear_aggregations(*, calibrate: bool) -> list[Aggregation]:
    """The aggregations that need the attention on single tokens, as far as they can do without calibration."""
    return [
        aggregation
        for aggregation in AGGREGATIONS.values()
        if not aggregation.linear and (calibrate or not aggregation.needs_calibration)
    ]


def list_scores(
    read: ListAttention, order: Sequence[int] | np.ndarray, heads: Sequence[Head], *, calibrate: bool
) -> ListScores:
    """What was read of a list, as numbers, in the candidates' order.

    Args:
        read: attention that was read of the list, documents in prompt order.
        order: for each document the number of its candidate.
        heads: the heads, in the order of the columns.
        calibrate: whether the content-free query was run.
    """
    place = np.argsort(order)  # from prompt order back to the candidates' order

    def matrix(columns: dict[Head, torch.Tensor]) -> np.ndarray:
        return torch.stack([columns[head] for head in heads], dim=1).cpu().numpy()[place]

    hidden = {layer: state.cpu().numpy() for layer, state in read.hidden.items()}
    aggregated = {name: matrix(by_head) for name, by_head in read.aggregated.items()}
    for aggregation in nonlinear_aggregations(calibrate=calibrate):
        if not aggregation.per_head:
            token_sum = torch.as_tensor(read.token_sum, device=read.tokens.document.device)
            summed = aggregation.aggregate(read.tokens, token_sum)
            aggregated[aggregation.name] = summed.cpu().numpy()[place]
    filtered = aggregated.pop(FILTERED.name, None)
    return ListScores(matrix(read.raw), matrix(read.null) if calibrate else None, filtered, aggregated or None, hidden)


class TailPass:
    """Runs the tails of some lists against their encoded documents and reads the chosen heads.

    The query's tail and, when calibrating, the content-free query's tail of every list are packed into one sequence.
    Both start at the same position; a tail sees the documents of its list and itself, never the other tail.

    Args:
        documents: keys and values of the documents.
        heads: heads to read.
        calibrate: whether to run the content-free query as well.
        hidden_layers: layers after which to read the mean hidden state of the query rows.
        device: where the model's inputs are.
    """

    def __init__(
        self,
        documents: EncodedDocuments,
        heads: Iterable[Head],
        *,
        calibrate: bool,
        hidden_layers: Iterable[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.documents = documents
        self.heads: dict[int, list[Head]] = {}
        for head in heads:
            self.heads.setdefault(head.layer, []).append(head)
        self.hidden_layers = frozenset(hidden_layers)
        self.deepest = max([*self.heads, *self.hidden_layers])
        self.attended: set[int] = set()
        self.tails = [[p.query, p.null] if calibrate else [p.query] for p in documents.prompts]
        self.ids = [i for tails in self.tails for tail in tails for i in tail]
        starts = [documents.tail_position(p) for p in documents.prompts]
        self.positions = [
            start + i
            for start, tails in zip(starts, self.tails, strict=True)
            for tail in tails
            for i in range(len(tail))
        ]
        ends = running_ends(sum(map(len, tails)) for tails in self.tails)
        self._rows = [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
        self._columns = [document_columns(len(p.prefix), p.blocks, device) for p in documents.prompts]
        self._masks: dict[tuple[int, int | None, torch.device], torch.Tensor] = {}
        self.lists = [
            ListAttention(DocumentTokens([b.stop - b.start for b in p.blocks], device)) for p in documents.prompts
        ]

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Read the layer's chosen heads; then attend, unless nothing behind this attention is needed."""
        self.attended.add(index)
        if index not in self.documents.keys:
            raise UnsupportedArchitectureError(f"its layer {index} had no attention when the documents were read")
        outputs = []
        for i, (rows, span) in enumerate(zip(self._rows, self.documents.spans, strict=True)):
            list_query = query[:, :, rows]
            seen_key = torch.cat([self.documents.keys[index][:, :, span], key[:, :, rows]], dim=2)
            visible = self._visible(i, layer.window, query.device)
            if index in self.heads:
                self._read(i, index, layer, list_query[0], seen_key[0], visible)
            if index < self.deepest or index in self.hidden_layers:
                seen_value = torch.cat([self.documents.values[index][:, :, span], value[:, :, rows]], dim=2)
                outputs.append(masked_attention(layer, list_query, seen_key, seen_value, visible))
        if not outputs:
            raise ForwardDone
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """Read a layer's output [1, tokens, hidden size]: the mean over each list's query rows."""
        for attention, rows, tails in zip(self.lists, self._rows, self.tails, strict=True):
            query_rows = hidden[0, rows.start : rows.start + len(tails[0])]
            attention.hidden[index] = query_rows.float().mean(dim=0)
        if index >= self.deepest:
            raise ForwardDone

    def _read(
        self, i: int, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor
    ) -> None:
        """Attention of list i's rows: query [heads, rows, dim], key [key-value heads, keys, dim]."""
        lengths, columns = [len(tail) for tail in self.tails[i]], self._columns[i].to(key.device)
        for groups in self._head_groups(index, query, key):
            chosen = [head for heads in groups.values() for head in heads]
            # Heads that share keys stand below each other: [groups, heads of a group * rows, dim]
            rows = torch.stack([query[head.head] for head in chosen]).reshape(len(groups), -1, query.shape[2])
            keys = key if len(groups) == len(key) else torch.stack([key[group] for group in groups])
            logits = layer.logits(rows, keys).reshape(len(chosen), query.shape[1], key.shape[1])
            attention = torch.softmax(logits.masked_fill_(~visible, -torch.inf), dim=-1)
            # Rows of the query, then rows of the content-free query: [heads, rows, keys] -> [heads, columns]
            means = [part.mean(dim=1).index_select(-1, columns) for part in torch.split(attention, lengths, dim=1)]
            means = [mean.to(self._columns[i].device) for mean in means]
            self.lists[i].add(chosen, means[0], means[1] if len(means) > 1 else None)

    def _head_groups(self, index: int, query: torch.Tensor, key: torch.Tensor) -> list[dict[int, list[Head]]]:
        """A layer's chosen heads by the key-value head that they share, in batches that are read at once.

        Groups of a batch have equally many heads, and its fp32 logits are limited where one group keeps the limit.
        """
        most = LOGITS_AT_A_TIME_ON_CPU if key.device.type == "cpu" else LOGITS_AT_A_TIME
        by_group: dict[int, list[Head]] = {}
        for head in sorted(self.heads[index]):
            by_group.setdefault(head.head * key.shape[0] // query.shape[0], []).append(head)
        batches = []
        for size in sorted({len(heads) for heads in by_group.values()}):
            alike = [group for group, heads in by_group.items() if len(heads) == size]
            at_once = max(1, most // (size * query.shape[1] * key.shape[1]))
            for start in range(0, len(alike), at_once):
                batches.append({group: by_group[group] for group in alike[start : start + at_once]})
        return batches

    def _visible(self, i: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Which keys (documents, then tails) each tail row of list i sees: bool [rows, keys]."""
        if (i, window, device) not in self._masks:
            prompt, lengths = self.documents.prompts[i], [len(tail) for tail in self.tails[i]]
            documents = torch.tensor(self.documents.positions(prompt))
            tails = torch.tensor(self.positions[self._rows[i]])
            tail = torch.repeat_interleave(torch.tensor(lengths))
            own_tail = (tail[:, None] == tail) & (tails[:, None] >= tails)
            visible = torch.cat([torch.ones(len(tails), len(documents), dtype=torch.bool), own_tail], dim=1)
            if window is not None:
                visible &= tails[:, None] - torch.cat([documents, tails]) < window
            self._masks[i, window, device] = visible.to(device)
        return self._masks[i, window, device]


class QueryPass:
    """Runs one short text by itself and reads hidden states of some of its tokens.

    Args:
        ids: the text's ids.
        rows: the tokens to read.
        hidden_layers: layers after which to read.

    Attributes:
        hidden: fp32 [rows, hidden size] by layer.
    """

    def __init__(self, ids: list[int], rows: slice, hidden_layers: Iterable[int]) -> None:
        self.ids, self.positions = ids, list(range(len(ids)))
        self.rows = rows
        self.hidden_layers = frozenset(hidden_layers)
        self.deepest = max(self.hidden_layers)
        self.attended: set[int] = set()
        self.hidden: dict[int, torch.Tensor] = {}

    def attend(
        self, index: int, layer: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Plain causal attention."""
        self.attended.add(index)
        return causal_attention(layer, query, key, value)

    def read_hidden(self, index: int, hidden: torch.Tensor) -> None:
        """Read a layer's output [1, tokens, hidden size]."""
        self.hidden[index] = hidden[0, self.rows].float()
        if index >= self.deepest:
            raise ForwardDone


def running_ends(lengths: Iterable[int]) -> list[int]:
    """Where parts of these lengths end, one behind another."""
    ends: list[int] = []
    for length in lengths:
        ends.append((ends[-1] if ends else 0) + length)
    return ends


def document_columns(prefix: int, blocks: Iterable[DocumentBlock], device: torch.device | str) -> torch.Tensor:
    """Indices, among packed tokens of a prefix and blocks, of those that count for a document."""
    columns: list[int] = []
    start = prefix
    for block in blocks:
        columns += range(start + block.start, start + block.stop)
        start += len(block.ids)
    return torch.tensor(columns, dtype=torch.long, device=device)
