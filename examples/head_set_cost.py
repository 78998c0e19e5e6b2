"""What head sets cost beside ICR: time of every set of head_detection.py, memory of those that validation chose.

    python examples/head_set_cost.py

SmolLM2-135M-Instruct (GGUF), heads from examples/results/head_detection, BM25's candidates of a SciFact test query. The
model is loaded only up to the deepest head of a set. Ratios are against all heads of all layers (ICR) in the same run.
How well the sets rank is in examples/results/head_detection/table.csv, to which ``head_detection.py --steps tables``
then adds the times. About twenty minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from head_detection import RESULTS, chosen_k, head_sets
from measuring import clock, in_turns, peak_memory
from pyterrier_routehead import FrozenLLM, HeadSet, ICRReranker, StaticHeadReranker
from pyterrier_routehead.model.default import packaged_gguf
from testbed import READINGS, SCIFACT


def reranker(reading: str, heads: HeadSet | None) -> StaticHeadReranker:
    """A re-ranker by some heads, or all of them, whose model is loaded as short as can be."""
    own = {"document_attention": reading, "title_field": "title"}
    if heads is None:
        return ICRReranker(llm=FrozenLLM(packaged_gguf()), **own)
    return StaticHeadReranker(heads, llm=FrozenLLM(packaged_gguf(), max_layers=layers(heads)), **own)


def layers(heads: HeadSet | None) -> int:
    """How many layers must run; all 30 for ICR."""
    return 30 if heads is None else max(head.layer for head in heads) + 1


def memory(reading: str, number_of_layers: int) -> int:
    """Bytes at the peak of loading so many layers and ranking 20 candidates, above the process without a model."""
    frame = SCIFACT.first_stage(20)(SCIFACT.test_queries(1)[0])
    llm = FrozenLLM(packaged_gguf(), max_layers=number_of_layers)
    deepest = [(number_of_layers - 1, head) for head in range(8)]
    ranker = StaticHeadReranker(deepest, llm=llm, document_attention=reading, title_field="title")
    return peak_memory(lambda: ranker(frame), lambda: torch.ones(1), torch.device("cpu"))


def memory_apart(reading: str, number_of_layers: int) -> int:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", reading, str(number_of_layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of head_detection.py's tables")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory(args.memory_of[0], int(args.memory_of[1]))))
        return
    rows = []
    for reading in READINGS:
        core = HeadSet(args.results / "heads" / reading / "CoRe").top(8)
        sets = {"ICR": None, "CoRe 8 in 1 of the layers": core, **head_sets(reading, 30, args.results)}
        # Sets of the same depth cost the same: the first of each depth is timed. Memory is for those that validation
        # chose, since each takes a process of its own.
        chosen = {"ICR", *chosen_k(reading, args.results), *(name for name in sets if " of the " in name)}
        peaks = {number: memory_apart(reading, number) for number in {layers(sets[name]) for name in chosen}}
        by_layers = {layers(heads): reranker(reading, heads) for heads in reversed(sets.values())}
        times, first_stage = {}, {}
        for depth in args.depths:
            candidates, topics = SCIFACT.first_stage(depth), SCIFACT.test_queries(1)[0]
            frame = candidates(topics)
            runs = {number: partial(ranker, frame) for number, ranker in by_layers.items()}
            times[depth], _ = in_turns(runs, () if times else runs.values(), args.rounds)
            first_stage[depth] = np.median([clock(partial(candidates, topics))[0] for _ in range(args.rounds)])
        bm25 = {f"s, top {depth}": seconds for depth, seconds in first_stage.items()}
        rows.append({"reading": reading, "heads": "BM25", **bm25})
        for name, heads in sets.items():
            number = layers(heads)
            ratios = {f"time over ICR, top {depth}": np.median(np.divide(own[number], own[30]))
                      for depth, own in times.items()}
            seconds = {f"s, top {depth}": np.median(own[number]) for depth, own in times.items()}
            memory_ratio = peaks[number] / peaks[30] if name in chosen else np.nan
            rows.append({"reading": reading, "heads": name, "layers run": number, **seconds, **ratios,
                         "memory over ICR": memory_ratio})
    table = pd.DataFrame(rows).round(3).convert_dtypes()
    table.to_csv(args.results / "cost.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
