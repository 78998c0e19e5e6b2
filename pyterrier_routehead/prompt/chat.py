"""The markup around a user's turn, from the papers' code or from the tokenizer's own chat template."""

import re
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from ..template import PAPER_CHAT, ChatMarkup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TURN, _REPLY = "\u2402turn\u2403", "\u2402reply\u2403"


def paper_chat(tokenizer: "PreTrainedTokenizerBase") -> ChatMarkup | None:
    """The markup that the papers' code has for the tokenizer's family; None for a family that it does not know."""
    vocabulary, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template)
    return next((markup for token, markup in PAPER_CHAT.items() if token in vocabulary or token in template), None)


def tokenizer_chat(tokenizer: "PreTrainedTokenizerBase", control_strings: re.Pattern[str]) -> ChatMarkup:
    """The user turn's markup without any system prompt; none for a tokenizer without a chat template.

    Many templates insert a system prompt of their own (SmolLM2, Qwen2.5), some with today's date (Llama 3.2). The
    header of a later user turn has none. Only a template that refuses a second turn keeps what it inserts. Of several
    named templates it is the one named ``default``.

    Args:
        tokenizer: a Hugging Face tokenizer.
        control_strings: what matches its control strings.

    Raises:
        ValueError: for a template that refuses a user's turn or does not show its text once as it is.
    """
    if not tokenizer.chat_template:
        return ChatMarkup("", "")
    try:
        before, *behind = _render(tokenizer, ("user", _TURN), generate=True).split(_TURN)
    except ImportError:
        raise  # jinja2 is missing, which is no fault of the template
    except Exception as error:  # templates raise errors of their own for conversations they do not like
        raise ValueError(f"{_refusal(tokenizer, 'refuses a single user turn')} ({_in_short(error)})") from error
    if len(behind) != 1:
        raise ValueError(_refusal(tokenizer, "does not show a user's text as it is"))
    header = _later_header(tokenizer, control_strings)
    if header is None or header not in before:
        return ChatMarkup(before, behind[0])
    lead = before[: before.rindex(header)]
    if control_strings.sub("", lead).strip():  # a system prompt, at most behind a start-of-text token
        start = tokenizer.bos_token or ""
        lead = start if lead.startswith(start) and not header.startswith(start) else ""
    return ChatMarkup(lead + header, behind[0])


def _refusal(tokenizer: "PreTrainedTokenizerBase", what: str) -> str:
    name = f" of {tokenizer.name_or_path!r}" if tokenizer.name_or_path else ""
    return (
        f"the tokenizer's chat template{name} {what}; write the markup out: "
        "PromptTemplate(..., chat=ChatMarkup(prefix, suffix))"
    )


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _later_header(tokenizer: "PreTrainedTokenizerBase", control_strings: re.Pattern[str]) -> str | None:
    """What opens a user's turn behind a reply: what stands between the two, less what closes the reply."""
    turn, reply = ("user", _TURN), ("assistant", _REPLY)
    try:
        between = _render(tokenizer, turn, reply, turn, generate=True).split(_REPLY)[1].split(_TURN)[0]
        end = _render(tokenizer, turn, reply, generate=False).split(_REPLY)[1]
        closing = _shared_start(control_strings, between, end)
        if not closing:  # the last reply closes in a way of its own (gpt-oss): the others as the user's turn does
            end = _render(tokenizer, turn, generate=False).split(_TURN)[1]
            closing = _shared_start(control_strings, between, end)
    except Exception:  # as above: it takes no second turn
        return None
    return between.removeprefix(closing).lstrip()


def _shared_start(control_strings: re.Pattern[str], *texts: str) -> str:
    """What two texts have in common at their start, in whole control strings and whole pieces between them."""
    pieces = (re.split(f"({control_strings.pattern})", text) for text in texts)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*pieces, strict=False)))


def _render(tokenizer: "PreTrainedTokenizerBase", *turns: tuple[str, str], generate: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
