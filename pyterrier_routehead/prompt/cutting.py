"""Tokenising only the beginning of a text, up to a border that the rest of the text cannot move.

A page of 50 kB of which 150 tokens are read need not be tokenised completely. The first tokens of its beginning are
those of the full text if they end at a firm border, for which holds:

- no entry of the vocabulary reaches across it, so that no tokenisation of the text has a token there, and
- the lookahead of a pre-tokeniser or normaliser lies inside the beginning too: the run of characters of the same kind
  (letters, digits, blanks, others) after the border ends well before the beginning does.

The first condition suffices for byte-pair encodings, where the two sides of such a border are merged separately; texts
of other tokenizers are tokenised completely.
"""

import unicodedata
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from ..common.locks import cached_property

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_MARGIN = 32
"""Maximum lookahead of a pre-tokeniser beyond a run, in characters; contractions and groups of digits need a few."""


class FirmBorders:
    """Finds firm borders in texts of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer. Its vocabulary is read once.
        margin: number of additional characters that a beginning must have after a border, for strings that are searched
            in the normalised text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", margin: int) -> None:
        self._tokenizer = tokenizer
        self._margin = _MARGIN + margin

    def first_reach(self, count: int) -> int | None:
        """Number of characters to read first for this many tokens; None if the full text is needed."""
        model: Any = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "model", None)
        if type(model).__name__ != "BPE" or model.dropout:
            return None
        if model.continuing_subword_prefix or model.end_of_word_suffix:  # its entries are not plain text
            return None
        return 6 * count + 2 * self._margin

    def settles(self, text: str, start: int, encoding: "Encoding", count: int) -> bool:
        """Whether the first tokens of a text's beginning are those of the full text.

        Args:
            text: the beginning, after the anchor.
            start: number of tokens of the anchor, which do not count.
            encoding: the encoded beginning.
            count: number of tokens that are needed.
        """
        tokens, offsets = encoding.tokens, encoding.offsets
        for border in range(max(start + count, 1), len(tokens)):
            if not self._run_ends(text, offsets[border - 1][1]):
                return False  # nor does it for a later border
            if not self._is_crossed(tokens, border):
                return True
        return False

    @cached_property
    def _vocabulary(self) -> list[str]:
        return sorted(self._tokenizer.get_vocab())

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._vocabulary))

    def _run_ends(self, text: str, border: int) -> bool:
        """Whether the run of characters that begins at the border ends well before the text does."""
        last = len(text) - self._margin
        if border >= last:
            return False
        kind = _kind(text[border])
        return any(_kind(text[i]) != kind for i in range(border + 1, last))

    def _is_crossed(self, tokens: list[str], border: int) -> bool:
        """Whether an entry of the vocabulary consists of the end of the left side and the start of the right side."""
        longest = self._longest
        left = "".join(tokens[max(border - longest, 0) : border])[-longest:]
        right = "".join(tokens[border : border + longest])
        for i in range(1, len(left) + 1):
            for j in range(1, longest - i + 1):
                text = left[-i:] + right[:j]
                place = bisect_left(self._vocabulary, text)
                if place == len(self._vocabulary) or not self._vocabulary[place].startswith(text):
                    break
                if self._vocabulary[place] == text or j >= len(right):  # the entry may continue after the beginning
                    return True
        return False


def _kind(character: str) -> str:
    """L for letters and their marks, N for digits, Z for blanks of any kind and their placeholder, P for others."""
    if character.isspace() or character == "▁":
        return "Z"
    category = unicodedata.category(character)[0]
    return {"M": "L"}.get(category, category) if category in "LMN" else "P"
