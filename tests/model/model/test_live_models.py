"""Loaded models that change, that are wrapped, compiled or dispatched, and callers that have set things."""

import copy
import functools
import types
import warnings

import numpy as np
import pytest
import torch

from model_state import bitwise_equal, snapshot, weights
from pyterrier_routehead import (
    AttentionHeadScorer,
    FrozenLLM,
    HeadScoreStore,
    ICRReranker,
    ListTooLongError,
    MismatchError,
    UnsupportedArchitectureError,
)
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.kernel.attention import ATTENTION_NAME, attention_function
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.model.twin import Twin
from pyterrier_routehead.reading.reader import ListReader, model_identity
from pyterrier_routehead.reading.reading import ReadingSettings
from pyterrier_routehead.routing.state import QueryState, embed_query
from reference import reference_scores
from tiny import ALL, ARCHITECTURES, HEADS, LAYERS, PROMPTS, random_prompt, tiny_model
from toys import byte_tokenizer, two_queries

NOT_OURS = r"^LlamaModel cannot be read: its attention does not go through transformers' attention registry$"
FIELDS = ("raw", "null", "filtered", "summed")
CONTEXT = {"max_position_embeddings": 4096}


def frozen(model, **options):
    return FrozenLLM(model, tokenizer=byte_tokenizer(), **options)


def scores(llm, pattern="listwise"):
    return score_lists(llm, PROMPTS[:2], ALL, document_attention=pattern, hidden_layers=[1])


def assert_equal(one, other):
    for own, expected in zip(one, other, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(own, name), getattr(expected, name))
        np.testing.assert_array_equal(own.hidden[1], expected.hidden[1])


# What the caller has set


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pattern", ["listwise", "blockwise"])
def test_f13_autocast_changes_nothing(architecture, pattern, shared_llm):
    llm = shared_llm(architecture)
    expected = scores(llm, pattern)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(scores(llm, pattern), expected)
        assert torch.is_autocast_enabled("cpu")


def test_f13_a_model_is_loaded_and_used_under_autocast(tmp_path):
    expected = AttentionHeadScorer(llm=frozen(tiny_model("Llama", **CONTEXT)))(two_queries())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        llm = frozen(tiny_model("Llama", **CONTEXT))
        found = AttentionHeadScorer(llm=llm, store=tmp_path / "store")(two_queries())
        state = embed_query(llm, "who", QueryState(1))
    np.testing.assert_array_equal(np.stack(found["head_scores"]), np.stack(expected["head_scores"]))
    np.testing.assert_array_equal(state, embed_query(frozen(llm.model), "who", QueryState(1)))


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_default_dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


# Ministral 3 divides integers, which gives the default dtype: there the model itself is another.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "Ministral3"])
def test_f13_another_default_dtype_changes_nothing(architecture, shared_llm, other_default_dtype):
    llm = shared_llm(architecture)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    expected = scores(llm)
    torch.set_default_dtype(usual)
    assert_equal(scores(llm), expected)


@pytest.mark.parametrize("pattern", ["listwise", "blockwise"])
def test_another_default_device_changes_nothing(pattern):
    model = tiny_model("Gemma2", **CONTEXT)
    expected = scores(frozen(model), pattern)
    with torch.device("meta"):
        llm = frozen(model)
        assert_equal(scores(llm, pattern), expected)
        assert llm.fingerprint == frozen(copy.deepcopy(model)).fingerprint
        assert llm.snapshot().surroundings
        assert np.isfinite(embed_query(llm, "who", QueryState(1))).all()


# Twins


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2", "DeepseekV3"])
def test_a_twin_shares_weights_and_nothing_that_can_be_set(architecture):
    model = tiny_model(architecture).train()
    before = snapshot(model)
    twin = Twin(model, ATTENTION_NAME).decoder
    own, copies = dict(model.named_modules()), dict(twin.named_modules())
    assert own.keys() == copies.keys()
    for name, module in own.items():
        double = copies[name]
        assert type(double) is type(module)
        assert double is not module
        assert not double.training
        for kind in ("_parameters", "_buffers", "_modules", "_forward_hooks"):
            assert vars(double)[kind] is not vars(module)[kind]
        assert all(double._parameters[key] is weight for key, weight in module._parameters.items())
        if hasattr(module, "config"):
            assert double.config is not module.config
            assert double.config is twin.config
            assert double.config._attn_implementation == ATTENTION_NAME
    assert snapshot(model) == before


def test_our_attention_outside_of_a_pass_says_so():
    with pytest.raises(RuntimeError, match="outside of one of its passes"):
        attention_function(None, None, None, None, None)


def test_what_is_tied_to_the_model_by_methods_partials_and_closures_is_tied_to_the_twin():
    model = tiny_model("Llama")
    expected = scores(frozen(copy.deepcopy(model)))
    bound = type(model.layers[0]).forward

    def method(self, *args, **kwargs):
        return bound(self, *args, **kwargs)

    model.layers[0].forward = types.MethodType(method, model.layers[0])
    model.layers[1].forward = functools.partial(method, model.layers[1])
    usual = model.layers[2].forward
    model.layers[2].forward = lambda *args, **kwargs: usual(*args, **kwargs)
    attention = model.layers[3].self_attn.forward

    @functools.wraps(attention)
    def wrapped(*args, **kwargs):
        return attention(*args, **kwargs)

    model.layers[3].self_attn.forward = wrapped
    assert_equal(scores(frozen(model)), expected)


class Indirect:
    """Calls a module that nobody can see it to hold."""

    def __init__(self, module):
        self.module, self.usual = module, module.forward

    def __call__(self, *args, **kwargs):
        return self.usual(*args, **kwargs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_f45_what_cannot_be_tied_to_the_twin_is_refused_by_name(attention):
    model = tiny_model("Llama", attention=attention)
    model.layers[2].forward = Indirect(model.layers[2])
    with pytest.raises(UnsupportedArchitectureError, match=NOT_OURS):
        scores(frozen(model))


def test_a_module_replaced_after_the_check_is_used_or_refused():
    model = tiny_model("Llama")
    llm = frozen(model).load()
    before = scores(llm)
    model.layers[1] = copy.deepcopy(model.layers[1])
    assert_equal(scores(llm), before)
    with torch.no_grad():
        model.layers[1].self_attn.q_proj.weight.neg_()
    changed = scores(llm)
    assert np.abs(changed[0].raw - before[0].raw).max() > 0.01
    assert_equal(changed, scores(frozen(model)))
    model.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises((UnsupportedArchitectureError, TypeError)):
        scores(llm)


def test_a_replaced_stack_of_layers_is_taken_in_anew(tmp_path):
    model = tiny_model("Llama", **CONTEXT)
    llm, store = frozen(model), HeadScoreStore(tmp_path / "store")
    read(llm, store)
    model.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in model.layers)
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight.neg_()
    np.testing.assert_array_equal(read(llm, store), read(frozen(model)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["model", "decoder", "layer", "module.compile", "forward", "whole.compile"])
def test_f27_what_is_compiled_runs_eagerly(how):
    model = tiny_model("Llama", causal_lm=True)
    plain = frozen(copy.deepcopy(model))
    expected, compiled = scores(plain), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    layer, given = model.model.layers[1], model
    if how == "model":
        given = torch.compile(model, backend=backend)
    elif how == "decoder":
        model.model = torch.compile(model.model, backend=backend)
    elif how == "layer":
        model.model.layers[1] = torch.compile(layer, backend=backend)
    elif how == "module.compile":
        layer.compile(backend=backend)
    elif how == "forward":
        layer.forward = torch.compile(layer.forward, backend=backend)
    else:
        model.model.compile(backend=backend)
    llm = frozen(given)
    assert_equal(scores(llm), expected)
    assert not compiled
    assert (llm.fingerprint, llm.snapshot().surroundings) == (plain.fingerprint, plain.snapshot().surroundings)
    assert llm.snapshot().layer_fingerprint == plain.snapshot().layer_fingerprint
    with torch.no_grad():
        given(torch.tensor([[3, 4, 5]]))
    assert compiled  # the owner's stays compiled


@pytest.mark.parametrize("how", ["dispatch_model", "hooks", "both ends"])
def test_models_with_accelerates_hooks(how):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("Llama", causal_lm=True)
    expected = scores(frozen(copy.deepcopy(model)))
    if how == "dispatch_model":
        model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    else:
        for module in model.model.layers if how == "hooks" else model.modules():
            hook = accelerate.hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
            accelerate.hooks.add_hook_to_module(module, hook)
    before, ids = snapshot(model), torch.tensor([[5, 6, 7]])
    logits = model(ids).logits
    assert_equal(scores(frozen(model)), expected)
    assert snapshot(model) == before
    assert torch.equal(model(ids).logits, logits)
    assert all(vars(module).get("_old_forward", module.forward).__self__ is module for module in model.modules()
               if hasattr(module, "_hf_hook"))


# Identity: fine-tuning


def steps(model, count=3, rate=1e-3):
    model.train()
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    ids = torch.arange(3, 60)[None]
    for _ in range(count):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def read(llm, store=None):
    return np.stack(AttentionHeadScorer(llm=llm, store=store)(two_queries())["head_scores"])


@pytest.mark.parametrize("rate", [1e-2, 1e-6])
def test_f4_a_model_that_was_trained_on_is_another(rate, tmp_path):
    model = tiny_model("Llama", causal_lm=True, **CONTEXT)
    llm, store = frozen(model), HeadScoreStore(tmp_path / "store")
    framed = AttentionHeadScorer(llm=llm)(two_queries())
    before, identity = read(llm, store), model_identity(llm)
    np.testing.assert_array_equal(read(llm, store), before)
    assert len(store) == 2
    steps(model, rate=rate)
    after = read(llm, store)
    assert len(store) == 4
    np.testing.assert_array_equal(after, read(frozen(copy.deepcopy(model))))
    assert np.abs(after - before).max() > 0
    if rate > 1e-3:
        assert model_identity(llm) != identity
        with pytest.raises(MismatchError):
            ICRReranker(llm=llm)(framed)
    ICRReranker(llm=llm)(AttentionHeadScorer(llm=llm)(two_queries()))


@pytest.mark.parametrize("where", ["layers.2.mlp.up_proj", "embed_tokens"])
def test_f4_a_single_weight_is_enough_for_the_store(where, tmp_path):
    model = tiny_model("Llama", **CONTEXT)
    llm, store = frozen(model), HeadScoreStore(tmp_path / "store")
    read(llm, store)
    model.get_submodule(where).weight.data[1, 1] += 0.01  # not among the samples
    fingerprint = llm.fingerprint
    model.get_submodule(where).weight.data[1, 1] += 10.0
    assert llm.fingerprint == fingerprint
    np.testing.assert_array_equal(read(llm, store), read(llm))


def test_f4_embeddings_of_queries_are_not_remembered_of_another_model():
    model = tiny_model("Llama", causal_lm=True)
    llm = frozen(model)
    before = embed_query(llm, "who was it", QueryState(2))
    assert embed_query(llm, "who was it", QueryState(2)) is before
    steps(model)
    after = embed_query(llm, "who was it", QueryState(2))
    assert np.abs(after - before).max() > 0
    np.testing.assert_array_equal(after, embed_query(frozen(model), "who was it", QueryState(2)))


def test_a_reader_looks_at_the_model_once_a_call(monkeypatch, tmp_path):
    model = tiny_model("Llama", causal_lm=True, **CONTEXT)
    llm, taken = frozen(model), []
    usual = FrozenLLM.snapshot
    monkeypatch.setattr(FrozenLLM, "snapshot", lambda self: taken.append(1) or usual(self))
    scorer = AttentionHeadScorer(llm=llm, store=tmp_path / "store")
    for calls in (1, 2):
        scorer(two_queries())
        assert len(taken) == calls
    reader = ListReader(llm, "all", ReadingSettings(), store=HeadScoreStore(tmp_path / "store"))
    assert reader.with_heads("0-1").snapshot is reader.snapshot


def test_a_model_by_name_is_looked_at_once(monkeypatch, tmp_path):
    tiny_model("Llama", **CONTEXT).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    llm = FrozenLLM(tmp_path, dtype="float32").load()
    assert llm.snapshot() is llm.snapshot()
    assert model_identity(llm).fingerprint is llm.fingerprint
    twins = []
    usual = Twin.__init__
    monkeypatch.setattr(Twin, "__init__", lambda self, *args: twins.append(1) or usual(self, *args))
    scores(llm)
    assert not twins


# Identity: adapters


@pytest.fixture
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages' deprecations
        yield pytest.importorskip("peft")


def adapted(peft, **options):
    """A model with two adapters that compute something, "default" active."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_alpha=4, **options)
    model = peft.get_peft_model(tiny_model("Llama", causal_lm=True, **CONTEXT), config)
    model.add_adapter("other", config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def identity(llm):
    taken = llm.snapshot()
    return taken.layer_fingerprint, taken.surroundings


def test_f3_each_adapter_is_a_model_of_its_own(peft, tmp_path):
    model = adapted(peft)
    llm, store = frozen(model), HeadScoreStore(tmp_path / "store")
    base = frozen(tiny_model("Llama", causal_lm=True, **CONTEXT))
    found, identities, framed = {}, {}, {}

    def look(name):
        found[name] = read(llm, store)
        np.testing.assert_array_equal(found[name], read(llm))
        identities[name] = identity(llm)
        framed[name] = AttentionHeadScorer(llm=llm)(two_queries())
        assert snapshot(model)["attention"]

    look("default")
    model.set_adapter("other")
    look("other")
    with model.disable_adapter():
        look("disabled")
    look("other again")
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["other"] = 0.5
    look("scaled")
    model.set_adapter("default")
    look("default again")
    model.base_model.set_adapter(["default", "other"])
    look("both")
    for same, one in (("default", "default again"), ("other", "other again")):
        assert identities[same] == identities[one]
        np.testing.assert_array_equal(found[same], found[one])
    np.testing.assert_array_equal(found["disabled"], read(base))
    assert identities["disabled"] == identity(base)
    distinct = ["default", "other", "disabled", "scaled", "both"]
    assert len({identities[name] for name in distinct}) == len(distinct)
    for name in distinct[:-1]:
        with pytest.raises(MismatchError):
            ICRReranker(llm=llm)(framed[name])
    ICRReranker(llm=llm)(framed["both"])


def test_f3_a_merged_adapter_is_in_the_weights(peft, tmp_path):
    model = adapted(peft)
    llm, store = frozen(model), HeadScoreStore(tmp_path / "store")
    apart, fingerprint = read(llm, store), identity(llm)
    model.merge_adapter()
    merged = read(llm, store)
    assert len(store) == 4
    assert identity(llm) != fingerprint
    np.testing.assert_allclose(merged, apart, atol=1e-4)
    plain = frozen(copy.deepcopy(model).unload())
    np.testing.assert_array_equal(read(plain, store), merged)
    assert len(store) == 4
    assert identity(plain) == identity(llm)
    before, values = snapshot(model), weights(model)
    with model.disable_adapter(), pytest.raises(ValueError, match=r"default\) are merged .* unmerge_adapter"):
        read(llm)
    assert snapshot(model) == before
    assert bitwise_equal(weights(model), values)


def test_f3_an_adapter_by_another_name_is_the_same(peft):
    model = adapted(peft)
    one = identity(frozen(model))
    for module in model.modules():
        for kind in getattr(module, "adapter_layer_names", ()):
            own = getattr(module, kind, None)
            if own is not None and "default" in own:
                own["other"].load_state_dict(own["default"].state_dict())
    model.set_adapter("other")
    assert identity(frozen(model)) == one


@pytest.mark.parametrize("kind", ["modules_to_save", "embeddings", "trainable_tokens", "dora", "ia3"])
def test_f3_other_kinds_of_adapters(peft, kind):
    options = {
        "modules_to_save": {"modules_to_save": ["embed_tokens"]},
        "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
        "trainable_tokens": {"trainable_token_indices": [40, 41]},
        "dora": {"use_dora": True},
        "ia3": {},
    }[kind]
    if kind == "ia3":
        config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    else:
        config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options})
    base = frozen(tiny_model("Llama", causal_lm=True, **CONTEXT))
    model = peft.get_peft_model(tiny_model("Llama", causal_lm=True, **CONTEXT), config)
    llm, seen = frozen(model), []
    generator = torch.Generator().manual_seed(3)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        before = identity(llm)
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.5)
        seen.append(identity(llm))
        assert seen[-1] != before
    assert len(set(seen)) == len(trained)
    own = scores(llm)
    with model.disable_adapter():
        assert identity(llm) == identity(base)
        assert_equal(scores(llm), scores(base))
    assert identity(llm) == seen[-1]
    assert_equal(scores(llm), own)


@pytest.mark.parametrize("where", ["adapters", "copies"])
def test_f3_frames_know_adapters_on_the_embeddings_alone(peft, where):
    on_embeddings = {"target_modules": ["embed_tokens"]}
    elsewhere = {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]}
    config = peft.LoraConfig(r=2, init_lora_weights=False, **(on_embeddings if where == "adapters" else elsewhere))
    model = peft.get_peft_model(tiny_model("Llama", causal_lm=True, **CONTEXT), config)
    model.add_adapter("other", config)
    for name, weight in model.named_parameters():
        if "modules_to_save.other" in name:
            weight.data.neg_()
    model.eval()
    llm, base = frozen(model), frozen(tiny_model("Llama", causal_lm=True, **CONTEXT))
    framed = AttentionHeadScorer(llm=llm)(two_queries())
    ICRReranker(llm=llm)(framed)
    model.set_adapter("other")
    with pytest.raises(MismatchError):
        ICRReranker(llm=llm)(framed)
    with model.disable_adapter():
        assert identity(llm) == identity(base)


def test_f3_adapters_that_add_tokens_are_refused(peft):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model("Llama", causal_lm=True), config)
    with pytest.raises(UnsupportedArchitectureError, match=r"adapter \(PROMPT_TUNING\) prepends virtual tokens"):
        frozen(model).load()


def test_fingerprints_of_plain_models_are_what_they_were():
    assert frozen(tiny_model("Llama")).fingerprint == ("2ab4802d", "a914f662", "b6df98ad", "9fc523c7")


# Query passes


def test_f39_a_query_beyond_the_context_is_refused_by_its_beginning():
    model = tiny_model("Llama", max_position_embeddings=256)
    with pytest.raises(ListTooLongError, match=r"^query 'word word .*…': 7\d\d tokens, but the context of .* has 256"):
        embed_query(frozen(model), "word " * 140, QueryState(1))


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [3.0, 4.0, 5.0, 6.0]}


@pytest.mark.parametrize(
    ("architecture", "options", "error"),
    [
        (
            "Phi3",
            {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": None},
            UnsupportedArchitectureError,
        ),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
             "max_position_embeddings": 128},
            ListTooLongError,
        ),
    ],
    ids=["longrope", "dynamic"],
)
def test_f39_rotary_frequencies_are_the_owners(architecture, options, error):
    model = tiny_model(architecture, causal_lm=True, **options)
    llm = frozen(model)
    with pytest.raises(error, match=r"^query 'word"):
        embed_query(llm, "word " * 40, QueryState(1))
    expected, prompt = embed_query(frozen(copy.deepcopy(model)), "who", QueryState(1)), random_prompt(1, [5, 4])
    listed = score_lists(llm, [prompt], ALL)[0]
    with torch.no_grad():
        model(torch.arange(200)[None])  # the owner goes beyond, and the frequencies change
    frequencies = model.model.rotary_emb.inv_freq
    values = frequencies.clone()
    np.testing.assert_array_equal(embed_query(frozen(model), "who", QueryState(1)), expected)
    np.testing.assert_array_equal(score_lists(llm, [prompt], ALL)[0].raw, listed.raw)
    assert model.model.rotary_emb.inv_freq is frequencies
    assert torch.equal(frequencies, values)


# The number of heads, and reasons of refusals


def test_f32_layers_that_differ_in_their_number_of_heads_are_refused():
    options = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = tiny_model("Laguna", num_attention_heads_per_layer=[4, 8, 4, 8], **options)
    with pytest.raises(UnsupportedArchitectureError, match=r"^LagunaModel .*number of heads \(4 in 2, 8 in 2 layers"):
        frozen(model).load()
    alike = tiny_model("Laguna", num_attention_heads_per_layer=[8, 8, 8, 8], **options)
    assert frozen(alike).num_heads == 8


def test_f32_the_number_of_heads_is_what_the_queries_have():
    options = {"num_key_value_heads": 8, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    llm = frozen(tiny_model("JetMoe", **options))
    assert (llm.num_heads, llm.model.config.num_attention_heads) == (16, HEADS)
    eager = tiny_model("JetMoe", attention="eager", **options)
    heads = all_heads(LAYERS, 16)
    found = score_lists(llm, PROMPTS[:1], heads)[0]
    expected = reference_scores(eager, PROMPTS[0], heads, "listwise")
    np.testing.assert_allclose(found.raw, expected.raw, atol=1e-5)


def whisper(attention="sdpa"):
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=320, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=8, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, max_target_positions=512, init_std=0.3, is_encoder_decoder=False,
    )  # fmt: skip
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return transformers.WhisperForCausalLM(config).eval()


def test_f32_whispers_decoder_has_its_own_number_of_heads():
    llm = frozen(whisper())
    assert (llm.num_heads, llm.model.config.num_attention_heads) == (8, 4)
    assert score_lists(llm, PROMPTS[:1], all_heads(LAYERS, 8))[0].raw.any()
    with pytest.raises(ListTooLongError, match="has 512"):
        score_lists(llm, [random_prompt(1, [300, 300])], all_heads(LAYERS, 8))


def test_f45_a_head_that_is_named_decoder_is_no_decoder():
    model = tiny_model("ModernBertDecoder", causal_lm=True)
    assert type(model.get_decoder()) is torch.nn.Linear
    llm = frozen(model)
    assert llm.architecture == "ModernBertDecoderModel"
    assert np.isfinite(scores(llm)[0].raw).all()


def bart():
    import transformers

    return transformers.BartForCausalLM(
        transformers.BartConfig(
            vocab_size=320, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, is_encoder_decoder=False,
            is_decoder=True, max_position_embeddings=256,
        )
    )


class OwnAttention(torch.nn.Module):
    """Takes the mask for a tensor, as attention outside of the registry does."""

    def __init__(self, usual, use):
        super().__init__()
        self.usual, self.use = usual, use

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        self.use(attention_mask)
        return self.usual(hidden_states=hidden_states, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize(
    "use",
    [
        lambda mask: mask.shape,
        lambda mask: mask.dim(),
        lambda mask: torch.zeros(2) + mask,
        lambda mask: mask.to(torch.float32),
        lambda mask: torch.nn.functional.scaled_dot_product_attention(*[torch.zeros(1, 1, 2, 2)] * 3, attn_mask=mask),
    ],
    ids=["shape", "dim", "plus", "to", "sdpa"],
)
def test_f45_a_mask_that_is_taken_for_a_tensor_is_named_for_what_it_is(use):
    model = tiny_model("Llama")
    model.layers[1].self_attn = OwnAttention(model.layers[1].self_attn, use)
    with pytest.raises(UnsupportedArchitectureError, match=NOT_OURS):
        frozen(model).load()


def test_f45_what_takes_no_positions_is_refused_for_that():
    with pytest.raises(UnsupportedArchitectureError, match=r"^BartDecoder cannot be read: it takes no positions"):
        frozen(bart()).load()
