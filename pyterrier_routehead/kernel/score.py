"""Head scores: how much each chosen head's query rows attend to each document of a list.

The whole method in one function: encode the documents once; run the query's tail and the content-free tail against
them; read the few rows; reduce to documents. In late reading, documents and tails run apart: see
:mod:`.late_reader`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ..common.errors import ListTooLongError, UnsupportedArchitectureError
from ..heads import Head
from ..prompt.build import ListPrompt
from .attention import ReadingPass
from .late_reader import LateReader
from .parts import TOKENS_AT_A_TIME, in_parts
from .passes import DocumentPass, EncodedDocuments, TailPass, list_scores
from .patterns import DEFAULT_PATTERN, PATTERNS, positions_taken
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
    late: LateReader | None = None,
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
        late: in late reading, what remembers documents and queries from call to call.

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
        late = late or LateReader(llm, heads, calibrate=calibrate, hidden_layers=hidden_layers)
        scores = late.score(prompts, heads)
        llm.count_lists(len(prompts))
        return scores
    documents = EncodedDocuments(list(prompts), pattern)
    tails = TailPass(documents, heads, calibrate=calibrate, hidden_layers=hidden_layers, device=llm.input_device)
    _encode(llm, documents, tails.deepest)
    llm.count_lists(len(prompts))
    llm.forward(tails)
    return [
        list_scores(read, prompt.order, heads, calibrate=calibrate)
        for read, prompt in zip(tails.lists, prompts, strict=True)
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
