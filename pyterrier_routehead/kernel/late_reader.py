"""Late reading of some lists: whatever was run for one list is not run again for another."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from ..heads import Head
from ..prompt.build import DocumentBlock, ListPrompt
from .key_cache import Encodes, KeyCache
from .keys import DocumentKeys
from .late import BlindTailPass, TailStates, late_attention
from .passes import list_scores
from .patterns import Late
from .scores import ListScores

_Tail = tuple[tuple[int, ...], tuple[int, ...], int]
"""Which tail: ids of the prefix and of the tail, and where it starts."""

QUERIES_AT_ONCE = 32
"""Queries that are best run in one pass: some 40 tokens each."""

_REMEMBERED = 2 * QUERIES_AT_ONCE


class LateReader:
    """Reads lists late, for the time of one call.

    A query's pass and the content-free one hold no document: the first runs once a query, many queries in one forward,
    the second once a prompt. A document that stands in several lists is encoded once.

    Args:
        llm: the frozen model.
        heads: all heads that may be asked for.
        calibrate: whether to run the content-free query.
        hidden_layers: layers after which to keep the mean hidden state of the query's rows.
    """

    def __init__(
        self, llm: Encodes, heads: Sequence[Head], *, calibrate: bool = True, hidden_layers: Iterable[int] = ()
    ) -> None:
        self._llm = llm
        self._heads = tuple(heads)
        self._calibrate = calibrate
        self._hidden_layers = tuple(hidden_layers)
        self._keys = KeyCache(llm, heads)
        self._queries: OrderedDict[_Tail, TailStates] = OrderedDict()
        self._nulls: dict[_Tail, TailStates] = {}

    def run(self, prompts: Sequence[ListPrompt]) -> list[TailStates]:
        """The states of some queries; those that are not remembered run in one pass."""
        names = [_tail(prompt, prompt.query) for prompt in prompts]
        missing: dict[tuple[tuple[int, ...], int], dict[_Tail, list[int]]] = {}
        for prompt, name in zip(prompts, names, strict=True):
            if name not in self._queries:
                missing.setdefault((name[0], name[2]), {})[name] = prompt.query
            null = _tail(prompt, prompt.null)
            if self._calibrate and null not in self._nulls:
                missing.setdefault((null[0], null[2]), {})[null] = prompt.null
        nulls = {_tail(prompt, prompt.null) for prompt in prompts}
        found = {name: self._queries[name] for name in names if name in self._queries}
        for (prefix, position), tails in missing.items():
            this_pass = BlindTailPass(list(prefix), list(tails.values()), position, self._heads, self._hidden_layers)
            self._llm.forward(this_pass)
            read = dict(zip(tails, this_pass.states, strict=True))
            found.update(read)
            self._nulls.update((name, states) for name, states in read.items() if name in nulls)
            self._queries.update(read)
        while len(self._queries) > max(_REMEMBERED, len(names)):
            self._queries.popitem(last=False)
        return [found[name] for name in names]

    def score(
        self,
        prompts: Sequence[ListPrompt],
        heads: Sequence[Head],
        documents: Iterable[DocumentKeys] | None = None,
    ) -> list[ListScores]:
        """Head scores of some lists.

        Args:
            prompts: the lists.
            heads: heads to read, of those that the reader was made for.
            documents: keys of each list's documents; None to encode those of the prompts.
        """
        tails = self.run(prompts)
        documents = map(self.encoded, prompts) if documents is None else documents
        scores = []
        for prompt, tail, keys in zip(prompts, tails, documents, strict=True):
            null = self._nulls[_tail(prompt, prompt.null)] if self._calibrate else None
            read = late_attention(tail, null, keys, heads, self._llm.input_device)
            scores.append(list_scores(read, keys.order, heads, calibrate=self._calibrate))
        return scores

    def hidden_states(self, prompts: Sequence[ListPrompt], layer: int) -> np.ndarray:
        """The mean hidden state of each query's rows after a layer, float32 [queries, hidden size].

        From the pass that reads the heads where that gives it, else from another one.
        """
        if layer not in self._hidden_layers:
            return LateReader(self._llm, (), calibrate=False, hidden_layers=[layer]).hidden_states(prompts, layer)
        found = []
        for start in range(0, len(prompts), QUERIES_AT_ONCE):
            states = self.run(prompts[start : start + QUERIES_AT_ONCE])
            found += [tail.hidden[layer].cpu().numpy() for tail in states]
        return np.stack(found)

    def encoded(self, prompt: ListPrompt) -> DocumentKeys:
        """The keys of a prompt's documents, encoded now unless they are remembered."""
        return self.encode(prompt.prefix, prompt.blocks, prompt.order)

    def encode(self, prefix: list[int], blocks: Sequence[DocumentBlock], order: Sequence[int]) -> DocumentKeys:
        """The keys of some documents; the order says for each the number of its candidate."""
        return self._keys.of(prefix, blocks, order)


def _tail(prompt: ListPrompt, ids: list[int]) -> _Tail:
    return tuple(prompt.prefix), tuple(ids), Late().tail_position(prompt)
