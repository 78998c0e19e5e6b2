"""How far a text must be read for its first tokens: up to a border that nothing behind it can move.

A page of 50 kB of which 150 tokens are read need not be tokenised whole. The first tokens of its beginning are those of
the whole text if they end at a firm border, which is one

- that no entry of the vocabulary reaches across, so that no way of tokenising the text has a token there, and
- that what a pre-tokeniser or normaliser may look ahead to lies inside the beginning too: the run of characters of one
  kind (letters, digits, blanks, others) behind the border ends well before the beginning does.

The first holds for byte-pair encodings, where both sides of such a border are merged apart; texts of other tokenizers
are read whole.
"""

import unicodedata
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from ..common.locks import cached_property

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_MARGIN = 32
"""Characters that a pre-tokeniser may look ahead beyond a run; contractions and groups of digits take a few."""


class FirmBorders:
    """Finds firm borders in texts of one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer. Its vocabulary is read once.
        margin: how many characters more a beginning must have behind a border, for the sake of what is looked for in
            the normalised text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", margin: int) -> None:
        self._tokenizer = tokenizer
        self._margin = _MARGIN + margin

    def first_reach(self, count: int) -> int | None:
        """How many characters to read first in order to settle this many tokens; None if the whole text is needed."""
        model: Any = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "model", None)
        if type(model).__name__ != "BPE" or model.dropout:
            return None
        if model.continuing_subword_prefix or model.end_of_word_suffix:  # the vocabulary does not read as text then
            return None
        return 6 * count + 2 * self._margin

    def settles(self, text: str, start: int, encoding: "Encoding", count: int) -> bool:
        """Whether the first tokens of a text's beginning are those of the whole text.

        Args:
            text: the beginning, with what was put before it.
            start: how many tokens at the start do not count.
            encoding: the beginning, encoded.
            count: number of tokens to settle.
        """
        tokens, offsets = encoding.tokens, encoding.offsets
        for at in range(max(start + count, 1), len(tokens)):
            if not self._is_behind(text, offsets[at - 1][1]):
                return False  # nor will a later one be
            if not self._is_crossed(tokens, at):
                return True
        return False

    @cached_property
    def _vocabulary(self) -> list[str]:
        return sorted(self._tokenizer.get_vocab())

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._vocabulary))

    def _is_behind(self, text: str, border: int) -> bool:
        """Whether the run of characters that begins at the border ends well before the text does."""
        last = len(text) - self._margin
        if border >= last:
            return False
        kind = _kind(text[border])
        return any(_kind(text[i]) != kind for i in range(border + 1, last))

    def _is_crossed(self, tokens: list[str], at: int) -> bool:
        """Whether an entry of the vocabulary reads as the end of what is left and the start of what is right."""
        longest = self._longest
        left = "".join(tokens[max(at - longest, 0) : at])[-longest:]
        right = "".join(tokens[at : at + longest])
        for i in range(1, len(left) + 1):
            for j in range(1, longest - i + 1):
                text = left[-i:] + right[:j]
                place = bisect_left(self._vocabulary, text)
                if place == len(self._vocabulary) or not self._vocabulary[place].startswith(text):
                    break
                if self._vocabulary[place] == text or j >= len(right):  # the latter may go on behind the beginning
                    return True
        return False


def _kind(character: str) -> str:
    """L for letters and their marks, N for digits, Z for blanks of any kind and the sign for them, P for others."""
    if character.isspace() or character == "▁":
        return "Z"
    category = unicodedata.category(character)[0]
    return {"M": "L"}.get(category, category) if category in "LMN" else "P"
