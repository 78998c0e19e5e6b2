"""RouteHead against static heads, LambdaMART over all heads, ICR and BM25, on three collections.

    python examples/routing.py

SmolLM2-135M-Instruct (GGUF). Everything is fitted on clean training queries of SciFact and NFCorpus at the top 20, with
settings chosen on their validation queries, and tested on SciFact, NFCorpus and Vaswani at the top 20 and 40, on one
pass of the model per query; beside it stands what choosing heads by a query's own judgements would give, and what
chance would (oracles.py). What the model reads is kept in a store (see head_detection.py, which reads the same lists
and says how long that takes); with the store filled, this takes a quarter of an hour. The step ``ship`` makes the
routers that come with the package, from SciFact alone. ``--model``, ``--max-layers`` and ``--dtype`` as in
head_detection.py. Needs LightGBM.
"""

import argparse
import shutil
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from scipy import stats

from oracles import ceilings, judged_lists, label_quality, pool_of
from pyterrier_routehead import (
    CoReHeadReranker,
    Extensions,
    FrozenLLM,
    HeadScoreStore,
    ICRReranker,
    QRHeadReranker,
    RouteHeadReranker,
    RouterTraining,
)
from pyterrier_routehead.common.standard import standardised
from testbed import (
    COLLECTIONS,
    DEPTHS,
    MEASURES,
    NFCORPUS,
    READINGS,
    SHARED,
    Collection,
    add_test_arguments,
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

try:
    from lightgbm import LGBMRanker, early_stopping
    from statsmodels.stats.multitest import multipletests
except ImportError:
    raise SystemExit("this comparison needs LightGBM: pip install 'pyterrier-routehead[ltr]'") from None

RESULTS = Path(__file__).parent / "results" / "routing"
SHIPPED = Path(__file__).parent.parent / "pyterrier_routehead" / "bundled" / "routers"
KS = [1, 4, 8, 16]
TEMPERATURES = [0.1, 0.01, 0.001]
SEEDS = (0, 1, 2)
WEIGHTS = {"": 0.0, " + BM25": 1.0}
WHOLE_POOL = {"extensions": Extensions(weighting="logit"), "pool_size": 10_000}
SEEING_THE_LIST = {**WHOLE_POOL, "extensions": Extensions(weighting="logit", evidence=True)}
BY_UTILITY = {
    "labels": "utility", "extensions": Extensions(min_heads=8),
    "training": RouterTraining(start="ridge", balance=1.0, sparsity=0.0, learning_rate=3e-4),
}
ROUTED = {
    "RouteHead, searched labels": {"labels": "search"},
    "RouteHead": {},
    "RouteHead, utility labels": BY_UTILITY,
    "RouteHead, evidence": {"extensions": Extensions(evidence=True)},
    "RouteHead, logits": WHOLE_POOL,
    "RouteHead, logits, evidence": SEEING_THE_LIST,
}
# The same sum of weighted heads, but the query has no say: what routing must be told apart from.
UNROUTED = {"weights without routing": {**WHOLE_POOL, "training": RouterTraining(query_ridge=1e6)}}


def static_methods(weight: float) -> dict[str, pt.Estimator]:
    """Head sets that are the same for every query, each with the same choice of k on the validation queries."""
    shared = {"k": KS, "first_stage_weight": weight}
    return {
        "CoRe": CoReHeadReranker(temperature=TEMPERATURES, **shared),
        "CoRe calibrated": CoReHeadReranker(temperature=TEMPERATURES, calibrated=True, **shared),
        "QR": QRHeadReranker(criterion="qr", **shared),
        "QR calibrated": QRHeadReranker(criterion="qr-calibrated", **shared),
        "single-head nDCG": QRHeadReranker(criterion="ndcg@10", **shared),
    }


def head_features(with_first_stage: bool, standard: bool) -> pt.Transformer:
    """All head scores of a document as its features, and the first stage's score if asked for."""

    def features(frame: pd.DataFrame) -> pd.DataFrame:
        made = []
        for _, own in frame.groupby("qid", sort=False):
            vectors = np.stack(own["head_scores"]).astype(np.float64)
            parts = [standardised(vectors) if standard else vectors]
            if with_first_stage:
                parts.append(standardised(own["score"].to_numpy())[:, None])
            made.append(own.assign(features=list(np.hstack(parts))))
        return pd.concat(made)

    return pt.apply.generic(features)


def lambda_mart(leaves: int, seed: int) -> LGBMRanker:
    """Boosted trees with half of the features a tree; their number is chosen on the validation queries."""
    return LGBMRanker(
        num_leaves=leaves, learning_rate=0.05, n_estimators=400, min_child_samples=20, colsample_bytree=0.5,
        subsample=0.8, subsample_freq=1, random_state=seed, n_jobs=1, verbose=-1,
    )


def fit_lambda_mart(judged: tuple, valid: tuple, with_first_stage: bool) -> tuple[dict[str, pt.Transformer], dict]:
    """LambdaMART with leaves and features chosen on the validation queries, for each seed."""

    def fitted(leaves: int, standard: bool, seed: int) -> pt.Transformer:
        stopping = {"eval_at": [10], "callbacks": [early_stopping(50, verbose=False)]}
        learner = pt.ltr.apply_learned_model(lambda_mart(leaves, seed), form="ltr", fit_kwargs=stopping)
        features = head_features(with_first_stage, standard)
        learner.fit(features(judged[0]), judged[1], features(valid[0]), valid[1])
        return features >> learner

    choices = {
        (leaves, standard): quality(fitted(leaves, standard, SEEDS[0]), valid)
        for leaves, standard in product((3, 7, 15, 31), (False, True))
    }
    leaves, standard = max(choices, key=choices.get)
    made = {f"seed {seed}": fitted(leaves, standard, seed) for seed in SEEDS}
    return made, {"leaves": leaves, "standardised": standard}


def quality(ranker: pt.Transformer, valid: tuple) -> float:
    """nDCG@10 on the validation queries."""
    frame, qrels = valid
    return pt.Evaluate(ranker(frame), qrels[qrels["qid"].isin(frame["qid"])], metrics=MEASURES)[str(MEASURES[0])]


def fit_all(
    llm: FrozenLLM, reading: str, store: HeadScoreStore, args: argparse.Namespace
) -> dict[str, pt.Transformer]:
    """Every system, fitted on the same training queries; how each does on the validation queries goes to a file."""
    judged, held_out = (together(read_judged(llm, reading, store, args, part)) for part in (0, 1))
    systems, rows = {}, []

    def keep(name: str, kind: str, ranker: pt.Transformer, settings: str = "") -> None:
        systems[name] = ranker
        value = quality(ranker, held_out)
        rows.append({"system": name, "kind": kind, "settings": settings, "nDCG@10": round(value, 4)})
        print(f"{reading}, validation: {name} {settings} {value:.4f}", flush=True)

    for suffix, weight in WEIGHTS.items():
        keep(f"ICR{suffix}", "ICR", ICRReranker(first_stage_weight=weight))
        for name, method in static_methods(weight).items():
            method.fit(*judged, *held_out)
            best = method.validation_[is_chosen(method)].iloc[0]
            said = {"k": best["k"], **({"t": best["temperature"]} if "temperature" in best else {})}
            keep(name + suffix, "static", method, " ".join(f"{key}={value:g}" for key, value in said.items()))
        trees, chosen = fit_lambda_mart(judged, held_out, bool(weight))
        for seed, ranker in trees.items():
            keep(f"LambdaMART{suffix}, {seed}", "LambdaMART", ranker, str(chosen))
        for name, options in {**ROUTED, **UNROUTED}.items():
            for seed in SEEDS:
                router = RouteHeadReranker(llm=llm, seed=seed, first_stage_weight=weight, **options)
                router.fit(*judged, *held_out)
                kind = "unrouted" if name in UNROUTED else "routed"
                keep(f"{name}{suffix}, seed {seed}", kind, router, f"epoch {router.router_.report['epoch']}")
    pd.DataFrame(rows).to_csv(args.output / f"validation-{reading}.csv", index=False)
    return systems


def test(
    llm: FrozenLLM, systems: dict, collection: Collection, depth: int, reading: str, store: HeadScoreStore,
    number: int | None, results: Path,
) -> None:
    """Evaluate the systems on a collection's test queries; one value a query goes to a file."""
    topics, qrels = collection.test_queries(number)
    candidates = collection.first_stage(depth)
    scored = candidates >> scorer(llm, reading, store, collection.title_field)
    values = pt.Experiment(
        [candidates, *(scored >> ranker for ranker in systems.values())],
        topics, qrels, MEASURES, names=["BM25", *systems], perquery=True, plan="tree", verbose=False,
        validate="ignore",  # PyTerrier cannot foresee what a learner puts out
    )
    table = mean_of_seeds(whole_table(values, ["BM25", *systems], topics["qid"]))
    table.round(4).to_csv(results / f"perquery-{collection.name}-{depth}-{reading}.csv")


def mean_of_seeds(values: pd.DataFrame) -> pd.DataFrame:
    """One column a system, whatever its number of seeds."""
    names = values.columns.str.replace(r", seed \d+$", "", regex=True)
    return values.T.groupby(names, sort=False).mean().T


def sees_first_stage(system: str) -> bool:
    """Whether a system knows BM25's scores: added at the end, or as evidence for the router."""
    return system.endswith("+ BM25") or "evidence" in system


def chosen_on_validation(reading: str, results: Path) -> dict[str, str]:
    """For each kind of system, without and with BM25's scores, the one that was best on the validation queries."""
    tried = pd.read_csv(results / f"validation-{reading}.csv")
    tried["system"] = tried["system"].str.replace(r", seed \d+$", "", regex=True)
    means = tried.groupby(["kind", "system"], sort=False)["nDCG@10"].mean().reset_index()
    best = {}
    for (kind, with_first_stage), own in means.groupby(["kind", means["system"].map(sees_first_stage)]):
        best[kind + " + BM25" * with_first_stage] = own.loc[own["nDCG@10"].idxmax(), "system"]
    return best


def tables(results: Path) -> None:
    """Means, intervals, Holm-corrected tests, wins and losses from the values per query that are there."""
    rows, differences = [], []
    for name, depth, reading in product(COLLECTIONS, DEPTHS, READINGS):
        file = results / f"perquery-{name}-{depth}-{reading}.csv"
        if not file.exists():
            continue
        values = pd.read_csv(file, index_col=["measure", "qid"])
        ndcg, reciprocal = (values.loc[str(measure)] for measure in MEASURES)
        chosen = chosen_on_validation(reading, results)
        for suffix in WEIGHTS:
            own = [system for system in ndcg if sees_first_stage(system) == bool(suffix) or system == "BM25"]
            baseline = chosen["static" + suffix]
            found = [_row(ndcg, reciprocal, system, baseline) for system in own]
            p = [row["p"] for row in found]
            tested = ~np.isnan(p)
            holm = np.full(len(p), np.nan)
            holm[tested] = multipletests(np.array(p)[tested], method="holm")[1]
            for row, corrected in zip(found, holm, strict=True):
                place = {"collection": name, "depth": depth, "reading": reading, "queries": len(ndcg),
                         SHARED: "yes" if name == NFCORPUS.name else "no"}
                rows.append({**place, **row, "p, Holm": corrected,
                             "chosen on validation": row["system"] in chosen.values()})
            against_all = {
                "BM25": "BM25", **{kind: chosen[kind + suffix] for kind in ("ICR", "static", "LambdaMART", "unrouted")},
                "single-head nDCG": "single-head nDCG" + suffix,  # whichever static method validation has chosen
            }
            for one, (other, against) in product(("routed", "unrouted"), against_all.items()):
                if one != other:
                    difference = ndcg[chosen[one + suffix]] - ndcg[against]
                    label = f"{one} - {other}" + (", BM25 seen" if suffix else "")
                    differences.append((reading, label, name, difference.rename(depth)))
    pd.DataFrame(rows).round(4).to_csv(results / "table.csv", index=False)
    summary = _summary(differences)
    summary.to_csv(results / "summary.csv", index=False)
    shown = pd.DataFrame(rows).round(3).drop(columns=["p"])
    print_by_collection(shown)
    print("\nnDCG@10 points, mean over collections and depths")
    print(summary.to_string(index=False))


def _row(ndcg: pd.DataFrame, reciprocal: pd.DataFrame, system: str, baseline: str) -> dict:
    own, base = ndcg[system], ndcg[baseline]
    interval = stats.bootstrap((own,), np.mean, n_resamples=2000, rng=0, method="percentile").confidence_interval
    same = np.allclose(own, base)
    return {
        "system": system, "nDCG@10": own.mean(), "low": interval.low, "high": interval.high,
        "RR@10": reciprocal[system].mean(), "against": baseline,
        "wins": int((own > base + 1e-6).sum()), "losses": int((own < base - 1e-6).sum()),
        "p": np.nan if same else stats.ttest_rel(own, base).pvalue,
    }


def _summary(differences: list[tuple[str, str, str, pd.Series]], resamples: int = 5000) -> pd.DataFrame:
    """Mean over collections and depths of mean differences, with an interval from a bootstrap.

    Queries are drawn within each collection, with what they have at every depth: the depths share them. "above in" is
    in how many of the collections and depths the mean difference is above 0.
    """
    rows = []
    for reading, against in dict.fromkeys((reading, against) for reading, against, *_ in differences):
        rng, drawn, means = np.random.default_rng(0), [], []  # each row by itself, whichever others there are
        own = [(name, values) for r, a, name, values in differences if (r, a) == (reading, against)]
        for collection in dict.fromkeys(name for name, _ in own):
            depths = pd.concat([values for name, values in own if name == collection], axis=1).to_numpy()
            resampled = depths[rng.integers(len(depths), size=(resamples, len(depths)))]
            drawn.append(np.nanmean(resampled, axis=1))
            means.append(np.nanmean(depths, axis=0))
        low, high = np.percentile(np.hstack(drawn).mean(axis=1), [2.5, 97.5])
        means = np.concatenate(means)
        rows.append({"reading": reading, "difference": against, "collections and depths": len(means),
                     "above in": int((means > 0).sum()), "points": 100 * means.mean(), "low": 100 * low,
                     "high": 100 * high})
    return pd.DataFrame(rows).round(2)


def ship(llm: FrozenLLM, reading: str, store: HeadScoreStore, train: int, valid: int) -> None:
    """Train the router that comes with the package: on SciFact alone, whose terms allow it."""
    judged, data = read_scifact(llm, reading, store, train, valid)
    made = RouteHeadReranker(llm=llm, detection_data=data)
    made.fit(*judged)
    print(reading, made.router_.report)
    folder = SHIPPED / reading
    shutil.rmtree(folder, ignore_errors=True)
    made.router_.save(folder)


def oracles(llm: FrozenLLM, reading: str, store: HeadScoreStore, args: argparse.Namespace) -> None:
    """What labels are worth on half lists of training queries, and ceilings beside chance on the test queries."""
    lists, *_ = judged_lists(*together(read_judged(llm, reading, store, args, 0)))
    made, rows, heads = {"labels": label_quality(lists)}, [], pool_of(lists)
    for collection in map(COLLECTIONS.get, args.collections):
        topics, qrels = collection.test_queries(args.test[0])
        frame = scorer(llm, reading, store, collection.title_field)(collection.first_stage(20)(topics))
        rows.append({"collection": collection.name, **ceilings(judged_lists(frame, qrels)[0], heads)})
    made["ceilings"] = pd.DataFrame(rows)
    for name, table in made.items():
        table.round(4).to_csv(args.output / f"{name}-{reading}.csv", index=False)
        print(f"\n{reading}, {name}\n{table.round(4).to_string(index=False)}", flush=True)


def main() -> None:
    """Read, fit, test and print; each step can be left out."""
    parser = experiment_arguments(__doc__.splitlines()[0], RESULTS)
    add_test_arguments(parser)
    parser.add_argument("--steps", nargs="+", default=["test", "oracles", "tables"], help="or ship")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightgbm")  # PyTerrier hands it arguments by their old names
    llm, store = opened(args)
    for reading in args.readings:
        if "ship" in args.steps:
            ship(llm, reading, store, args.train, args.valid)
        if "test" in args.steps:
            systems = fit_all(llm, reading, store, args)
            for (depth, number), name in product(zip(DEPTHS, args.test, strict=True), args.collections):
                if number != 0:
                    test(llm, systems, COLLECTIONS[name], depth, reading, store, number, args.output)
        if "oracles" in args.steps and args.test[0] != 0:
            oracles(llm, reading, store, args)
    if "tables" in args.steps:
        tables(args.output)


if __name__ == "__main__":
    main()
