"""How a list of candidates is put to the model: small declarative prompt templates.

A list-wise prompt reads::

    <chat prefix> introduction
    <separator> [1] title, newline, text
    <separator> [2] ...
    <separator> instruction <separator> Query: the query <chat suffix>

which is the form of ICR (arXiv 2410.02642). A template also says which tokens of a document count for its score (the
span) and which tokens of the end are read (the query rows). Templates are values: compare them, hash them, change one
with :func:`dataclasses.replace`.
"""

import numbers
import re
from dataclasses import dataclass, replace
from string import Formatter
from typing import Literal


@dataclass(frozen=True)
class ChatMarkup:
    """The control text around a user's turn, written out by hand.

    Args:
        prefix: what stands before the turn; the tokenizer's own start-of-text token is put before it.
        suffix: what stands after the turn.
    """

    prefix: str
    suffix: str

    def __post_init__(self) -> None:
        for name in ("prefix", "suffix"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a string, got {getattr(self, name)!r}")


FIND_INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above."
ANSWER_INSTRUCTION = "Please answer the following question based on the information in the paragraphs above."


@dataclass(frozen=True)
class PromptTemplate:
    """One way of putting a query and its candidates to a model.

    Args:
        name: what results and files call it.
        introduction: text before the first document.
        document_tag: tag before each document of a list-wise prompt; ``{number}`` counts from 1 in prompt order.
        block_tag: tag before each document of a block-wise prompt, the same for all.
        instruction: text after the last document; reading begins at its first token.
        query_label: text before the query. The blank between the two belongs to the query.
        separator: text between the parts; None picks one that the tokenizer never merges with the text before it.
        chat: ``"tokenizer"`` takes the user turn's markup from the tokenizer's chat template, without any system
            prompt, and none for a base model; ``"paper"`` takes the hand-written markup of the methods' own code for
            the families they support, else as ``"tokenizer"``; or a :class:`ChatMarkup`.
        span: which tokens of a document count: ``"document"`` its tag, title and text; ``"text"`` without the tag.
        span_overhang: how many tokens after the text count as well (they are the separator's).
        suffix_rows: how many tokens of the chat suffix are read along with instruction and query; None means all.
        null_query: the content-free query of the calibration.
    """

    name: str
    introduction: str = "Here are some paragraphs:"
    document_tag: str = "[{number}]"
    block_tag: str = "[document]"
    instruction: str = FIND_INSTRUCTION
    query_label: str = "Query:"
    separator: str | None = None
    chat: Literal["tokenizer", "paper"] | ChatMarkup = "tokenizer"
    span: Literal["document", "text"] = "document"
    span_overhang: int = 0
    suffix_rows: int | None = None
    null_query: str = "N/A"

    def __post_init__(self) -> None:
        for name in ("name", "introduction", "document_tag", "block_tag", "instruction", "query_label", "null_query"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a string, got {getattr(self, name)!r}")
        if not isinstance(self.separator, str | None):
            raise TypeError(f"separator is a string or None, got {self.separator!r}")
        if "{number}" in self.block_tag:
            raise ValueError(f"block_tag is the same for all documents, got {self.block_tag!r}")
        if not isinstance(self.span, str):
            raise TypeError(f"span is 'document' or 'text', got {self.span!r}")
        if self.span not in ("document", "text"):
            raise ValueError(f"span is 'document' or 'text', got {self.span!r}")
        if not isinstance(self.chat, ChatMarkup) and self.chat not in ("tokenizer", "paper"):
            kind = ValueError if isinstance(self.chat, str) else TypeError
            raise kind(f"chat is 'tokenizer', 'paper' or a ChatMarkup, got {self.chat!r}")
        _check_tag(self.document_tag)
        for name in ("span_overhang", "suffix_rows"):
            count = getattr(self, name)
            if name == "suffix_rows" and count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, numbers.Integral):
                raise TypeError(f"{name} counts tokens, got {count!r}")
            if count < 0:
                raise ValueError(f"{name} counts tokens, got {count!r}")

    def __str__(self) -> str:
        return self.name


_NUMBER_FORMAT = re.compile(r"(.?[<>=^])?[-+ ]?0?\d{0,2}d?")
"""How a number may be laid out: not in ever so many characters."""


def _check_tag(tag: str) -> None:
    """Refuse a tag with another field than the document's number, without filling one in."""
    try:
        fields = [part[1:] for part in Formatter().parse(tag) if part[1] is not None]
    except ValueError:
        fields = None
    if fields is None or any(
        name != "number" or conversion or not _NUMBER_FORMAT.fullmatch(layout or "")
        for name, layout, conversion in fields
    ):
        raise ValueError(f"document_tag has no field but {{number}}, got {tag!r:.200}; its width is below 100")


PAPER_CHAT: dict[str, ChatMarkup] = {
    # A tokenizer is of a family when the control string on the left is one of its tokens or in its chat template; the
    # first match counts. (To the tokenizer of Mistral-7B-v0.2 [INST] is plain text.)
    "<|start_header_id|>": ChatMarkup(
        "<|start_header_id|>user<|end_header_id|>", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    ),
    "<|start_of_role|>": ChatMarkup(
        "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|><|start_of_role|>assistant<|end_of_role|>"
    ),
    "<|im_sep|>": ChatMarkup("<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"),
    "<|im_start|>": ChatMarkup("<|im_start|>user", "<|im_end|>\n<|im_start|>assistant"),
    "[INST]": ChatMarkup("[INST]", "[/INST]"),
}
"""Turn markup as the methods' own code writes it: Llama 3 (ICR, QRHead, CoRe), Granite and Phi-4 (CoRe), Qwen
(QRHead), Mistral (ICR, CoRe)."""

DEFAULT_TEMPLATE = PromptTemplate(name="default")

# princeton-pli/QRHead: ICR's prompt, always with the instruction to find information.
_QR = PromptTemplate(name="qr", introduction=" Here are some paragraphs:", chat="paper")

# linhhtran/CoRe-Reranking, its re-ranking: the tag lies outside the span, whose end reaches one token into the
# separator; one token of the suffix is read.
_CORE = PromptTemplate(
    name="core",
    introduction=" Here are some paragraphs:",
    document_tag="[document {number}]",
    separator="\n\n",
    chat="paper",
    span="text",
    span_overhang=1,
    suffix_rows=1,
)

TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        DEFAULT_TEMPLATE,
        # OSU-NLP-Group/In-Context-Reranking: tag and title inside the span, everything after the documents is read.
        PromptTemplate(name="icr", introduction=" Here are some paragraphs:", chat="paper"),
        PromptTemplate(
            name="icr-qa", introduction=" Here are some paragraphs:", instruction=ANSWER_INSTRUCTION, chat="paper"
        ),
        _QR,
        # Its code separates by a bare blank line for Qwen2.5, whose tokenizer joins it to a full stop.
        replace(_QR, name="qr-qwen", separator="\n\n"),
        _CORE,
        # Its detection of heads ends the span with the text.
        replace(_CORE, name="core-detection", span_overhang=0),
        # Its code for Mistral does so too, and reads no token behind the query.
        replace(_CORE, name="core-mistral", span_overhang=0, suffix_rows=0),
    )
}
"""Templates by name: ``default``, and the papers' own ``icr``, ``icr-qa``, ``qr`` and ``core`` with their variants."""

_PAPER_ORDER = {
    "icr": "best_last",
    "icr-qa": "best_last",
    "qr": "best_last",
    "qr-qwen": "best_last",
    "core": "best_first",
    "core-detection": "best_first",
    "core-mistral": "best_first",
}


def get_template(prompt: "str | PromptTemplate") -> PromptTemplate:
    """A template by name, or the template itself.

    Raises:
        TypeError: for what is neither a name nor a template.
        ValueError: for an unknown name, listing the known ones.
    """
    if isinstance(prompt, PromptTemplate):
        return prompt
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is the name of a template or a PromptTemplate, got {prompt!r}")
    if prompt not in TEMPLATES:
        raise ValueError(f"there is no prompt {prompt!r}; known: {', '.join(TEMPLATES)}; or give a PromptTemplate")
    return TEMPLATES[prompt]


def paper_settings(method: str) -> dict[str, object]:
    """The settings of a published method, to pass on: ``ICRReranker(**paper_settings("icr"))``.

    ==================  ===========================================================================================
    ``icr``             ICR
    ``icr-qa``          ICR's instruction for question answering
    ``qr``              QRHead and QR-R
    ``qr-qwen``         the same for Qwen2.5, where QRHead's code separates by a bare blank line
    ``core``            CoRe-R, whose spans take in the first token behind a text
    ``core-detection``  CoRe's detection of heads, whose spans end with the text
    ``core-mistral``    CoRe, both, for Mistral, where spans end with the text and rows with the query
    ==================  ===========================================================================================

    Heads found with ``core-detection`` rank with ``core``, given as a list so that the set's own settings do not count:
    ``StaticHeadReranker(found.head_set_.top(8).heads, llm=llm, **paper_settings("core"))``.

    What differs from the methods' own code: markup and data are encoded apart, so a final mark never merges with a bare
    blank line behind it (``core`` on Llama 3 and Qwen, ``qr-qwen``), and the last document of ``core`` has the token
    behind its text like the others; blanks around a query are stripped; a document without a title has no empty line in
    its place. Truncation is not among the settings: the papers cut at 300 or 400 words, not at tokens.

    Args:
        method: one of the names above.

    Returns:
        ``prompt``, ``document_order``, ``document_attention``, ``calibrate`` and ``token_filter`` as in the method's
        own code.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if method not in _PAPER_ORDER:
        raise ValueError(f"there are no paper settings {method!r}; known: {', '.join(_PAPER_ORDER)}")
    return {
        "prompt": TEMPLATES[method],
        "document_order": _PAPER_ORDER[method],
        "document_attention": "listwise",
        "calibrate": True,
        "token_filter": "sum",
    }
