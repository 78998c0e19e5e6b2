"""Random frames through the scorer and every re-ranker: ``python tests/helpers/fuzz_frames.py --seed 0 --count 10000``.

A case is one frame and one transformer, both random. Whatever the frame looks like (shuffled rows, any index, columns
of all dtypes, odd strings, several queries, read in batches), each candidate must get what the same transformer gives
it in a *plain* frame: its query alone, candidates in order, a default index, only the columns that are used. Rows,
columns, index and attrs must stay, the input must be left as it is, scores be finite, and ranks follow the scores, ties
by row order. In a share of the cases one fault is put into the frame, which must be refused by name.

Scores of two runs are compared to within 1e-5 of the largest in the list, or of 1; ranks are not compared: they follow
from each run's own scores, so that ties at the tolerance may fall either way. Two things would multiply the last bit of
an attention score. The filter on tokens keeps a token or drops it: lists read in batches are left unfiltered, and lists
read alone repeat bit by bit. And what is standardised is only as exact as its deviation is far from 0: in batches, the
tolerance grows as the list's smallest deviation shrinks. Windows choose candidates by score, so they are read alone.

A case depends on seed and number alone: ``--first N --count 1`` shows case N again.
"""

import argparse
import copy
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cache

import numpy as np
import pandas as pd
import pyterrier as pt

from odd_frames import (
    ALL_COLUMNS,
    OddFrame,
    Query,
    Random,
    chance,
    object_series,
    odd_frame,
    pick,
    plain_frame,
    random_queries,
)
from pyterrier_routehead import (
    AttentionHeadScorer,
    CoReHeadReranker,
    HeadRouter,
    HeadSet,
    ICRReranker,
    PromptTemplate,
    QRHeadReranker,
    ReadingSettings,
    RouteHeadReranker,
    Selection,
    StaticHeadReranker,
)
from pyterrier_routehead.reading.reader import model_identity
from pyterrier_routehead.routing.state import QueryState
from toys import toy_llm

TOLERANCE = 1e-5
NOISE = 1e-6  # of float32 attention
HEADS = "1-0,2-3,0-2"
POOL = "3-1,0-2,2-0,1-3"
LLM = toy_llm()
SHORT = toy_llm(context=450)
PROMPT = PromptTemplate("short", introduction="Texts:", block_tag="[t]", instruction="Find.", query_label="Q:")
READS = {"prompt": PROMPT, "max_doc_tokens": 40}


# Transformers


@cache
def head_set(heads: str, attention: str, token_filter: str) -> HeadSet:
    settings = ReadingSettings(document_attention=attention, token_filter=token_filter, **READS)
    return HeadSet.of(heads, model=model_identity(LLM), settings=settings)


@cache
def router(attention: str, token_filter: str, kind: str) -> HeadRouter:
    """One of random weights, which distinguishes queries."""
    generator, hidden = np.random.default_rng(0), 32
    weights = {
        "mean": np.zeros(hidden), "deviation": np.full(hidden, 2.0), "projection": generator.normal(size=(hidden, 3)),
        "head_embeddings": generator.normal(size=(4, 3)), "bias": np.zeros(4),
    }
    if kind == "by list":
        evidence = {"mean": np.zeros(4), "deviation": np.ones(4), "weights": np.arange(3.0, 7.0)}
        weights |= {f"evidence_{name}": array for name, array in evidence.items()}
    return HeadRouter.of(
        head_set(POOL, attention, token_filter),
        weights,
        state=QueryState(0, source="tail" if kind == "by tail" else "query"),
        selection=Selection(0.5, 1, 2, "even" if kind == "by query" else "logit"),
    )


@dataclass
class System:
    """A transformer under some settings, perhaps behind a scorer."""

    name: str
    attention: str
    depth: int | None
    weight: float
    batch_size: int

    @property
    def token_filter(self) -> str:
        return "sum" if self.name == "static, summed" else "head" if self.batch_size == 1 else "none"

    @property
    def ranks(self) -> bool:
        return not self.name.startswith("scorer") or ">" in self.name

    @property
    def behind(self) -> bool:
        return ">" in self.name

    @property
    def routes_by_logits(self) -> bool:
        return self.name.endswith(("by list", "by tail"))

    @property
    def needs_score(self) -> bool:
        return self.ranks and (bool(self.weight) or self.name.endswith("by list"))

    @property
    def written(self) -> set[str]:
        """Columns that are new or not those of the input."""
        written = {"score", "rank"} if self.ranks else set()
        if self.name.startswith("scorer"):
            written |= {"head_scores", "head_reading", "head_scores_raw"}
        if self.name == "scorer" or self.name.endswith("by tail"):
            written |= {"hidden_state"}
        return written | ({"routed_heads"} if "route" in self.name else set())

    def stages(self, weight: float | None = None) -> list[pt.Transformer]:
        """New transformers, one behind the other."""
        reads = {"llm": LLM, "document_attention": self.attention, "token_filter": self.token_filter, **READS}
        reads["batch_size"] = self.batch_size
        weighs = {"depth": self.depth, "first_stage_weight": self.weight if weight is None else weight}
        on_text = {**reads, **weighs}
        ranks = weighs if self.behind else on_text
        own = head_set(HEADS, self.attention, "head" if self.token_filter == "sum" else self.token_filter)

        def routing(kind: str) -> list[pt.Transformer]:
            given = {**weighs, "llm": LLM} if self.behind else on_text
            return [RouteHeadReranker(router(self.attention, self.token_filter, kind), routed_heads=True, **given)]

        makers: dict[str, Callable[[], list[pt.Transformer]]] = {
            "scorer": lambda: [AttentionHeadScorer(raw=True, hidden_layers=[1], depth=self.depth, **reads)],
            "scorer of some heads": lambda: [AttentionHeadScorer(HEADS, **reads)],
            "static": lambda: [StaticHeadReranker(HEADS, **ranks)],
            "static set": lambda: [StaticHeadReranker(own, **ranks)],
            "static, summed": lambda: [StaticHeadReranker(HEADS, **on_text)],
            "icr": lambda: [ICRReranker(**ranks)],
            "icr in windows": lambda: [ICRReranker(**{**on_text, "llm": SHORT})],
            "core": lambda: [CoReHeadReranker(own, k=2, **ranks)],
            "qr": lambda: [QRHeadReranker(HEADS, **ranks)],
            "route by query": lambda: routing("by query"),
            "route by list": lambda: routing("by list"),
            "route by tail": lambda: routing("by tail"),
        }
        scorer, _, last = self.name.rpartition(" > ")
        first = [AttentionHeadScorer(hidden_layers=[0] if last.endswith("tail") else None, **reads)] if scorer else []
        return first + makers[last]()


NAMES = (
    "scorer", "scorer of some heads", "static", "static set", "static, summed", "icr", "icr in windows", "core", "qr",
    "route by query", "route by list", "scorer > static", "scorer > static set", "scorer > icr", "scorer > core",
    "scorer > qr", "scorer > route by query", "scorer > route by list", "scorer > route by tail",
)


def random_system(random: Random) -> System:
    name = pick(random, NAMES)
    attention = "listwise" if name == "icr in windows" else pick(random, ("listwise", "blockwise"))
    batch_size = 1 if name in ("icr in windows", "static, summed") else pick(random, (1, 3))
    return System(name, attention, pick(random, (None, None, 1, 2, 5)), pick(random, (0.0, 0.0, 0.5)), batch_size)


# What must hold


class FoundError(AssertionError):
    """Something that must hold does not."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise FoundError(what)


def frozen(cell: object) -> object:
    return (cell.dtype.str, cell.shape, cell.tobytes()) if isinstance(cell, np.ndarray) else repr(cell)


def snapshot(frame: pd.DataFrame, without: set[str] | None = None) -> tuple:
    """All there is to see of a frame, or of its other columns."""
    places = [i for i, name in enumerate(frame.columns) if name not in (without or set())]
    cells = [
        (repr(frame.columns[i]), str(frame.dtypes.iloc[i]), [frozen(cell) for cell in frame.iloc[:, i]]) for i in places
    ]
    index = type(frame.index).__name__, list(frame.index.names), [repr(label) for label in frame.index]
    return cells, index, copy.deepcopy(frame.attrs)


def run(stages: list[pt.Transformer], frame: pd.DataFrame, check: bool = False) -> pd.DataFrame:
    for stage in stages:
        before = snapshot(frame) if check else None
        out = stage(frame)
        expect(not check or snapshot(frame) == before, "the input was changed")
        frame = out
    return frame


def check_ranks(out: pd.DataFrame) -> None:
    expect(out["score"].dtype == np.float64 and out["rank"].dtype == np.int64, "dtypes of score or rank")
    expect(np.isfinite(out["score"]).all(), "scores are not finite")
    rows_of: dict[object, list[int]] = {}
    for row, qid in enumerate(out["qid"]):
        rows_of.setdefault(qid, []).append(row)
    scores, ranks = out["score"].tolist(), out["rank"].tolist()
    for rows in rows_of.values():
        best_first = sorted(rows, key=lambda row: -scores[row])  # stable
        expect([ranks[row] for row in best_first] == list(range(len(rows))), "ranks do not follow the scores")


def check_strict_sort(system: System, inp: pd.DataFrame, out: pd.DataFrame) -> None:
    pt.model.STRICT_SORT = True
    try:
        strict = run(system.stages(), inp)
    finally:
        pt.model.STRICT_SORT = False
    wanted = out
    if system.ranks:
        keys = pd.DataFrame({"qid": out["qid"].array, "rank": out["rank"].array})
        wanted = out.iloc[keys.sort_values(["qid", "rank"]).index]
    apart = {"head_scores", "head_reading", "score"} if system.batch_size > 1 else set()
    expect(snapshot(strict, apart) == snapshot(wanted, apart), "STRICT_SORT gives other rows, or in another order")


def results(system: System, out: pd.DataFrame) -> list[np.ndarray | None]:
    """What each row got."""
    column = out["score"] if system.ranks else out["head_scores"]
    return [None if value is None else np.atleast_1d(np.asarray(value, dtype=float)) for value in column]


def difference(one: list, other: list) -> float:
    """The largest difference, as a share of the largest value or of 1; infinite where only one has a value."""
    largest, apart = 1.0, 0.0
    for a, b in zip(one, other, strict=True):
        if (a is None) != (b is None):
            return np.inf
        if a is not None:
            largest, apart = max(largest, np.abs(b).max()), max(apart, np.abs(a - b).max())
    return apart / largest


def tolerance(system: System, plain: pd.DataFrame) -> float:
    if system.batch_size == 1 or not system.ranks or not (system.weight or system.routes_by_logits):
        return TOLERANCE
    top = slice(0, system.depth)
    reads = AttentionHeadScorer(
        llm=LLM, document_attention=system.attention, token_filter=system.token_filter, depth=system.depth, **READS
    )
    deviations = np.stack(reads(plain)["head_scores"][top]).std(axis=0)
    if not system.routes_by_logits:
        deviations = [run(system.stages(weight=0.0), plain)["score"][top].std(ddof=0)]
    return TOLERANCE + NOISE / max(np.min(deviations), 1e-300)


def check_case(system: System, queries: list[Query], odd: OddFrame, columns: list[str], strict_sort: bool) -> None:
    out = run(system.stages(), odd.frame, check=True)
    kept = snapshot(out, system.written), snapshot(odd.frame, system.written)
    expect(kept[0] == kept[1], "rows, columns, index or attrs are not those of the input")
    expect(system.written - {"head_scores_raw"} <= set(out.columns), "a column is missing")
    if system.ranks:
        check_ranks(out)
    if strict_sort:
        check_strict_sort(system, odd.frame, out)
    own = results(system, out)
    for number, query in enumerate(queries):
        if not query.texts:
            continue
        rows = np.flatnonzero(odd.number == number)
        rows = rows[np.argsort(odd.place[rows])]
        plain = plain_frame(query, columns, score=system.needs_score)
        alone = run(system.stages(), plain)
        apart = difference([own[row] for row in rows], results(system, alone))
        close = apart <= TOLERANCE or apart <= tolerance(system, plain)
        expect(close, f"query {query.qid!r}: scores differ by {apart:.1g}")
        if "routed_heads" in out.columns and "route" in system.name:
            expect(list(out["routed_heads"].iloc[rows]) == list(alone["routed_heads"]), "other heads were chosen")


# Faults


NO_TEXTS = (b"cats", 7, 7.5, np.float32(1), {"a": 1}, ["cats"], ("cats",), np.array(["a", "b"]), date.max, True, [])
NO_IDS = (["q"], {"q": 1}, ("q",), 1.5, b"q", np.array([1]), date.max, True, None, np.nan, pd.NA, pd.NaT)
NO_NUMBERS = ([1], 1j, date.max, b"1", {}, None, np.nan, "first", pd.Timestamp(5), np.array([1, 2]))
NO_VECTORS = (
    "0.5", b"12", 3.5, np.array([1 + 1j, 2]), np.array(["2020-01-01"], dtype="datetime64[D]"), {"1-0": 1.0},
    np.array([0.5, "x"], dtype=object), [[1.0], [1.0, 2.0]], np.ones(3), np.ones((4, 4)), np.full(16, np.nan),
)


@dataclass
class Fault:
    """A broken frame, and what its refusal must name."""

    name: str
    frame: pd.DataFrame
    names: list[str]


def with_cell(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    values = list(frame[column])
    values[row] = value
    return frame.assign(**{column: object_series(values, frame.index)})


def random_fault(random: Random, system: System, frame: pd.DataFrame, best: np.ndarray, scored: bool) -> Fault:
    """One fault in a frame, at the best candidate of a list, which is read whatever the depth."""
    row = int(pick(random, best))
    qid, docno = repr(str(frame["qid"].iloc[row])), repr(str(frame["docno"].iloc[row]))
    used = ["qid", "docno", "head_scores", "head_reading"] if scored else ["qid", "docno", "query", "text"]
    order = [name for name in ("rank", "score") if name in frame.columns]
    kinds = ["missing column", "column twice", "id", *["head scores"] * scored, *["number"] * bool(order)]
    kinds += ["text", "query", "queries"] * (not scored)
    kind = pick(random, kinds)
    if kind == "missing column":
        column = pick(random, [name for name in used if name != "head_scores"])  # without them, text is read
        return Fault(kind, frame.drop(columns=column), [column])
    if kind == "column twice":
        column = pick(random, used + order)
        return Fault(kind, pd.concat([frame, frame[[column]]], axis=1), [column])
    if kind == "id":
        column = pick(random, ("qid", "docno"))
        return Fault(kind, with_cell(frame, column, row, pick(random, NO_IDS)), [column])
    if kind == "number":
        return Fault(kind, with_cell(frame, order[0], row, pick(random, NO_NUMBERS)), [order[0], qid, docno])
    if kind == "head scores":
        return Fault(kind, with_cell(frame, "head_scores", row, pick(random, NO_VECTORS)), ["head_scores", qid, docno])
    if kind == "text":
        column = pick(random, [name for name in ("text", "title") if name in frame.columns])
        return Fault(kind, with_cell(frame, column, row, pick(random, NO_TEXTS)), [column, qid, docno])
    if kind == "query":
        return Fault(kind, with_cell(frame, "query", row, pick(random, (*NO_TEXTS, None, np.nan))), ["query", qid])
    row = int(pick(random, range(len(frame))))
    if sum(str(one) == str(frame["qid"].iloc[row]) for one in frame["qid"]) == 1:
        return Fault("query", with_cell(frame, "query", row, None), ["query", repr(str(frame["qid"].iloc[row]))])
    return Fault(kind, with_cell(frame, "query", row, "another"), ["query", repr(str(frame["qid"].iloc[row]))])


def check_fault(random: Random, system: System, odd: OddFrame) -> str:
    """Break a frame on its way; the name of the fault."""
    stages, frame, scored = system.stages(), odd.frame, False
    if system.behind and chance(random, 0.5):
        frame, stages, scored = run(stages[:1], frame), stages[1:], True
    fault = random_fault(random, system, frame, np.flatnonzero(odd.place == 0), scored)
    try:
        run(stages, fault.frame)
    except (ValueError, TypeError, pt.validate.InputValidationError) as error:
        said = str(error)
        lacking = [name for name in fault.names if name not in said]
        expect(not lacking, f"{fault.name}: {type(error).__name__} does not name {lacking}: {said}")
    else:
        raise FoundError(f"{fault.name}: not refused, should name {fault.names}")
    return fault.name


# Cases


@dataclass
class Tally:
    """What happened."""

    counts: Counter = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def random_columns(random: Random, system: System) -> list[str]:
    columns = [name for name in ALL_COLUMNS if name not in ("title", "score", "rank")]
    return columns + [
        name for name in ("title", "score", "rank") if chance(random, 0.5) or (name == "score" and system.needs_score)
    ]


def fuzz_one(seed: int, number: int, tally: Tally) -> None:
    random = np.random.default_rng([seed, number])
    system = random_system(random)
    columns = random_columns(random, system)
    queries = random_queries(random, columns)
    odd = odd_frame(random, queries, columns)
    broken, strict_sort = chance(random, 0.25), chance(random, 0.1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*sliding windows")
            if broken and len(odd.frame):
                tally.counts[f"refused: {check_fault(random, system, odd)}"] += 1
            else:
                check_case(system, queries, odd, columns, strict_sort)
                tally.counts[system.name] += 1
    except Exception as error:
        where = "" if isinstance(error, FoundError) else f" at {traceback.extract_tb(error.__traceback__)[-1].name}"
        tally.counts["findings"] += 1
        tally.findings.append(f"case {number}, {system}: {type(error).__name__}{where}: {error}")


def fuzz(seed: int, count: int, first: int = 0) -> Tally:
    """So many cases, from one on."""
    tally = Tally()
    for number in range(first, first + count):
        fuzz_one(seed, number, tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    tally = fuzz(args.seed, args.count, args.first)
    for finding in tally.findings:
        print(finding.encode("utf-8", "backslashreplace").decode("utf-8"))
    for name, count in sorted(tally.counts.items()):
        print(f"{count:7} {name}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
