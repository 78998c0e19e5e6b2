"""Late and block-wise reading by a larger model, from the same encoded documents.

    python examples/late_larger.py --model qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --max-layers 21

Block-wise and late reading differ in the tail alone, so each document is encoded once and both are read from its keys
and values. Heads are found by single-head nDCG@10 on one part of the queries and tested on another: SciFact's clean
training queries and its test queries, and two parts of Vaswani's queries. Tables go to
examples/results/late_larger. Memory: keys and values of all documents of a collection (--depth 20: some 7 GB in bf16).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from scipy import stats

from late_reading import uncalibrated
from pyterrier_routehead import FrozenLLM, ICRReranker, QRHeadReranker, Reading, ReadingSettings, StaticHeadReranker
from pyterrier_routehead.heads import all_heads
from pyterrier_routehead.kernel.keys import DocumentKeys
from pyterrier_routehead.kernel.late_reader import LateReader
from pyterrier_routehead.kernel.passes import DocumentPass, EncodedDocuments, TailPass, list_scores
from pyterrier_routehead.kernel.patterns import PATTERNS
from pyterrier_routehead.prompt.build import Candidate, DocumentBlock, ListPrompt, PromptBuilder
from pyterrier_routehead.reading.reader import model_identity
from testbed import MEASURES, SCIFACT, VASWANI, Collection, clean_splits, shuffled

RESULTS = Path(__file__).parent / "results" / "late_larger"
TOKENS_AT_A_TIME = 2048
KS = (4, 8, 16)


class Documents:
    """Keys and values of documents behind the prompt's prefix, by layer, each encoded once."""

    def __init__(self, llm: FrozenLLM, builder: PromptBuilder) -> None:
        self.llm, self.builder = llm, builder
        self._states: dict[tuple[int, ...], dict[str, list[torch.Tensor]]] = {}
        self._prefix: dict[str, list[torch.Tensor]] = {}

    def encode(self, blocks: list[DocumentBlock]) -> None:
        """Encode those that are new, some at a time, with a line on how far it is."""
        new = {tuple(block.ids): block for block in blocks if tuple(block.ids) not in self._states}
        missing = sorted(new.values(), key=lambda block: -len(block.ids))
        tokens, done, start = sum(len(block.ids) for block in missing), 0, time.perf_counter()
        while missing:
            part, length = [], 0
            while missing and (not part or length + len(missing[0].ids) <= TOKENS_AT_A_TIME):
                part.append(missing.pop(0))
                length += len(part[-1].ids)
            prompt = ListPrompt(self.builder.prefix, part, list(range(len(part))), [], [])
            encoded = EncodedDocuments([prompt], PATTERNS["blockwise"])
            self.llm.forward(DocumentPass(encoded, self.llm.num_layers - 1))
            layers = range(self.llm.num_layers)
            split = [len(prompt.prefix), *prompt.block_lengths]
            by_kind = {
                kind: [torch.split(states[layer], split, dim=2) for layer in layers]
                for kind, states in (("keys", encoded.keys), ("values", encoded.values))
            }
            self._prefix = {kind: [parts[0].clone() for parts in found] for kind, found in by_kind.items()}
            for i, block in enumerate(part):
                self._states[tuple(block.ids)] = {
                    kind: [parts[i + 1].clone() for parts in found] for kind, found in by_kind.items()
                }
            done += length
            rate = done / (time.perf_counter() - start)
            print(f"\r{done} of {tokens} tokens, {rate:.0f} a second", end="", flush=True)
        print()

    def of(self, prompt: ListPrompt) -> EncodedDocuments:
        """A list's documents, as block-wise reading wants them."""
        found = [self._states[tuple(block.ids)] for block in prompt.blocks]
        encoded = EncodedDocuments([prompt], PATTERNS["blockwise"])
        for kind, target in (("keys", encoded.keys), ("values", encoded.values)):
            for layer in range(self.llm.num_layers):
                parts = [self._prefix[kind][layer], *(states[kind][layer] for states in found)]
                target[layer] = torch.cat(parts, dim=2)
        return encoded

    def keys_of(self, prompt: ListPrompt) -> DocumentKeys:
        """The same as late reading wants them."""
        found = [self._states[tuple(block.ids)]["keys"] for block in prompt.blocks]
        lengths, starts, stops = (
            np.array(column, dtype=np.int64)
            for column in zip(*((len(b.ids), b.start, b.stop) for b in prompt.blocks), strict=True)
        )
        return DocumentKeys(
            lengths, starts, stops, np.array(prompt.order), len(prompt.prefix),
            lambda key_head, tokens: torch.split(
                torch.cat([keys[key_head.layer][0, key_head.head] for keys in found]), tokens
            ),
        )


def read(llm: FrozenLLM, candidates: pd.DataFrame, title_field: str | None) -> dict[str, pd.DataFrame]:
    """Head scores of all heads, calibrated and raw, by pattern."""
    settings = {name: ReadingSettings(document_attention=name) for name in ("blockwise", "late")}
    builder = PromptBuilder(
        settings["late"].prompt, llm.encoder, document_order="best_last", numbered=False, max_doc_tokens=150
    )
    heads = all_heads(llm.num_layers, llm.num_heads)
    model = model_identity(llm)
    documents, late = Documents(llm, builder), LateReader(llm, heads)
    lists = []
    for qid, rows in candidates.groupby("qid", sort=False):
        titles = rows[title_field] if title_field else [""] * len(rows)
        texts = [Candidate(text, title) for text, title in zip(rows["text"], titles, strict=True)]
        lists.append((qid, rows, builder.build(rows["query"].iloc[0], texts)))
    documents.encode([block for _, _, prompt in lists for block in prompt.blocks])
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in settings}
    start = time.perf_counter()
    for _, rows, prompt in lists:
        encoded = documents.of(prompt)
        tails = TailPass(encoded, heads, calibrate=True, device=llm.input_device)
        llm.forward(tails)
        found = {
            "blockwise": list_scores(tails.lists[0], prompt.order, heads, calibrate=True),
            "late": late.score([prompt], heads, [documents.keys_of(prompt)])[0],
        }
        for name, scores in found.items():
            reading = Reading(model, tuple(heads), settings[name], complete=True, title_field=title_field)
            columns = {"head_scores": list(scores.filtered), "head_scores_raw": list(scores.raw)}
            frames[name].append(rows.assign(**columns, head_reading=[reading] * len(rows)))
    print(f"{len(lists)} lists read in both ways in {time.perf_counter() - start:.0f} s")
    return {name: pd.concat(parts) for name, parts in frames.items()}


def parts_of(collection: Collection, number: int) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Queries to find heads on, and test queries, with judgements."""
    if collection is VASWANI:
        topics, qrels = collection.queries()
        topics = shuffled(topics)
        return {"heads": (topics.iloc[number:], qrels), "test": (topics.head(number), qrels)}
    learnt, _ = clean_splits()[collection.name]
    return {"heads": (learnt.topics.head(number), learnt.qrels), "test": collection.test_queries(number)}


def compare(llm: FrozenLLM, collection: Collection, number: int, depth: int) -> None:
    """Find heads on one part, rank the other, and write one value a query."""
    parts = parts_of(collection, number)
    first_stage = collection.first_stage(depth)
    candidates = {name: first_stage(topics) for name, (topics, _) in parts.items()}
    frames = read(llm, pd.concat(candidates.values(), ignore_index=True), collection.title_field)
    qrels = parts["test"][1]
    values, chosen = {"BM25": candidates["test"]}, []
    for pattern in frames:
        for scores in ("calibrated", "raw"):
            frame = frames[pattern] if scores == "calibrated" else uncalibrated(frames[pattern])
            learn, test = (frame[frame["qid"].isin(candidates[part]["qid"])] for part in ("heads", "test"))
            if scores == "calibrated":
                found = QRHeadReranker(criterion="ndcg@10").fit(learn, parts["heads"][1]).head_set_
                chosen.append({"pattern": pattern, "heads": " ".join(map(str, found.heads[:16]))})
            for weight, suffix in ((0.0, ""), (1.0, " + BM25")):
                values[f"{pattern}, {scores}, ICR{suffix}"] = ICRReranker(first_stage_weight=weight)(test)
                for k in KS:
                    ranker = StaticHeadReranker(found.heads[:k], first_stage_weight=weight)
                    values[f"{pattern}, {scores}, {k} heads{suffix}"] = ranker(test)
    by_query = {
        name: pd.DataFrame(pt.Evaluate(frame, qrels, metrics=MEASURES, perquery=True)).T["nDCG@10"]
        for name, frame in values.items()
    }
    table = pd.DataFrame(by_query).reindex(parts["test"][0]["qid"]).fillna(0.0).round(4)
    table.to_csv(RESULTS / f"perquery-{collection.name}.csv")
    pd.DataFrame(chosen).to_csv(RESULTS / f"heads-{collection.name}.csv", index=False)


def tables() -> None:
    """Means, and late less block-wise with its interval."""
    rows = []
    for file in sorted(RESULTS.glob("perquery-*.csv")):
        values = pd.read_csv(file, index_col=0)
        for name in values:
            row = {"collection": file.stem.split("-")[1], "system": name, "queries": len(values)}
            row["nDCG@10"] = values[name].mean()
            other = name.replace("late", "blockwise")
            if other != name:
                difference = values[name] - values[other]
                interval = stats.bootstrap(
                    (difference,), np.mean, n_resamples=2000, rng=0, method="percentile"
                ).confidence_interval
                row |= {"above block-wise": difference.mean(), "low": interval.low, "high": interval.high}
            rows.append(row)
    table = pd.DataFrame(rows).round(4)
    table.to_csv(RESULTS / "table.csv", index=False)
    print(table.to_string(index=False))


def main() -> None:
    """Read, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="GGUF file, folder or hub id")
    parser.add_argument("--max-layers", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--queries", type=int, default=60, help="of each part")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--collections", nargs="+", default=["Vaswani", "SciFact"])
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    llm = FrozenLLM(args.model, max_layers=args.max_layers, dtype=args.dtype).load()
    for collection in (VASWANI, SCIFACT):
        if collection.name in args.collections:
            compare(llm, collection, args.queries, args.depth)
    tables()


if __name__ == "__main__":
    main()
