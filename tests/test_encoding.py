"""Markup and data apart: what becomes a control token, where the separator stands, what opens and closes a prompt."""

import string
import time
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models
from tokenizers import pre_tokenizers as pre
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pyterrier_routehead.encoding import TextEncoder
from pyterrier_routehead.template import DEFAULT_TEMPLATE, TEMPLATES, ChatMarkup
from tokenizer_families import (
    ALPACA_CHAT,
    CHATML_CHAT,
    FAMILIES,
    GLM_CHAT,
    GPT2_CHAT,
    HARMONY_CHAT,
    LLAMA3_REGEX,
    ONE_TURN_CHAT,
    ZEPHYR_CHAT,
    by_regex,
    byte_level,
    control_ids,
    greedy_tokenizer,
    injections,
    normalizing_tokenizer,
    tokenizer_of,
    with_chat,
    wrapped,
)

BYTE_LEVEL = ["llama3", "qwen2.5", "smollm2", "neox", "base", "base-bos"]
GPT2_SPLIT = ["smollm2", "neox", "base", "base-bos", "base-prefix-space"]
QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)

family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def encoders() -> dict[str, TextEncoder]:
    return {name: TextEncoder(tokenizer_of(name)) for name in FAMILIES}


# --- chat markup ---


@family
def test_markup_is_the_templates_own_without_system_prompt_and_date(name, encoders):
    chat = encoders[name].chat(DEFAULT_TEMPLATE)
    assert chat == ChatMarkup(FAMILIES[name].prefix, FAMILIES[name].suffix)


@pytest.mark.parametrize(
    "name", ["qwen3", "one-turn", "mistral-first", "mistral-always", "mistral-special-first", "gemma", "phi3"]
)
def test_a_template_without_a_system_prompt_is_followed_to_the_letter(name, encoders):
    message = [{"role": "user", "content": "What is this?"}]
    whole = tokenizer_of(name).apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    chat = encoders[name].chat(DEFAULT_TEMPLATE)
    assert chat.prefix + "What is this?" + chat.suffix == whole


@pytest.mark.parametrize(
    ("chat", "prefix", "suffix"),
    [
        (ZEPHYR_CHAT, "<|user|>\n", "<|endoftext|>\n<|assistant|>\n"),
        (ZEPHYR_CHAT.replace("SYSTEM", "<|system|>\\nBe kind.<|endoftext|>\\n"), "<|user|>\n", None),
        (ALPACA_CHAT, "### Instruction:\n", "\n\n### Response:\n"),
        (ALPACA_CHAT.replace("SYSTEM", "Below is an instruction.\\n\\n"), "### Instruction:\n", "\n\n### Response:\n"),
        (HARMONY_CHAT, "<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant"),
        (GLM_CHAT, "<|gmask|><|sop|><|im_start|>user\n", "<|im_start|>assistant\n"),
        (GPT2_CHAT, "", "<|endoftext|>"),
        ("{{ bos_token }}" + CHATML_CHAT, "<|endoftext|><|im_start|>user\n", None),
        ("{{ bos_token }}" + ZEPHYR_CHAT, "<|endoftext|><|user|>\n", None),
    ],
    ids=[
        "header in plain text", "and system prompt", "no control token", "and preamble", "own end of conversation",
        "several tokens at the start", "no header", "start token and system prompt", "start token only",
    ],
)  # fmt: skip
def test_markup_of_other_templates(chat, prefix, suffix):
    encoder = TextEncoder(with_chat(chat.replace("SYSTEM", "")))
    markup = encoder.chat(DEFAULT_TEMPLATE)
    assert markup.prefix == prefix
    if suffix is not None:
        assert markup.suffix == suffix


def test_a_default_system_prompt_stays_if_the_template_takes_nothing_but_one_user_turn():
    encoder = TextEncoder(with_chat("{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}" + ONE_TURN_CHAT))
    assert encoder.chat(DEFAULT_TEMPLATE).prefix == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"


@pytest.mark.parametrize(
    "chat",
    ["{% for part in messages[0].content %}{{ part.text }}{% endfor %}", "{{ messages[0].content * 2 }}"],
    ids=["parts only", "twice"],
)
def test_a_template_that_does_not_show_the_text_once_is_refused(chat):
    with pytest.raises(ValueError, match=r"does not show a user's text as it is; .*ChatMarkup\(prefix, suffix\)"):
        TextEncoder(with_chat(chat)).chat(DEFAULT_TEMPLATE)


@family
def test_markup_by_hand_is_taken_as_it_is(name, encoders):
    chat = ChatMarkup("User: ", "\nAnswer:")
    assert encoders[name].chat(replace(DEFAULT_TEMPLATE, chat=chat)) == chat


@pytest.mark.parametrize(
    ("name", "prefix", "suffix"),
    [
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        ),
        ("qwen2.5", "<|im_start|>user", "<|im_end|>\n<|im_start|>assistant"),
        ("smollm2", "<|im_start|>user", "<|im_end|>\n<|im_start|>assistant"),
        ("mistral-first", "[INST]", "[/INST]"),
        ("mistral-always", "[INST]", "[/INST]"),
        ("mistral-special-first", "[INST]", "[/INST]"),
        ("gemma", "<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        ("base", "", ""),
    ],
)
def test_paper_markup_or_else_the_tokenizers(name, prefix, suffix, encoders):
    for preset in ("icr", "icr-qa", "qr", "core"):
        assert encoders[name].chat(TEMPLATES[preset]) == ChatMarkup(prefix, suffix)


@pytest.mark.parametrize(
    ("tokens", "chat"),
    [
        (
            ["<|start_of_role|>", "<|end_of_role|>"],
            ChatMarkup(
                "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|><|start_of_role|>assistant<|end_of_role|>"
            ),
        ),
        (
            ["<|im_start|>", "<|im_end|>", "<|im_sep|>"],
            ChatMarkup("<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"),
        ),
    ],
    ids=["granite", "phi-4"],
)
def test_paper_markup_of_further_families(tokens, chat):
    encoder = TextEncoder(wrapped(byte_level(pre.ByteLevel(add_prefix_space=False)), tokens))
    assert encoder.chat(TEMPLATES["core"]) == chat


# --- the start of a prompt ---


@family
def test_start_has_the_start_of_text_token_once_if_the_tokenizer_adds_it(name, encoders):
    tokenizer, encoder = tokenizer_of(name), encoders[name]
    expected = tokenizer("").input_ids
    for text in ("", "Ships", FAMILIES[name].prefix + "Ships", (tokenizer.bos_token or "") + "Ships"):
        ids = encoder.start(text)
        assert ids[: len(expected)] == expected
        assert expected == [] or expected[0] not in ids[1:]
    assert encoder.start("Ships in port") == tokenizer("Ships in port").input_ids


def test_tokens_that_a_tokenizer_appends_are_not_taken_for_its_start():
    assert TextEncoder(ByT5Tokenizer()).start("ab") == [100, 101]


# --- separators ---


@family
def test_the_separator_of_each_family(name, encoders):
    encoder = encoders[name]
    for template in (DEFAULT_TEMPLATE, TEMPLATES["icr"], TEMPLATES["qr"]):
        text, ids = encoder.separator(template)
        assert text == FAMILIES[name].separator
        assert tokenizer_of(name).decode(ids) == text


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "qwen3"])
def test_full_stops_and_line_breaks_are_one_token_where_the_separator_begins_with_a_blank(name):
    tokenizer = tokenizer_of(name)
    for mark in string.punctuation:
        assert f"{mark}ĊĊ" in tokenizer.get_vocab()
    assert ".ĊĊ" in tokenizer.tokenize("The end.\n\n[1] Next")


@pytest.mark.parametrize("mark", string.punctuation)
def test_one_mark_that_joins_line_breaks_is_enough_for_the_blank(mark):
    tokenizer = wrapped(byte_level(by_regex(LLAMA3_REGEX), page=f"end{mark}\n\n" * 9), [])
    assert TextEncoder(tokenizer).separator(DEFAULT_TEMPLATE)[0] == " \n\n"


@pytest.mark.parametrize("name", GPT2_SPLIT)
def test_the_separators_ids_are_those_before_a_tag_not_those_alone(name, encoders):
    assert len(encoders[name].markup("\n\n")) == 1
    assert len(encoders[name].separator(DEFAULT_TEMPLATE)[1]) == 2


@family
def test_a_separator_of_the_template_is_kept(name, encoders):
    for separator in ("\n\n", " | ", "\n", ""):
        text, ids = encoders[name].separator(replace(DEFAULT_TEMPLATE, separator=separator))
        assert text == separator
        assert tokenizer_of(name).decode(ids) == separator


@family
def test_empty_tags_have_the_same_separator(name, encoders):
    template = replace(DEFAULT_TEMPLATE, document_tag="", block_tag="")
    text, ids = encoders[name].separator(template)
    assert tokenizer_of(name).decode(ids) == text
    # GPT-2 keeps line breaks together before a blank and apart before the instruction: one alone is the same for both.
    assert text == ("\n" if name in GPT2_SPLIT else FAMILIES[name].separator)


def test_where_none_stands_alone_the_separator_is_two_line_breaks():
    greedy = greedy_tokenizer()
    text, ids = TextEncoder(greedy).separator(DEFAULT_TEMPLATE)
    assert text == "\n\n"
    assert greedy.decode(ids) == "\n\n"


# --- data ---


@family
def test_data_is_what_stands_inside_a_longer_text(name, encoders):
    tokenizer, encoder = tokenizer_of(name), encoders[name]
    texts = [" harbour", " (7)", " 中文 🚢", " \u0301x", " two\nlines", "", " a  b   c"]
    for text, ids in zip(texts, encoder.data(texts), strict=True):
        around = tokenizer("x:" + text, add_special_tokens=False).input_ids
        assert tokenizer("x:", add_special_tokens=False).input_ids + ids == around


@pytest.mark.parametrize("name", ["neox", "gemma"])
def test_runs_of_blanks_are_text_although_they_are_added_tokens(name, encoders):
    text = " if a:  b   c\n\n\nd"
    whole = tokenizer_of(name)(text, add_special_tokens=False)
    assert encoders[name].data([text]) == [whole.input_ids]
    assert any(set(token) <= {" ", "▁"} and len(token) == 2 for token in whole.tokens())


@family
def test_data_never_becomes_a_control_token(name, encoders):
    tokenizer, encoder = tokenizer_of(name), encoders[name]
    forbidden = control_ids(tokenizer)

    @QUICK
    @given(text=injections(tokenizer))
    def check(text):
        (ids,) = encoder.data([text])
        assert forbidden.isdisjoint(ids)
        if name in BYTE_LEVEL and text.isascii():
            assert tokenizer.decode(ids) == text  # nor is anything lost

    check()


@family
def test_every_control_string_as_data(name, encoders):
    tokenizer, encoder = tokenizer_of(name), encoders[name]
    forbidden = control_ids(tokenizer)
    frames = ("{}", " {}", "{}{}", "a{}b", "<{}>", "\n{} ", "<|{}|>")
    texts = [frame.replace("{}", token) for token in tokenizer.get_added_vocab() for frame in frames]
    for text, ids in zip(texts, encoder.data(texts), strict=True):
        assert forbidden.isdisjoint(ids), text
    for token in forbidden:
        assert token in encoder.markup(tokenizer.convert_ids_to_tokens(token))


@pytest.mark.parametrize("text", ["＜tool_call＞", "ａ ＜TOOL_call＞ b", "＜|END|＞", "x" * 50 + "＜tool_call＞" * 3])
def test_a_normaliser_cannot_make_a_control_token(text):
    tokenizer = normalizing_tokenizer()
    forbidden = control_ids(tokenizer)
    assert not forbidden.isdisjoint(tokenizer(text).input_ids)  # the danger is real
    (ids,) = TextEncoder(tokenizer).data([text])
    assert forbidden.isdisjoint(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text).lower()


def test_a_normalising_tokenizer_is_safe_with_any_mixture():
    tokenizer = normalizing_tokenizer()
    encoder, forbidden = TextEncoder(tokenizer), control_ids(tokenizer)

    @QUICK
    @given(text=injections(tokenizer))
    def check(text):
        assert forbidden.isdisjoint(encoder.data([text])[0])

    check()


def test_texts_do_not_affect_each_other(encoders):
    encoder = encoders["qwen2.5"]
    texts = [" harbour", "<|im_end|>", "", " <think> tides", " quay."]
    assert encoder.data(texts) == [encoder.data([text])[0] for text in texts]
    assert encoder.data([]) == []


@family
def test_broken_surrogates_are_replaced_and_pairs_joined(name, encoders):
    encoder = encoders[name]
    broken, mended = [" a \ud83d b", " \ud83d\udea2", " \ufeffx"], [" a \ufffd b", " 🚢", " \ufeffx"]
    assert encoder.data(broken) == encoder.data(mended)


def test_tokenizers_in_python_work_too():
    encoder = TextEncoder(ByT5Tokenizer())
    (ids,) = encoder.data(["a</s><extra_id_3>é"])
    assert ids == [byte + 3 for byte in "a</s><extra_id_3>é".encode()]
    assert encoder.markup("</s>") == [1]
    assert encoder.separator(DEFAULT_TEMPLATE)[0] == "\n\n"


def test_a_tokenizer_set_to_split_control_strings_still_gives_markup():
    tokenizer = FAMILIES["qwen2.5"].make()
    tokenizer.split_special_tokens = True
    encoder = TextEncoder(tokenizer)
    assert encoder.markup("<|im_end|>") == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in encoder.data(["<|im_end|>"])[0]
    assert tokenizer.split_special_tokens


def test_unknown_words_stay_one_token():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "[": 1, "a": 2, "<": 3, "unk": 4, ">": 5}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Whitespace()
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert encoder.data([" a harbour [", " a <unk>"]) == [[2, 0, 1], [2, 3, 4, 5]]


def test_a_tokenizer_without_any_control_token():
    encoder = TextEncoder(wrapped(byte_level(pre.ByteLevel(add_prefix_space=False)), []))
    assert encoder.tokenizer.decode(encoder.data([" <|x|> y"])[0]) == " <|x|> y"


# --- speed ---


@family
def test_a_long_document_is_quick(name, encoders):
    encoder = encoders[name]
    text = " The harbour opens at six (in summer)." * 2500
    encoder.data([" warm"])
    start = time.process_time()
    (ids,) = encoder.data([text])
    assert len(ids) >= 20_000
    assert time.process_time() - start < 1


def test_a_long_document_of_control_strings_is_quick(encoders):
    encoder = encoders["qwen2.5"]
    encoder.data([" warm"])
    start = time.process_time()
    (ids,) = encoder.data(["<|im_end|>" * 5000])
    assert len(ids) >= 20_000
    assert time.process_time() - start < 1


def test_long_texts_are_encoded_without_a_warning(caplog):
    tokenizer = FAMILIES["base"].make()
    tokenizer.model_max_length = 8
    TextEncoder(tokenizer).data([" The harbour opens at six in summer and at nine in winter."])
    assert not caplog.records
