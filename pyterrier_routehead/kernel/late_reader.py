"""Late reading of some lists: whatever was run for one list is not run again for another."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from ..common.notices import warn
from ..heads import Head
from ..prompt.build import DocumentBlock, ListPrompt
from .key_cache import Encodes, KeyCache
from .keys import DocumentKeys
from .late import BlindTailPass, TailStates, late_attention
from .parts import QUERIES_AT_ONCE
from .passes import list_scores
from .patterns import Late
from .scores import ListScores

_Tail = tuple[tuple[int, ...], tuple[int, ...], int]
"""Which tail: ids of the prefix and of the tail, and where it starts."""

_MEMORY = 1 << 28
"""Bytes of queries' states that are remembered, beside those of one batch."""


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
        self._most = 0  # queries of one batch
        self._warned = False

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
        for name in found:
            self._queries.move_to_end(name)
        for (prefix, position), tails in missing.items():
            this_pass = BlindTailPass(list(prefix), list(tails.values()), position, self._heads, self._hidden_layers)
            self._llm.forward(this_pass)
            read = dict(zip(tails, this_pass.states, strict=True))
            found.update(read)
            self._nulls.update((name, states) for name, states in read.items() if name in nulls)
            self._queries.update((name, states) for name, states in read.items() if name in names)
        self._most = max(self._most, len(names))
        self._forget()
        return [found[name] for name in names]

    def _forget(self) -> None:
        """Forget the queries that were not asked for longest; those of one batch stay together."""
        size = sum(states.size for states in self._queries.values())
        while len(self._queries) > self._most and size > _MEMORY:
            size -= self._queries.popitem(last=False)[1].size

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
            self._warn_of_windows(tail, keys, heads)
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

    def _warn_of_windows(self, tail: TailStates, documents: DocumentKeys, heads: Sequence[Head]) -> None:
        """Warn once where a sliding window hides all documents of a list from all rows, so that their scores are 0."""
        if self._warned or not len(documents.lengths):
            return
        rules = (tail.rules[layer] for layer in {head.layer for head in heads})
        windows = [rule.window for rule in rules if rule.window]
        longest = int(documents.lengths.max())
        if windows and tail.positions[0] - (documents.prefix + longest - 1) >= min(windows):
            self._warned = True
            warn(
                f"a sliding window of {min(windows)} positions does not reach from the query to documents of up to "
                f"{longest} tokens: their scores are 0 for some heads; lower max_doc_tokens"
            )

    def encoded(self, prompt: ListPrompt) -> DocumentKeys:
        """The keys of a prompt's documents, encoded now unless they are remembered."""
        return self.encode(prompt.prefix, prompt.blocks, prompt.order)

    def encode(self, prefix: list[int], blocks: Sequence[DocumentBlock], order: Sequence[int]) -> DocumentKeys:
        """The keys of some documents; the order says for each the number of its candidate."""
        return self._keys.of(prefix, blocks, order)


def _tail(prompt: ListPrompt, ids: list[int]) -> _Tail:
    return tuple(prompt.prefix), tuple(ids), Late().tail_position(prompt)
