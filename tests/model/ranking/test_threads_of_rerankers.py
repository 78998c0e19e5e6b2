"""One re-ranker object used by many threads at once ranks as it does for one."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pandas as pd
import pytest

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    HeadRouter,
    HeadSet,
    ICRReranker,
    ReadingSettings,
    RouteHeadReranker,
    StaticHeadReranker,
)
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.routing.router import Selection
from pyterrier_routehead.routing.state import QueryState
from tiny import tiny_model
from toys import byte_tokenizer, frame

THREADS = 16
WORDS = ["cats", "moon", "paris", "rain", "tea", "whale"]
QRELS = pd.DataFrame([{"qid": f"q{i}", "docno": f"q{i}-d{i % 2}", "label": 1} for i in range(50)])


def some_list(i: int) -> pd.DataFrame:
    """Lists of two to five documents, in an order of rows that is not the first stage's."""
    generator = np.random.default_rng(i)
    texts = [" ".join(generator.choice(WORDS, 2)) for _ in range(2 + i % 4)]
    return frame({f"q{i}": texts}, {f"q{i}": f"{WORDS[i % 6]} {i}"}).sample(frac=1, random_state=i)


LISTS = [some_list(i) for i in range(50)]


def a_model() -> FrozenLLM:
    return FrozenLLM(tiny_model("Llama", num_hidden_layers=2), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def llm():
    return a_model()


@pytest.fixture(scope="module")
def scored(llm):
    return [AttentionHeadScorer(llm=llm)(own) for own in LISTS]


@pytest.fixture(scope="module")
def rerankers(llm, scored):
    """Each kind of re-ranker, as a function of what it is given beside its heads."""
    heads = HeadSet.of("1-1,0-2,1-3,0-0", model=model_identity(llm), settings=ReadingSettings())
    generator = np.random.default_rng(0)
    weights = {
        "mean": np.zeros(32),
        "deviation": np.full(32, 2.0),
        "projection": generator.normal(size=(32, 3)),
        "head_embeddings": generator.normal(size=(4, 3)),
        "bias": np.zeros(4),
    }
    router = HeadRouter.of(heads, weights, state=QueryState(0), selection=Selection(max_heads=2))
    found = CoReHeadReranker(llm=llm, k=3, calibrated=True).fit(pd.concat(scored[:12]), QRELS).head_set_
    return {
        "route": lambda **given: RouteHeadReranker(router, routed_heads=True, **given),
        "core": lambda **given: CoReHeadReranker(found, k=3, **given),
        "static": lambda **given: StaticHeadReranker(heads, first_stage_weight=0.5, **given),
        "icr": lambda **given: ICRReranker(depth=3, **given),
    }


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def ranked_at_once(reranker, lists):
    """Each thread ranks all lists, starting at another one; what each of them got, in the lists' order."""
    start = Barrier(THREADS)

    def work(number):
        start.wait()
        order = [(number * 7 + i) % len(lists) for i in range(len(lists))]
        found = {i: reranker(lists[i]) for i in order}
        return [found[i] for i in range(len(lists))]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


KINDS = pytest.mark.parametrize("kind", ["route", "core", "static", "icr"])


@KINDS
@pytest.mark.usefixtures("hasty")
def test_f1_many_threads_rank_vectors_as_one_does(rerankers, llm, scored, kind):
    expected = [rerankers[kind](llm=llm)(own) for own in scored]
    if kind == "route":
        assert len({heads for own in expected for heads in own["routed_heads"]}) > 3
    for found in ranked_at_once(rerankers[kind](llm=llm), scored):
        pd.testing.assert_frame_equal(pd.concat(found), pd.concat(expected), check_exact=True)


@KINDS
@pytest.mark.usefixtures("hasty")
def test_f1_many_threads_rank_texts_as_one_does(rerankers, llm, kind):
    lists = LISTS[:4]
    expected = [rerankers[kind](llm=llm)(own) for own in lists]
    # A model of its own, which the threads load and try together.
    for found in ranked_at_once(rerankers[kind](llm=a_model()), lists):
        pd.testing.assert_frame_equal(pd.concat(found), pd.concat(expected), check_exact=True)


@pytest.mark.parametrize("inp", ["text", "vectors"])
@pytest.mark.usefixtures("hasty")
def test_f1_threads_open_a_named_model_once(rerankers, scored, inp, tmp_path, monkeypatch):
    tiny_model("Llama", num_hidden_layers=2).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    reranker = rerankers["route"](llm=str(tmp_path / "model"))
    opened = set()
    of = FrozenLLM.of

    def spy(*args, **options):
        if not options:  # the check of arguments
            return of(*args)
        time.sleep(0.01)  # others come meanwhile
        opened.add(made := of(*args, **options))
        return made

    monkeypatch.setattr(FrozenLLM, "of", spy)
    first, *others = ranked_at_once(reranker, (LISTS if inp == "text" else scored)[:1])
    assert len(opened) == 1
    for own in others:
        pd.testing.assert_frame_equal(own[0], first[0], check_exact=True)
