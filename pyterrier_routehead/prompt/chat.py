"""The markup of a user's turn, from the papers' code or from the tokenizer's chat template."""

import re
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from ..template import PAPER_CHAT, ChatMarkup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TURN, _REPLY = "\u2402turn\u2403", "\u2402reply\u2403"


def paper_chat(tokenizer: "PreTrainedTokenizerBase") -> ChatMarkup | None:
    """The markup in the papers' code for the tokenizer's family; None for an unknown family."""
    vocabulary, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template)
    return next((markup for token, markup in PAPER_CHAT.items() if token in vocabulary or token in template), None)


def tokenizer_chat(tokenizer: "PreTrainedTokenizerBase", control_strings: re.Pattern[str]) -> ChatMarkup:
    """The user turn's markup without any system prompt; empty for a tokenizer without a chat template.

    Many templates insert a system prompt (SmolLM2, Qwen2.5), some with today's date (Llama 3.2). The header of a later
    user turn has none. Only for a template that rejects a second turn, the inserted prompt is kept. Of several named
    templates the one named ``default`` is used.

    Args:
        tokenizer: a Hugging Face tokenizer.
        control_strings: pattern of its control strings.

    Raises:
        ValueError: for a template that rejects a user's turn or does not contain its text exactly once and unchanged.
    """
    if not tokenizer.chat_template:
        return ChatMarkup("", "")
    try:
        before, *after = _render(tokenizer, ("user", _TURN), generate=True).split(_TURN)
    except ImportError:
        raise  # jinja2 is missing, which is not an error of the template
    except Exception as error:  # templates raise various errors for conversations that they reject
        raise ValueError(f"{_message(tokenizer, 'rejects a single user turn')} ({_shortened(error)})") from error
    if len(after) != 1:
        raise ValueError(_message(tokenizer, "does not contain a user's text unchanged"))
    header = _later_header(tokenizer, control_strings)
    if header is None or header not in before:
        return ChatMarkup(before, after[0])
    lead = before[: before.rindex(header)]
    if control_strings.sub("", lead).strip():  # a system prompt, possibly after a start-of-text token
        start = tokenizer.bos_token or ""
        lead = start if lead.startswith(start) and not header.startswith(start) else ""
    return ChatMarkup(lead + header, after[0])


def _message(tokenizer: "PreTrainedTokenizerBase", problem: str) -> str:
    name = f" of {tokenizer.name_or_path!r}" if tokenizer.name_or_path else ""
    return (
        f"the tokenizer's chat template{name} {problem}; give the markup explicitly: "
        "PromptTemplate(..., chat=ChatMarkup(prefix, suffix))"
    )


def _shortened(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _later_header(tokenizer: "PreTrainedTokenizerBase", control_strings: re.Pattern[str]) -> str | None:
    """The header of a user's turn after a reply: the markup between the two without the end of the reply."""
    turn, reply = ("user", _TURN), ("assistant", _REPLY)
    try:
        between = _render(tokenizer, turn, reply, turn, generate=True).split(_REPLY)[1].split(_TURN)[0]
        end = _render(tokenizer, turn, reply, generate=False).split(_REPLY)[1]
        closing = _shared_start(control_strings, between, end)
        if not closing:  # the last reply ends differently (gpt-oss): the others end like the user's turn
            end = _render(tokenizer, turn, generate=False).split(_TURN)[1]
            closing = _shared_start(control_strings, between, end)
    except Exception:  # as above: it rejects a second turn
        return None
    return between.removeprefix(closing).lstrip()


def _shared_start(control_strings: re.Pattern[str], *texts: str) -> str:
    """The common start of two texts, in complete control strings and complete pieces between them."""
    pieces = (re.split(f"({control_strings.pattern})", text) for text in texts)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*pieces, strict=False)))


def _render(tokenizer: "PreTrainedTokenizerBase", *turns: tuple[str, str], generate: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
