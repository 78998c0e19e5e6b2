"""One model used from many threads, by us and by its owner, and across forks."""

import os
import pickle
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from model_state import bitwise_equal, snapshot, weights
from pyterrier_routehead import FrozenLLM, ICRReranker
from pyterrier_routehead.common.locks import new_lock
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.routing.state import QueryState, embed_query
from tiny import ALL, HEADS, random_prompt, tiny_model
from toys import byte_tokenizer, frame, two_queries

LISTS = [
    random_prompt(seed, [random.Random(seed).randrange(1, 20) for _ in range(4)], query=3 + seed % 7)
    for seed in range(50)
]


def generate(model, ids):
    return model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False).tolist()


@pytest.mark.filterwarnings("ignore:The attention mask")
@pytest.mark.parametrize(("architecture", "attention", "each"), [("Llama", "sdpa", 50), ("Gemma2", "eager", 8)])
def test_f12_sixteen_threads_read_while_the_owner_generates(architecture, attention, each):
    model, tokenizer = tiny_model(architecture, attention=attention, causal_lm=True), byte_tokenizer()
    llm = FrozenLLM(model, tokenizer=tokenizer)
    state, texts = QueryState(2), [f"what is {i}" for i in range(50)]
    prompts = [[5 + i, 17, 40 + i] for i in range(8)]
    scores = [score_lists(llm, [prompt], ALL)[0] for prompt in LISTS]
    embedded = [embed_query(FrozenLLM(model, tokenizer=tokenizer), text, state) for text in texts]
    generated = [generate(model, ids) for ids in prompts]
    reading = threading.Event()

    def read(thread):
        reading.set()
        order = random.Random(thread).sample(range(len(LISTS)), each)
        return {i: score_lists(llm, [LISTS[i]], ALL)[0] for i in order}

    def own(work, args):
        reading.wait()
        rounds = []
        while reading.is_set():
            rounds.append([work(arg) for arg in args])
        return rounds

    def embed_and_tokenise(text):
        tokenizer([text, text * 3], padding="max_length", truncation=True, max_length=8)
        return embed_query(llm, text, state)

    with ThreadPoolExecutor(18) as pool:
        owner = pool.submit(own, lambda ids: generate(model, ids), prompts)
        embedder = pool.submit(own, embed_and_tokenise, texts)
        found = [job.result() for job in [pool.submit(read, thread) for thread in range(16)]]
        reading.clear()
        generations, embeddings = owner.result(), embedder.result()
    for one in found:
        for i, own_scores in one.items():
            for name in ("raw", "null", "filtered", "summed"):
                np.testing.assert_array_equal(getattr(own_scores, name), getattr(scores[i], name))
    assert len(generations) >= 1
    assert all(one == generated for one in generations)
    for one in embeddings:
        np.testing.assert_array_equal(one, embedded)


def test_f12_re_rankers_of_one_model_in_threads():
    llm = FrozenLLM(tiny_model("Llama", max_position_embeddings=4096), tokenizer=byte_tokenizer())
    reranker = ICRReranker(llm=llm)
    frames = [frame({f"q{i}": [f"text {j} of {i}" for j in range(3)]}) for i in range(20)]
    expected = [reranker(one)["score"].to_numpy() for one in frames]
    with ThreadPoolExecutor(8) as pool:
        for found, one in zip(pool.map(reranker, frames), expected, strict=True):
            np.testing.assert_array_equal(found["score"].to_numpy(), one)


def test_f1_embeddings_are_remembered_while_others_fill_the_memory(monkeypatch):
    from pyterrier_routehead.routing import state as query_encoder

    monkeypatch.setattr(query_encoder, "_CACHE_SIZE", 3)
    llm = FrozenLLM(tiny_model("Llama"), tokenizer=byte_tokenizer())
    state, texts = QueryState(0), [f"what is {i}" for i in range(12)]
    expected = [embed_query(llm, text, state) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: embed_query(llm, texts[i % 12], state), range(300)))
    np.testing.assert_array_equal(found, expected * 25)


# Forks


def outcome_in_a_fork(work, seconds=30):
    """What a forked process makes of some work: its exit status, or None if it does not come to an end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def forked(test):
    test = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")(test)
    return pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")(test)


@pytest.fixture
def one_thread():
    """OpenMP's threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stop:
    """Something to stop at, in the middle of a thread's work."""

    def __init__(self):
        self.reached, self.leave = threading.Event(), threading.Event()

    def __call__(self, *_):
        self.reached.set()
        self.leave.wait(30)

    def while_stopped(self, target, work):
        thread = threading.Thread(target=target)
        thread.start()
        try:
            assert self.reached.wait(30)
            return work()
        finally:
            self.leave.set()
            thread.join()


@forked
@pytest.mark.usefixtures("one_thread")
def test_f41_a_process_forked_during_a_pass_reads_on():
    llm = FrozenLLM(tiny_model("Llama"), tokenizer=byte_tokenizer())
    expected = score_lists(llm, LISTS[:1], ALL)[0].raw
    stop = Stop()
    hook = llm.model.layers[1].register_forward_pre_hook(stop)

    def read():
        hook.remove()
        return np.array_equal(score_lists(llm, LISTS[:1], ALL)[0].raw, expected)

    assert stop.while_stopped(lambda: score_lists(llm, LISTS[:1], ALL), lambda: outcome_in_a_fork(read)) == 0


@forked
@pytest.mark.usefixtures("one_thread")
def test_f41_a_process_forked_while_a_model_is_loaded_loads_it():
    llm = FrozenLLM(tiny_model("Llama"), tokenizer=byte_tokenizer())
    stop = Stop()
    hook = llm.model.layers[1].register_forward_pre_hook(stop)

    def load():
        hook.remove()
        return llm.num_heads == HEADS and score_lists(llm, LISTS[:1], ALL)[0].raw.any()

    assert stop.while_stopped(llm.load, lambda: outcome_in_a_fork(load)) == 0


@forked
@pytest.mark.usefixtures("one_thread")
def test_f41_a_process_forked_while_a_reranker_opens_its_model_ranks():
    models = (tiny_model("Llama", max_position_embeddings=4096) for _ in range(2))
    llm, other = (FrozenLLM(model, tokenizer=byte_tokenizer()) for model in models)
    stop = Stop()
    hook = llm.model.layers[1].register_forward_pre_hook(stop)
    inp = two_queries().iloc[:2]

    def rank():
        hook.remove()
        return len(ICRReranker(llm=llm)(inp)) == len(inp)

    def elsewhere():
        with ThreadPoolExecutor(1) as pool:  # meanwhile another model can be opened, too
            assert len(pool.submit(ICRReranker(llm=other), inp).result(timeout=20)) == len(inp)
        return outcome_in_a_fork(rank, seconds=10)

    assert stop.while_stopped(lambda: ICRReranker(llm=llm)(inp), elsewhere) == 0


@forked
def test_f41_all_locks_are_free_in_a_forked_process():
    lock, stop = new_lock(), Stop()

    def hold():
        with lock:
            stop()

    def look():
        assert not lock.acquire(blocking=False)
        return outcome_in_a_fork(lambda: lock.acquire(timeout=5))

    assert stop.while_stopped(hold, look) == 0


# Interrupts


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
# An interrupt that hits a destructor or a callback of the interpreter is reported by it, not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_f38_an_interrupt_at_any_moment_leaves_the_model_alone():
    model = tiny_model("Gemma2", attention="eager", causal_lm=True).train()
    model.model.layers[1].eval()
    llm = FrozenLLM(model, tokenizer=byte_tokenizer()).load()
    expected = score_lists(llm, LISTS[:1], ALL, hidden_layers=[1])[0]
    before, values = snapshot(model), weights(model)
    generator, interrupted = random.Random(1), 0

    def interrupt(*_):
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-4, 0.03))
                score_lists(llm, LISTS[:1], ALL, hidden_layers=[1])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert snapshot(model) == before
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert interrupted > 30
    assert bitwise_equal(weights(model), values)
    # Nor does a lock stay behind, for other threads either.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: score_lists(llm, LISTS[:1], ALL, hidden_layers=[1])[0]).result(timeout=30)
    np.testing.assert_array_equal(found.raw, expected.raw)


def test_f28_our_attention_is_never_the_models_not_even_inside_a_pass():
    model = tiny_model("Llama", causal_lm=True).train()
    llm = FrozenLLM(model, tokenizer=byte_tokenizer()).load()
    before, seen = snapshot(model), []

    def look(module, args):
        assert module is not model.model.layers[1]
        seen.append(snapshot(model))

    hook = model.model.layers[1].register_forward_pre_hook(look)
    score_lists(llm, LISTS[:1], ALL)
    hook.remove()
    assert len(seen) == 2
    for inside in seen:
        assert inside["training"] == before["training"]
        assert inside["attention"] == before["attention"]
        assert inside["tensors"] == before["tensors"]
    assert snapshot(model) == before


def test_lists_are_counted_from_many_threads_and_after_a_change_of_the_layers():
    model = tiny_model("Llama")
    llm = FrozenLLM(model, tokenizer=byte_tokenizer())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda prompt: score_lists(llm, [prompt], ALL), LISTS))
    assert llm.document_passes == len(LISTS)
    model.layers = torch.nn.ModuleList(model.layers)  # its owner replaces the stack: another engine, the same count
    score_lists(llm, LISTS[:2], ALL)
    assert llm.document_passes == len(LISTS) + 2
    assert pickle.loads(pickle.dumps(llm)).document_passes == len(LISTS) + 2


def test_two_handles_of_one_model_count_their_own_lists_and_share_a_lock():
    model, tokenizer = tiny_model("Llama"), byte_tokenizer()
    first, second = (FrozenLLM(model, tokenizer=tokenizer).load() for _ in range(2))
    score_lists(first, LISTS[:3], ALL)
    assert (first.document_passes, second.document_passes) == (3, 0)
    assert first._start()._lock is second._start()._lock
