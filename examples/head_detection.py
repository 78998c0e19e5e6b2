"""Heads found by CoRe's and QRHead's criteria against ICR, random heads and BM25, on three collections.

    python examples/head_detection.py

SmolLM2-135M-Instruct (GGUF). Heads are found on clean training queries of SciFact and NFCorpus, k and temperature
chosen on their validation queries, and everything is tested on SciFact, NFCorpus and Vaswani. What the model reads is
kept in a store in PyTerrier's home, so an interrupted run goes on where it stopped; the more queries, the longer (two
cores: about 5 seconds a list of 20 read list-wise and 14 of 40, half of that block-wise). The tables go to
examples/results; times are in them where head_set_cost.py has measured them. The step ``ship`` makes the head sets that
come with the package, from SciFact alone. With ``--model`` another model is read, with ``--max-layers`` its first
layers alone, with ``--dtype float32`` in full precision; such tables need an ``--output`` of their own.
"""

import argparse
import shutil
import time
from itertools import product, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from scipy import stats

from pyterrier_routehead import (
    CoReHeadReranker,
    FrozenLLM,
    HeadScoreStore,
    HeadSet,
    ICRReranker,
    QRHeadReranker,
    StaticHeadReranker,
)
from testbed import (
    COLLECTIONS,
    DEPTHS,
    MEASURES,
    NFCORPUS,
    READINGS,
    SCIFACT,
    SHARED,
    Collection,
    add_test_arguments,
    clean_splits,
    experiment_arguments,
    is_chosen,
    opened,
    print_by_collection,
    read_judged,
    read_scifact,
    scorer,
    together,
    whole_table,
)

RESULTS = Path(__file__).parent / "results" / "head_detection"
SHIPPED = Path(__file__).parent.parent / "pyterrier_routehead" / "bundled" / "sets"
KS = [1, 4, 8, 16]
TEMPERATURES = [0.1, 0.01, 0.001]


def estimators() -> dict[str, pt.Estimator]:
    """The methods, each with the same choice of k on the same validation queries."""
    return {
        "CoRe": CoReHeadReranker(k=KS, temperature=TEMPERATURES),
        "CoRe calibrated": CoReHeadReranker(k=KS, temperature=TEMPERATURES, calibrated=True),
        "QR": QRHeadReranker(k=KS, criterion="qr"),
        "QR calibrated": QRHeadReranker(k=KS, criterion="qr-calibrated"),
        "nDCG": QRHeadReranker(k=KS, criterion="ndcg@10"),
        "MRR": QRHeadReranker(k=KS, criterion="mrr"),
    }


def detect(llm: FrozenLLM, reading: str, store: HeadScoreStore, args: argparse.Namespace) -> None:
    """Find heads, choose k and temperature, compare sets of several sizes of the training data; write all of it."""
    judged = read_judged(llm, reading, store, args, 0)
    frame, qrels = together(judged)
    valid_frame, valid_qrels = together(read_judged(llm, reading, store, args, 1))
    tried = []
    for name, method in estimators().items():
        method.detection_data = f"SciFact train and NFCorpus train (clean), first {args.train} queries each"
        start = time.perf_counter()
        method.fit(frame, qrels, valid_frame, valid_qrels)
        print(f"{reading}, {name}: fitted in {time.perf_counter() - start:.1f} s on head scores that had been read")
        folder = args.output / "heads" / reading / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        method.head_set_.save(folder)
        tried.append(method.validation_.assign(method=name, queries=args.valid, chosen=is_chosen(method)))
    table = pd.concat(tried, ignore_index=True).round(4)
    table.to_csv(args.output / f"validation-{reading}.csv", index=False)
    stability(judged, qrels, reading, args.output)


def stability(judged: dict, qrels: pd.DataFrame, reading: str, results: Path) -> None:
    """How many of the first 8 heads stay the same with fewer queries, other data and other criteria."""
    all_of_them, _ = together(judged)
    temperature = HeadSet(results / "heads" / reading / "CoRe").detection.settings["temperature"]
    methods = {
        "CoRe": CoReHeadReranker(temperature=temperature),
        "QR": QRHeadReranker(criterion="qr"),
        "nDCG": QRHeadReranker(criterion="ndcg@10"),
    }
    qids = [frame["qid"].drop_duplicates().tolist() for frame, _ in judged.values()]
    # Both collections alike in each part, and what one has more at the end.
    mixed = [qid for both in zip_longest(*qids) for qid in both if qid is not None]
    parts = {f"first {number}": mixed[:number] for number in (50, 100, 200)} | {"all": mixed}
    parts |= {f"{name} alone": own for name, own in zip(judged, qids, strict=True)}
    sets = {}
    for (name, method), (part, own) in product(methods.items(), parts.items()):
        sets[name, part] = method.fit(all_of_them[all_of_them["qid"].isin(own)], qrels).head_set_.top(8)
    rows = []
    for name, part in sets:
        row = {"criterion": name, "queries": part, "counted": sets[name, part].detection.queries}
        row["common with all"] = round(8 * sets[name, part].overlap(sets[name, "all"]))
        row |= {f"common with {other}": round(8 * sets[name, part].overlap(sets[other, part])) for other in methods}
        rows.append(row | {"heads": " ".join(map(str, sets[name, part]))})
    for name in methods:  # the two collections against each other
        one, other = (sets[name, f"{collection} alone"] for collection in judged)
        rows.append({"criterion": name, "queries": "one collection against the other",
                     "common with all": round(8 * one.overlap(other))})
    pd.DataFrame(rows).convert_dtypes().to_csv(results / f"stability-{reading}.csv", index=False)


def positions(llm: FrozenLLM, store: HeadScoreStore, number: int, places: int, results: Path) -> None:
    """CoRe's position protocol against the first stage's order, on the first SciFact training queries that count."""
    queries, _ = clean_splits()[SCIFACT.name]
    frame = queries.candidates(20, 2 * number)
    counted = frame.merge(queries.qrels, on=["qid", "docno"])["qid"].drop_duplicates()
    order = [qid for qid in frame["qid"].drop_duplicates() if qid in set(counted)][:number]
    frame = frame[frame["qid"].isin(order)]
    sets = {}
    for label, option in (("first stage's order", None), (f"{places} positions", places)):
        for temperature in TEMPERATURES:
            method = CoReHeadReranker(
                llm=llm, temperature=temperature, positions=option, store=store, title_field="title", verbose=True
            )
            sets[label, temperature] = method.fit(frame, queries.qrels).head_set_
        sets[label, "QR"] = QRHeadReranker(
            llm=llm, criterion="qr", positions=option, store=store, title_field="title"
        ).fit(frame, queries.qrels).head_set_
    labels = list(dict.fromkeys(label for label, _ in sets))
    rows = [
        {
            "criterion": "QR" if setting == "QR" else f"CoRe, t={setting:g}",
            "queries": number,
            "common among 8": round(8 * sets[labels[0], setting].top(8).overlap(sets[labels[1], setting].top(8))),
            **{label: " ".join(map(str, sets[label, setting].top(8))) for label in labels},
        }
        for setting in (*TEMPERATURES, "QR")
    ]
    pd.DataFrame(rows).to_csv(results / "positions.csv", index=False)


def ship(llm: FrozenLLM, reading: str, store: HeadScoreStore, train: int, valid: int) -> None:
    """Find the sets that come with the package: on SciFact alone, whose terms allow it."""
    judged, data = read_scifact(llm, reading, store, train, valid)
    # CoRe's score is on raw attention, which list-wise favours heads that look at a place: calibrated if better.
    cores = [
        CoReHeadReranker(temperature=TEMPERATURES, calibrated=calibrated, detection_data=data)
        for calibrated in (False, True)
    ]
    single = QRHeadReranker(criterion="ndcg@10", detection_data=data)
    for method in (*cores, single):
        method.fit(*judged)
    core = max(cores, key=lambda method: method.validation_.loc[is_chosen(method), "nDCG@10"].item())
    for method in (core, single):
        found = method.head_set_
        folder = SHIPPED / f"{found.detection.criterion}-{reading}"
        shutil.rmtree(folder, ignore_errors=True)
        found.save(folder)


def head_sets(reading: str, layers: int, results: Path) -> dict[str, HeadSet]:
    """Random heads of so many layers, each method's heads for every k, and CoRe's in some shares of the layers."""
    found = {path.name.replace("-", " "): HeadSet(path) for path in sorted((results / "heads" / reading).iterdir())}
    core = found["CoRe"]
    return {
        **{f"random 8, seed {seed}": core.random(8, seed, below=layers) for seed in range(5)},
        **{f"{name} {k}": head_set.top(k) for name, head_set in found.items() for k in KS},
        **{f"CoRe 8 in {share:g} of the layers": core.below(int(core.model.num_layers * share)).top(8)
           for share in (0.7, 0.5)},
    }


def systems(reading: str, layers: int, results: Path) -> dict[str, pt.Transformer]:
    """Re-rankers on head scores of so many layers: ICR and the head sets, without and with BM25's score."""
    made = {}
    for weight, suffix in ((0.0, ""), (1.0, " + BM25")):
        made["ICR" + suffix] = ICRReranker(first_stage_weight=weight)
        for name, heads in head_sets(reading, layers, results).items():
            made[name + suffix] = StaticHeadReranker(heads, first_stage_weight=weight)
    return made


def test(
    llm: FrozenLLM,
    collection: Collection,
    depth: int,
    reading: str,
    store: HeadScoreStore,
    number: int | None,
    results: Path,
) -> None:
    """Evaluate all systems on a collection's test queries; one value a query goes to a file."""
    topics, qrels = collection.test_queries(number)
    candidates = collection.first_stage(depth)
    scored = candidates >> scorer(llm, reading, store, collection.title_field)
    rankers = systems(reading, llm.num_layers, results)
    values = pt.Experiment(
        [candidates, *(scored >> ranker for ranker in rankers.values())],
        topics,
        qrels,
        MEASURES,
        names=["BM25", *rankers],
        perquery=True,
        plan="tree",
        verbose=False,
    )
    table = whole_table(values, ["BM25", *rankers], topics["qid"])
    table.to_csv(results / f"perquery-{collection.name}-{depth}-{reading}.csv")


def tables(results: Path) -> None:
    """Means, intervals and tests from the values per query that are there, and times from head_set_cost.py."""
    rows, seconds = [], known_seconds(results)
    for name, depth, reading in product(COLLECTIONS, DEPTHS, READINGS):
        file = results / f"perquery-{name}-{depth}-{reading}.csv"
        if not file.exists():
            continue
        values = pd.read_csv(file, index_col=["measure", "qid"])
        ndcg, reciprocal = (values.loc[str(measure)] for measure in MEASURES)
        ndcg, reciprocal = (with_mean_of_random(own) for own in (ndcg, reciprocal))
        chosen = chosen_k(reading, results)
        for system in ndcg:
            own, suffix = ndcg[system], " + BM25" if system.endswith("+ BM25") else ""
            resampled = stats.bootstrap((own,), np.mean, n_resamples=2000, rng=0, method="percentile")
            interval = resampled.confidence_interval
            others = {"BM25": "BM25", "ICR": "ICR" + suffix, "random": f"random 8, mean of 5{suffix}"}
            p = {f"p against {label}": stats.ttest_rel(own, ndcg[other]).pvalue for label, other in others.items()}
            rows.append({
                "collection": name, "depth": depth, "reading": reading, "system": system, "queries": len(own),
                "nDCG@10": own.mean(), "low": interval.low, "high": interval.high,
                "RR@10": reciprocal[system].mean(),
                "s a query": seconds.get((reading, depth, system.removesuffix(suffix)), np.nan),
                **p, "k chosen on validation": system.removesuffix(suffix) in chosen,
            })
    table = pd.DataFrame(rows).round(4)
    table[SHARED] = np.where(table["collection"] == NFCORPUS.name, "yes", "no")
    table.to_csv(results / "table.csv", index=False)
    shown = table[table["k chosen on validation"] | table["system"].str.match("BM25|ICR|random 8, mean")]
    print_by_collection(shown)


def with_mean_of_random(values: pd.DataFrame) -> pd.DataFrame:
    """Values by system with two more: the mean of the random sets, without and with BM25's score."""
    random = {
        suffix: values[[c for c in values if c.startswith("random") and c.endswith("BM25") == bool(suffix)]]
        for suffix in ("", " + BM25")
    }
    return values.assign(**{f"random 8, mean of 5{suffix}": own.mean(axis=1) for suffix, own in random.items()})


def known_seconds(results: Path) -> dict[tuple[str, int, str], float]:
    """Seconds a query by reading, depth and system, where head_set_cost.py has measured them."""
    file = results / "cost.csv"
    if not file.exists():
        return {}
    cost, known = pd.read_csv(file), {}
    for depth in DEPTHS:
        if f"s, top {depth}" in cost:
            own = cost.set_index(["reading", "heads"])[f"s, top {depth}"]
            known |= {(reading, depth, name): value for (reading, name), value in own.items()}
            for reading in READINGS:
                random = [value for (r, name), value in own.items() if r == reading and name.startswith("random")]
                known[reading, depth, "random 8, mean of 5"] = np.mean(random)
    return known


def chosen_k(reading: str, results: Path) -> set[str]:
    """Each method with the k that was chosen on validation."""
    tried = pd.read_csv(results / f"validation-{reading}.csv")
    if "chosen" in tried:
        best = tried[tried["chosen"]]
    else:  # the committed tables are older: of equals, the first was chosen
        best = tried.loc[tried.groupby("method")["nDCG@10"].idxmax()]
    return {f"{method} {k:g}" for method, k in zip(best["method"], best["k"], strict=True)}


def main() -> None:
    """Read, detect, test and print; each step can be left out."""
    parser = experiment_arguments(__doc__.splitlines()[0], RESULTS)
    add_test_arguments(parser)
    parser.add_argument("--steps", nargs="+", default=["detect", "positions", "test", "tables"])
    args = parser.parse_args()
    llm, store = opened(args)
    for reading in args.readings:
        if "detect" in args.steps:
            detect(llm, reading, store, args)
        if "ship" in args.steps:
            ship(llm, reading, store, args.train, args.valid)
    if "positions" in args.steps:
        positions(llm, store, 50, 3, args.output)
    if "test" in args.steps:
        for (depth, number), reading, name in product(
            zip(DEPTHS, args.test, strict=True), args.readings, args.collections
        ):
            if number != 0:
                test(llm, COLLECTIONS[name], depth, reading, store, number, args.output)
    if "tables" in args.steps:
        tables(args.output)


if __name__ == "__main__":
    main()
