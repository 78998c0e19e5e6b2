"""From text to token ids: markup and data are encoded apart, so that their borders are exact.

Only markup can yield control tokens. Data (titles, texts, queries) never does, whatever strings it contains. On benign
text the pieces' ids, joined, are those of the whole string encoded at once, provided that the tokenizer does not merge
across a piece's border; :class:`TextEncoder` picks the separator accordingly.
"""

import re
from functools import cached_property
from typing import TYPE_CHECKING

from .template import PAPER_CHAT, ChatMarkup, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEPARATORS = ("\n\n", " \n\n", "\n", " \n")
_TEXT_ENDS = ("word", "Ünï", "中文", "7", "end.", "end?", 'end."', "end)", "end.)", "end]", "5%", "3°", "a-", "so:", "✓")
_TURN, _SYSTEM, _REPLY, _AGAIN = "\u2402turn\u2403", "\u2402system\u2403", "\u2402reply\u2403", "\u2402again\u2403"


class TextEncoder:
    """Encodes markup and data with one tokenizer.

    Args:
        tokenizer: a fast or slow Hugging Face tokenizer. It is not changed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer

    def markup(self, text: str) -> list[int]:
        """Ids of a piece of markup inside a prompt; control strings become control tokens."""
        return self._inside([text])[0]

    def data(self, texts: list[str]) -> list[list[int]]:
        """Ids of pieces of data inside a prompt; no control string ever becomes a control token."""
        pieces = [_split(text, self._control_strings) for text in texts]
        encoded = iter(self._inside([piece for text in pieces for piece in text]))
        ids = [[token for _ in text for token in next(encoded)] for text in pieces]
        for i, text in enumerate(texts):
            if not self._control_ids.isdisjoint(ids[i]):  # a normaliser that makes one: character by character then
                ids[i] = [token for piece in self._inside(list(text)) for token in piece]
        return ids

    def start(self, text: str) -> list[int]:
        """Ids of the markup that opens a prompt: the tokenizer's start-of-text token, unless it is there, and text."""
        ids = self._plain([text])[0] if text else []
        leading = self._leading_ids
        return ids if ids[: len(leading)] == leading else leading + ids

    def separator(self, template: PromptTemplate) -> tuple[str, list[int]]:
        """The separator of a template for this tokenizer: its text, and its ids between data and markup.

        Without one set by the template, it is the first of ``"\\n\\n"``, ``" \\n\\n"``, ``"\\n"`` and ``" \\n"`` that
        never merges with the text before it or the markup behind it (``" \\n\\n"`` for Llama 3 and Qwen, whose
        tokenizers join a full stop and the line breaks after it). Where none achieves this it is ``"\\n\\n"``, and the
        prompt's ids are those of its pieces, not those of the whole string encoded at once.
        """
        behind = (template.document_tag.format(number=1), template.block_tag, template.instruction)
        candidates = _SEPARATORS if template.separator is None else (template.separator,)
        for text in candidates:
            ids = self._between(text, behind)
            if ids is not None and (template.separator is not None or self._stands_alone(text, ids, behind)):
                return text, ids
        return candidates[0], self.markup(candidates[0])

    def chat(self, template: PromptTemplate) -> ChatMarkup:
        """The markup around the user's turn: by hand, from the papers' code, or from the tokenizer's own template."""
        if isinstance(template.chat, ChatMarkup):
            return template.chat
        if template.chat == "paper":
            vocabulary = self.tokenizer.get_added_vocab()
            for control, markup in PAPER_CHAT.items():
                if control in vocabulary:
                    return markup
        return self._tokenizer_chat

    def _between(self, separator: str, behind: tuple[str, ...]) -> list[int] | None:
        """Ids of the separator before each of some markups, if they are the same and the markup keeps its own."""
        found = []
        for markup in behind:
            whole, own = self.markup(separator + markup), self.markup(markup)
            if whole[len(whole) - len(own) :] != own:
                return None
            found.append(whole[: len(whole) - len(own)])
        return found[0] if all(ids == found[0] for ids in found) else None

    def _stands_alone(self, separator: str, ids: list[int], behind: tuple[str, ...]) -> bool:
        ends = [" " + end for end in _TEXT_ENDS]
        own = self.data(ends)
        return all(
            whole == data + ids + self.markup(markup)
            for markup in behind
            for data, whole in zip(own, self._inside([end + separator + markup for end in ends]), strict=True)
        )

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []

    def _inside(self, texts: list[str]) -> list[list[int]]:
        """Ids of pieces as they stand inside a longer text.

        SentencePiece-style tokenizers put a blank before whatever they encode. A line break put in front takes that
        blank instead, and its tokens are cut off again.
        """
        if not self._anchor_ids:
            return [ids if text else [] for text, ids in zip(texts, self._plain(texts), strict=True)]
        cut = len(self._anchor_ids)
        anchored = self._plain(["\n" + text for text in texts])
        return [
            [] if not text else ids[cut:] if ids[:cut] == self._anchor_ids else self._plain([text])[0]
            for text, ids in zip(texts, anchored, strict=True)
        ]

    @cached_property
    def _anchor_ids(self) -> list[int]:
        word, broken, line = self._plain(["a", "\na", "\n"])
        return [] if broken[-len(word) :] == word else line

    @cached_property
    def _leading_ids(self) -> list[int]:
        plain, whole = self._plain(["a"])[0], self.tokenizer("a").input_ids
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])

    @cached_property
    def _control_strings(self) -> re.Pattern[str] | None:
        # Runs of blanks are added tokens of some tokenizers (GPT-NeoX): text, not control.
        strings = {str(token) for token in self.tokenizer.get_added_vocab()} | set(self.tokenizer.all_special_tokens)
        strings = sorted((s for s in strings if len(s) > 1 and s.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, strings))) if strings else None

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        added = self.tokenizer.get_added_vocab()
        unknown = self.tokenizer.unk_token_id  # what plain text may become
        return frozenset(i for s, i in added.items() if len(s) > 1 and s.strip() and i != unknown)

    @cached_property
    def _tokenizer_chat(self) -> ChatMarkup:
        """The user turn's markup without any system prompt; none for a tokenizer without a chat template.

        Many templates insert a system prompt of their own (SmolLM2, Qwen2.5), some with today's date (Llama 3.2). The
        markup that opens a later user turn has none: it is what stands between a reply and the next turn, less what
        closes the reply.
        """
        if not self.tokenizer.chat_template:
            return ChatMarkup("", "")
        first = self._render([("user", _TURN)], generate=True)
        before, after = first.split(_TURN)
        header = self._later_header()
        if header is None or not before.endswith(header):
            return ChatMarkup(before, after)
        return ChatMarkup(header, after)

    def _later_header(self) -> str | None:
        turns = [("user", _TURN), ("assistant", _REPLY)]
        try:
            closing = self._render(turns, generate=False).split(_REPLY)[1]
            between = self._render([*turns, ("user", _AGAIN)], generate=True).split(_REPLY)[1].split(_AGAIN)[0]
        except Exception:  # templates raise errors of their own for conversations they do not like
            return None
        close, open_ = _control_pieces(closing, self._control_strings), _control_pieces(between, self._control_strings)
        same = next((i for i, (a, b) in enumerate(zip(close, open_, strict=False)) if a != b), min(len(close), len(open_)))
        return "".join(open_[same:]) or None

    def _render(self, turns: list[tuple[str, str]], generate: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def _split(text: str, control: re.Pattern[str] | None) -> list[str]:
    """Cut a text inside each control string, so that no piece contains one."""
    pieces = []
    while control and (found := control.search(text)):
        pieces.append(text[: found.start() + 1])
        text = text[found.start() + 1 :]
    return [*pieces, text]


def _control_pieces(text: str, control: re.Pattern[str] | None) -> list[str]:
    """Control strings and what stands between them, in order."""
    if control is None:
        return [text]
    return [piece for piece in re.split(f"({control.pattern})", text) if piece]
