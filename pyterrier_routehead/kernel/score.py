"""Head scores: how much each chosen head's query rows attend to each document of a list.

The whole method in one function: encode the documents once; run the query's tail and the content-free tail against
them; read the few rows; reduce to documents. In late reading, the tails run by themselves (:func:`read_tails`), and
their attention to keys that were computed before is read afterwards (:func:`score_keys`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..common.errors import ListTooLongError, UnsupportedArchitectureError
from ..heads import Head
from ..prompt.build import ListPrompt
from .aggregate import FILTERED
from .attention import ReadingPass
from .key_cache import KeyCache
from .late import BlindTailPass, DocumentKeys, TailStates, late_attention
from .parts import TOKENS_AT_A_TIME, in_parts
from .passes import DocumentPass, EncodedDocuments, ListAttention, TailPass, nonlinear_aggregations
from .patterns import DEFAULT_PATTERN, PATTERNS, Late, positions_taken
from .scores import ListScores

if TYPE_CHECKING:
    import torch

class RunsPasses(Protocol):
    """A frozen model, as far as the kernel knows it.

    Attributes:
        name: what messages call it.
        architecture: the class of its decoder, for messages.
        num_layers: how many layers there are to use.
        context_length: how many positions it was made for; None if it does not say.
        fixed_rope_length: up to how many positions its rotary frequencies do not depend on the length; None for any
            number.
        input_device: where token ids go.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def context_length(self) -> int | None: ...  # noqa: D102
    @property
    def fixed_rope_length(self) -> int | None: ...  # noqa: D102
    @property
    def input_device(self) -> "torch.device": ...  # noqa: D102

    def forward(self, this_pass: ReadingPass) -> None:
        """Run a pass, up to the deepest layer that it needs."""

    def count_lists(self, count: int) -> None:
        """Count candidate lists that have been encoded."""


def score_lists(
    llm: RunsPasses,
    prompts: Sequence[ListPrompt],
    heads: Sequence[Head],
    *,
    document_attention: str = DEFAULT_PATTERN,
    calibrate: bool = True,
    hidden_layers: Iterable[int] = (),
    keys: KeyCache | None = None,
) -> list[ListScores]:
    """Read heads over some candidate lists, packed into one pass of the documents and one of the tails.

    Formulas: ICR (arXiv 2410.02642) for attention, calibration and filter; QRHead (arXiv 2506.09944) for the filter per
    head. Everything after the dot products of queries and keys is fp32, whatever the model's dtype.

    Args:
        llm: the frozen model.
        prompts: the lists, each with at least one document. Lists in one call do not see each other.
        heads: heads to read; no layer above the deepest is run.
        document_attention: the name of a reading pattern; the prompts must have been built for it.
        calibrate: run the content-free query too; without it only ``raw`` is given.
        hidden_layers: layers after which to give the mean hidden state of the query rows.
        keys: in late reading, remembers the documents' keys from call to call; made for these heads, at least.

    Raises:
        ListTooLongError: for a list beyond the model's context.
        UnsupportedArchitectureError: for a list beyond the length from which the model's rotary frequencies change.
    """
    hidden_layers = tuple(hidden_layers)
    for layer in hidden_layers:
        if not 0 <= layer < llm.num_layers:
            raise ValueError(f"there is no layer {layer} to read in a model of {llm.num_layers} layers")
    pattern = PATTERNS[document_attention]
    for prompt in prompts:
        check_length(llm, positions_taken(pattern, prompt))
    if not pattern.tail_sees_documents:
        return _score_late(llm, prompts, heads, calibrate, hidden_layers, keys or KeyCache(llm, heads))
    documents = EncodedDocuments(list(prompts), pattern)
    tails = TailPass(documents, heads, calibrate=calibrate, hidden_layers=hidden_layers, device=llm.input_device)
    _encode(llm, documents, tails.deepest)
    llm.count_lists(len(prompts))
    llm.forward(tails)
    return [
        _list_scores(read, prompt.order, heads, calibrate) for read, prompt in zip(tails.lists, prompts, strict=True)
    ]


def check_length(llm: RunsPasses, length: int) -> None:
    """Check that a prompt takes no more positions than the model can read exactly.

    Raises:
        ListTooLongError: beyond the model's context.
        UnsupportedArchitectureError: within it, but beyond the length from which the rotary frequencies change.
    """
    if llm.context_length is not None and length > llm.context_length:
        raise ListTooLongError(f"{length} tokens, but the context of {llm.name} has {llm.context_length}")
    if llm.fixed_rope_length is not None and length > llm.fixed_rope_length:
        raise UnsupportedArchitectureError(
            f"{llm.architecture} cannot be read beyond {llm.fixed_rope_length} positions, where its rotary frequencies "
            f"begin to depend on the length; the prompt takes {length}"
        )


@dataclass(frozen=True)
class Tails:
    """Queries that have been run by themselves.

    Attributes:
        queries: the states of each.
        null: those of the content-free query; None without calibration.
    """

    queries: list[TailStates]
    null: TailStates | None


def read_tails(
    llm: RunsPasses,
    prompts: Sequence[ListPrompt],
    heads: Sequence[Head],
    *,
    calibrate: bool = True,
    hidden_layers: Iterable[int] = (),
    null: TailStates | None = None,
) -> Tails:
    """Run queries without documents, as late reading does, all in one pass.

    Args:
        llm: the frozen model.
        prompts: of one template and truncation; their documents are not looked at, unless nothing is truncated: then
            the tails stand behind the longest of all of them.
        heads: heads that will be read.
        calibrate: run the content-free query too.
        hidden_layers: layers after which to keep the mean hidden state of the rows.
        null: the content-free query's states, where they are known: nothing changes them but model and prompt.
    """
    first, position = prompts[0], max(Late().tail_position(prompt) for prompt in prompts)
    tails = [prompt.query for prompt in prompts]
    if calibrate and null is None:
        tails.append(first.null)
    this_pass = BlindTailPass(first.prefix, tails, position, heads, hidden_layers)
    llm.forward(this_pass)
    states = this_pass.states
    if calibrate and null is None:
        null = states.pop()
    return Tails(states, null if calibrate else None)


def score_keys(
    tail: TailStates,
    null: TailStates | None,
    documents: DocumentKeys,
    heads: Sequence[Head],
    *,
    order: Sequence[int] | None = None,
    device: "torch.device | str" = "cpu",
) -> ListScores:
    """Head scores of documents whose keys are known: late reading's second half.

    Args:
        tail: the query's states, read for these heads at least.
        null: the content-free query's; None without calibration.
        documents: the keys.
        heads: heads to read.
        order: for each document the number of its candidate; None where they are in the candidates' order.
        device: where to compute.
    """
    read = late_attention(tail, null, documents, heads, device)
    order = range(len(documents.blocks)) if order is None else order
    return _list_scores(read, order, heads, null is not None)


def _score_late(
    llm: RunsPasses,
    prompts: Sequence[ListPrompt],
    heads: Sequence[Head],
    calibrate: bool,
    hidden_layers: Sequence[int],
    keys: KeyCache,
) -> list[ListScores]:
    together: dict[tuple[tuple[int, ...], tuple[int, ...], int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        alike = tuple(prompt.prefix), tuple(prompt.null), Late().tail_position(prompt)
        together.setdefault(alike, []).append(i)
    scores: dict[int, ListScores] = {}
    for numbers in together.values():
        tails = read_tails(
            llm, [prompts[i] for i in numbers], heads, calibrate=calibrate, hidden_layers=hidden_layers
        )
        for i, tail in zip(numbers, tails.queries, strict=True):
            prompt = prompts[i]
            documents = keys.of(prompt.prefix, prompt.blocks)
            scores[i] = score_keys(
                tail, tails.null, documents, heads, order=prompt.order, device=llm.input_device
            )
    llm.count_lists(len(prompts))
    return [scores[i] for i in range(len(prompts))]


def _encode(llm: RunsPasses, documents: EncodedDocuments, deepest: int) -> None:
    """Encode the documents, in one pass unless their number makes several quicker."""
    apart = documents.pattern.separable and llm.input_device.type == "cpu"
    if not apart or documents.spans[-1].stop <= TOKENS_AT_A_TIME:
        llm.forward(DocumentPass(documents, deepest))
        return
    import torch

    # Some documents can go first; each pass encodes the few tokens of the prefix again.
    keys: dict[int, list[torch.Tensor]] = {}
    values: dict[int, list[torch.Tensor]] = {}
    for prompt in documents.prompts:
        for i, blocks in enumerate(in_parts(prompt.blocks, TOKENS_AT_A_TIME)):
            part = EncodedDocuments([replace(prompt, blocks=blocks)], documents.pattern)
            llm.forward(DocumentPass(part, deepest))
            new = slice(len(prompt.prefix) if i else 0, None)
            for parts, read in ((keys, part.keys), (values, part.values)):
                for layer, states in read.items():
                    parts.setdefault(layer, []).append(states[:, :, new])
    for joined, parts in ((documents.keys, keys), (documents.values, values)):
        for layer in list(parts):
            joined[layer] = torch.cat(parts.pop(layer), dim=2)  # the parts of a layer are freed before the next


def _list_scores(read: ListAttention, order: Sequence[int], heads: Sequence[Head], calibrate: bool) -> ListScores:
    import torch

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
