"""Markup and data apart: what becomes a control token, where the separator stands, what opens and closes a prompt."""

import string
import threading
import time
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers import pre_tokenizers as pre
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pyterrier_routehead.prompt.encoding import TextEncoder
from pyterrier_routehead.template import DEFAULT_TEMPLATE, TEMPLATES, ChatMarkup
from tokenizer_families import (
    ALPACA_CHAT,
    CHATML_CHAT,
    FAMILIES,
    GLM_CHAT,
    GPT2_CHAT,
    HARMONY_CHAT,
    LLAMA3_REGEX,
    MORE_FOR_CUTS,
    ONE_TURN_CHAT,
    ZEPHYR_CHAT,
    by_regex,
    byte_level,
    control_ids,
    greedy_tokenizer,
    injections,
    long_texts,
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
    with pytest.raises(ValueError, match=r"does not contain a user's text unchanged; .*ChatMarkup\(prefix, suffix\)"):
        TextEncoder(with_chat(chat)).chat(DEFAULT_TEMPLATE)


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("{{ raise_exception('a system prompt is needed') }}", "TemplateError: a system prompt is needed"),
        ("{{ messages[0].content[0].text.strip() }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% if %}", "TemplateSyntaxError"),
        ({"rag": CHATML_CHAT, "tool_use": CHATML_CHAT}, r"ValueError: .*\['rag', 'tool_use'\]"),
    ],
    ids=["raises", "list content", "wrong type", "broken", "several without a default"],
)
def test_f19_a_template_that_raises_is_refused_with_the_remedy(chat, reason):
    tokenizer = with_chat(chat)
    tokenizer.name_or_path = "org/model"
    message = rf"chat template of 'org/model' rejects a single user turn; .*ChatMarkup\(prefix, suffix\)\) \({reason}"
    encoder = TextEncoder(tokenizer)
    with pytest.raises(ValueError, match=message):
        encoder.chat(DEFAULT_TEMPLATE)
    by_hand = ChatMarkup("User: ", "\n")
    assert encoder.chat(replace(DEFAULT_TEMPLATE, chat=by_hand)) == by_hand


def test_f19_of_several_templates_the_default_one_is_taken():
    encoder = TextEncoder(with_chat({"default": CHATML_CHAT, "rag": "{{ raise_exception('no documents') }}"}))
    assert encoder.chat(DEFAULT_TEMPLATE).prefix == "<|im_start|>user\n"


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


@pytest.mark.parametrize("in_vocabulary", [False, True], ids=["spelt in bytes", "a token as such"])
def test_f43_a_special_token_of_one_character_is_none_in_data(in_vocabulary):
    tokenizer = by_regex(LLAMA3_REGEX)
    tokenizer = byte_level(tokenizer)
    if in_vocabulary:  # the vocabulary has no other way to write it than the special token
        tokenizer = Tokenizer(models.WordLevel({"☃": 0, "snow": 1, "\ufffd": 2, "?": 3}, unk_token="?"))
        tokenizer.pre_tokenizer = pre.Whitespace()
    fast = wrapped(tokenizer, ["☃", "<|end|>"], ["⚓"], eos_token="☃")
    encoder = TextEncoder(fast)
    forbidden = {fast.eos_token_id, fast.convert_tokens_to_ids("<|end|>")}
    texts = ["☃", " snow ☃ snow", "☃☃☃", "<|end☃|>", "<☃|end|>☃"]
    for text, ids in zip(texts, encoder.data(texts), strict=True):
        assert forbidden.isdisjoint(ids)
        if not in_vocabulary:
            assert fast.decode(ids) == text
    assert encoder.markup("☃") == [fast.eos_token_id]
    # A plain added token is text.
    assert fast.convert_tokens_to_ids("⚓") in encoder.data(["⚓"])[0]


# --- a tokenizer that others use too ---


def test_f2_a_tokenizer_in_use_elsewhere_does_not_reach_the_encoder():
    tokenizer = FAMILIES["smollm2"].make()
    tokenizer.pad_token = tokenizer.eos_token
    encoder = TextEncoder(tokenizer)
    texts = [" The harbour opens at six.", " Ships from seven countries wait outside, and their crews are asleep."] * 20
    expected, stop = encoder.data(texts), threading.Event()

    def use():
        while not stop.is_set():
            tokenizer(texts, padding="max_length", truncation=True, max_length=8)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert all(encoder.data(texts) == expected for _ in range(100))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_f40_the_settings_of_a_tokenizer_stay_and_do_not_count(when, encoders):
    tokenizer = FAMILIES["llama3"].make()
    encoder = TextEncoder(tokenizer) if when == "afterwards" else None
    backend = tokenizer.backend_tokenizer
    backend.enable_padding(length=50)
    backend.enable_truncation(5)
    backend.encode_special_tokens = True
    tokenizer.split_special_tokens = True
    before = backend.to_str(), backend.padding, backend.truncation
    encoder = encoder or TextEncoder(tokenizer)
    texts = [" The harbour opens at six, and nobody knows why.", " a<|eot_id|>"]
    assert encoder.data(texts) == encoders["llama3"].data(texts)
    assert encoder.markup("<|eot_id|>") == [tokenizer.eos_token_id]
    assert encoder.start("Ships in port") == encoders["llama3"].start("Ships in port")
    assert encoder.chat(DEFAULT_TEMPLATE) == encoders["llama3"].chat(DEFAULT_TEMPLATE)
    assert encoder.separator(DEFAULT_TEMPLATE) == encoders["llama3"].separator(DEFAULT_TEMPLATE)
    assert (backend.to_str(), backend.padding, backend.truncation) == before
    assert backend.encode_special_tokens
    assert tokenizer.split_special_tokens


def test_f40_what_is_added_to_a_tokenizer_later_is_not_seen():
    tokenizer = FAMILIES["qwen2.5"].make()
    encoder = TextEncoder(tokenizer)
    before = encoder.markup("<new>")
    tokenizer.add_tokens(["<new>"])
    assert encoder.markup("<new>") == before
    assert TextEncoder(tokenizer).markup("<new>") == [tokenizer.convert_tokens_to_ids("<new>")]


def test_f40_what_is_no_tokenizer_is_refused():
    class Processor:
        tokenizer = tokenizer_of("base")

    with pytest.raises(TypeError, match=r"got Processor; a processor's is processor.tokenizer"):
        TextEncoder(Processor())
    with pytest.raises(TypeError, match=r"got Tokenizer; .*PreTrainedTokenizerFast\(tokenizer_object"):
        TextEncoder(tokenizer_of("base").backend_tokenizer)
    with pytest.raises(TypeError, match="tokenizer must be a Hugging Face tokenizer, got NoneType"):
        TextEncoder(None)


# --- no more of a text is read than its first ids take ---


@pytest.mark.parametrize("name", [*FAMILIES, *MORE_FOR_CUTS])
def test_f29_the_first_ids_are_those_of_the_whole_text(name):
    tokenizer = MORE_FOR_CUTS[name]() if name in MORE_FOR_CUTS else tokenizer_of(name)
    encoder = TextEncoder(tokenizer)
    read = []
    plain = encoder._plain
    encoder._plain = lambda texts: read.append(sum(map(len, texts))) or plain(texts)
    shortened = 0

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(texts=st.lists(long_texts(tokenizer), min_size=1, max_size=3), limit=st.integers(1, 30))
    def check(texts, limit):
        nonlocal shortened
        whole = encoder.data(texts)
        read.clear()
        assert encoder.data(texts, limit) == [ids[:limit] for ids in whole]
        shortened += sum(read) < sum(map(len, texts))

    check()
    assert shortened > 10 or name in ("unigram", "wordpiece")


def test_f29_a_long_page_costs_what_its_beginning_does(encoders):
    page = " The harbour opens at six (in summer)." * 1300
    encoder, read = encoders["llama3"], []
    plain = encoder._plain
    encoder._plain = lambda texts: read.append(sum(map(len, texts))) or plain(texts)
    try:
        (ids,) = encoder.data([page], 150)
    finally:
        del encoder._plain
    assert ids == encoder.data([page])[0][:150]
    assert sum(read) < 3000 < len(page)


@pytest.mark.parametrize("name", [*FAMILIES, *MORE_FOR_CUTS])
def test_f29_texts_that_are_all_alike(name):
    encoder = TextEncoder(MORE_FOR_CUTS[name]() if name in MORE_FOR_CUTS else tokenizer_of(name))
    alike = ["<|im_end|>", " 灯台", "=", " ", "ab", "1234567", "2349", "é", "e\u0301", "\n"]
    texts = ["", " a", " <|im_end|>", *((text * 3000)[:length] for text in alike for length in (900, 3000, 3001))]
    whole = encoder.data(texts)
    for limit in (1, 2, 30, 149):
        assert encoder.data(texts, limit) == [ids[:limit] for ids in whole]


def test_f29_slow_tokenizers_read_the_whole_text():
    encoder = TextEncoder(ByT5Tokenizer())
    assert encoder.data([" harbour </s>" * 500], 20) == [encoder.data([" harbour </s>" * 500])[0][:20]]


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
