"""Indexing that is killed at any moment, and reading while another process appends."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

from places import ROOT
from pyterrier_routehead import HeadIndex, StaticHeadReranker
from toys import frame, toy_llm

HEADS = "1-0,2-3"
DOCUMENTS = 120

WRITER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
from pyterrier_routehead import HeadIndex
from toys import toy_llm

def corpus():
    for i in range({DOCUMENTS}):
        yield {{"docno": f"d{{i}}", "text": f"text number {{i}} " + "word " * (i % 7)}}

print("ready", flush=True)
HeadIndex(sys.argv[1]).indexer({HEADS!r}, llm=toy_llm(), shard_documents=5).index(corpus())
"""


def writer(path) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete(path) -> HeadIndex:
    with writer(path) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return HeadIndex(path)


def keys(index: HeadIndex) -> dict[str, list[bytes]]:
    """Each document's rows, by docno."""
    found = {}
    for shard in index.view().shards:
        for number, docno in enumerate(shard.docnos):
            span = slice(shard.offsets[number], shard.offsets[number + 1])
            found[docno] = [shard.rows(key_head)[span].tobytes() for key_head in index.description.dims]
    return found


@pytest.mark.slow
def test_an_index_that_was_killed_thirty_times_is_the_same(tmp_path):
    expected = complete(tmp_path / "whole")
    path, rng, partial = tmp_path / "killed", random.Random(7), 0
    for _ in range(30):
        with writer(path) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 5))
            process.kill()
            process.communicate()
        if HeadIndex(path).exists:
            index = HeadIndex(path)
            assert index.docnos == expected.docnos[: len(index)]  # nothing lost, nothing twice
            partial += 0 < len(index) < DOCUMENTS
    assert partial, "no kill came in the middle"
    index = complete(path)
    assert index.docnos == expected.docnos
    assert index.check() == DOCUMENTS
    assert keys(index) == keys(expected)


@pytest.mark.slow
def test_two_processes_read_while_one_appends(tmp_path):
    llm = toy_llm()
    index = HeadIndex(tmp_path / "i").indexer(HEADS, llm=llm).index([{"docno": "q-d0", "text": "first"}])
    candidates = frame({"q": ["first"]}).drop(columns="text")
    reader = (
        "import sys; sys.path[:0] = sys.argv[2:4]\n"
        "from pyterrier_routehead import HeadIndex, StaticHeadReranker\n"
        "from toys import frame, toy_llm\n"
        "reranker = StaticHeadReranker('1-0,2-3', llm=toy_llm(), index=sys.argv[1])\n"
        "candidates, seen = frame({'q': ['first']}).drop(columns='text'), set()\n"
        "while len(seen) < 4:\n"
        "    assert len(reranker(candidates)) == 1\n"
        "    seen.add(len(reranker.index))\n"
        "print(sorted(seen))\n"
    )
    folders = [str(tmp_path / "i"), str(ROOT), str(ROOT / "tests" / "helpers")]
    command = [sys.executable, "-W", "ignore", "-c", reader, *folders]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    number, start = 1, time.monotonic()
    while any(process.poll() is None for process in readers):
        index.indexer(HEADS, llm=llm).index([{"docno": f"d{number}", "text": f"text {number}"}])
        number += 1
        assert time.monotonic() - start < 120
        time.sleep(0.3)
    assert [process.returncode for process in readers] == [0, 0]
    for process in readers:
        process.communicate()
    assert index.check() == number
    assert np.isfinite(StaticHeadReranker(HEADS, llm=llm, index=index)(candidates)["score"]).all()
