"""What the reading settings do on SciFact test: order, token filter, document attention and dtype.

    python examples/scifact_settings.py --output examples/results/scifact_settings.csv

SmolLM2-135M-Instruct (GGUF), BM25 top 20, documents cut to 150 tokens. About 70 minutes on two cores; what has been
read is kept in PyTerrier's home, so an interrupted run goes on where it stopped. Nothing here is chosen by the results:
it shows that the package reproduces ICR, what its defaults give, and how far bf16 is from fp32.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from scipy.stats import spearmanr

from pyterrier_routehead import FrozenLLM, ReadingSettings
from pyterrier_routehead.common.standard import standardised
from pyterrier_routehead.model.default import packaged_gguf
from pyterrier_routehead.model.fingerprint import shown
from pyterrier_routehead.ranking.frames import candidate_lists, documents, query_text
from pyterrier_routehead.reading.reader import CandidateList, ListReader
from testbed import SCIFACT

PASSES = {
    # name: settings, dtype, queries. One pass gives the scores of all systems below.
    "list-wise, best last": (ReadingSettings(), "bfloat16", 300),
    "list-wise, best first": (ReadingSettings(document_order="best_first"), "bfloat16", 300),
    "block-wise": (ReadingSettings(document_attention="blockwise"), "bfloat16", 300),
    "list-wise, best last, fp32": (ReadingSettings(), "float32", 50),
}
SYSTEMS = ("ICR, filter sum", "ICR, filter head", "middle third, filter head", "middle third + BM25")


def middle_third(num_layers: int, num_heads: int) -> list[tuple[int, int]]:
    """All heads of the middle third of the layers: where heads that rank well tend to be, without looking for them."""
    return [(layer, head) for layer in range(num_layers // 3, 2 * num_layers // 3) for head in range(num_heads)]


def read_pass(frame: pd.DataFrame, settings: ReadingSettings, dtype: str, label: str) -> tuple[dict, dict]:
    """Scores of every system, by qid, for the lists in a frame; and what was read, with seconds per query."""
    llm = FrozenLLM(packaged_gguf(), dtype=dtype)  # the hub's SmolLM2 has other weights than the GGUF
    reader = ListReader(llm, "all", settings)
    static = reader.reading.columns(middle_third(llm.num_layers, llm.num_heads))
    key = hashlib.sha256(repr((llm.fingerprint, settings, f"torch.{llm.weights_dtype}")).encode()).hexdigest()[:16]
    kept = Path(pt.io.pyterrier_home()) / "routehead" / "scifact-settings" / f"{key}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if kept.exists():
        for line in kept.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                done[row["qid"], tuple(row["docno"])] = row
        kept.write_text("".join(json.dumps(row) + "\n" for row in done.values()))
    found = {}
    with kept.open("a") as file:
        for candidates in pt.tqdm(candidate_lists(frame), desc=label, unit="q"):
            docnos = tuple(frame["docno"].iloc[candidates.rows])
            if (candidates.qid, docnos) not in done:
                texts = documents(frame, candidates.rows, "text", "title")
                start = time.perf_counter()
                ((_, scores),) = reader.read([CandidateList(candidates.qid, query_text(frame, candidates), texts)], 1)
                row = {"qid": candidates.qid, "docno": docnos, "seconds": time.perf_counter() - start}
                row["scores"] = {
                    "ICR, filter sum": scores.summed.tolist(),
                    "ICR, filter head": scores.filtered.sum(1, dtype=float).tolist(),
                    "middle third, filter head": scores.filtered[:, static].sum(1, dtype=float).tolist(),
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                done[candidates.qid, docnos] = row
            found[candidates.qid] = done[candidates.qid, docnos]
    seconds = float(np.median([row["seconds"] for row in found.values()]))
    what = {"model": llm.name, "weights": shown(llm.fingerprint), "dtype": llm.weights_dtype}
    return found, {"seconds per query": seconds, **what}


def as_run(frame: pd.DataFrame, found: dict, system: str) -> pd.DataFrame:
    """A ranking from what a pass has read."""
    parts = []
    for candidates in candidate_lists(frame):
        part = frame.iloc[candidates.rows][["qid", "query", "docno", "score"]]
        scores = found[candidates.qid]["scores"]
        if system == "middle third + BM25":
            own = standardised(np.array(scores["middle third, filter head"])) + standardised(part["score"].to_numpy())
        else:
            own = scores[system]
        parts.append(part.assign(score=own))
    return pt.model.add_ranks(pd.concat(parts, ignore_index=True))


def main() -> None:
    """Read all passes, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=300, help="at most so many test queries a pass")
    parser.add_argument("--output", type=Path, help="CSV file for the table")
    args = parser.parse_args()

    collection = pt.get_dataset(SCIFACT.test)
    qrels, topics = collection.get_qrels(), collection.get_topics()
    frame = SCIFACT.first_stage(20)(topics.head(args.queries))
    measures = [pt.measures.nDCG @ 10, pt.measures.RR @ 10]
    rows, passes = [], {}
    baseline = {str(k): v for k, v in pt.Evaluate(frame, qrels, metrics=measures).items()}
    rows.append({"reading": "-", "system": "BM25", "queries": frame.qid.nunique(), **baseline})
    for label, (settings, dtype, queries) in PASSES.items():
        few = frame[frame.qid.isin(topics.qid.head(queries))]
        passes[label], what = read_pass(few, settings, dtype, label)
        for system in SYSTEMS:
            run = as_run(few, passes[label], system)
            judged = qrels[qrels.qid.isin(few.qid)]
            values = {str(k): v for k, v in pt.Evaluate(run, judged, metrics=measures).items()}
            rows.append({"reading": label, "system": system, "queries": few.qid.nunique(), **values, **what})
        print(pd.DataFrame(rows).round(4).to_string(index=False), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).round(4).to_csv(args.output, index=False)

    low, full = passes["list-wise, best last"], passes["list-wise, best last, fp32"]
    few = frame[frame.qid.isin(full)]
    judged = qrels[qrels.qid.isin(few.qid)]
    for system in SYSTEMS[:3]:
        agreement = [spearmanr(low[q]["scores"][system], full[q]["scores"][system]).statistic for q in full]
        gain = [pt.Evaluate(as_run(few, p, system), judged, metrics=measures[:1])["nDCG@10"] for p in (low, full)]
        print(
            f"bf16 against fp32, {len(full)} queries, {system}: rank correlation mean {np.mean(agreement):.4f}, "
            f"minimum {np.min(agreement):.4f}; nDCG@10 {gain[0]:.4f} against {gain[1]:.4f}"
        )


if __name__ == "__main__":
    main()
