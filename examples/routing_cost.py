"""What routing costs beside a static set, and what cutting off the upper layers costs and saves.

    python examples/routing_cost.py

SmolLM2-135M-Instruct (GGUF), BM25's top 20 of SciFact test queries. Routing is timed against the same heads without a
router, each query once by either in turn, so that the difference is the router's. For ``max_layer``, RouteHead and 8
static heads are fitted as in examples/routing.py and judged on the validation queries; time is that of reading the
deepest head in those layers, over all layers. Ratios within one run. Ten minutes on two cores with the store filled.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from measuring import in_turns
from pyterrier_routehead import (
    FrozenLLM,
    Head,
    HeadScoreStore,
    QRHeadReranker,
    RouteHeadReranker,
    StaticHeadReranker,
    named_router,
)
from pyterrier_routehead.routing.router import Selection
from pyterrier_routehead.routing.state import encode_queries
from routing import RESULTS, SEEDS, quality
from testbed import SCIFACT, experiment_arguments, opened, read_judged, together

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


def candidates(number: int) -> list[pd.DataFrame]:
    """The first so many test queries of SciFact with their candidates, one frame a query."""
    topics, _ = SCIFACT.test_queries(number)
    found = SCIFACT.first_stage(20)(topics)
    return [own.reset_index(drop=True) for _, own in found.groupby("qid", sort=False)]


def routing(llm: FrozenLLM, reading: str, frames: list[pd.DataFrame]) -> dict[str, float]:
    """Time of a router that takes 8 heads over that of the same 8 heads without it, and of the router by itself."""
    always = named_router("smollm2-135m", reading).with_selection(Selection(min_heads=8, max_heads=8))
    shared = {"llm": llm, "document_attention": reading, "title_field": "title"}

    def ratios(frame: pd.DataFrame) -> tuple[float, float]:
        query = frame["query"].iloc[0]
        told = RouteHeadReranker(always, routed_heads=True, **shared)(frame.head(1))
        static = StaticHeadReranker(",".join(told["routed_heads"].iloc[0]), **shared)
        anew = frame.assign(query=frame["query"] + " ")  # the same to the model, but its embedding is not remembered
        routed = RouteHeadReranker(always, **shared)
        seconds, _ = in_turns(
            {
                "static": lambda: static(anew),
                "routed": lambda: routed(anew),
                "router alone": lambda: always.route(encode_queries(llm, [query], always.state)[query]),
            },
            [],
            1,
        )
        static_seconds = seconds["static"][0]
        return seconds["routed"][0] / static_seconds, seconds["router alone"][0] / static_seconds

    whole, alone = np.array([ratios(frame) for frame in [frames[0], *frames]][1:]).T  # the first time warms up
    return {"reading": reading, "queries": len(whole), "routed over static": np.median(whole), "lowest": whole.min(),
            "highest": whole.max(), "router alone over static": np.median(alone)}


def layers(
    llm: FrozenLLM, reading: str, store: HeadScoreStore, frame: pd.DataFrame, options: argparse.Namespace
) -> list[dict[str, float]]:
    """nDCG@10 on validation queries and time over all layers, by the share of layers that heads may come from."""
    train, valid = (together(read_judged(llm, reading, store, options, part)) for part in (0, 1))
    deepest = {share: int(llm.num_layers * share + 1e-9) - 1 for share in SHARES}
    times, _ = in_turns(
        {
            share: lambda layer=layer: StaticHeadReranker(
                [Head(layer, 0)], llm=llm, document_attention=reading, title_field="title")(frame)
            for share, layer in deepest.items()
        },
        [lambda: StaticHeadReranker([Head(2, 0)], llm=llm, document_attention=reading, title_field="title")(frame)],
        options.rounds,
    )
    rows = []
    for share in SHARES:
        static = QRHeadReranker(k=8, criterion="ndcg@10", max_layer=share).fit(*train)
        routed = [quality(RouteHeadReranker(llm=llm, max_layer=share, seed=seed).fit(*train), valid) for seed in SEEDS]
        ratios = np.array(times[share]) / np.array(times[1.0])
        rows.append({"reading": reading, "max_layer": share, "layers run": deepest[share] + 1,
                     "time": np.median(ratios), "RouteHead": np.mean(routed), "8 static heads": quality(static, valid)})
        print(rows[-1], flush=True)
    return rows


def plot(table: pd.DataFrame, path: Path) -> None:
    """Quality against time, a line a method and reading, each point labelled with its share of the layers."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, table["reading"].nunique(), figsize=(9, 3.5), layout="constrained", squeeze=False)
    for ax, (reading, own) in zip(axes[0], table.groupby("reading"), strict=True):
        for name in ("RouteHead", "8 static heads"):
            ax.plot(own["time"], own[name], marker="o", label=name)
        for _, row in own.iterrows():
            ax.annotate(f"{row['max_layer']:g}", (row["time"], row["RouteHead"]), fontsize=7,
                        textcoords="offset points", xytext=(0, 5))
        ax.set(title=reading, xlabel="time over all layers", ylabel="nDCG@10, validation queries")
        ax.legend()
    plt.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, write and draw."""
    parser = experiment_arguments(__doc__.splitlines()[0], RESULTS)
    parser.add_argument("--queries", type=int, default=8, help="queries that routing is timed on (8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of reading each depth (3)")
    args = parser.parse_args()
    llm, store = opened(args)
    frames = candidates(args.queries)
    costs = pd.DataFrame(routing(llm, reading, frames) for reading in args.readings).round(3)
    print(costs.to_string(index=False))
    costs.to_csv(args.output / "cost.csv", index=False)
    rows = [row for reading in args.readings for row in layers(llm, reading, store, frames[0], args)]
    table = pd.DataFrame(rows).round(4)
    table.to_csv(args.output / "max_layer.csv", index=False)
    plot(table, args.output / "max_layer.png")


if __name__ == "__main__":
    main()
