"""What the experiments share: three collections, BM25 over them, and clean training and validation queries.

Collections come from ir_datasets. SciFact and NFCorpus (for academic use) have training queries; Vaswani has none and
is the unseen test. Queries come in one fixed random order, so that a run on the first so many of them can be extended.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier_pisa import PisaIndex, PisaStemmer

from pyterrier_routehead import AttentionHeadScorer, CoReHeadReranker, FrozenLLM, HeadScoreStore, QRHeadReranker
from pyterrier_routehead.evaluation.splits import near_duplicates, sharing_relevant, split_by_group, without
from pyterrier_routehead.fitting.judged import is_informative
from pyterrier_routehead.model.default import packaged_gguf

SHARED = "relevant documents shared with training"
"""Column that says so of NFCorpus; see `clean_splits`."""
READINGS = ("listwise", "blockwise")
DEPTHS = (20, 40)
MEASURES = [pt.measures.nDCG @ 10, pt.measures.RR @ 10]


@dataclass(frozen=True)
class Collection:
    """A test collection in ir_datasets.

    Attributes:
        name: for tables and files.
        test: dataset of the test queries.
        fields: text fields of a document, title first where there is one.
        query_field: which text of a topic is the query, where there are several.
    """

    name: str
    test: str
    fields: tuple[str, ...] = ("title", "text")
    query_field: str | None = None

    @property
    def title_field(self) -> str | None:
        """The column of titles, if documents have one."""
        return "title" if "title" in self.fields else None

    def first_stage(self, depth: int) -> pt.Transformer:
        """BM25's candidates with their texts."""
        return self.ranking(depth) >> pt.get_dataset(self.test).text_loader(list(self.fields))

    def ranking(self, depth: int) -> pt.Transformer:
        """BM25 (PISA: k1 0.9, b 0.4, porter2, all fields), cut at a depth, without texts; the index is built once."""
        corpus = pt.get_dataset(self.test)
        index = PisaIndex(
            str(Path(pt.io.pyterrier_home()) / "routehead" / "indices" / f"{self.name.lower()}.pisa"),
            text_field=list(self.fields),
            stemmer=PisaStemmer.porter2,
        )
        if not index.built():
            index.index(corpus.get_corpus_iter(verbose=False))
        return index.bm25(k1=0.9, b=0.4, num_results=max(100, depth)) % depth

    def queries(self, part: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Topics and qrels of the test queries or, of SciFact and NFCorpus, of another part: ``train``, ``dev``."""
        dataset = pt.get_dataset(self.test if part is None else self.test.replace("/test", f"/{part}"))
        topics = dataset.get_topics(self.query_field) if self.query_field else dataset.get_topics()
        return topics[["qid", "query"]], dataset.get_qrels()

    def test_queries(self, number: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The first so many test queries in a fixed random order, with their judgements."""
        topics, qrels = self.queries()
        topics = shuffled(topics).head(number or len(topics))
        return topics, qrels[qrels["qid"].isin(topics["qid"])]


SCIFACT = Collection("SciFact", "irds:beir/scifact/test")
NFCORPUS = Collection("NFCorpus", "irds:beir/nfcorpus/test", query_field="text")
VASWANI = Collection("Vaswani", "irds:vaswani", fields=("text",))
COLLECTIONS = {collection.name: collection for collection in (SCIFACT, NFCORPUS, VASWANI)}


@dataclass(frozen=True)
class Queries:
    """Training or validation queries of a collection, in a fixed random order."""

    collection: Collection
    topics: pd.DataFrame
    qrels: pd.DataFrame

    def candidates(self, depth: int, number: int, telling_only: bool = False) -> pd.DataFrame:
        """BM25's candidates for the first queries; or only for those with a relevant and a non-relevant candidate."""
        found = self.collection.first_stage(depth)(self.topics.head(number))
        if not telling_only:
            return found
        labels = found[["qid", "docno"]].merge(self.qrels, on=["qid", "docno"], how="left")["label"].fillna(0)
        informative = labels.groupby(found["qid"].to_numpy()).transform(is_informative).astype(bool)
        return found[informative.to_numpy()].reset_index(drop=True)


@cache
def clean_splits() -> dict[str, tuple[Queries, Queries]]:
    """Training and validation queries by collection, cleaned of what is near their test queries.

    SciFact: train queries that are near-duplicates of a test query or share a relevant document with one are dropped;
    a quarter of the rest, by groups that share relevant documents, is for validation. NFCorpus, whose queries are
    nearly all linked by shared documents: validation is its dev part less what is near a test query, training its train
    part less what is near a test or a dev query; **relevant documents stay shared with test**.
    """
    topics, qrels = SCIFACT.queries("train")
    test_topics, test_qrels = SCIFACT.queries()
    clean = without(topics, near_duplicates(topics, test_topics), sharing_relevant(qrels, test_qrels))
    scifact = [Queries(SCIFACT, shuffled(part), qrels) for part in split_by_group(clean, qrels, 0.25, seed=42)]

    parts = [NFCORPUS.queries(part) for part in ("train", "dev")]
    test_topics, _ = NFCORPUS.queries()
    (train, train_qrels), (dev, dev_qrels) = parts
    dev = without(dev, near_duplicates(dev, test_topics))
    train = without(train, near_duplicates(train, test_topics), near_duplicates(train, dev))
    nfcorpus = [Queries(NFCORPUS, shuffled(train), train_qrels), Queries(NFCORPUS, shuffled(dev), dev_qrels)]
    splits = {SCIFACT.name: tuple(scifact), NFCORPUS.name: tuple(nfcorpus)}
    for learnt, chosen_by in splits.values():
        tested, _ = learnt.collection.queries()
        check_apart(learnt.topics, chosen_by.topics)
        check_apart(learnt.topics, tested)
        check_apart(chosen_by.topics, tested)
    return splits


def check_apart(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Queries that are learnt from, chosen by and tested on are others.

    Raises:
        AssertionError: naming queries that are in both, or near-duplicates of one.
    """
    shared = set(one["qid"]) & set(other["qid"]) | near_duplicates(one, other)
    if shared:
        raise AssertionError(f"queries are also in, or near, those they are to be kept from: {sorted(shared)[:5]}")


def shuffled(topics: pd.DataFrame) -> pd.DataFrame:
    """Topics in a fixed random order."""
    return topics.iloc[np.random.default_rng(0).permutation(len(topics))].reset_index(drop=True)


def scorer(
    llm: FrozenLLM,
    reading: str,
    store: HeadScoreStore,
    title_field: str | None,
    hidden_layers: Sequence[int] | None = None,
) -> AttentionHeadScorer:
    """Reads all heads once a list, raw scores too."""
    return AttentionHeadScorer(
        llm=llm, document_attention=reading, raw=True, hidden_layers=hidden_layers, store=store,
        title_field=title_field, verbose=True,
    )


def read_judged(
    llm: FrozenLLM,
    reading: str,
    store: HeadScoreStore,
    args: argparse.Namespace,
    part: int,
    hidden_layers: Sequence[int] | None = None,
) -> dict:
    """Scored candidates and qrels of the training (part 0) or validation (1) queries, by collection."""
    read, number = {}, (args.train, args.valid)[part]
    for name, queries in clean_splits().items():
        own = queries[part]
        frame = own.candidates(20, number, args.telling_only)
        read[name] = scorer(llm, reading, store, own.collection.title_field, hidden_layers)(frame), own.qrels
    return read


def read_scifact(llm: FrozenLLM, reading: str, store: HeadScoreStore, train: int, valid: int) -> tuple[tuple, str]:
    """What ships is learnt from SciFact alone, whose terms allow it: arguments of ``fit``, and the data's name."""
    parts = [
        (scorer(llm, reading, store, "title")(own.candidates(20, number)), own.qrels)
        for own, number in zip(clean_splits()[SCIFACT.name], (train, valid), strict=True)
    ]
    return (*parts[0], *parts[1]), f"SciFact train (clean of test), first {train} queries"


def together(read: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames and qrels of several collections in one; their qids and docnos differ."""
    frames, qrels = zip(*read.values(), strict=True)
    return pd.concat(frames, ignore_index=True), pd.concat(qrels, ignore_index=True)


def is_chosen(method: CoReHeadReranker | QRHeadReranker) -> pd.Series:
    """Which row of a fitted re-ranker's ``validation_`` it ranks by: bool, True once."""
    found, tried = method.head_set_, method.validation_
    said = {**found.detection.settings, "criterion": found.detection.criterion, "k": found.k}
    names = [name for name in tried if name in said]
    return pd.concat([(tried[name] == said[name]).fillna(False) for name in names], axis=1).all(axis=1)


def whole_table(values: pd.DataFrame, systems: list[str], qids: pd.Series) -> pd.DataFrame:
    """An experiment's values per query, one column a system; queries for which nothing was found count as 0."""
    wide = values.pivot(index=["measure", "qid"], columns="name", values="value")[systems]
    everything = pd.MultiIndex.from_product([[str(m) for m in MEASURES], qids], names=["measure", "qid"])
    return wide.reindex(everything).fillna(0.0).round(4)


def print_by_collection(table: pd.DataFrame) -> None:
    """Print an experiment's results, one table for each collection, depth and reading."""
    for (name, depth, reading), own in table.groupby(["collection", "depth", "reading"], sort=False):
        print(f"\n{name}, top {depth}, {reading}, {own['queries'].iloc[0]} queries")
        if name == NFCORPUS.name:
            print("(training and validation queries share relevant documents with these)")
        print(own.drop(columns=["collection", "depth", "reading", "queries", SHARED]).to_string(index=False))


def experiment_arguments(description: str, output: Path) -> argparse.ArgumentParser:
    """The arguments that the experiments on head scores share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--train", type=int, default=200, help="training queries of each collection (200)")
    parser.add_argument("--valid", type=int, default=60, help="validation queries of each collection (60)")
    parser.add_argument("--telling-only", action="store_true",
                        help="do not read training and validation lists from which nothing can be learnt")
    parser.add_argument("--readings", nargs="+", default=READINGS)
    parser.add_argument("--output", type=Path, default=output, help="folder of the tables")
    parser.add_argument("--store", help="folder of head scores (default: in PyTerrier's home)")
    parser.add_argument("--model", help="GGUF file, folder or hub id (default: the GGUF of SmolLM2-135M-Instruct)")
    parser.add_argument("--max-layers", type=int, help="read no more than so many of its layers (all)")
    parser.add_argument("--dtype", default="bfloat16", help="of its weights (bfloat16; a CPU without it is slow at it)")
    parser.set_defaults(committed=output)
    return parser


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Which test queries an experiment is on."""
    parser.add_argument("--test", type=int, nargs=2, metavar=("TOP20", "TOP40"), default=(None, None),
                        help="test queries of each collection, at depth 20 and at 40 (all)")
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))


def opened(args: argparse.Namespace) -> tuple[FrozenLLM, HeadScoreStore]:
    """The model and the store of an experiment; makes the folder of its tables."""
    if args.model or args.max_layers or args.dtype != "bfloat16":
        if args.output == args.committed:
            raise SystemExit(
                f"the tables in {args.output} are SmolLM2's in bfloat16: give another model an --output of its own"
            )
        if "ship" in getattr(args, "steps", ()):
            raise SystemExit("what ships is for SmolLM2-135M-Instruct in bfloat16: not with the step ship")
    args.output.mkdir(parents=True, exist_ok=True)
    store = HeadScoreStore(args.store or Path(pt.io.pyterrier_home()) / "routehead" / "scores")
    model = args.model or packaged_gguf()  # the hub's SmolLM2 has other weights than the GGUF
    return FrozenLLM(model, dtype=args.dtype, max_layers=args.max_layers), store


def split_sizes(train: int, valid: int) -> pd.DataFrame:
    """How many clean queries there are, and how many share a relevant document with a test query."""
    rows = []
    for name, split in clean_splits().items():
        for part, queries, first in zip(("train", "validation"), split, (train, valid), strict=True):
            shared = sharing_relevant(queries.qrels, queries.collection.queries()[1])
            own = queries.topics["qid"].isin(shared)
            rows.append({"collection": name, "part": part, "queries": len(own), "sharing": own.sum(),
                         "first": first, "of these sharing": own.head(first).sum()})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print(split_sizes(200, 60).to_string(index=False))
