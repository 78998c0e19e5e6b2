"""Time, memory and size of late reading from an index, next to what it can be compared with.

    python examples/benchmark_late.py --output     # prints the tables, and writes them to examples/results/late_reading
    python examples/benchmark_late.py --dtype float32

SmolLM2-135M on lists of 150 tokens a document, by 8 heads. Times are taken in turns in one process: median, lowest and
highest of the rounds; a ratio is taken within each round. With targets beside:

* 20, 100 and 1,000 candidates from a warm index over list-wise reading of 20 by all heads, block-wise and list-wise
  reading of 20 by the same heads, a bare forward of the list, and BM25 retrieval (PISA, SciFact; needs the extra pisa);
* indexing over a bare forward of the documents, each by itself, up to the deepest head;
* 32 queries in one pass over 32 passes;
* peak memory of indexing as many documents as SciFact has, and of ranking from an index of ``--huge`` gigabytes made of
  random keys;
* bytes a document, measured and computed for larger models.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from measuring import Table, in_turns, peak_memory
from pyterrier_routehead import FrozenLLM, HeadIndex, published_heads
from pyterrier_routehead.heads import Head, all_heads
from pyterrier_routehead.index.quantising import row_dtype
from pyterrier_routehead.index.reader import IndexReader
from pyterrier_routehead.index.shard import DOCUMENT, ShardWriter
from pyterrier_routehead.kernel.key_cache import key_passes
from pyterrier_routehead.kernel.score import score_lists
from pyterrier_routehead.model.default import packaged_gguf
from pyterrier_routehead.prompt.build import Candidate, PromptBuilder

RESULTS = Path(__file__).parent / "results" / "late_reading"
HEADS = [Head(2, 3), Head(5, 1), Head(8, 8), Head(10, 0), Head(12, 3), Head(12, 4), Head(15, 6), Head(18, 2)]
"""Layers as those of the heads that rank well."""
QUERY = "how does the weather in spring change the price of bread"
WORDS = "harbour weather spring bread price city river school market light number family winter engine forest garden"
DOC_TOKENS = 150
SHAPES = {"Llama-3.2-3B": (28, 8, 128, "qr-nq-llama-3.2-3b"), "Llama-3.1-8B": (32, 8, 128, "core-llama-3.1-8b")}
"""Layers, key-value heads, size of a head, and published list."""


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of more tokens than are read."""
    words = WORDS.split()
    numbers = np.random.default_rng(seed).integers(len(words), size=(count, DOC_TOKENS + 20))
    return [" ".join(words[i] for i in row) for row in numbers]


def corpus(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The same as dictionaries."""
    return [{"docno": f"d{i}", "text": text} for i, text in enumerate(texts(count, seed))]


class Subject:
    """A model, an index of 1,000 documents, and what is run on them."""

    def __init__(self, dtype: str, folder: Path) -> None:
        self.llm = FrozenLLM(packaged_gguf(), dtype=dtype).load()
        self.index = HeadIndex(folder / "index").indexer(HEADS, llm=self.llm, verbose=True).index(corpus(1000))
        self.reader = IndexReader(self.index, self.llm, HEADS, self.index.settings)
        self._asked = 0

    def builder(self, *, numbered: bool) -> PromptBuilder:
        """Prompts with or without numbers."""
        return PromptBuilder(
            self.index.settings.prompt, self.llm.encoder, document_order="best_last", numbered=numbered,
            max_doc_tokens=DOC_TOKENS,
        )

    def late(self, candidates: int) -> None:
        """One query that was not asked before, from the index."""
        self._asked += 1
        prompt = self.reader.prompt(f"{QUERY} {self._asked}")
        self.reader.score([prompt], [np.arange(candidates)], [{}], HEADS)

    def read(self, pattern: str, heads: list[Head]) -> None:
        """A list of 20 from its texts."""
        builder = self.builder(numbered=pattern == "listwise")
        prompt = builder.build(QUERY, [Candidate(text) for text in texts(20)])
        score_lists(self.llm, [prompt], heads, document_attention=pattern)

    def bare(self) -> None:
        """A bare forward of the list-wise prompt of 20."""
        prompt = self.builder(numbered=True).build(QUERY, [Candidate(text) for text in texts(20)])
        ids = [*prompt.prefix, *(i for block in prompt.blocks for i in block.ids), *prompt.query]
        with torch.inference_mode():
            self.llm._load().decoder(input_ids=torch.tensor([ids]), use_cache=False)

    def queries(self, *, at_once: bool) -> None:
        """The passes of 32 queries that were not asked before."""
        prompts = [self.reader.prompt(f"{QUERY} {self._asked + 1 + i}") for i in range(32)]
        self._asked += 32
        for some in [prompts] if at_once else [[prompt] for prompt in prompts]:
            self.reader.prepare(some)

    def bare_documents(self, count: int, deepest: int) -> None:
        """A bare forward of documents up to the deepest head's layer, as a batch of equal lengths."""
        builder = self.builder(numbered=False)
        blocks = builder.documents([Candidate(text) for text in texts(count)])
        ids = torch.tensor([builder.prefix + block.ids for block in blocks])
        decoder = self.llm._load().decoder
        layers = decoder.layers
        decoder.layers = layers[: deepest + 1]
        try:
            with torch.inference_mode():
                for some in ids.split(13):  # some 2,000 tokens, which is fastest here
                    decoder(input_ids=some, use_cache=False)
        finally:
            decoder.layers = layers

    def encode(self, count: int) -> None:
        """The passes of indexing."""
        builder = self.builder(numbered=False)
        blocks = builder.documents([Candidate(text) for text in texts(count)])
        list(key_passes(self.llm, builder.prefix, blocks, HEADS))


def speed(subject: Subject, rounds: int, table: Table) -> None:
    """Times and their ratios."""
    timed = {
        "late 20": lambda: subject.late(20),
        "late 100": lambda: subject.late(100),
        "late 1000": lambda: subject.late(1000),
        "list-wise, all heads": lambda: subject.read("listwise", all_heads(30, 9)),
        "list-wise, 8 heads": lambda: subject.read("listwise", HEADS),
        "block-wise, 8 heads": lambda: subject.read("blockwise", HEADS),
        "bare forward of the list": subject.bare,
        "32 queries in one pass": lambda: subject.queries(at_once=True),
        "32 queries one by one": lambda: subject.queries(at_once=False),
        "encode 64 documents": lambda: subject.encode(64),
        "bare forward of 64 documents": lambda: subject.bare_documents(64, HEADS[-1].layer),
    }
    if (bm25 := first_stage()) is not None:
        timed["BM25, top 1000"] = bm25
    times, _ = in_turns(timed, timed.values(), rounds)
    size, name = (20, DOC_TOKENS), f"SmolLM2-135M, {subject.llm.weights_dtype}"
    for what, seconds in times.items():
        table.add(name, size, what, "s", seconds)

    def ratio(one: str, other: str, limit: float = 0) -> None:
        values = [a / b for a, b in zip(times[one], times[other], strict=True)]
        table.add(name, size, f"{one} over {other}", "", values, limit)

    ratio("late 20", "list-wise, all heads", 1 / 40)
    ratio("late 20", "block-wise, 8 heads", 1 / 15)
    ratio("late 20", "list-wise, 8 heads")
    ratio("late 20", "bare forward of the list")
    for other in ("list-wise, all heads", "block-wise, 8 heads", "bare forward of the list"):
        ratio("late 1000", other)
    ratio("late 1000", "late 20", 4)
    ratio("encode 64 documents", "bare forward of 64 documents", 1.05)
    ratio("32 queries one by one", "32 queries in one pass", -1.5)
    if "BM25, top 1000" in times:
        ratio("late 1000", "BM25, top 1000")


def first_stage() -> Callable[[], pd.DataFrame] | None:
    """BM25 on SciFact, one query; None without the index."""
    try:
        from testbed import SCIFACT

        ranking = SCIFACT.ranking(1000)
    except Exception as error:
        print(f"no BM25: {error}")
        return None
    topics = pd.DataFrame({"qid": ["1"], "query": [QUERY]})
    return lambda: ranking(topics)


def memory(subject: Subject, folder: Path, huge: int, table: Table) -> None:
    """Peak memory of indexing and of ranking from an index that is larger."""
    name = f"SmolLM2-135M, {subject.llm.weights_dtype}"
    device = torch.device("cpu")
    documents = 5183

    def index(count: int, path: str) -> None:
        HeadIndex(folder / path).indexer(HEADS, llm=subject.llm, verbose=True).index(corpus(count, seed=1))

    peak = peak_memory(lambda: index(documents, "many"), lambda: index(50, "few"), device)
    table.add(name, (documents, DOC_TOKENS), "peak memory of indexing", "MB", [peak / 1e6])
    if not huge:
        return
    large = random_index(subject.index, folder / "huge", huge)
    reader = IndexReader(large, subject.llm, HEADS, large.settings)
    rng = np.random.default_rng(0)

    def rank() -> None:
        for i in range(10):
            numbers = np.sort(rng.choice(len(large), 1000, replace=False))
            reader.score([reader.prompt(f"{QUERY} {i} of many")], [numbers], [{}], HEADS)

    peak = peak_memory(rank, lambda: subject.late(1000), device)
    what = f"peak memory of 10 queries, 1000 candidates each, from {large.size / 1e9:.0f} GB"
    table.add(name, (len(large), DOC_TOKENS), what, "MB", [peak / 1e6])


def random_index(like: HeadIndex, path: Path, gigabytes: int) -> HeadIndex:
    """An index of the same description with random keys: one shard written, then linked and copied."""
    index = HeadIndex(path)
    index.create(like.description)
    view = like.view()
    count = len(view)
    number, rng = 0, np.random.default_rng(0)
    while number == 0 or index.size < gigabytes * 1e9:
        writer = ShardWriter(index.shards, like.description)
        for part in range(50):
            documents = np.concatenate([shard.documents for shard in view.shards])
            tokens = int(documents["tokens"].sum())
            rows = {
                key_head: rng.integers(0, 60, (tokens, row_dtype(like.description.dtype, dim).itemsize), dtype=np.uint8)
                for key_head, dim in like.description.dims.items()
            }
            docnos = [f"s{number}p{part}d{i}" for i in range(count)]
            writer.add(docnos, documents.astype(DOCUMENT), rows)
        writer.finish(number)
        number += 1
        print(f"{index.size / 1e9:.1f} GB", flush=True)
    return index


def sizes(subject: Subject, table: Table) -> None:
    """Bytes a document, measured, and computed for larger models."""
    block = int(subject.index.view().documents(np.arange(1))["tokens"][0])
    name = "SmolLM2-135M"
    table.add(name, (1, DOC_TOKENS), "8 heads, int8", "kB", [subject.index.size_per_document / 1e3], 85)
    for model, (layers, key_values, dim, heads) in SHAPES.items():
        chosen = published_heads(heads)
        per_layer = chosen.model.num_heads // key_values
        for label, some in (("8 heads", chosen.heads[:8]), ("16 heads", chosen.heads[:16])):
            shared = {(head.layer, head.head // per_layer) for head in some}
            for dtype in ("int8", "float16"):
                size = len(shared) * block * row_dtype(dtype, dim).itemsize / 1e3
                what = f"{label} of {heads} ({len(shared)} key-value heads), {dtype}"
                table.add(model, (1, DOC_TOKENS), what, "kB", [size])
        assert max(head.layer for head in chosen.heads) < layers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--huge", type=int, default=0, help="gigabytes of an index of random keys (none)")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "sizes"])
    parser.add_argument("--output", action="store_true", help="write the tables to examples/results/late_reading")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=pt.io.pyterrier_home()))
    try:
        subject = Subject(args.dtype, folder)
        for part in args.parts:
            table = Table()
            if part == "speed":
                speed(subject, args.rounds, table)
            elif part == "memory":
                memory(subject, folder, args.huge, table)
            else:
                sizes(subject, table)
            if args.output:
                suffix = "" if part == "sizes" else f"-{subject.llm.weights_dtype}"
                table.write(RESULTS / f"{part}{suffix}.csv")
        print(json.dumps({"threads": torch.get_num_threads()}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
