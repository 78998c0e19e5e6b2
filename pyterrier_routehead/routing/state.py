"""Query embeddings from the frozen model's hidden states, from the query alone."""

import numbers
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..common.errors import ListTooLongError, UnsupportedArchitectureError
from ..common.locks import new_lock
from ..model.fingerprint import ModelSnapshot
from ..model.frozen import FrozenLLM
from ..template import DEFAULT_TEMPLATE, PromptTemplate

POOLINGS = ("mean", "last")
SOURCES = ("query", "tail")
_CACHE_SIZE = 10_000
_embedded: "weakref.WeakKeyDictionary[FrozenLLM, dict[tuple[ModelSnapshot, QueryState, str], np.ndarray]]" = (
    weakref.WeakKeyDictionary()
)
_embedded_lock = new_lock()


@dataclass(frozen=True)
class QueryState:
    """Which hidden state embeds a query.

    The paper (RouteHead, arXiv 2604.24608) uses hidden states of the frozen model but does not state layer, tokens and
    pooling: these are our choice. So is that the query is embedded in the default template's markup, whatever prompt
    its documents are read with.

    Args:
        layer: the state after this layer, counted from 0.
        pooling: ``"mean"`` over the query's tokens, or the ``"last"`` of them.
        source: ``"query"``: from the query alone, in one short pass; ``"tail"``: the mean over the query's rows in the
            pass that reads the heads, which has seen the documents: the column ``hidden_state`` of an
            :class:`AttentionHeadScorer`.
    """

    layer: int
    pooling: str = "mean"
    source: str = "query"

    def __post_init__(self) -> None:
        if not isinstance(self.layer, numbers.Integral) or isinstance(self.layer, bool):
            raise ValueError(f"layer must be an integer >= 0, got {self.layer!r}")
        object.__setattr__(self, "layer", int(self.layer))
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}, got {self.pooling!r}")
        if self.source not in ("query", "tail"):
            raise ValueError(f"source must be 'query' or 'tail', got {self.source!r}")


def check_layer(layer: int, llm: FrozenLLM) -> None:
    """Raise an error for a layer that the model does not have."""
    if not 0 <= layer < llm.num_layers:
        raise ValueError(f"there is no layer {layer} among {llm.num_layers} to embed queries by")


def encode_queries(
    llm: FrozenLLM, queries: Iterable[str], state: QueryState, template: PromptTemplate = DEFAULT_TEMPLATE
) -> dict[str, np.ndarray]:
    """Embed queries: the chat markup, the template's query label and the query are run, up to the required layer.

    Returns:
        For each distinct query a float32 array [hidden size].

    Raises:
        ValueError: for a layer that the model does not have.
        ListTooLongError: for a query longer than the model's context, quoting its beginning.
        UnsupportedArchitectureError: for a query so long that the model's rotary frequencies would change.
    """
    from ..kernel.passes import QueryPass
    from ..kernel.score import check_length

    check_layer(state.layer, llm)
    encoder = llm.encoder
    start = encoder.start(encoder.chat(template).prefix) + encoder.markup(template.query_label)
    embeddings = {}
    for query in dict.fromkeys(queries):
        query_ids = encoder.data([f" {query.strip()}"])[0]
        try:
            check_length(llm, len(start) + len(query_ids))
        except (ListTooLongError, UnsupportedArchitectureError) as error:
            raise type(error)(f"query {shortened(query)}: {error}") from None
        this_pass = QueryPass(start + query_ids, slice(len(start), None), [state.layer])
        llm.forward(this_pass)
        hidden = this_pass.hidden[state.layer]
        # A copy: a view of the last token would keep all of them.
        embeddings[query] = (hidden.mean(dim=0) if state.pooling == "mean" else hidden[-1].clone()).cpu().numpy()
    return embeddings


def embed_query(llm: FrozenLLM, query: str, state: QueryState, snapshot: ModelSnapshot | None = None) -> np.ndarray:
    """One query's embedding, float32 [hidden size]; a model's last 10,000 or so are cached while it exists.

    Args:
        llm: the model.
        query: the query.
        state: which hidden state embeds the query.
        snapshot: the model's current snapshot, if it has just been taken.
    """
    key = (snapshot if snapshot is not None else llm.snapshot(), state, query)
    with _embedded_lock:
        embedding = _embedded.setdefault(llm, {}).get(key)
    if embedding is None:
        embedding = encode_queries(llm, [query], state)[query]
        with _embedded_lock:
            cache = _embedded.setdefault(llm, {})
            if len(cache) >= _CACHE_SIZE:
                cache.clear()
            cache[key] = embedding
    return embedding


def shortened(query: str, max_characters: int = 40) -> str:
    """A query for a message, quoted and truncated."""
    return repr(query if len(query) <= max_characters else query[:max_characters] + "…")
