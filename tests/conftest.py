import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

# Before anything imports pyterrier, transformers or torch.
os.environ.setdefault("PT_TEST_TRANSFORMER_REPORTS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that wait sleep instead of spinning: on a busy machine, tiny models are ten times as fast so.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SENTENCES = [
    "The harbour opens at six, and ships from seven countries wait outside.",
    "Who was the first keeper of the lighthouse? The records are lost.",
    "It stood on the northern rock; its light could be seen from afar.",
]


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer for the tiny models, without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tiny import VOCABULARY

    special = ["<pad>", "<s>", "</s>"]
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bytes_.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def shared_model():
    """Tiny models by architecture, each built once. Only for tests that leave them as they are."""
    from functools import cache

    from tiny import tiny_model

    return cache(tiny_model)


@pytest.fixture(scope="session")
def shared_llm(shared_model, tokenizer):
    """The same models, frozen."""
    from functools import cache

    from pyterrier_routehead.model.frozen import FrozenLLM

    return cache(lambda architecture: FrozenLLM(shared_model(architecture), tokenizer=tokenizer))


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.accelerator.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


class QuietServer(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Where this machine serves tmp_path."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietServer, directory=str(tmp_path))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
