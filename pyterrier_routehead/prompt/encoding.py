"""From text to token ids: markup and data are encoded separately, so that their borders are exact.

Only markup can yield control tokens. Data (titles, texts, queries) never does, whatever strings it contains. On benign
text the concatenated ids of the pieces are those of the full string encoded at once, provided that the tokenizer does
not merge across a border; :class:`TextEncoder` selects the separator accordingly.
"""

import copy
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..common.locks import cached_property
from ..template import ChatMarkup, PromptTemplate
from .chat import paper_chat, tokenizer_chat
from .cutting import FirmBorders

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import BatchEncoding, PreTrainedTokenizerBase

_SEPARATORS = ("\n\n", " \n\n", "\n", " \n")
_TEXT_ENDS: tuple[str, ...] = (
    *("word", "Ünï", "中文", "中。", "7", "3°", "✓", "end.)", 'end."', "end.”"),
    *(f"end{mark}" for mark in string.punctuation),
)


@dataclass(frozen=True)
class _Piece:
    """A piece of text with its ids, and its encoding by a fast tokenizer."""

    text: str
    ids: list[int]
    encoding: "Encoding | None" = None


class TextEncoder:
    """Encodes markup and data with one tokenizer.

    Args:
        tokenizer: a fast or slow Hugging Face tokenizer. It is copied: padding, truncation and similar settings,
            which calls change for all its users, neither affect the copy nor are affected by it. Later additions to it
            are not seen either; a new encoder sees them.

    Raises:
        TypeError: for anything but a tokenizer, such as a processor.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = _plain_copy(tokenizer)
        self._separators: dict[PromptTemplate, tuple[str, list[int]]] = {}

    def markup(self, text: str) -> list[int]:
        """Ids of a piece of markup inside a prompt; control strings become control tokens."""
        return self._inside([text])[0]

    def data(self, texts: list[str], limit: int | None = None) -> list[list[int]]:
        """Ids of pieces of data inside a prompt; no control string ever becomes a control token.

        Args:
            texts: the pieces.
            limit: truncate each piece to this many ids, the first ones of the full text; None does not truncate. Only
                as much of a text is read as needed.
        """
        texts = [_well_formed(text) for text in texts]
        ids: dict[int, list[int]] = {}
        reach = None if limit is None else self._borders.first_reach(limit)
        while len(ids) < len(texts):
            beginnings = {i: self._split(text, reach) for i, text in enumerate(texts) if i not in ids}
            encoded = iter(self._data_pieces([piece for pieces in beginnings.values() for piece in pieces]))
            for i, pieces in beginnings.items():
                read = [next(encoded) for _ in pieces]
                if reach is None or limit is None or reach >= len(texts[i]):
                    ids[i] = [token for piece in read for token in self._without_controls(piece)][:limit]
                elif self._settle(read, limit):
                    ids[i] = [token for piece in read for token in piece.ids][:limit]
            reach = reach and 4 * reach
        return [ids[i] for i in range(len(texts))]

    def start(self, text: str) -> list[int]:
        """Ids of the markup that opens a prompt: start-of-text token, unless it is present, and text."""
        (ids,) = self._plain_ids([text])
        leading = self._leading_ids
        return ids if ids[: len(leading)] == leading else leading + ids

    def separator(self, template: PromptTemplate) -> tuple[str, list[int]]:
        r"""The separator of a template for this tokenizer: its text, and its ids between data and markup.

        Unless the template sets one, it is the first of ``"\n\n"``, ``" \n\n"``, ``"\n"`` and ``" \n"`` that never
        merges with the text before it or the markup after it (``" \n\n"`` for Llama 3 and Qwen, whose tokenizers join
        a full stop and the line breaks after it). If all merge, it is ``"\n\n"``, and the prompt's ids are those of its
        pieces, not those of the full string encoded at once.
        """
        if template not in self._separators:
            candidates = _SEPARATORS if template.separator is None else (template.separator,)
            pairs = [(text, self._separator_ids(text, template)) for text in candidates]
            separate = (pair for pair in pairs if self._is_separate(*pair, template))
            self._separators[template] = next(separate, pairs[0])  # the search takes hundreds of encodings
        return self._separators[template]

    def chat(self, template: PromptTemplate) -> ChatMarkup:
        """The markup of the user's turn: as given, from the papers' code, or from the tokenizer's chat template.

        Raises:
            ValueError: for a chat template whose markup cannot be determined; the message says what to give instead.
        """
        if isinstance(template.chat, ChatMarkup):
            return template.chat
        return (template.chat == "paper" and paper_chat(self.tokenizer)) or self._tokenizer_chat

    def _separator_ids(self, separator: str, template: PromptTemplate) -> list[int]:
        # Before a tag, line breaks may be tokenised differently: GPT-2 separates the last of them.
        tag = template.document_tag.format(number=1)
        ids, tag_ids = self._inside([separator + tag, tag])
        border = len(ids) - len(tag_ids)
        return ids[:border] if ids[border:] == tag_ids else self.markup(separator)

    def _is_separate(self, separator: str, ids: list[int], template: PromptTemplate) -> bool:
        """Whether the ids of text, separator and markup are those of the three encoded at once."""
        tail = template.instruction + separator + template.query_label
        ends = [f" {end}" for end in _TEXT_ENDS]
        end_ids = self._inside(ends)
        return all(
            joined == text + ids + self.markup(markup)
            for markup in (template.document_tag.format(number=1), template.block_tag, tail)
            for text, joined in zip(end_ids, self._inside([end + separator + markup for end in ends]), strict=True)
        )

    def _split(self, text: str, reach: int | None) -> list[str]:
        """Cut a text after the first character of each control string, so that no piece contains one.

        A control string of a single character becomes a separate piece. With ``reach``, only this many
        characters are cut, as in the full text.
        """
        visible = text if reach is None else text[: reach + self._longest_control]
        cuts = [0]
        while match := self._control_strings.search(visible, cuts[-1]):
            if len(match.group()) == 1 and match.start() > cuts[-1]:
                cuts.append(match.start())
            cuts.append(match.start() + 1)
        if reach is not None:
            cuts = [cut for cut in cuts if cut < reach]
            visible = visible[:reach]
        return [visible[start:stop] for start, stop in zip(cuts, [*cuts[1:], None], strict=True)]

    def _data_pieces(self, pieces: list[str]) -> list[_Piece]:
        """The encoded pieces; single characters that are control strings are spelled differently."""
        return [
            _Piece(piece.text, self._spellings[piece.text]) if piece.text in self._spellings else piece
            for piece in self._inside_pieces(pieces)
        ]

    def _settle(self, pieces: list[_Piece], limit: int) -> bool:
        """Whether the first ids of the pieces of a text's beginning are those of the full text."""
        *before, last = pieces
        if any(not self._control_ids.isdisjoint(piece.ids) for piece in pieces):
            return False  # made by a normaliser
        missing = limit - sum(len(piece.ids) for piece in before)
        if missing <= 0:
            return True
        if last.encoding is None:
            return False
        return self._borders.settles(self._anchor + last.text, len(self._anchor_ids), last.encoding, missing)

    def _without_controls(self, piece: _Piece) -> list[int]:
        """Ids of a piece, split where a normaliser has turned it into a control string."""
        if self._control_ids.isdisjoint(piece.ids):
            return piece.ids
        if len(piece.text) <= 1:
            return self._spell(piece.text)
        parts = self._data_pieces(self._parts(piece))
        return [token for part in parts for token in self._without_controls(part)]

    def _parts(self, piece: _Piece) -> list[str]:
        """Cut a piece after the first character of each control token in it, or into characters."""
        if piece.encoding is None:
            return list(piece.text)
        cut = len(self._anchor_ids)
        starts = [
            start - len(self._anchor)
            for token, (start, _) in zip(piece.ids, piece.encoding.offsets[cut:], strict=True)
            if token in self._control_ids
        ]
        cuts = sorted({0, *(start + 1 for start in starts if 0 <= start < len(piece.text) - 1)})
        if len(cuts) == 1:
            return list(piece.text)
        return [piece.text[start:stop] for start, stop in zip(cuts, [*cuts[1:], None], strict=True)]

    def _spell(self, character: str) -> list[int]:
        """Ids of a character that is a control token: as spelled by the vocabulary, or of a replacement character."""
        if self._control_ids.isdisjoint(ids := self._spelling_ids(character)):
            return ids
        (replacement,) = self._inside(["\ufffd"])
        return replacement if self._control_ids.isdisjoint(replacement) else []

    def _spelling_ids(self, character: str) -> list[int]:
        tokenizer = self._spelling_tokenizer
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[int] = tokenizer(self._anchor + character, **options).input_ids
        return ids[len(self._anchor_ids) :]

    @cached_property
    def _spelling_tokenizer(self) -> "PreTrainedTokenizerBase":
        """A separate copy, since splitting special tokens is a setting for all users of a tokenizer."""
        return _plain_copy(self.tokenizer)

    @cached_property
    def _spellings(self) -> dict[str, list[int]]:
        """Control strings of a single character, as data."""
        return {text: self._spell(text) for text in self._controls if len(text) == 1}

    def _plain(self, texts: list[str]) -> "BatchEncoding":
        # Explicit because tokenizers may have other settings; not verbose because long texts are truncated later.
        options = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
        encoded: BatchEncoding = self.tokenizer(texts, **options)
        return encoded

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._plain(texts).input_ids
        return ids

    def _inside(self, texts: list[str]) -> list[list[int]]:
        """Ids of pieces as inside a longer text."""
        return [piece.ids for piece in self._inside_pieces(texts)]

    def _inside_pieces(self, texts: list[str]) -> list[_Piece]:
        if not texts:
            return []
        encoded = self._plain([self._anchor + text for text in texts])
        cut = len(self._anchor_ids)
        encodings: Sequence[Encoding | None] = encoded.encodings or [None] * len(texts)
        return [
            _Piece(text, ids[cut:], encoding)
            for text, ids, encoding in zip(texts, encoded.input_ids, encodings, strict=True)
        ]

    @cached_property
    def _anchor(self) -> str:
        """A prefix of each piece, removed after encoding: it absorbs the blank that some tokenizers insert first.

        SentencePiece-style tokenizers do, and GPT-2's with add_prefix_space. A control character, unlike a line break,
        never merges with the text after it.
        """
        word, broken = self._plain_ids(["a", "\na"])
        return "" if broken[-len(word) :] == word else "\x01"

    @cached_property
    def _anchor_ids(self) -> list[int]:
        return self._plain_ids([self._anchor])[0]

    @cached_property
    def _leading_ids(self) -> list[int]:
        (plain,) = self._plain_ids(["a"])
        ids: list[int] = self.tokenizer("a").input_ids
        return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(plain)] == plain), [])

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Control strings with their ids: the special tokens, and all added tokens of more than one character.

        Runs of blanks, which some tokenizers have as added tokens (GPT-NeoX, Gemma), are text.
        """
        tokenizer = self.tokenizer
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        plain = {
            text: token
            for text, token in tokenizer.get_added_vocab().items()
            if len(text) > 1 and text.replace("▁", " ").strip()
        }
        return plain | special

    @cached_property
    def _longest_control(self) -> int:
        return max(map(len, self._controls), default=0)

    @cached_property
    def _control_strings(self) -> re.Pattern[str]:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # which matches nothing

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._controls.values()) - {self.tokenizer.unk_token_id}  # plain text may become unknown

    @cached_property
    def _borders(self) -> FirmBorders:
        # A normaliser may turn more characters than a control string has into one.
        return FirmBorders(self.tokenizer, margin=2 * self._longest_control)

    @cached_property
    def _tokenizer_chat(self) -> ChatMarkup:
        return tokenizer_chat(self.tokenizer, self._control_strings)


def _plain_copy(tokenizer: Any) -> "PreTrainedTokenizerBase":
    """A copy without padding and truncation that recognises special tokens."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        inner = getattr(tokenizer, "tokenizer", None)
        if isinstance(inner, PreTrainedTokenizerBase):
            hint = "a processor's is processor.tokenizer"
        else:
            hint = "wrap one of the tokenizers library: PreTrainedTokenizerFast(tokenizer_object=...)"
        raise TypeError(f"tokenizer must be a Hugging Face tokenizer, got {type(tokenizer).__name__}; {hint}")
    try:
        copied = copy.deepcopy(tokenizer)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TypeError(f"tokenizer: {type(tokenizer).__name__} cannot be copied ({reason})") from error
    copied.split_special_tokens = False
    if (backend := getattr(copied, "backend_tokenizer", None)) is not None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = False
    return copied


def _well_formed(text: str) -> str:
    """Join split surrogate pairs and replace single ones, which occur in broken JSON and are rejected by tokenizers."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
