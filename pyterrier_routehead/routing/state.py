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
_REMEMBERED = 10_000
_embedded: "weakref.WeakKeyDictionary[FrozenLLM, dict[tuple[ModelSnapshot, QueryState, str], np.ndarray]]" = (
    weakref.WeakKeyDictionary()
)
_embedded_lock = new_lock()


@dataclass(frozen=True)
class QueryState:
    """Which hidden state stands for a query.

    The paper (RouteHead, arXiv 2604.24608) takes hidden states of the frozen model; layer, tokens and pooling are not
    known to us and these are our choice; so is that the query stands in the default template's markup, whatever prompt
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
            raise ValueError(f"layer is the number of a layer, from 0, got {self.layer!r}")
        object.__setattr__(self, "layer", int(self.layer))
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(map(repr, POOLINGS))}, got {self.pooling!r}")
        if self.source not in ("query", "tail"):
            raise ValueError(f"source is 'query' or 'tail', got {self.source!r}")


def check_layer(layer: int, llm: FrozenLLM) -> None:
    """Refuse a layer that the model does not have."""
    if not 0 <= layer < llm.num_layers:
        raise ValueError(f"there is no layer {layer} among {llm.num_layers} to embed queries by")


def encode_queries(
    llm: FrozenLLM, queries: Iterable[str], state: QueryState, template: PromptTemplate = DEFAULT_TEMPLATE
) -> dict[str, np.ndarray]:
    """Embed queries: the chat markup, the template's query label and the query are run, up to the layer wanted.

    Returns:
        For each distinct query a float32 array [hidden size].

    Raises:
        ValueError: for a layer that the model does not have.
        ListTooLongError: for a query beyond the model's context, by its beginning.
        UnsupportedArchitectureError: for one so long that the model's rotary frequencies would change.
    """
    from ..kernel.passes import QueryPass
    from ..kernel.score import check_length

    check_layer(state.layer, llm)
    encoder = llm.encoder
    start = encoder.start(encoder.chat(template).prefix) + encoder.markup(template.query_label)
    found = {}
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
        found[query] = (hidden.mean(dim=0) if state.pooling == "mean" else hidden[-1].clone()).cpu().numpy()
    return found


def embed_query(llm: FrozenLLM, query: str, state: QueryState, snapshot: ModelSnapshot | None = None) -> np.ndarray:
    """One query's embedding, float32 [hidden size]; a model's last 10,000 or so are remembered while it lives.

    Args:
        llm: the model.
        query: the query.
        state: which hidden state is wanted.
        snapshot: what the model is now, if that has just been looked at.
    """
    key = (snapshot if snapshot is not None else llm.snapshot(), state, query)
    with _embedded_lock:
        found = _embedded.setdefault(llm, {}).get(key)
    if found is None:
        found = encode_queries(llm, [query], state)[query]
        with _embedded_lock:
            known = _embedded.setdefault(llm, {})
            if len(known) >= _REMEMBERED:
                known.clear()
            known[key] = found
    return found


def shortened(query: str, most: int = 40) -> str:
    """A query for a message, as it would be quoted in code: its beginning."""
    return repr(query if len(query) <= most else query[:most] + "…")
