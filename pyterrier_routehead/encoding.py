"""From text to token ids: markup and data are encoded apart, so that their borders are exact.

Only markup can yield control tokens. Data (titles, texts, queries) never does, whatever strings it contains. On benign
text the pieces' ids, joined, are those of the whole string encoded at once, provided that the tokenizer does not merge
across a piece's border; :class:`TextEncoder` picks the separator accordingly.
"""

import re
import string
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from .template import PAPER_CHAT, ChatMarkup, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEPARATORS = ("\n\n", " \n\n", "\n", " \n")
_TEXT_ENDS = ("word", "Ünï", "中文", "中。", "7", "3°", "✓", "end.)", 'end."', "end.”")
_TEXT_ENDS += tuple(f"end{mark}" for mark in string.punctuation)
_TURN, _REPLY = "\u2402turn\u2403", "\u2402reply\u2403"


class TextEncoder:
    """Encodes markup and data with one tokenizer.

    Args:
        tokenizer: a fast or slow Hugging Face tokenizer. It is not changed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._separators: dict[PromptTemplate, tuple[str, list[int]]] = {}

    def markup(self, text: str) -> list[int]:
        """Ids of a piece of markup inside a prompt; control strings become control tokens."""
        return self._inside([text])[0]

    def data(self, texts: list[str]) -> list[list[int]]:
        """Ids of pieces of data inside a prompt; no control string ever becomes a control token."""
        texts = [_well_formed(text) for text in texts]
        pieces = [_split(text, self._control_strings) for text in texts]
        encoded = iter(self._inside([piece for text in pieces for piece in text]))
        ids = [[token for _ in text for token in next(encoded)] for text in pieces]
        for i, text in enumerate(texts):
            if not self._control_ids.isdisjoint(ids[i]):  # a normaliser that makes one: character by character then
                ids[i] = [token for piece in self._inside(list(text)) for token in piece]
        return ids

    def start(self, text: str) -> list[int]:
        """Ids of the markup that opens a prompt: the tokenizer's start-of-text token, unless it is there, and text."""
        ids = self._plain([text])[0]
        leading = self._leading_ids
        return ids if ids[: len(leading)] == leading else leading + ids

    def separator(self, template: PromptTemplate) -> tuple[str, list[int]]:
        r"""The separator of a template for this tokenizer: its text, and its ids between data and markup.

        Without one set by the template, it is the first of ``"\n\n"``, ``" \n\n"``, ``"\n"`` and ``" \n"`` that never
        merges with the text before it or the markup behind it (``" \n\n"`` for Llama 3 and Qwen, whose tokenizers join
        a full stop and the line breaks after it). Where none achieves this it is ``"\n\n"``, and the prompt's ids are
        those of its pieces, not those of the whole string encoded at once.
        """
        if template not in self._separators:
            candidates = _SEPARATORS if template.separator is None else (template.separator,)
            found = [(text, self._separator_ids(text, template)) for text in candidates]
            chosen = next((pair for pair in found if self._stands_alone(*pair, template)), found[0])
            self._separators[template] = chosen  # the search takes hundreds of encodings
        return self._separators[template]

    def chat(self, template: PromptTemplate) -> ChatMarkup:
        """The markup around the user's turn: by hand, from the papers' code, or from the tokenizer's own template."""
        if isinstance(template.chat, ChatMarkup):
            return template.chat
        if template.chat == "paper":
            vocabulary, own = self.tokenizer.get_added_vocab(), str(self.tokenizer.chat_template)
            for control, markup in PAPER_CHAT.items():
                if control in vocabulary or control in own:
                    return markup
        return self._tokenizer_chat

    def _separator_ids(self, separator: str, template: PromptTemplate) -> list[int]:
        # Before a tag, line breaks may be other tokens than alone: GPT-2 keeps the last of them apart.
        tag = template.document_tag.format(number=1)
        whole, own = self._inside([separator + tag, tag])
        border = len(whole) - len(own)
        return whole[:border] if whole[border:] == own else self.markup(separator)

    def _stands_alone(self, separator: str, ids: list[int], template: PromptTemplate) -> bool:
        """Whether the ids of text, separator and markup are those of the three encoded at once."""
        tail = template.instruction + separator + template.query_label
        ends = [f" {end}" for end in _TEXT_ENDS]
        own = self._inside(ends)
        return all(
            whole == text + ids + self.markup(markup)
            for markup in (template.document_tag.format(number=1), template.block_tag, tail)
            for text, whole in zip(own, self._inside([end + separator + markup for end in ends]), strict=True)
        )

    def _plain(self, texts: list[str]) -> list[list[int]]:
        # Said for the sake of tokenizers with other settings, and to keep quiet about texts that will yet be cut.
        options = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
        return self.tokenizer(texts, **options).input_ids if texts else []

    def _inside(self, texts: list[str]) -> list[list[int]]:
        """Ids of pieces as they stand inside a longer text."""
        cut = len(self._anchor_ids)
        return [ids[cut:] for ids in self._plain([self._anchor + text for text in texts])]

    @cached_property
    def _anchor(self) -> str:
        """What to put before a piece, to be cut off again: it takes the blank that some tokenizers put first.

        SentencePiece-style tokenizers do, and GPT-2's with add_prefix_space. A control character, unlike a line break,
        merges with nothing behind it.
        """
        word, broken = self._plain(["a", "\na"])
        return "" if broken[-len(word) :] == word else "\x01"

    @cached_property
    def _anchor_ids(self) -> list[int]:
        return self._plain([self._anchor])[0]

    @cached_property
    def _leading_ids(self) -> list[int]:
        plain, whole = self._plain(["a"])[0], self.tokenizer("a").input_ids
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])

    @cached_property
    def _controls(self) -> dict[str, int]:
        """Control strings with their ids: all added tokens but those of one character and runs of blanks.

        Runs of blanks are added tokens of some tokenizers (GPT-NeoX, Gemma): text, not control.
        """
        tokenizer = self.tokenizer
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        added = special | tokenizer.get_added_vocab()
        return {text: token for text, token in added.items() if len(text) > 1 and text.replace("▁", " ").strip()}

    @cached_property
    def _control_strings(self) -> re.Pattern[str]:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # the latter matches nothing

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._controls.values()) - {self.tokenizer.unk_token_id}  # plain text may become unknown

    @cached_property
    def _tokenizer_chat(self) -> ChatMarkup:
        """The user turn's markup without any system prompt; none for a tokenizer without a chat template.

        Many templates insert a system prompt of their own (SmolLM2, Qwen2.5), some with today's date (Llama 3.2). The
        header of a later user turn has none. Only a template that refuses a second turn keeps what it inserts.
        """
        if not self.tokenizer.chat_template:
            return ChatMarkup("", "")
        before, *behind = self._render(("user", _TURN), generate=True).split(_TURN)
        if len(behind) != 1:
            raise ValueError(
                "the tokenizer's chat template does not show a user's text as it is; write the markup out: "
                "PromptTemplate(..., chat=ChatMarkup(prefix, suffix))"
            )
        header = self._later_header()
        if header is None or header not in before:
            return ChatMarkup(before, behind[0])
        lead = before[: before.rindex(header)]
        if self._control_strings.sub("", lead).strip():  # a system prompt, at most behind a start-of-text token
            start = self.tokenizer.bos_token or ""
            lead = start if lead.startswith(start) and not header.startswith(start) else ""
        return ChatMarkup(lead + header, behind[0])

    def _later_header(self) -> str | None:
        """What opens a user's turn behind a reply: what stands between the two, less what closes the reply."""
        turn, reply = ("user", _TURN), ("assistant", _REPLY)
        try:
            between = self._render(turn, reply, turn, generate=True).split(_REPLY)[1].split(_TURN)[0]
            closing = self._shared_start(between, self._render(turn, reply, generate=False).split(_REPLY)[1])
            if not closing:  # the last reply closes in a way of its own (gpt-oss): the others as the user's turn does
                closing = self._shared_start(between, self._render(turn, generate=False).split(_TURN)[1])
        except Exception:  # templates raise errors of their own for conversations they do not like
            return None
        return between.removeprefix(closing).lstrip()

    def _shared_start(self, *texts: str) -> str:
        """What two texts have in common at their start, in whole control strings and whole pieces between them."""
        pieces = (re.split(f"({self._control_strings.pattern})", text) for text in texts)
        return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*pieces, strict=False)))

    def _render(self, *turns: tuple[str, str], generate: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def _split(text: str, control: re.Pattern[str]) -> list[str]:
    """Cut a text behind the first character of each control string, so that no piece contains one."""
    cuts = [0]
    while found := control.search(text, cuts[-1]):
        cuts.append(found.start() + 1)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], None], strict=True)]


def _well_formed(text: str) -> str:
    """Join split surrogate pairs and replace single ones, which broken JSON contains and tokenizers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
