"""Late reading from an index: heads, sizes, rankings of up to 1,000 candidates, and what coarse keys cost.

    python examples/late_reading.py

SmolLM2-135M-Instruct (GGUF). The keys of all heads of three collections are indexed once (int8), in PyTerrier's home;
heads are then found on all clean training queries of SciFact and NFCorpus, k, temperature and calibration chosen on
their validation queries, and everything is tested on SciFact, NFCorpus and Vaswani at depths 20, 100 and 1,000. An
interrupted run goes on where it stopped. Steps: ``index`` (about a quarter of an hour a collection on two cores),
``detect``, ``route``, ``test``, ``keys`` (int8 against float16 and the text), ``tables``; ``ship`` makes the head sets
and the router that come with the package, from SciFact alone.
"""

import argparse
import shutil
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from scipy import stats

from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    FrozenLLM,
    HeadIndex,
    HeadRouter,
    HeadSet,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    RouterTraining,
    StaticHeadReranker,
)
from pyterrier_routehead.model.default import packaged_gguf
from testbed import COLLECTIONS, MEASURES, NFCORPUS, SCIFACT, SHARED, Collection, clean_splits, is_chosen, whole_table

RESULTS = Path(__file__).parent / "results" / "late_reading"
BUNDLED = Path(__file__).parent.parent / "pyterrier_routehead" / "bundled"
KS = [4, 8, 16]
TEMPERATURES = [0.1, 0.01, 0.001]
DEPTHS = (20, 100, 1000)


def index_of(collection: Collection, llm: FrozenLLM) -> HeadIndex:
    """The collection's index for all heads, made if it is not complete yet."""
    path = Path(pt.io.pyterrier_home()) / "routehead" / "indices" / f"{collection.name.lower()}-all-int8.heads"
    indexer = HeadIndex(path).indexer(
        "all", llm=llm, title_field=collection.title_field, shard_documents=1024, verbose=True
    )
    corpus = pt.get_dataset(collection.test)
    if (index := HeadIndex(path)).exists and len(index) == len(corpus.get_corpus_iter(verbose=False)):
        return index
    return indexer.index(corpus.get_corpus_iter(verbose=False))


def judged(part: int, llm: FrozenLLM) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scored candidates (top 20) and qrels of all training (part 0) or validation (1) queries; read once a run."""
    kept = Path(pt.io.pyterrier_home()) / "routehead" / f"late-judged-{part}.pkl"
    if part not in _JUDGED and kept.exists():
        _JUDGED[part] = pd.read_pickle(kept)
    if part not in _JUDGED:
        read = []
        for queries in clean_splits().values():
            own = queries[part]
            frame = own.candidates(20, len(own.topics), telling_only=True)
            index, middle = index_of(own.collection, llm), llm.num_layers // 2
            scorer = AttentionHeadScorer(llm=llm, index=index, raw=True, hidden_layers=[middle], verbose=True)
            read.append((scorer(frame), own.qrels))
        _JUDGED[part] = tuple(pd.concat(frames, ignore_index=True) for frames in zip(*read, strict=True))
        pd.to_pickle(_JUDGED[part], kept)
    return _JUDGED[part]


_JUDGED: dict[int, tuple[pd.DataFrame, pd.DataFrame]] = {}


def uncalibrated(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame as it is read without calibration."""
    raw = {}
    for reading in frame["head_reading"]:
        if id(reading) not in raw:
            settings = replace(reading.settings, calibrate=False, token_filter="none")
            raw[id(reading)] = replace(reading, settings=settings)
    return frame.assign(
        head_scores=frame["head_scores_raw"], head_reading=[raw[id(reading)] for reading in frame["head_reading"]]
    )


def estimators(calibrate: bool) -> dict[str, CoReHeadReranker | QRHeadReranker]:
    """The methods, each with the same choice of k on the same validation queries."""
    if not calibrate:
        return {
            "CoRe": CoReHeadReranker(k=KS, temperature=TEMPERATURES),
            "QR": QRHeadReranker(k=KS, criterion="qr"),
        }
    return {
        "CoRe": CoReHeadReranker(k=KS, temperature=TEMPERATURES),
        "CoRe calibrated": CoReHeadReranker(k=KS, temperature=TEMPERATURES, calibrated=True),
        "QR": QRHeadReranker(k=KS, criterion="qr"),
        "QR calibrated": QRHeadReranker(k=KS, criterion="qr-calibrated"),
        "nDCG": QRHeadReranker(k=KS, criterion="ndcg@10"),
    }


def detect(llm: FrozenLLM) -> None:
    """Find heads on all training queries; calibrated and raw, for the choice on validation."""
    tried = []
    for calibrate in (True, False):
        train, valid = (judged(part, llm) for part in (0, 1))
        if not calibrate:
            train, valid = ((uncalibrated(frame), qrels) for frame, qrels in (train, valid))
        for name, method in estimators(calibrate).items():
            method.detection_data = "SciFact train and NFCorpus train (clean), all queries"
            start = time.perf_counter()
            method.fit(*train, *valid)
            reading = "calibrated" if calibrate else "raw"
            print(f"{name}, {reading}: fitted in {time.perf_counter() - start:.1f} s on {len(train[0])} rows")
            folder = RESULTS / "heads" / reading / name.replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
            method.head_set_.save(folder)
            tried.append(method.validation_.assign(method=name, scores=reading, chosen=is_chosen(method)))
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.concat(tried, ignore_index=True).round(4).to_csv(RESULTS / "validation.csv", index=False)


def route(llm: FrozenLLM) -> None:
    """Train routers on the same queries: the published form, and weights over the pool."""
    train, valid = (judged(part, llm) for part in (0, 1))
    rows = []
    for name, options in {"RouteHead": {}, "RouteHead, first stage seen": {"first_stage_weight": 1.0}}.items():
        method = RouteHeadReranker(llm=llm, training=RouterTraining(), verbose=True, **options)
        start = time.perf_counter()
        method.fit(*train, *valid)
        folder = RESULTS / "routers" / name.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        method.router_.save(folder)
        best = method.report_["held-out nDCG@10"].max()
        rows.append({"router": name, "s": time.perf_counter() - start, "validation nDCG@10": best,
                     "lists": len(method.labels_), "uninformative": method.left_out_})
    pd.DataFrame(rows).round(4).to_csv(RESULTS / "routers.csv", index=False)


def chosen_set(method: str, scores: str = "calibrated") -> HeadSet:
    """A method's heads, with the k that validation chose."""
    return HeadSet(RESULTS / "heads" / scores / method.replace(" ", "-"))


def head_sets() -> dict[str, HeadSet]:
    """Each method's heads with the k that validation chose, and single-head nDCG's for every k."""
    chosen = {name: chosen_set(name) for name in estimators(True)}
    return chosen | {f"nDCG {k}": chosen["nDCG"].top(k) for k in KS}


def routers() -> dict[float, HeadRouter]:
    """The routers by the weight that BM25's score had in their training."""
    return {
        weight: HeadRouter(RESULTS / "routers" / name)
        for weight, name in ((0.0, "RouteHead"), (1.0, "RouteHead-first-stage-seen"))
    }


def test(llm: FrozenLLM, collection: Collection, depth: int) -> None:
    """Evaluate all systems on a collection's test queries; one value a query goes to a file.

    The heads of all systems are read from the index once a query. Of 1,000 candidates, all heads (ICR) are not read.
    """
    topics, qrels = collection.test_queries()
    first_stage = collection.ranking(depth)(topics)
    sets, routed = head_sets(), routers()
    raw_sets = {name: chosen_set(name, "raw") for name in estimators(False)}
    heads = {head for some in (*sets.values(), *raw_sets.values()) for head in some.ranking.heads}
    heads |= {head for router in routed.values() for head in router.pool.heads}
    wanted = "all" if depth <= 100 else sorted(heads)
    index = index_of(collection, llm)
    options = {"llm": llm, "index": index, "raw": True, "hidden_layers": [llm.num_layers // 2], "verbose": True}
    scored = AttentionHeadScorer(wanted, **options)(first_stage)
    raw = uncalibrated(scored)
    rankings = {"BM25": first_stage}
    for weight, suffix in ((0.0, ""), (1.0, " + BM25")):
        if wanted == "all":
            rankings[f"ICR{suffix}"] = ICRReranker(first_stage_weight=weight)(scored)
        for name, head_set in sets.items():
            rankings[f"{name}{suffix}"] = StaticHeadReranker(head_set, first_stage_weight=weight)(scored)
        for name, head_set in raw_sets.items():
            ranker = StaticHeadReranker(head_set, first_stage_weight=weight)
            rankings[f"{name} raw{suffix}"] = ranker(raw)
        rankings[f"RouteHead{suffix}"] = RouteHeadReranker(routed[weight], first_stage_weight=weight)(scored)
    values = [
        {"measure": str(measure), "qid": qid, "name": name, "value": value}
        for name, ranked in rankings.items()
        for qid, by_measure in pt.Evaluate(ranked, qrels, metrics=MEASURES, perquery=True).items()
        for measure, value in by_measure.items()
    ]
    table = whole_table(pd.DataFrame(values), list(rankings), topics["qid"])
    table.to_csv(RESULTS / f"perquery-{collection.name}-{depth}.csv")


def keys(llm: FrozenLLM) -> None:
    """What int8 and float16 keys change: nDCG@10 of the nDCG heads, and scores against late reading of the text."""
    rows = []
    head_set = chosen_set("nDCG").top(8)
    for collection in (SCIFACT, COLLECTIONS["Vaswani"]):
        topics, qrels = collection.test_queries()
        first_stage = (collection.first_stage(20))(topics)
        documents = first_stage[["docno", *collection.fields]].drop_duplicates("docno").to_dict("records")
        folder = Path(pt.io.pyterrier_home()) / "routehead" / "indices"
        indexes = {
            dtype: HeadIndex(folder / f"{collection.name}-{dtype}.heads")
            .indexer(head_set, llm=llm, dtype=dtype, title_field=collection.title_field, verbose=True)
            .index(documents)
            for dtype in ("float16", "int8")
        }
        read = {
            dtype: StaticHeadReranker(head_set, llm=llm, index=index)(first_stage) for dtype, index in indexes.items()
        }
        start = time.perf_counter()
        read["text"] = StaticHeadReranker(
            head_set, llm=llm, document_attention="late", title_field=collection.title_field, verbose=True
        )(first_stage)
        print(f"{collection.name}: late reading of the text {time.perf_counter() - start:.0f} s")
        expected = read["text"]["score"].to_numpy()
        largest = first_stage.assign(score=np.abs(expected)).groupby("qid")["score"].transform("max").to_numpy()
        for name, ranked in read.items():
            index = indexes.get(name)
            off = np.abs(ranked["score"].to_numpy() - expected) / largest
            rows.append({
                "collection": collection.name, "keys": name, "queries": len(topics),
                "nDCG@10": pt.Evaluate(ranked, qrels, metrics=[MEASURES[0]])[str(MEASURES[0])],
                "largest difference of a score, share of the list's largest": off.max(),
                "bytes a document": None if index is None else round(index.size_per_document),
            })
    pd.DataFrame(rows).round(6).to_csv(RESULTS / "keys.csv", index=False)


def sizes(llm: FrozenLLM) -> None:
    """Sizes of the indexes."""
    rows = []
    for collection in COLLECTIONS.values():
        index = index_of(collection, llm)
        tokens = sum(int(shard.documents["tokens"].sum()) for shard in index.view().shards)
        key_heads = len(set(index.description.key_heads.values()))
        rows.append({"collection": collection.name, "documents": len(index), "tokens a document": tokens / len(index),
                     "heads": len(index.heads), "key-value heads": key_heads, "GB": index.size / 1e9,
                     "bytes a document": index.size_per_document,
                     "bytes a token and key-value head": index.size / tokens / key_heads})
    pd.DataFrame(rows).round(2).to_csv(RESULTS / "indexes.csv", index=False)


def ship(llm: FrozenLLM) -> None:
    """Find what comes with the package: on SciFact alone, whose terms allow it."""
    layer = llm.num_layers // 2
    index = index_of(SCIFACT, llm)
    scorer = AttentionHeadScorer(llm=llm, index=index, raw=True, hidden_layers=[layer], verbose=True)
    parts = []
    for own in clean_splits()[SCIFACT.name]:
        parts += [scorer(own.candidates(20, len(own.topics), telling_only=True)), own.qrels]
    data = "SciFact train (clean of test), all queries"
    cores = [
        CoReHeadReranker(temperature=TEMPERATURES, calibrated=calibrated, detection_data=data).fit(*parts)
        for calibrated in (False, True)
    ]
    core = max(cores, key=lambda method: method.validation_.loc[is_chosen(method), "nDCG@10"].item())
    single = QRHeadReranker(criterion="ndcg@10", detection_data=data).fit(*parts)
    # A pool of fewer heads in the lower layers: on the validation queries as good, and half the index.
    router = RouteHeadReranker(llm=llm, max_layer=20, pool_size=32, detection_data=data).fit(*parts)
    for found, folder in (
        (core.head_set_, BUNDLED / "sets" / "core-late"),
        (single.head_set_, BUNDLED / "sets" / "ndcg@10-late"),
        (router.router_, BUNDLED / "routers" / "late"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        found.save(folder)


def tables() -> None:
    """Means, intervals and tests from the values per query."""
    rows = []
    for name, depth in product(COLLECTIONS, DEPTHS):
        file = RESULTS / f"perquery-{name}-{depth}.csv"
        if not file.exists():
            continue
        values = pd.read_csv(file, index_col=["measure", "qid"])
        ndcg, reciprocal = (values.loc[str(measure)] for measure in MEASURES)
        for system in ndcg:
            own = ndcg[system]
            interval = stats.bootstrap(
                (own - ndcg["BM25"],), np.mean, n_resamples=2000, rng=0, method="percentile"
            ).confidence_interval if system != "BM25" else None
            rows.append({
                "collection": name, "depth": depth, "system": system, "queries": len(own), "nDCG@10": own.mean(),
                "RR@10": reciprocal[system].mean(), "above BM25": (own - ndcg["BM25"]).mean(),
                "low": getattr(interval, "low", np.nan), "high": getattr(interval, "high", np.nan),
                "p against BM25": stats.ttest_rel(own, ndcg["BM25"]).pvalue,
            })
    table = pd.DataFrame(rows).round(4)
    table[SHARED] = np.where(table["collection"] == NFCORPUS.name, "yes", "no")
    table.to_csv(RESULTS / "table.csv", index=False)
    print(table.drop(columns=[SHARED]).to_string(index=False))


def main() -> None:
    """Index, detect, test and print; each step can be left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = ["index", "detect", "route", "test", "keys", "sizes", "tables"]
    parser.add_argument("--steps", nargs="+", default=steps, choices=[*steps, "ship"])
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--dtype", default="bfloat16", help="of the model's weights (bfloat16)")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    llm = FrozenLLM(packaged_gguf(), dtype=args.dtype)
    run = {
        "index": lambda: [index_of(COLLECTIONS[name], llm) for name in args.collections],
        "detect": lambda: detect(llm),
        "route": lambda: route(llm),
        "ship": lambda: ship(llm),
        "test": lambda: [test(llm, COLLECTIONS[n], d) for d, n in product(args.depths, args.collections)],
        "keys": lambda: keys(llm),
        "sizes": lambda: sizes(llm),
        "tables": tables,
    }
    for step in args.steps:
        run[step]()


if __name__ == "__main__":
    main()
