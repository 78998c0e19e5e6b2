"""Do queries predict which heads rank them well, and what does each option of RouteHead give?

    python examples/routing_signal.py

On the training and validation queries of examples/routing.py (SmolLM2-135M-Instruct, SciFact and NFCorpus, top 20),
from the same store. All is judged on the validation queries, which take no part in training here: a fifth of the
training queries is held out to choose the epoch. They did take part in choosing some defaults, though: those of
``FOR_LOGITS`` and ``BY_UTILITY`` were set by cross-validation over training and validation queries together. A quarter
of an hour on two cores with the store filled.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyterrier as pt

from oracles import MOST, judged_lists, pool_of
from pyterrier_routehead import Extensions, FrozenLLM, QRHeadReranker, RouteHeadReranker, RouterTraining
from pyterrier_routehead.routing.labels import head_utility, make_labels
from pyterrier_routehead.routing.search import PaddedLists, search_sets
from pyterrier_routehead.routing.state import QueryState, embed_query
from pyterrier_routehead.routing.training import ridge_regression
from routing import BY_UTILITY, RESULTS, SEEDS, SEEING_THE_LIST, WHOLE_POOL, quality
from testbed import experiment_arguments, opened, read_judged, together

STEPS = ["layers", "frequency", "curve", "ablations"]
LAYERS = (0, 5, 10, 15, 20, 25, 29)
SIZES = (100, 200, 400)
ABLATIONS = {
    "as it is": {},
    **{f"labels={name!r}": {"labels": name} for name in ("search", "search+prior")},
    "labels='utility', ridge": BY_UTILITY,
    "labels='utility', ridge, 4 heads": {**BY_UTILITY, "extensions": Extensions(min_heads=4), "max_heads": 4},
    "labels='utility', no ridge": {**BY_UTILITY, "training": replace(BY_UTILITY["training"], start="frequency")},
    "labels='utility', untrained": {
        **BY_UTILITY, "training": replace(BY_UTILITY["training"], start="frequency", epochs=0)},
    "labels='search', without exchange": {"labels": lambda lists, most: _without_exchange(lists, most)},
    "sparsity 0": {"training": RouterTraining(sparsity=0.0)},
    "sparsity 1": {"training": RouterTraining(sparsity=1.0)},
    "target size 8": {"training": RouterTraining(target_size=8, sparsity=10.0)},
    "pool_size 16": {"pool_size": 16},
    "pool_size 32": {"pool_size": 32},
    "pool_size 270": {"pool_size": 270},
    "max_heads 4": {"max_heads": 4},
    "max_heads 16": {"max_heads": 16},
    "8 heads always": {"extensions": Extensions(min_heads=8)},
    **{f"layer {layer}": {"layer": layer} for layer in (5, 25)},
    "last token": {"pooling": "last"},
    "weighting='probability'": {"extensions": Extensions(weighting="probability")},
    "the ranking in the loss": {
        "extensions": Extensions(weighting="probability"), "training": RouterTraining(ranking=1.0)},
    "4 static heads": {"extensions": Extensions(static_heads=4)},
    "unsure below 0.5": {"extensions": Extensions(unsure=0.5)},
    "evidence": {"extensions": Extensions(evidence=True)},
    "source='tail'": {"extensions": Extensions(source="tail")},
    "first_stage_weight 1": {"first_stage_weight": 1.0},
    "weighting='logit'": WHOLE_POOL,
    "weighting='logit', pool of 64": {"extensions": Extensions(weighting="logit")},
    "weighting='logit', evidence": SEEING_THE_LIST,
    "weighting='logit', freer query": {**WHOLE_POOL, "training": RouterTraining(query_ridge=10.0)},
    "weighting='logit', no query": {**WHOLE_POOL, "training": RouterTraining(query_ridge=1e6)},
}


def _without_exchange(lists: PaddedLists, most: int) -> np.ndarray:
    return search_sets(lists, most, exchange=False).members.astype(float)


def predicting(llm: FrozenLLM, parts: dict[str, tuple[tuple, tuple]]) -> pd.DataFrame:
    """Whether a query's embedding predicts which heads rank it well, on validation queries, layer by layer.

    A ridge regression from the embedding to the heads' utility, less each head's mean over the training queries and
    each list's mean over its heads; its penalty is chosen by generalised cross-validation on the training queries. The
    number is the correlation of foretold and real deviations on the validation queries. With both collections together
    it is enough to tell them apart; within one it takes more.
    """
    rng, rows = np.random.default_rng(0), []
    layers = [layer for layer in LAYERS if layer < llm.num_layers]
    states = [*(QueryState(layer) for layer in layers), QueryState(layers[len(layers) // 2], "last")]
    for name, (train, valid) in parts.items():
        (lists, _, queries), (test_lists, _, test_queries) = (judged_lists(*own) for own in (train, valid))
        heads = pool_of(lists)
        utility, test_utility = (head_utility(own.heads(heads)) for own in (lists, test_lists))
        mean = utility.mean(axis=0)
        wanted, real = (own - mean - (own - mean).mean(axis=1, keepdims=True) for own in (utility, test_utility))
        for state in states:
            x, test_x = (np.stack([embed_query(llm, query, state) for query in own]) for own in (queries, test_queries))
            centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
            x, test_x = (x - centre) / scale, (test_x - centre) / scale
            found = _correlation(test_x @ ridge_regression(x, wanted), real)
            chance = [
                _correlation(test_x @ ridge_regression(x, wanted[rng.permutation(len(x))]), real) for _ in range(20)
            ]
            rows.append({"queries of": name, "training lists": len(x), "layer": state.layer, "pooling": state.pooling,
                         "correlation": found, "shuffled queries, 95th percentile": np.percentile(chance, 95)})
    return pd.DataFrame(rows)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum() + 1e-30))


def frequency(llm: FrozenLLM, train: tuple, valid: tuple) -> pd.DataFrame:
    """The router's guesses on validation queries against those of the labels' frequency alone."""
    lists, _, queries = judged_lists(*valid)
    rows = []
    for recipe in ("search", "search+prior", "shrunk"):  # the recipes whose labels are sets
        fitted = RouteHeadReranker(llm=llm, labels=recipe).fit(*train)
        router = fitted.router_
        columns = valid[0]["head_reading"].iloc[0].columns(router.pool)
        labels = make_labels(recipe, lists.heads(np.array(columns)), MOST).targets
        states = np.stack([embed_query(llm, query, router.state) for query in queries])
        told = np.stack([router.probabilities(state) for state in states])
        counts = fitted.labels_["heads"].str.split().explode().value_counts()
        often = np.array([counts.get(str(head), 0) for head in router.pool], dtype=float)
        rows.append({"labels": recipe, "router": _hits(told, labels),
                     "frequency": _hits(np.tile(often, (len(labels), 1)), labels),
                     "chance": labels.mean()})
    return pd.DataFrame(rows)


def _hits(guesses: np.ndarray, labels: np.ndarray) -> float:
    """Share of the 8 most likely heads that are labelled."""
    best = np.argsort(-guesses, axis=1, kind="stable")[:, :MOST]
    return float(np.take_along_axis(labels, best, axis=1).mean())


def first(judged: tuple, number: int) -> tuple:
    """The first so many queries, in turns from the first and the second half of the frame; an odd one is left out."""
    frame, qrels = judged
    qids = frame["qid"].drop_duplicates()
    half = len(qids) // 2
    mixed = [qid for pair in zip(qids[:half], qids[half:], strict=False) for qid in pair]
    return frame[frame["qid"].isin(mixed[:number])], qrels


def over_seeds(make: Callable[[int], pt.Estimator], train: tuple, valid: tuple) -> dict[str, float]:
    """Mean and spread of nDCG@10 on the validation queries over the seeds."""
    values = [quality(make(seed).fit(*train), valid) for seed in SEEDS]
    return {"nDCG@10": np.mean(values), "lowest": min(values), "highest": max(values)}


def learning_curve(llm: FrozenLLM, train: tuple, valid: tuple) -> pd.DataFrame:
    """nDCG@10 on the validation queries by the number of training queries."""
    systems = {
        "single-head nDCG, 8 heads": lambda seed: QRHeadReranker(k=8, criterion="ndcg@10"),
        "RouteHead": lambda seed: RouteHeadReranker(llm=llm, seed=seed),
        "RouteHead, utility labels": lambda seed: RouteHeadReranker(llm=llm, seed=seed, **BY_UTILITY),
        "RouteHead, logits": lambda seed: RouteHeadReranker(llm=llm, seed=seed, **WHOLE_POOL),
        "weights without routing": lambda seed: RouteHeadReranker(
            llm=llm, seed=seed, **WHOLE_POOL, training=RouterTraining(query_ridge=1e6)),
    }
    return pd.DataFrame(
        {"queries": number, "system": name, **over_seeds(make, first(train, number), valid)}
        for number in SIZES for name, make in systems.items()
    )


def ablations(llm: FrozenLLM, train: tuple, valid: tuple) -> pd.DataFrame:
    """nDCG@10 on the validation queries with one option changed at a time."""
    rows = []
    for weight, suffix in ((0.0, ""), (1.0, ", first_stage_weight 1")):
        static = over_seeds(lambda seed, own=weight: QRHeadReranker(k=8, first_stage_weight=own), train, valid)
        rows.append({"option": f"static: single-head nDCG, 8 heads{suffix}", **static})
    for name, options in ABLATIONS.items():
        row = over_seeds(lambda seed, own=options: RouteHeadReranker(llm=llm, seed=seed, **own), train, valid)
        rows.append({"option": name, **row})
        print(name, row, flush=True)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute each table from the store and write it."""
    parser = experiment_arguments(__doc__.splitlines()[0], RESULTS)
    parser.add_argument("--steps", nargs="+", default=STEPS)
    args = parser.parse_args(arguments)
    llm, store = opened(args)
    # The ablation of a router's source wants hidden states of the re-ranking pass too.
    hidden = [llm.total_layers // 2] if "ablations" in args.steps else None
    for reading in args.readings:
        by_name = [read_judged(llm, reading, store, args, part, hidden_layers=hidden) for part in (0, 1)]
        train, valid = map(together, by_name)
        parts = {"both": (train, valid), **{name: (by_name[0][name], by_name[1][name]) for name in by_name[0]}}
        made = {
            "layers": lambda parts=parts: predicting(llm, parts),
            "frequency": lambda train=train, valid=valid: frequency(llm, train, valid),
            "curve": lambda train=train, valid=valid: learning_curve(llm, train, valid),
            "ablations": lambda train=train, valid=valid: ablations(llm, train, valid),
        }
        for step in args.steps:
            table = made[step]().round(4)
            table.to_csv(args.output / f"{step}-{reading}.csv", index=False)
            print(f"\n{reading}, {step}\n{table.to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
