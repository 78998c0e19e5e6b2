"""What CoRe's layer pruning saves: time and memory of the best 8 heads in all, 0.7 and 0.5 of the layers.

    python examples/layer_pruning.py

SmolLM2-135M-Instruct (GGUF), heads from examples/results/head_detection, BM25's top 20 of a SciFact test query. The
model is loaded only up to the deepest head that is left. Ratios are against all heads of all layers (ICR) in the same
run. How well the pruned sets rank is in examples/results/head_detection/table.csv. About three minutes on two cores.
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

from measuring import in_turns, peak_memory
from pyterrier_routehead import FrozenLLM, HeadSet, ICRReranker, StaticHeadReranker
from pyterrier_routehead.default_model import packaged_gguf
from testbed import SCIFACT

RESULTS = Path(__file__).parent / "results" / "head_detection"
SHARES = (1.0, 0.7, 0.5)
K = 8


def reranker(reading: str, share: float | None) -> StaticHeadReranker:
    """The best heads in a share of the layers; None: all heads (ICR). The model is loaded as short as can be."""
    own = {"document_attention": reading, "title_field": "title"}
    if share is None:
        return ICRReranker(llm=FrozenLLM(packaged_gguf()), **own)
    heads = HeadSet(RESULTS / "heads" / reading / "CoRe")
    heads = heads.below(int(heads.model.num_layers * share)).top(K)
    return StaticHeadReranker(heads, llm=FrozenLLM(packaged_gguf(), max_layers=layers(heads)), **own)


def layers(heads: HeadSet) -> int:
    """How many layers must run."""
    return max(head.layer for head in heads) + 1


def memory(reading: str, share: float | None) -> int:
    """Bytes at the peak of loading the model and ranking one list, above the process without a model."""
    frame = SCIFACT.first_stage(20)(SCIFACT.test_queries(1)[0])
    return peak_memory(lambda: reranker(reading, share)(frame), lambda: torch.ones(1), torch.device("cpu"))


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.memory_of:
        reading, share = args.memory_of
        print(json.dumps(memory(reading, json.loads(share))))
        return
    rows = []
    for reading in ("listwise", "blockwise"):
        frame = SCIFACT.first_stage(20)(SCIFACT.test_queries(1)[0])
        rankers = {share: reranker(reading, share) for share in (None, *SHARES)}
        runs = {share: partial(ranker, frame) for share, ranker in rankers.items()}
        times, _ = in_turns(runs, runs.values(), args.rounds)
        peaks = {}
        for share in rankers:
            command = [sys.executable, __file__, "--memory-of", reading, json.dumps(share)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[share] = json.loads(done.stdout.splitlines()[-1])
        for share, ranker in rankers.items():
            rows.append({
                "reading": reading,
                "heads": "all (ICR)" if share is None else f"CoRe {K} in {share:g} of the layers",
                "layers run": 30 if share is None else layers(ranker.heads),
                "seconds": float(np.median(times[share])),
                "time ratio": float(np.median(np.divide(times[share], times[None]))),
                "memory ratio": peaks[share] / peaks[None],
            })
    table = pd.DataFrame(rows).round(3)
    table.to_csv(RESULTS / "layer_pruning.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
