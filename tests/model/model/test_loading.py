"""Getting a model: what may be given, its one configuration, where it comes from, and errors when it cannot be had."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
import traceback
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from places import ROOT
from pyterrier_routehead import FrozenLLM, ICRReranker, ModelNotFoundError, UnsupportedArchitectureError
from tiny import LAYERS, tiny_config, tiny_model
from toys import byte_tokenizer, two_queries

YARN = {"rope_type": "yarn", "factor": 4.0}
OTHER_ROPE = {"rope_type": "default", "rope_theta": 50.0}

peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("Llama", causal_lm=True).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def scores(llm):
    return ICRReranker(llm=llm)(two_queries())["score"].to_numpy()


# One configuration


def other_config():
    return tiny_config("Llama", max_position_embeddings=777, rope_parameters=OTHER_ROPE)


CONFIGS = {
    "object": lambda folder: other_config(),
    "dict": lambda folder: other_config().to_dict(),
    "folder": lambda folder: str(folder / "other"),
    "path": lambda folder: folder / "other",
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("max_layers", [None, 2, LAYERS])
def test_f9_a_given_configuration_counts_however_many_layers_are_loaded(folder, tmp_path, kind, max_layers):
    other_config().save_pretrained(tmp_path / "other")
    config = CONFIGS[kind](tmp_path)
    before = config.to_dict() if kind == "object" else None
    llm = FrozenLLM(folder, dtype="fp32", max_layers=max_layers, model_kwargs={"config": config})
    assert llm.context_length == 777
    assert (llm.num_layers, llm.total_layers) == (max_layers or LAYERS, LAYERS)
    model = tiny_model("Llama", rope_parameters=OTHER_ROPE)
    expected = FrozenLLM(model, tokenizer=byte_tokenizer(), max_layers=max_layers)
    np.testing.assert_allclose(scores(llm), scores(expected), atol=1e-6)
    assert np.abs(scores(llm) - scores(FrozenLLM(folder, dtype="fp32", max_layers=max_layers))).max() > 1e-3
    if before is not None:
        assert config.to_dict() == before


def test_f9_a_configuration_that_is_none_is_refused(folder):
    with pytest.raises(TypeError, match=r"config in model_kwargs must be .* got int"):
        FrozenLLM(folder, model_kwargs={"config": 3}).load()
    with pytest.raises(ValueError, match=r"without model_type; .* model_kwargs=\{'vocab_size': ...\}"):
        FrozenLLM(folder, model_kwargs={"config": {"vocab_size": 3}}).load()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("torch_dtype", r"FrozenLLM\(dtype="),
        ("dtype", r"FrozenLLM\(dtype="),
        ("revision", r"FrozenLLM\(revision="),
        ("device", r"FrozenLLM\(device="),
        ("num_hidden_layers", r"FrozenLLM\(max_layers="),
        ("attn_implementation", "leave it out"),
        ("proxies", "HTTPS_PROXY"),
        ("state_dict", r"FrozenLLM\(model, tokenizer="),
        ("output_loading_info", "leave it out"),
        ("load_in_8bit", r"BitsAndBytesConfig\(load_in_8bit=True\)"),
        ("load_in_4bit", r"BitsAndBytesConfig\(load_in_4bit=True\)"),
    ],
)
def test_f9_what_cannot_be_honoured_is_refused_by_name(folder, name, remedy):
    with pytest.raises(ValueError, match=rf"{name} .*{remedy}"):
        FrozenLLM(folder, model_kwargs={name: None})


def test_f9_what_nobody_knows_is_refused_by_name(folder):
    for max_layers in (None, 2):
        with pytest.raises(TypeError, match=r"'rope_parameter' in model_kwargs is neither .* a value of LlamaConfig"):
            FrozenLLM(folder, max_layers=max_layers, model_kwargs={"rope_parameter": YARN}).load()


def test_f15_rope_scaling_is_an_earlier_name_of_rope_parameters(folder):
    one, other = ({name: YARN, "max_position_embeddings": 4096} for name in ("rope_scaling", "rope_parameters"))
    found, expected = (FrozenLLM(folder, dtype="fp32", model_kwargs=kwargs) for kwargs in (one, other))
    np.testing.assert_array_equal(scores(found), scores(expected))


@pytest.mark.parametrize("value", ["head_dim", "intermediate_size"])
def test_f18_values_that_the_weights_do_not_fit_are_refused_naming_the_model(folder, value):
    with pytest.raises(ValueError, match=rf"{folder} cannot be loaded: the shapes of its weights differ from its conf"):
        FrozenLLM(folder, model_kwargs={value: 6}).load()


@pytest.mark.parametrize("max_layers", [None, 2])
def test_f15_values_of_the_configuration_go_with_any_number_of_layers(folder, max_layers):
    kwargs = {"rope_parameters": YARN, "max_position_embeddings": 4096}
    llm = FrozenLLM(folder, dtype="fp32", max_layers=max_layers, model_kwargs=kwargs)
    whole = {"rope_theta": 10000.0, "original_max_position_embeddings": 1024, **YARN}
    model = tiny_model("Llama", rope_parameters=whole, max_position_embeddings=4096)
    expected = FrozenLLM(model, tokenizer=byte_tokenizer(), max_layers=max_layers)
    assert llm.context_length == 4096
    np.testing.assert_allclose(scores(llm), scores(expected), atol=1e-6)
    assert np.abs(scores(llm) - scores(FrozenLLM(folder, dtype="fp32", max_layers=max_layers))).max() > 1e-3


def test_f15_the_first_layer_alone_is_loaded_with_the_same_values(folder):
    llm = FrozenLLM(folder, dtype="fp32", model_kwargs={"rope_parameters": YARN})
    peeked = llm.peek()
    assert peeked.fingerprint == llm.fingerprint[:1]
    assert peeked._load().decoder.config.rope_parameters == llm._load().decoder.config.rope_parameters


# The hub


class _FakeHub(SimpleHTTPRequestHandler):
    """Serves a folder as ``some/model``, to those who have the token."""

    asked: list[tuple[str, str]] = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path))
        commit, prefix = "c" * 40, "/some/model/resolve/"
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if path == "/api/models/some/model/revision/main" or path == "/api/models/some/model":
            files = [str(p.relative_to(self.directory)) for p in Path(self.directory).rglob("*") if p.is_file()]
            said = {"id": "some/model", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self._send(200, {}, json.dumps(said).encode(), body)
        name = path.removeprefix(prefix).partition("/")[2] if path.startswith(prefix) else ""
        file = Path(self.directory) / name
        if not name or not file.is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = f'"{name.replace("/", "-")}"'
        return self._send(200, {"X-Repo-Commit": commit, "ETag": etag}, file.read_bytes(), body)

    def _send(self, status, headers, content=b"", body=True):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub(folder):
    """The address of a hub with one gated model, once in its root and once in a subfolder."""
    (folder / "sub").mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        (folder / "sub" / file.name).write_bytes(file.read_bytes())
    handler = partial(_FakeHub, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_online(code, hub, tmp_path):
    """Run code in a process that may use a hub; huggingface_hub reads its settings when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT, ROOT / "tests" / "helpers"]))
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_f14_hub_arguments_reach_model_configuration_and_tokenizer(hub, folder, tmp_path):
    run = run_online(
        f"""
        from pathlib import Path
        from pyterrier_routehead import FrozenLLM, ModelNotFoundError
        try:
            FrozenLLM("some/model").load()
        except ModelNotFoundError as error:
            print(error)
        access = {{"token": "hf_right", "cache_dir": {str(tmp_path / "cache")!r}}}
        for kwargs in (access, access | {{"subfolder": "sub"}}):
            assert FrozenLLM("some/model", model_kwargs=kwargs, max_layers=2).load().total_layers == {LAYERS}
        assert FrozenLLM({str(folder)!r}, tokenizer="some/model", model_kwargs=access).load().encoder
        # All of it is in that cache now.
        FrozenLLM("some/model", model_kwargs={{"cache_dir": access["cache_dir"], "local_files_only": True}}).load()
        # Without an answer, what is cached is used.
        FrozenLLM("some/model", model_kwargs={{"cache_dir": access["cache_dir"]}}).load()
        assert not list(Path({str(tmp_path / "home")!r}).rglob("*.safetensors"))
        """,
        hub,
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "some/model cannot be loaded" in run.stdout
    assert "needs a token (hf auth login, HF_TOKEN, or model_kwargs={'token': ...})" in run.stdout


def test_f18_without_a_connection_the_hub_is_asked_once(tmp_path):
    run = run_online(
        """
        import time
        from pyterrier_routehead import FrozenLLM, ModelNotFoundError
        import torch, transformers
        start = time.monotonic()
        try:
            FrozenLLM("some/model").load()
        except ModelNotFoundError as error:
            print(time.monotonic() - start, error)
        """,
        "http://127.0.0.1:9",
        tmp_path,
    )
    assert run.returncode == 0, run.stderr
    seconds, _, said = run.stdout.partition(" ")
    assert float(seconds) < 5
    assert "Retrying" not in run.stderr
    assert "some/model cannot be loaded: it is no folder here" in said
    assert "the Hub could not be reached" in said
    assert "hf download some/model" in said


# A model that cannot be had


def make_adapter(path):
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')


def make_bad_json(path):
    (path / "config.json").write_text("{nope")


def make_cut_weights(path):
    tiny_model("Llama").save_pretrained(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


BROKEN = {
    "an adapter": (make_adapter, "only a PEFT adapter .* FrozenLLM\\(PeftModel"),
    "nothing": (lambda path: None, "has no config.json"),
    "bad JSON": (make_bad_json, "not a valid JSON"),
    "no weights": (lambda path: tiny_config("Llama").save_pretrained(path), "no file named model.safetensors"),
    "cut weights": (make_cut_weights, "SafetensorError"),
    "no tokenizer": (lambda path: tiny_model("Llama").save_pretrained(path), "give one as FrozenLLM.*tokenizer="),
}


def assert_one_short_error(raised):
    said = "".join(traceback.format_exception(raised.value))
    assert "\n" not in str(raised.value)
    assert "During handling" not in said
    assert "direct cause" not in said


@pytest.mark.parametrize("what", BROKEN)
def test_f18_a_folder_that_is_no_model_is_one_short_error(tmp_path, what):
    make, expected = BROKEN[what]
    make(tmp_path)
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=f"{tmp_path.name} cannot be loaded: .*{expected}") as raised:
        FrozenLLM(tmp_path).load()
    assert time.monotonic() - start < 5
    assert_one_short_error(raised)


def test_f18_an_architecture_that_transformers_lacks_is_one_short_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such"}')
    with pytest.raises(ValueError, match=rf"{tmp_path.name} cannot be loaded: .*`no_such`") as raised:
        FrozenLLM(tmp_path).load()
    assert_one_short_error(raised)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("some/model", "no folder here, .*offline mode.*hf download some/model"),
        ("./models/nothere", "there is no folder or file .*models.nothere"),
        ("models/of/mine", "there is no folder or file .*models.of.mine"),
        ("~/no/such/model", f"there is no folder or file {Path.home()}.no.such.model"),
        ("nothere.gguf", "there is no file .*nothere.gguf"),
        ("not.gguf", "is not a GGUF file"),
        ("weights.safetensors", "is a file, but neither a saved model's folder nor a GGUF file"),
        ("my model", "neither a folder .* nor a hub id"),
    ],
)
def test_f18_a_name_that_leads_nowhere_is_one_short_error(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    for file in ("not.gguf", "weights.safetensors"):
        (tmp_path / file).write_bytes(b"nothing of the kind")
    with pytest.raises(ModelNotFoundError, match=f"^{name} cannot be loaded: .*{expected}") as raised:
        FrozenLLM(name).load()
    assert_one_short_error(raised)
    with pytest.raises(ModelNotFoundError, match=name):  # as a re-ranker meets it
        ICRReranker(llm=name)(two_queries())


def test_f18_a_tokenizer_by_name_is_looked_up_likewise(folder):
    for model in (folder, tiny_model("Llama")):
        for name in ("some/tokenizer", "./nothere"):
            with pytest.raises(ModelNotFoundError, match=f"the tokenizer {name} cannot be loaded") as raised:
                FrozenLLM(model, tokenizer=name).load()
            assert_one_short_error(raised)


class _Wrapper:
    """Like a pipeline: holds a model and its tokenizer."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer


def test_f18_other_objects_than_models_and_tokenizers_are_type_errors():
    model, tokenizer = tiny_model("Llama"), byte_tokenizer()
    wrong_models = {
        r"DataParallel: .*FrozenLLM\(wrapper.module, tokenizer=...\)": torch.nn.DataParallel(model),
        r"_Wrapper: .*FrozenLLM\(wrapper.model, tokenizer=wrapper.tokenizer\)": _Wrapper(model, tokenizer),
        "got Linear$": torch.nn.Linear(2, 2),
        "got the class LlamaConfig$": LlamaConfig,
        "got int$": 3,
    }
    for expected, wrong in wrong_models.items():
        with pytest.raises(TypeError, match=f"^model must be a hub id, .*{expected}"):
            FrozenLLM(wrong, tokenizer=tokenizer)
    wrong_tokenizers = {
        "_Wrapper: .*tokenizer=processor.tokenizer": _Wrapper(model, tokenizer),
        "Tokenizer: .*PreTrainedTokenizerFast": tokenizer.backend_tokenizer,
        "got int": 3,
    }
    for expected, wrong in wrong_tokenizers.items():
        with pytest.raises(TypeError, match=f"^tokenizer must be a transformers tokenizer, .*{expected}"):
            FrozenLLM(model, tokenizer=wrong)


def test_f18_a_real_pipeline_is_a_type_error():
    from transformers import pipeline

    model = tiny_model("Llama", causal_lm=True)
    pipe = pipeline("text-generation", model=model, tokenizer=byte_tokenizer(), device="cpu")
    with pytest.raises(TypeError, match=r"FrozenLLM\(wrapper.model, tokenizer=wrapper.tokenizer\)"):
        FrozenLLM(pipe, tokenizer=byte_tokenizer())


@peft_warns
def test_compiled_and_peft_models_are_loaded_models():
    peft = pytest.importorskip("peft")
    model = tiny_model("Llama", causal_lm=True)
    expected = scores(FrozenLLM(model, tokenizer=byte_tokenizer()))
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    np.testing.assert_allclose(scores(FrozenLLM(adapted, tokenizer=byte_tokenizer())), expected, atol=1e-6)
    assert FrozenLLM(torch.compile(tiny_model("Llama")), tokenizer=byte_tokenizer()).load().is_loaded


@peft_warns
def test_adapters_of_learnt_tokens_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model("Llama", causal_lm=True), config)
    with pytest.raises(UnsupportedArchitectureError, match="PROMPT_TUNING"):
        FrozenLLM(model, tokenizer=byte_tokenizer()).load()


# Arguments


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"), ("float", "float32"),
     ("torch.bfloat16", "bfloat16"), (torch.float16, "float16")],
)
def test_f23_dtypes_by_their_usual_names(folder, dtype, expected):
    assert FrozenLLM(folder, dtype=dtype, max_layers=1).weights_dtype == expected


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"dtype": "bf17"}, ValueError, "dtype must be 'auto' or one of 'bfloat16', .*, got 'bf17'"),
        ({"dtype": "int8"}, ValueError, "dtype must be .*quantization_config"),
        ({"dtype": torch.int8}, ValueError, "dtype must be .*torch.int8"),
        ({"dtype": 16}, TypeError, "dtype must be .*got 16"),
        ({"dtype": None}, TypeError, "dtype must be .*got None"),
        ({"device": "gpu"}, ValueError, "device must be a string such as 'cpu', .*got 'gpu'"),
        ({"device": "cuda:x"}, ValueError, "device must be .*got 'cuda:x'"),
        ({"device": 0}, TypeError, "device must be .*got 0"),
        ({"max_layers": 2.0}, TypeError, "max_layers must be an integer number of layers >= 1, got 2.0"),
        ({"max_layers": True}, TypeError, "max_layers must be .*got True"),
        ({"max_layers": 0}, ValueError, "max_layers must be .*got 0"),
        ({"revision": 3}, TypeError, "revision is a string"),
        ({"revision": ""}, ValueError, "revision is empty"),
        ({"tokenizer": ""}, ValueError, "tokenizer is empty"),
        ({"model": ""}, ValueError, "model is empty"),
        ({"model_kwargs": "device_map"}, TypeError, "model_kwargs must be a dict"),
        ({"model_kwargs": {3: 4}}, TypeError, "model_kwargs must be a dict"),
    ],
    ids=str,
)
def test_f23_wrong_arguments_are_refused_by_the_constructor(arguments, error, expected):
    with pytest.raises(error, match=expected):
        FrozenLLM(**{"model": "some/model", **arguments})


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", "mps:7"])
def test_f23_a_device_that_is_not_there_is_named_before_anything_is_loaded(device):
    with pytest.raises(ValueError, match=f"device='{device}' is "):
        FrozenLLM("some/model", device=device).load()


def test_f23_the_constructor_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from pyterrier_routehead import FrozenLLM;"
        "FrozenLLM('some/model', dtype='bf16', device='cuda:0', max_layers=3, model_kwargs={'token': 'x'});"
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_f25_load_is_public_and_chainable(folder):
    llm = FrozenLLM(folder)
    assert not llm.is_loaded
    assert llm.load() is llm
    assert llm.is_loaded
    loaded = llm._load()
    assert llm.load()._load() is loaded


def test_a_home_folder_is_expanded_and_names_travel_as_typed(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    llm = FrozenLLM("~/llama", tokenizer="~/llama")
    assert llm.load().total_layers == LAYERS
    assert llm.name == pickle.loads(pickle.dumps(llm)).name == "~/llama"
