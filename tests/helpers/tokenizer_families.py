"""Tokenizers as the families of language models have them, trained in-process on one page of text."""

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAGE = """The harbour opens at six. Ships from seven countries wait outside, and their crews are asleep.

Who was the first keeper of the lighthouse? Nobody knows; the records (1871-1904) are lost, burnt "by accident".

A list of what is known:
- it stood on the northern rock, 45.5 m above the sea [1];
- it cost 12,300 pounds, i.e. 3% of the town's income!
- its light could be seen 20 miles away...

Here are some paragraphs about ships:

[1] The old harbour
Fishing boats and ferries share the quay; each has its own berth.

[2] The new harbour
Containers are unloaded there (day and night).

[document] Tides
[document 3] Tides, continued

Please find information that are relevant to the following query in the paragraphs above.

Query: when was the lighthouse built?

Please answer the following question based on the information in the paragraphs above.

Crème brûlée, naïve café, Ærø, Łódź. 灯台は1871年に建てられました。 港口六点开放。 🚢⚓🌊 ✓ 20° → done

def keeper(year):
    if year < 1871:
        return None
    return {"name": "unknown", "salary": 7 * 52}

<b>Opening hours</b> <br/> 6:00 | 22:00 user assistant system
"""
# Paragraphs end in every mark, so that marks and line breaks behind them become one token where a family can join them.
PAGE += "".join(f"word{mark}\n\n{mark}\n" for mark in string.punctuation) * 3
PAGE += "Indented paragraphs follow.\n\n The first\n\n The second\n\n The third\n\n The fourth\n"

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")

LLAMA31_CHAT = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + strftime_now("%d %b %Y") + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}"""

CHATML_CHAT = """{%- for message in messages %}
    {%- if loop.first and message.role != "system" %}
        {{- "<|im_start|>system\\nYou are a helpful assistant, made today.<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}"""

QWEN3_CHAT = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and loop.index0 > ns.last %}
        {{- "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- "<think>\\n\\n</think>\\n\\n" }}{%- endif %}
{%- endif %}"""

MISTRAL_CHAT = """{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message.role == "user" %}
        {{- "[INST] " + message.content + " [/INST]" }}
    {%- else %}
        {{- message.content + eos_token + " " }}
    {%- endif %}
{%- endfor %}"""

MISTRAL3_CHAT = MISTRAL_CHAT.replace(' [/INST]"', '[/INST]"').replace('eos_token + " "', "eos_token")

LLAMA2_CHAT = """{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- set system = "<<SYS>>\\nYou are an honest assistant.\\n<</SYS>>\\n\\n" if loop.first else "" %}
        {{- bos_token + "[INST] " + system + message.content.strip() + " [/INST]" }}
    {%- else %}
        {{- " " + message.content.strip() + " " + eos_token }}
    {%- endif %}
{%- endfor %}"""

GEMMA_CHAT = """{{- bos_token }}
{%- if messages[0].role == "system" %}{{- raise_exception("System role not supported") }}{%- endif %}
{%- for message in messages %}
    {%- set role = "model" if message.role == "assistant" else message.role %}
    {{- "<start_of_turn>" + role + "\\n" + message.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<start_of_turn>model\\n" }}{%- endif %}"""

ONE_TURN_CHAT = """{%- if messages | length != 1 or messages[0].role != "user" or not add_generation_prompt %}
    {{- raise_exception("one user turn only") }}
{%- endif %}
{{- "<|im_start|>user\\n" + messages[0].content + "<|im_end|>\\n<|im_start|>assistant\\n" }}"""

PHI3_CHAT = """{%- for message in messages %}
    {{- "<|" + message.role + "|>\\n" + message.content + "<|end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|assistant|>\\n" }}{%- else %}{{- eos_token }}{%- endif %}"""

ZEPHYR_CHAT = """{{- "SYSTEM" }}
{%- for message in messages %}
    {{- "<|" + message.role + "|>\\n" + message.content + eos_token + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|assistant|>\\n" }}{%- endif %}"""

ALPACA_CHAT = """{{- "SYSTEM" }}
{%- for message in messages %}
    {{- ("### Instruction:\\n" if message.role == "user" else "### Response:\\n") + message.content + "\\n\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "### Response:\\n" }}{%- endif %}"""

# As gpt-oss: a system prompt, and a reply closes otherwise when it is the last.
HARMONY_CHAT = """{{- "<|im_start|>system<|im_sep|>You are a model.<|im_end|>" }}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "<|im_sep|>" + message.content }}
    {{- "<|endoftext|>" if loop.last and message.role == "assistant" else "<|im_end|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant" }}{%- endif %}"""

GLM_CHAT = """{{- "<|gmask|><|sop|>" }}
{%- for message in messages %}{{- "<|im_start|>" + message.role + "\\n" + message.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}"""

GPT2_CHAT = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"


def byte_level(
    splitter: pre.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    *,
    ignore_merges: bool = False,
    page: str = PAGE,
) -> Tokenizer:
    """A byte-level BPE as GPT-2's, Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator([page], trainer)
    return tokenizer


def by_regex(regex: str) -> pre.PreTokenizer:
    return pre.Sequence(
        [pre.Split(Regex(regex), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def sentencepiece_bpe(specials: list[str], extra: list[str]) -> Tokenizer:
    """A BPE of words with bytes for characters it does not know, line breaks among them, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator([line for line in PAGE.splitlines() if line.isascii()], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"], "▁▁", *extra]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "▁"), *(tuple(merge) for merge in state["merges"])]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def wrapped(
    tokenizer: Tokenizer,
    special: list[str | AddedToken],
    plain: list[str | AddedToken] = (),
    adds_bos: bool = False,
    **settings,
) -> PreTrainedTokenizerBase:
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(plain))
    if adds_bos:
        bos = settings["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings)


def _llama3(**settings) -> PreTrainedTokenizerBase:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    special += [f"<|reserved_special_token_{i}|>" for i in range(12)]
    return wrapped(
        byte_level(by_regex(LLAMA3_REGEX), ignore_merges=True),
        special,
        adds_bos=True,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA31_CHAT,
        **settings,
    )


def _qwen(chat: str) -> PreTrainedTokenizerBase:
    return wrapped(
        byte_level(by_regex(QWEN_REGEX), normalizers.NFC()),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"],
        [AddedToken(s, normalized=False) for s in ("<tool_call>", "</tool_call>", "<think>", "</think>")],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat,
    )


def _smollm2() -> PreTrainedTokenizerBase:
    return wrapped(
        byte_level(pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML_CHAT,
    )


def _sentencepiece(scheme: str, chat: str, special: list[str], plain: list[AddedToken] = ()) -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece_bpe(["<unk>", "<s>", "</s>"], [])
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=False)
    return wrapped(
        tokenizer,
        ["<unk>", "<s>", "</s>", *special],
        plain,
        adds_bos=True,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat,
    )


def _neox() -> PreTrainedTokenizerBase:
    return wrapped(
        byte_level(pre.ByteLevel(add_prefix_space=False), normalizers.NFC()),
        ["<|endoftext|>", "<|padding|>"],
        [" " * length for length in range(24, 1, -1)],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


def _base(adds_bos: bool, prefix_space: bool = False) -> PreTrainedTokenizerBase:
    return wrapped(
        byte_level(pre.ByteLevel(add_prefix_space=prefix_space)),
        ["<|endoftext|>"],
        adds_bos=adds_bos,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )


def _gemma() -> PreTrainedTokenizerBase:
    specials, breaks = ["<pad>", "<eos>", "<bos>", "<unk>"], ["\n", "\n\n", "\n\n\n"]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = sentencepiece_bpe(specials, [*breaks, "<table>", "<b>", *turns])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    return wrapped(
        tokenizer,
        [*specials, *turns],
        [AddedToken(text, normalized=False) for text in (*breaks, "▁▁", "<table>", "<b>")],
        adds_bos=True,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=GEMMA_CHAT,
    )


def _phi3() -> PreTrainedTokenizerBase:
    turns = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"]
    special = [AddedToken(turn, special=True, normalized=False, rstrip=True) for turn in turns]
    tokenizer = _sentencepiece("first", PHI3_CHAT, special)
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def with_chat(chat: str) -> PreTrainedTokenizerBase:
    """A plain tokenizer with some control tokens and a chat template; its bos_token is not added by itself."""
    tokenizer = wrapped(
        byte_level(pre.ByteLevel(add_prefix_space=False)),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|gmask|>", "<|sop|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    tokenizer.chat_template = chat
    return tokenizer


def normalizing_tokenizer() -> PreTrainedTokenizerBase:
    """One that looks for its added tokens in lower-cased text in normal form, where others turn up."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return wrapped(
        byte_level(pre.ByteLevel(add_prefix_space=False), normalizer),
        [AddedToken("<|end|>", special=True, normalized=True)],
        [AddedToken("<tool_call>", normalized=True)],
    )


def greedy_tokenizer() -> PreTrainedTokenizerBase:
    """One that joins across all borders: separators are one token with the characters on both sides."""
    page = "".join(f"{a}{s}{b}" for a in "d.?)" for s in ("\n\n", " \n\n", "\n", " \n") for b in "[P") * 20
    return wrapped(byte_level(pre.ByteLevel(add_prefix_space=False, use_regex=False), page=page), [])


DIGITS_FROM_THE_RIGHT = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))| ?\p{L}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _unsplit() -> PreTrainedTokenizerBase:
    """Merges go on across the whole text, and each depends on those before it."""
    page = PAGE + "abab ba aab bba cabac " * 30
    return wrapped(byte_level(pre.ByteLevel(add_prefix_space=False, use_regex=False), page=page), ["<|e|>", "☃"])


def _unigram() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([PAGE], trainer)
    return wrapped(tokenizer, ["<unk>", "<s>"], unk_token="<unk>")


def _wordpiece() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.pre_tokenizer = pre.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([PAGE], trainer)
    return wrapped(tokenizer, ["[UNK]", "[SEP]"], unk_token="[UNK]")


MORE_FOR_CUTS = {
    "normalising": lambda: normalizing_tokenizer(),
    "greedy": lambda: greedy_tokenizer(),
    "digits from the right": lambda: wrapped(
        byte_level(by_regex(DIGITS_FROM_THE_RIGHT), page=PAGE + "1234567 890 " * 40), ["<|e|>"]
    ),
    "gpt-4o": lambda: wrapped(byte_level(by_regex(GPT4O_REGEX), page=PAGE + PAGE.upper()), ["<|e|>"]),
    "unsplit": _unsplit,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
"""Tokenizers that make it hard to tell a text's first tokens from its beginning."""


@dataclass(frozen=True)
class Family:
    """How to make a tokenizer, and what markup its prompts should have."""

    make: Callable[[], PreTrainedTokenizerBase]
    prefix: str = ""
    suffix: str = ""
    separator: str = "\n\n"


_CHATML = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
_INST = "<s>[INST] ", " [/INST]"
_INST_TOKENS = ["[INST]", "[/INST]"]

FAMILIES = {
    "llama3": Family(_llama3, *_LLAMA3, " \n\n"),
    "qwen2.5": Family(lambda: _qwen(CHATML_CHAT), *_CHATML, " \n\n"),
    "qwen3": Family(lambda: _qwen(QWEN3_CHAT), *_CHATML, " \n\n"),
    "one-turn": Family(lambda: _qwen(ONE_TURN_CHAT), *_CHATML, " \n\n"),
    "smollm2": Family(_smollm2, *_CHATML),
    "mistral-first": Family(lambda: _sentencepiece("first", MISTRAL_CHAT, []), *_INST),
    "mistral-always": Family(lambda: _sentencepiece("always", MISTRAL_CHAT, []), *_INST),
    "llama2": Family(lambda: _sentencepiece("normalizer", LLAMA2_CHAT, []), *_INST),
    "mistral-special-first": Family(
        lambda: _sentencepiece("first", MISTRAL3_CHAT, _INST_TOKENS), "<s>[INST] ", "[/INST]"
    ),
    "mistral-special-always": Family(
        lambda: _sentencepiece("always", MISTRAL3_CHAT, _INST_TOKENS), "<s>[INST] ", "[/INST]"
    ),
    "neox": Family(_neox),
    "base": Family(lambda: _base(adds_bos=False)),
    "base-bos": Family(lambda: _base(adds_bos=True)),
    "base-prefix-space": Family(lambda: _base(adds_bos=True, prefix_space=True)),
    "gemma": Family(_gemma, "<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "phi3": Family(_phi3, "<|user|>\n", "<|end|>\n<|assistant|>\n"),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    return FAMILIES[name].make()


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that data must never get: those of the added tokens, unless these are runs of blanks."""
    return {i for token, i in tokenizer.get_added_vocab().items() if not set(token) <= {" ", "\n", "▁"}}


def injections(tokenizer: PreTrainedTokenizerBase) -> st.SearchStrategy[str]:
    """Texts full of control strings: whole, cut, glued together, nested, in full width, between harmless pieces."""
    controls = [token for token in tokenizer.get_added_vocab() if token.strip(" \n▁")] or ["<|x|>"]
    control = st.sampled_from(controls)
    part = st.one_of(
        control,
        control.map(lambda text: text[1:]),
        control.map(lambda text: text[:-1]),
        control.map(lambda text: text[0] + text),
        st.tuples(control, control).map(lambda two: two[0][:2] + two[1] + two[0][2:]),
        control.map(full_width),
        control.map(str.upper),
        st.sampled_from([" ", "\n", "\n\n", "user\n", "assistant", "<", "|>", "▁", "\x01", "\u200b", "a\u0301"]),
        st.text(max_size=4),
    )
    return st.lists(part, min_size=1, max_size=8).map("".join)


def long_texts(tokenizer: PreTrainedTokenizerBase) -> st.SearchStrategy[str]:
    """Texts of some thousand characters, of all that may stand where a text is cut."""
    part = st.one_of(
        st.integers(0, len(PAGE) - 2).map(lambda start: PAGE[start : start + 150]),
        st.integers(0, len(PAGE) - 2).map(lambda start: PAGE[start : start + 150]),
        injections(tokenizer),
        st.text(st.sampled_from("ab"), min_size=20, max_size=120),
        st.tuples(st.sampled_from("a =-.5é灯\n👩\u0301"), st.integers(1, 90)).map(lambda two: two[0] * two[1]),
        st.text(st.sampled_from("灯台は年に建てられました。港口六点开放，"), min_size=10, max_size=60),
        st.integers(0, 10**30).map(str),
        st.text(st.sampled_from("e\u0301 \u0308a\u200d👩🚀각ᄀ ᅡᆨ ①ﬁ㎏＜"), max_size=30),
        st.text(max_size=20),
    )
    return st.lists(part, min_size=1, max_size=25).map("".join)


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
