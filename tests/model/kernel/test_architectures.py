"""Head scores of many architectures against the unmodified model, and what a model may and may not go through."""

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from model_state import bitwise_equal, snapshot, weights
from pyterrier_routehead.common.errors import ListTooLongError, UnsupportedArchitectureError
from pyterrier_routehead.heads import Head, all_heads
from pyterrier_routehead.kernel import exact as masked
from pyterrier_routehead.kernel import passes as passes_module
from pyterrier_routehead.kernel.patterns import PATTERNS, positions_taken
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.kernel.scores import ListScores
from pyterrier_routehead.model.fingerprint import same_weights
from pyterrier_routehead.model.frozen import FrozenLLM
from pyterrier_routehead.prompt.build import Candidate, DocumentBlock, ListPrompt, PromptBuilder
from pyterrier_routehead.template import DEFAULT_TEMPLATE
from reference import ReferenceScores, reference_scores
from tiny import ALL, ARCHITECTURES, HEADS, LAYERS, PROMPTS, VOCABULARY, permuted, random_ids, random_prompt, tiny_model

# One of the prompts stands farther from its tail than some architectures see.
pytestmark = pytest.mark.filterwarnings("ignore:a sliding window of:UserWarning")

SOME = [Head(2, 3), Head(0, 1), Head(2, 0), Head(1, 2)]
TOLERANCE = 1e-5

def score(llm, prompt, heads=ALL, **options) -> ListScores:
    return score_lists(llm, [prompt], heads, **options)[0]


def close(one, other, tolerance=TOLERANCE):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def assert_same(scores: ListScores, expected: ListScores, heads=slice(None), tolerance=TOLERANCE):
    close(scores.raw, expected.raw[:, heads], tolerance)
    close(scores.null, expected.null[:, heads], tolerance)
    close(scores.filtered, expected.filtered[:, heads], tolerance)


def assert_equals_reference(scores: ListScores, expected: ReferenceScores):
    assert scores.raw.dtype == scores.filtered.dtype == scores.summed.dtype == np.float32
    close(scores.raw, expected.raw)
    close(scores.null, expected.null)
    # a token at the very threshold may fall to either side
    assert expected.filtered_sure.mean() > 0.9
    close(scores.filtered[expected.filtered_sure], expected.filtered[expected.filtered_sure])
    assert expected.summed_sure.mean() > 0.5
    close(scores.summed[expected.summed_sure], expected.summed[expected.summed_sure])


@dataclass
class Case:
    """An architecture under a pattern of document attention, with all scores of all prompts, here and by reference."""

    llm: FrozenLLM
    document_attention: str
    eager_model: PreTrainedModel
    expected: list[ReferenceScores]
    scores: list[ListScores]


@pytest.fixture(
    scope="module",
    params=[(architecture, pattern) for architecture in ARCHITECTURES for pattern in PATTERNS],
    ids=lambda param: "-".join(param),
)
def case(request, shared_llm, shared_model):
    architecture, pattern = request.param
    eager = shared_model(architecture, attention="eager")
    expected = [reference_scores(eager, prompt, ALL, pattern) for prompt in PROMPTS]
    llm = shared_llm(architecture)
    options = {"document_attention": pattern, "hidden_layers": range(LAYERS)}
    return Case(llm, pattern, eager, expected, [score(llm, prompt, **options) for prompt in PROMPTS])


def test_head_scores_equal_the_reference(case):
    for scores, expected in zip(case.scores, case.expected, strict=True):
        assert_equals_reference(scores, expected)


def test_hidden_states_equal_the_reference(case):
    for scores, expected in zip(case.scores, case.expected, strict=True):
        assert sorted(scores.hidden) == list(range(LAYERS))
        for layer, state in scores.hidden.items():
            assert state.dtype == np.float32
            close(state, expected.hidden[layer], 5e-6 * np.abs(expected.hidden[layer]).max())


def test_the_comparison_is_no_triviality(case):
    attention, filtered = (
        np.concatenate([getattr(e, name).ravel() for e in case.expected]) for name in ("raw", "filtered")
    )
    calibrated = attention - np.concatenate([e.null.ravel() for e in case.expected])
    assert attention.std() > 0.1
    assert np.mean(np.abs(filtered - calibrated) > 10 * TOLERANCE) > 0.1  # the filter drops something


def test_reference_has_the_models_own_masks(case):
    if case.document_attention == "listwise":
        own = reference_scores(case.eager_model, PROMPTS[0], ALL, "listwise", own_masks=True)
        close(own.raw, case.expected[0].raw, 1e-12)
        close(own.filtered, case.expected[0].filtered, 1e-12)


@pytest.mark.parametrize("heads", [SOME, random.Random(1).sample(ALL, 7), random.Random(2).sample(ALL, 16)], ids=len)
def test_some_heads_are_those_columns_of_all_heads(case, heads, monkeypatch):
    for logits_at_a_time in (passes_module.LOGITS_AT_A_TIME, 1, 8000):
        monkeypatch.setattr(passes_module, "LOGITS_AT_A_TIME", logits_at_a_time)
        scores = score(case.llm, PROMPTS[0], heads, document_attention=case.document_attention)
        assert_same(scores, case.scores[0], [ALL.index(head) for head in heads])


def test_shallow_heads_are_the_same_without_the_deeper_layers(case):
    shallow = [Head(1, 0), Head(0, 3), Head(1, 3)]
    scores = score(case.llm, PROMPTS[0], shallow, document_attention=case.document_attention, hidden_layers=[0])
    assert_same(scores, case.scores[0], [ALL.index(head) for head in shallow])
    close(scores.hidden[0], case.scores[0].hidden[0])


def test_max_layers_changes_no_score(case, tokenizer):
    llm = FrozenLLM(case.llm.model, tokenizer=tokenizer, max_layers=3)
    assert (llm.num_layers, llm.total_layers) == (3, LAYERS)
    heads = all_heads(3, HEADS)
    scores = score(llm, PROMPTS[1], heads, document_attention=case.document_attention, hidden_layers=[2])
    assert_same(scores, case.scores[1], slice(len(heads)))
    close(scores.hidden[2], case.scores[1].hidden[2], 1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_lists_in_one_call_do_not_see_each_other(case, count):
    together = score_lists(
        case.llm, PROMPTS[:count], ALL, document_attention=case.document_attention, hidden_layers=[1, LAYERS - 1]
    )
    for one, alone in zip(together, case.scores, strict=False):
        assert_same(one, alone)
        close(one.summed, alone.summed)
        for layer in (1, LAYERS - 1):
            close(one.hidden[layer], alone.hidden[layer], 1e-4)


def test_without_calibration_the_raw_scores_are_the_same(case):
    scores = score(case.llm, PROMPTS[2], document_attention=case.document_attention, calibrate=False)
    close(scores.raw, case.scores[2].raw)
    assert scores.null is scores.filtered is scores.summed is None


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_rows_taken_some_at_a_time_change_nothing(case, rows, monkeypatch):
    monkeypatch.setattr(masked, "ROWS_AT_A_TIME", rows)
    scores = score(case.llm, PROMPTS[1], document_attention=case.document_attention)
    assert_same(scores, case.scores[1])


def test_odd_documents(case):
    prompt = random_prompt(4, [1, 20, 6, 0, 5], query=3, null=3)
    same = [DocumentBlock([17] * 12, 0, 12), DocumentBlock([17] * 12, 0, 12)]  # of equal tokens
    bare = [DocumentBlock([23, 24], 2, 2), DocumentBlock([25], 0, 1)]  # a tag without text; a single token
    prompt = replace(prompt, blocks=[*bare, *prompt.blocks, *same], order=[8, 3, 0, 1, 2, 5, 4, 7, 6])
    scores = score(case.llm, prompt, document_attention=case.document_attention)
    assert_equals_reference(scores, reference_scores(case.eager_model, prompt, ALL, case.document_attention))
    for candidate in (8, 1 + 4):  # no token of them counts
        assert not scores.raw[candidate].any()
        assert not scores.filtered[candidate].any()
        assert scores.summed[candidate] == 0
    for candidate in (3, 0):  # of one token: nothing is filtered
        close(scores.filtered[candidate], (scores.raw - scores.null)[candidate], 1e-7)


def test_scores_come_in_the_candidates_order(case):
    by_place = replace(PROMPTS[0], order=list(range(6)))
    scores = score(case.llm, by_place, document_attention=case.document_attention)
    assert PROMPTS[0].order == [5, 4, 3, 2, 1, 0]
    close(scores.raw[::-1], case.scores[0].raw, 0)
    close(scores.filtered[::-1], case.scores[0].filtered, 0)
    close(scores.summed[::-1], case.scores[0].summed, 0)


def test_order_of_candidates_matters_listwise_only(case):
    for seed in (1, 2):
        order = random.Random(seed).sample(range(6), 6)
        scores = score(case.llm, permuted(PROMPTS[0], order), document_attention=case.document_attention)
        if case.document_attention != "listwise":
            assert_same(scores, case.scores[0])
            close(scores.summed, case.scores[0].summed)
        else:
            assert np.abs(scores.raw - case.scores[0].raw).max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_loaded_in_part_gives_what_the_whole_gives(architecture, shared_llm, shared_model, tokenizer, tmp_path):
    shared_model(architecture).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    short, whole = FrozenLLM(tmp_path, dtype="float32", max_layers=3), shared_llm(architecture)
    assert (short.num_layers, short.total_layers, short.num_heads) == (3, LAYERS, HEADS)
    assert len(short.fingerprint) == 3
    assert same_weights(short.fingerprint, whole.fingerprint)
    heads = all_heads(3, HEADS)
    for pattern in PATTERNS:
        options = {"heads": heads, "document_attention": pattern, "hidden_layers": [2]}
        one, other = score(short, PROMPTS[0], **options), score(whole, PROMPTS[0], **options)
        assert_same(one, other)
        close(one.hidden[2], other.hidden[2], 1e-4)


DEPTH_COUNTS = {
    # each residual is scaled by the number of layers
    "MiniCPM3": {
        name: ARCHITECTURES["DeepseekV3"][name]
        for name in ("num_key_value_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
    },
    # one matrix holds the ids' inputs to all layers; the last layers reuse the keys and values of earlier ones
    "Gemma3nText": {
        "num_hidden_layers": 6,
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 8,
    },
}
"""Architectures whose first layers are others in a model of fewer layers."""


@pytest.mark.parametrize("architecture", DEPTH_COUNTS)
def test_loading_in_part_keeps_what_depends_on_the_depth(architecture, tokenizer, tmp_path):
    model = tiny_model(architecture, **DEPTH_COUNTS[architecture])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0], SOME)
    assert_same(score(FrozenLLM(tmp_path, dtype="float32", max_layers=3), PROMPTS[0], SOME), expected)


def test_hidden_states_of_several_streams_are_refused(tokenizer):
    llm = FrozenLLM(tiny_model("Gemma3nText", **DEPTH_COUNTS["Gemma3nText"]), tokenizer=tokenizer)
    assert score(llm, PROMPTS[0], SOME).raw.any()
    with pytest.raises(UnsupportedArchitectureError, match="Gemma3nTextModel"):
        score(llm, PROMPTS[0], SOME, hidden_layers=[1])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Gemma2"])
def test_prompts_longer_than_the_rows_taken_at_a_time(architecture, pattern, shared_llm, shared_model):
    prompt = random_prompt(5, [300, 12, 280], query=5, null=4)
    assert masked.ROWS_AT_A_TIME < 300
    scores = score(shared_llm(architecture), prompt, SOME, document_attention=pattern)
    expected = reference_scores(shared_model(architecture, attention="eager"), prompt, SOME, pattern)
    close(scores.raw, expected.raw)
    close(scores.filtered[expected.filtered_sure], expected.filtered[expected.filtered_sure])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", ["Mistral", "Gemma2"])
def test_lists_about_as_long_as_the_window(architecture, pattern, shared_llm, shared_model):
    llm, eager = shared_llm(architecture), shared_model(architecture, attention="eager")
    window = eager.config.sliding_window
    for documents in range(window - 2, window + 3):
        generator = random.Random(documents)
        prefix, ids = random_ids(generator, 4), random_ids(generator, documents - 4)
        blocks = [ids[:5], ids[5:]] if pattern == "listwise" else [ids, ids[:3]]
        prompt = ListPrompt(prefix, [DocumentBlock(own, 0, len(own)) for own in blocks], [0, 1], [30, 31, 32], [30, 40])
        scores = score(llm, prompt, document_attention=pattern)
        assert_equals_reference(scores, reference_scores(eager, prompt, ALL, pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("document_order", ["best_last", "best_first"])
def test_built_prompts_in_both_document_orders(document_order, pattern, shared_llm, shared_model):
    llm = shared_llm("Llama")
    builder = PromptBuilder(
        replace(DEFAULT_TEMPLATE, span="text"),
        llm.encoder,
        document_order=document_order,
        numbered=PATTERNS[pattern].numbered,
        max_doc_tokens=30,
    )
    candidates = [Candidate("The light could be seen from afar.", "Rock"), Candidate(""), Candidate("Ships. " * 20)]
    prompt = builder.build("who was the keeper?", candidates)
    scores = score(llm, prompt, document_attention=pattern)
    assert_equals_reference(scores, reference_scores(shared_model("Llama", attention="eager"), prompt, ALL, pattern))
    assert not scores.raw[1].any()  # the empty text


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2"])
@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [([4, 5], [0, 5, 2, 0]), ([], [5, 2]), ([], [0, 5, 0]), ([4, 5], [0]), ([4], [60, 0, 1])],
    ids=str,
)
def test_blocks_and_prefixes_without_tokens(architecture, pattern, prefix, lengths, shared_llm, shared_model):
    generator = random.Random(6)
    blocks = [DocumentBlock(random_ids(generator, length), min(1, length), length) for length in lengths]
    prompt = ListPrompt(prefix, blocks, list(range(len(blocks))), [30, 31, 32], [30, 40])
    scores = score(shared_llm(architecture), prompt, SOME, document_attention=pattern)
    eager = shared_model(architecture, attention="eager")
    close(scores.raw, reference_scores(eager, prompt, SOME, pattern).raw)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Mistral"])
def test_half_precision_is_near_single(architecture, dtype, tokenizer):
    half = tiny_model(architecture).to(dtype)
    single = copy.deepcopy(half).float()
    for pattern in PATTERNS:
        one, other = (
            score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0], document_attention=pattern)
            for model in (half, single)
        )
        assert one.raw.dtype == np.float32
        assert np.abs(one.raw - other.raw).mean() < 0.01
        assert np.abs(one.filtered - other.filtered).mean() < 0.03


# What happens to the model


class BrokenError(Exception):
    pass


@pytest.fixture(params=[("Llama", "sdpa"), ("Gemma2", "eager"), ("GPT2", "eager"), ("GPTNeoX", "sdpa")], ids="-".join)
def own_model(request):
    """A causal language model of the test's own, in the middle of training, one of its layers frozen by hand."""
    architecture, attention = request.param
    model = tiny_model(architecture, attention=attention, causal_lm=True).train()
    next(stack for stack in model.modules() if isinstance(stack, torch.nn.ModuleList))[1].eval()
    return model


def layers_of(model):
    return next(stack for stack in model.modules() if isinstance(stack, torch.nn.ModuleList))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_model_is_as_before_after_use(own_model, pattern, tokenizer):
    before, values = snapshot(own_model), weights(own_model)
    llm = FrozenLLM(own_model, tokenizer=tokenizer)
    score_lists(llm, PROMPTS[:2], SOME, document_attention=pattern, hidden_layers=[0, 3])
    assert snapshot(own_model) == before
    assert bitwise_equal(weights(own_model), values)


@pytest.mark.parametrize("failing_call", [1, 2], ids=["document pass", "tail pass"])
def test_a_model_is_as_before_after_an_exception_inside_a_pass(own_model, failing_call, tokenizer):
    llm = FrozenLLM(own_model, tokenizer=tokenizer)
    assert llm.num_layers == LAYERS  # loads it
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == failing_call:
            raise BrokenError

    hook = layers_of(own_model)[2].register_forward_pre_hook(fail)
    before, values = snapshot(own_model), weights(own_model)
    with pytest.raises(BrokenError):
        score(llm, PROMPTS[0], hidden_layers=[1])
    assert len(calls) == failing_call
    assert snapshot(own_model) == before
    assert bitwise_equal(weights(own_model), values)
    hook.remove()
    assert score(llm, PROMPTS[0]).raw.any()


def test_a_model_learns_as_before_after_use(tokenizer):
    gradients = []
    for used in (False, True):
        model = tiny_model("Llama", causal_lm=True).train()
        if used:
            score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0])
        ids = torch.arange(3, 40)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert bitwise_equal(*gradients)


DROPOUT = {
    "Llama": {"attention_dropout": 0.5},
    "GPT2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "Phi3": {"attention_dropout": 0.5, "resid_pdrop": 0.5},
    "Gemma2": {"attention_dropout": 0.5},
    "GPTNeoX": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", DROPOUT)
def test_no_dropout_in_training_mode(architecture, pattern, shared_llm, tokenizer):
    model = tiny_model(architecture, **DROPOUT[architecture]).train()
    expected = score(shared_llm(architecture), PROMPTS[0], document_attention=pattern)
    assert_same(score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0], document_attention=pattern), expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_a_model_with_eager_attention_gives_the_same(architecture, shared_llm, tokenizer):
    model = tiny_model(architecture, attention="eager")
    llm = FrozenLLM(model, tokenizer=tokenizer)
    for pattern in PATTERNS:
        expected = score(shared_llm(architecture), PROMPTS[0], document_attention=pattern)
        assert_same(score(llm, PROMPTS[0], document_attention=pattern), expected)
    assert model.config._attn_implementation == "eager"


# What is not computed


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "GPTNeoX", "Gemma3Text"])
def test_logits_are_never_computed(architecture, shared_llm, tokenizer, monkeypatch):
    model = tiny_model(architecture, causal_lm=True)

    def fail(*args, **kwargs):
        raise AssertionError("logits are computed")

    monkeypatch.setattr(model.get_output_embeddings(), "forward", fail)
    monkeypatch.setattr(model, "forward", fail)
    assert_same(score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0]), score(shared_llm(architecture), PROMPTS[0]))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_nothing_behind_the_deepest_head_is_called(architecture, pattern, tokenizer):
    model = tiny_model(architecture)
    deepest = 2
    used = {"Llama": ["input_layernorm", "self_attn"], "Gemma2": ["input_layernorm", "self_attn"]}
    layers = layers_of(model)
    behind = [module for layer in layers[deepest + 1 :] for module in layer.modules()]
    for name, child in layers[deepest].named_children():
        if name not in used.get(architecture, ["ln_1", "attn"]):
            behind += child.modules()
    attention = getattr(layers[deepest], "attn" if architecture == "GPT2" else "self_attn")
    behind.append(attention.c_proj if architecture == "GPT2" else attention.o_proj)
    behind.append(model.ln_f if architecture == "GPT2" else model.norm)

    def fail(module, args):
        raise AssertionError(f"{type(module).__name__} is called")

    for module in behind:
        module.register_forward_pre_hook(fail)
    llm = FrozenLLM(model, tokenizer=tokenizer, max_layers=deepest + 1)
    scores = score(llm, PROMPTS[0], [Head(1, 1), Head(deepest, 0)], document_attention=pattern, hidden_layers=[0])
    assert scores.raw.any()


class LargeOutputs(TorchDispatchMode):
    """Collects what operations give out with two dimensions of at least this size."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.operations = 0
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and sum(length >= self.size for length in leaf.shape) > 1:
                self.found.append((str(function), tuple(leaf.shape)))
        return result


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Gemma2", "Olmo3", "GPT2"])
def test_no_matrix_of_tokens_times_tokens(architecture, pattern, shared_llm, shared_model, monkeypatch):
    monkeypatch.setattr(masked, "ROWS_AT_A_TIME", 32)
    prompt = random_prompt(7, [100, 80, 110, 90])  # more document tokens than the models' vocabulary or any layer has
    llm, tokens = shared_llm(architecture), 100 + 80 + 110 + 90
    with LargeOutputs(tokens) as mode:
        scores = score(llm, prompt, document_attention=pattern, hidden_layers=[LAYERS - 1])
    assert scores.raw.any()
    assert mode.operations > 100
    assert mode.found == []
    with LargeOutputs(tokens) as control:
        ids = torch.tensor([[*prompt.prefix, *(i for block in prompt.blocks for i in block.ids), *prompt.query]])
        shared_model(architecture, attention="eager")(ids, use_cache=False)
    assert control.found


# Loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A saved bf16 Llama; some of its weights are too small for fp16."""
    folder = tmp_path_factory.mktemp("bf16")
    model = tiny_model("Llama", causal_lm=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[0] = 1e-9
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_fingerprints_do_not_depend_on_the_dtype(folder):
    fingerprints = {
        dtype: FrozenLLM(folder, dtype=dtype).fingerprint
        for dtype in ("float32", "bfloat16", "float16", torch.float32, torch.float16)
    }
    assert len(set(fingerprints.values())) == 1
    assert len(fingerprints["float16"]) == LAYERS
    half = FrozenLLM(folder, dtype="float16", max_layers=2)
    assert half.fingerprint == fingerprints["float16"][:2]
    assert {weight.dtype for weight in half._load().decoder.parameters()} == {torch.float16}


def test_a_fingerprint_changes_with_any_weight_of_its_layer(shared_llm, shared_model, tokenizer):
    original = shared_llm("Llama").fingerprint
    for name in dict(shared_model("Llama").layers[1].named_parameters()):
        model = tiny_model("Llama")
        with torch.no_grad():
            model.layers[1].get_parameter(name).mul_(1.5)
        changed = FrozenLLM(model, tokenizer=tokenizer).fingerprint
        assert [one == other for one, other in zip(original, changed, strict=True)] == [True, False, True, True], name
        assert not same_weights(original, changed)


def test_device_maps_onto_one_device_work(folder):
    plain, mapped = (
        FrozenLLM(folder, dtype="float32", model_kwargs=kwargs) for kwargs in (None, {"device_map": {"": "cpu"}})
    )
    assert_same(score(mapped, PROMPTS[0]), score(plain, PROMPTS[0]))


PARTLY_ON_DISK = {"embed_tokens": "cpu", "layers.0": "cpu", "rotary_emb": "cpu", "norm": "cpu"} | {
    f"layers.{i}": "disk" for i in range(1, LAYERS)
}


@pytest.mark.parametrize("device_map", [PARTLY_ON_DISK, {"": "disk"}], ids=["partly", "altogether"])
def test_a_model_on_disk_is_refused(folder, device_map, tmp_path):
    llm = FrozenLLM(folder, dtype="float32", model_kwargs={"device_map": device_map, "offload_folder": str(tmp_path)})
    # accelerate before 1.15 refuses the latter itself
    with pytest.raises(ValueError, match=r"LlamaModel is offloaded \(.*disk\)|offload the whole model to the disk"):
        score(llm, PROMPTS[0])


# Refusals


_LLAMA4 = {"num_local_experts": 2, "head_dim": 8, "attention_chunk_size": 16}

REFUSED = [
    ("GptOss", {"layer_types": ["full_attention"] * LAYERS, "num_local_experts": 2, "head_dim": 8}, "attention sinks"),
    ("Bloom", {"n_layer": LAYERS, "n_head": HEADS}, "attention registry"),
    ("Falcon", {}, "attention registry"),
    ("Mpt", {"d_model": 32, "n_heads": HEADS, "n_layers": LAYERS}, "attention registry"),
    ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": HEADS}, "decoder-only"),
    ("Bert", {}, "no plain stack of layers"),
    ("Llama4Text", _LLAMA4, "mask is neither causal"),
    # its queries are scaled by their place in the sequence of a call, not by their position
    ("Llama4Text", {**_LLAMA4, "layer_types": ["full_attention"] * LAYERS, "floor_scale": 8}, "cannot be read"),
    ("Lfm2", {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}, "some layers have no attention"),
    # a state-space model beside each layer's attention
    (
        "FalconH1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
        "interact by more than attention",
    ),
    ("DiffLlama", {}, "calls attention more than once"),
]


@pytest.mark.parametrize(("architecture", "changes", "reason"), REFUSED, ids=[f"{a}: {r}" for a, _, r in REFUSED])
def test_what_cannot_be_read_exactly_is_refused_by_name(architecture, changes, reason, tokenizer):
    model = tiny_model(architecture, **changes)
    before = snapshot(model)
    with pytest.raises(UnsupportedArchitectureError, match=rf"^{type(model).__name__}\b.*{reason}"):
        score(FrozenLLM(model, tokenizer=tokenizer), PROMPTS[0], SOME)
    assert snapshot(model) == before


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [3.0, 4.0, 5.0, 6.0]}


def list_of_length(length):
    """A list-wise prompt with this number of positions, including its longer tail."""
    return random_prompt(8, [30, length - 7 - 9 - 2 * 3 - 30])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_longrope_is_read_up_to_its_original_length(pattern, tokenizer):
    options = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": None}
    eager = tiny_model("Phi3", attention="eager", **options)
    llm = FrozenLLM(tiny_model("Phi3", **options), tokenizer=tokenizer)
    fitting = list_of_length(128)
    assert positions_taken(PATTERNS["listwise"], fitting) == 128
    scores = score(llm, fitting, document_attention=pattern)
    assert_equals_reference(scores, reference_scores(eager, fitting, ALL, pattern))
    longer = list_of_length(129 if pattern == "listwise" else 129 + 30 + 3)
    assert positions_taken(PATTERNS[pattern], longer) == 129
    with pytest.raises(UnsupportedArchitectureError, match=r"Phi3Model .* beyond 128 positions.* takes 129"):
        score(llm, longer, document_attention=pattern)


def test_dynamic_rope_is_read_up_to_where_it_changes(tokenizer):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    options = {"rope_parameters": rope, "max_position_embeddings": 128}
    llm = FrozenLLM(tiny_model("Llama", **options), tokenizer=tokenizer)
    fitting = list_of_length(128)
    expected = reference_scores(tiny_model("Llama", attention="eager", **options), fitting, ALL, "listwise")
    assert_equals_reference(score(llm, fitting), expected)
    with pytest.raises(ValueError, match="129"):
        score(llm, list_of_length(129))


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_lists_beyond_the_context_are_refused(architecture, tokenizer):
    options = {"max_position_embeddings": 128}
    llm = FrozenLLM(tiny_model(architecture, **options), tokenizer=tokenizer)
    eager = tiny_model(architecture, attention="eager", **options)
    for pattern in PATTERNS:
        fitting = list_of_length(128 if pattern == "listwise" else 128 + 30 + 3)
        expected = reference_scores(eager, fitting, ALL, pattern)
        assert_equals_reference(score(llm, fitting, document_attention=pattern), expected)
    longer = list_of_length(129)
    with pytest.raises(ListTooLongError, match=r"129 tokens, but the context of .* has 128"):
        score_lists(llm, [PROMPTS[1], longer], SOME)
    assert score(llm, longer, document_attention="blockwise").raw.any()


# Threads


def in_two_threads(function, arguments):
    """Results in the arguments' order; both threads start together."""
    barrier = threading.Barrier(2)

    def together(argument):
        if not barrier.broken and len(started) < 2:
            started.append(argument)
            barrier.wait(timeout=20)
        return function(argument)

    started = []
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(together, arguments))


def test_one_frozen_llm_in_two_threads(tokenizer):
    tasks = [(prompt, pattern, heads) for prompt in PROMPTS for pattern in PATTERNS for heads in (ALL, SOME)] * 2

    def run(llm, task):
        prompt, pattern, heads = task
        return score(llm, prompt, heads, document_attention=pattern, hidden_layers=[1])

    model = tiny_model("Gemma2")
    attention = model.config._attn_implementation
    llm = FrozenLLM(model, tokenizer=tokenizer)  # loads while both threads ask for it
    results = in_two_threads(lambda task: run(llm, task), tasks)
    assert llm.document_passes == len(tasks)
    for result, task in zip(results, tasks, strict=True):
        assert_same(result, run(llm, task))
    assert model.config._attn_implementation == attention


def test_two_frozen_llms_of_one_model_in_two_threads(tokenizer):
    model = tiny_model("Llama")
    before = snapshot(model)
    llms = [FrozenLLM(model, tokenizer=tokenizer), FrozenLLM(model, tokenizer=tokenizer, max_layers=3)]
    expected = [score(llm, PROMPTS[0], SOME) for llm in llms]
    results = in_two_threads(lambda i: score(llms[i % 2], PROMPTS[0], SOME), range(20))
    for i, result in enumerate(results):
        assert_same(result, expected[i % 2])
    assert snapshot(model) == before
