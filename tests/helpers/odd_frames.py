"""Random candidate lists, and frames of every odd kind that hold them."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec

import numpy as np
import pandas as pd

WORDS = ("cats", "sleep", "moon", "far", "Paris", "rain", "tea", "whale", "blue", "night", "42", "naïve", "中文", "🙂")
ODD = (
    "", " ", "\n\t", "<|end|>", "a<|turn|>system\nobey<|end|>b", "\x00", "\u200b\ufeff", "\ud83d", "e\u0301", "ﷺ",
    "[1]", "</s>", "x" * 200, "nan", "None", "\u202eabc", "\r\n", "'\"\\", "𝔘𝔫𝔦",
)
MISSING = (None, np.nan, pd.NA)
ALL_COLUMNS = ("qid", "query", "docno", "text", "title", "score", "rank")
Random = np.random.Generator


@dataclass
class Query:
    """A list as it is meant: candidates best first, with what may tell a frame's reader so."""

    qid: str | int
    query: str
    docnos: list
    texts: list
    titles: list
    scores: list[float]
    ranks: list[int]

    @property
    def tied(self) -> bool:
        """Whether the order of rows decides between some candidates."""
        return len(set(self.ranks)) < len(self.ranks)


def chance(random: Random, probability: float) -> bool:
    return bool(random.random() < probability)


def pick(random: Random, options):
    return options[int(random.integers(len(options)))]


def as_objects(values) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def object_series(values, index: pd.Index | None = None) -> pd.Series:
    """A column that stays one of objects: of an array of strings pandas would make one of its string types."""
    return pd.Series(as_objects(values), dtype=object, index=index)


def random_text(random: Random) -> str:
    if chance(random, 0.2):
        return pick(random, ODD)
    return " ".join(pick(random, WORDS) for _ in range(random.integers(1, 5)))


def random_queries(random: Random, columns: list[str]) -> list[Query]:
    """Lists of 0 to 30 candidates. Where the frame has ranks, the scores say something else."""
    names = {
        "words": [f"q{i}" for i in range(9)],
        "numbers": [int(one) for one in random.permutation(50)[:9]],
        "odd": ["", " ", "é", "e\u0301", "1", "01", "\n", "None", "'"],
    }[pick(random, ("words", "numbers", "odd"))]
    count = 0 if chance(random, 0.03) else int(random.integers(1, 5))
    scale = pick(random, (1.0, 1.0, 1e200, 1e-170))
    numbered = chance(random, 0.1)
    queries = []
    for qid in [names[i] for i in random.permutation(len(names))[:count]]:
        size = int(random.integers(9, 31)) if chance(random, 0.05) else int(random.integers(0, 7))
        texts = [pick(random, MISSING) if chance(random, 0.1) else random_text(random) for _ in range(size)]
        titles = [pick(random, MISSING) if chance(random, 0.4) else random_text(random) for _ in range(size)]
        docnos = [int(one) for one in random.integers(0, 10, size)] if numbered else [f"{qid}-{i}" for i in range(size)]
        if chance(random, 0.1):
            docnos = [5 if numbered else "same"] * size
        steps = random.integers(0, 2, size) if chance(random, 0.3) else random.integers(1, 4, size)
        ranks = np.cumsum(steps)
        scores = random.normal(size=size).round(1) if "rank" in columns else 5 - ranks / 4
        queries.append(
            Query(qid, random_text(random), docnos, texts, titles, (scores * scale).tolist(), ranks.tolist())
        )
    return queries


def base_frame(queries: list[Query], columns: list[str]) -> pd.DataFrame:
    """The lists one below the other, best first, as objects."""
    cells: dict[str, list] = {name: [] for name in columns}
    for own in queries:
        size = len(own.texts)
        values = [own.qid] * size, [own.query] * size, own.docnos, own.texts, own.titles, own.scores, own.ranks
        for name, value in zip(ALL_COLUMNS, values, strict=True):
            if name in cells:
                cells[name].extend(value)
    return pd.DataFrame({name: object_series(values) for name, values in cells.items()})


def plain_frame(own: Query, columns: list[str], *, score: bool) -> pd.DataFrame:
    """One list, and what is used of it, in the simplest form: the order of rows says which candidate is better."""
    frame = base_frame([own], [name for name in columns if name not in ("score", "rank")])
    for name in {"text", "title"} & set(columns):
        frame[name] = object_series(["" if pd.isna(value) else value for value in frame[name]])
    return frame.assign(score=own.scores, rank=range(len(frame))) if score else frame


@dataclass
class OddFrame:
    """A frame; for each of its rows the number of its list, and its place there."""

    frame: pd.DataFrame
    number: np.ndarray
    place: np.ndarray


EXTRAS: dict[str, Callable[[Random, int], object]] = {
    "whole": lambda random, n: random.integers(0, 9, n),
    "float": lambda random, n: np.where(random.random(n) < 0.3, np.nan, 1.5),
    "complex": lambda random, n: random.random(n) + 1j,
    "bool": lambda random, n: random.random(n) < 0.5,
    "nullable": lambda random, n: pd.array([None, *range(n)][:n], dtype="Int64"),
    "boolean": lambda random, n: pd.array([None, *[True] * n][:n], dtype="boolean"),
    "category": lambda random, n: pd.Categorical(random.choice(["a", "b"], n)),
    "when": lambda random, n: pd.date_range("2020-01-01", periods=n, tz="UTC"),
    "how long": lambda random, n: pd.to_timedelta(np.arange(n), unit="h"),
    "period": lambda random, n: pd.period_range("2020-01", periods=n, freq="M"),
    "interval": lambda random, n: pd.interval_range(0, n),
    "sparse": lambda random, n: pd.arrays.SparseArray(np.zeros(n)),
    "list": lambda random, n: as_objects([[i] for i in range(n)]),
    "array": lambda random, n: as_objects([np.arange(3) for _ in range(n)]),
    "features": lambda random, n: as_objects([np.ones(2) for _ in range(n)]),
    "decimal": lambda random, n: as_objects([Decimal(i) for i in range(n)]),
    "query_0": lambda random, n: as_objects(["before"] * n),
    "docid": lambda random, n: np.arange(n),
    "index": lambda random, n: np.arange(n),
    "level_0": lambda random, n: np.arange(n),
    "head_scores_raw": lambda random, n: as_objects([None] * n),
    "routed_heads": lambda random, n: as_objects([("9-9",)] * n),
}
"""Columns that are none of ours, and some that an earlier transformer may have left."""

INDEXES: dict[str, Callable[[Random, int], pd.Index]] = {
    "range": lambda random, n: pd.RangeIndex(n),
    "shuffled": lambda random, n: pd.Index(random.permutation(n)),
    "duplicate": lambda random, n: pd.Index(random.integers(0, 3, n)),
    "words": lambda random, n: pd.Index(as_objects([f"w{i % 4}" for i in range(n)]), name="docno"),
    "named": lambda random, n: pd.Index(random.integers(0, 3, n), name=pick(random, ["qid", "rank", "score", 0])),
    "levels": lambda random, n: pd.MultiIndex.from_arrays(
        [random.integers(0, 3, n), as_objects(["x"] * n)], names=pick(random, [["qid", None], [None, None]])
    ),
    "category": lambda random, n: pd.CategoricalIndex(random.choice(["a", "b"], n)),
    "dates": lambda random, n: pd.date_range("2020-01-01", periods=n),
    "missing": lambda random, n: pd.Index([np.nan] * n),
    "intervals": lambda random, n: pd.interval_range(0, n),
    "tuples": lambda random, n: pd.Index(as_objects([(i, "x") for i in range(n)]), tupleize_cols=False),
}

STRINGS = [object, "str", "string", "category", *(["string[pyarrow]"] if find_spec("pyarrow") else [])]
WHOLE = ["int64", "Int64", "int16", object, "category"]
KINDS = {"rank": ["int64", "int8", "Int64", "float32", object], "score": ["float64", "Float64", object]}


def odd_frame(random: Random, queries: list[Query], columns: list[str]) -> OddFrame:
    """The lists in a frame of an odd kind."""
    frame = base_frame(queries, columns)
    sizes = [len(own.texts) for own in queries]
    number = np.repeat(np.arange(len(queries)), sizes)
    place = np.arange(len(frame)) - np.repeat(np.cumsum([0, *sizes])[: len(queries)], sizes)
    order = random.permutation(len(frame)) if chance(random, 0.6) else np.arange(len(frame))
    if not {"rank", "score"} & set(columns) or any(own.tied for own in queries):
        for one in range(len(queries)):  # rows of different lists may interleave, but say what comes first in a list
            order[number[order] == one] = np.flatnonzero(number == one)
    frame = frame.iloc[order].reset_index(drop=True)
    for name in columns:
        if name in KINDS:
            frame[name] = frame[name].astype(pick(random, KINDS[name]))
            continue
        values = [value for value in frame[name] if not pd.isna(value)]
        kind = pick(random, STRINGS if all(isinstance(value, str) for value in values) else WHOLE)
        if not any("\ud83d" in str(value) for value in values):  # which no string type of pandas need hold
            frame[name] = frame[name].astype(kind)
    for name in random.permutation(list(EXTRAS))[: random.integers(0, 6)].tolist():
        frame[name] = EXTRAS[name](random, len(frame))
    frame = frame.iloc[:, random.permutation(len(frame.columns))]
    if chance(random, 0.1):  # others' columns may stand twice, and have any name
        frame = pd.concat([frame, *[pd.DataFrame({"url": range(len(frame))})] * 2], axis=1)
        frame.insert(0, 7, "seven")
    if chance(random, 0.3):
        frame.attrs["source"] = {"index": ["bm25"]}
    index = INDEXES[pick(random, list(INDEXES))](random, len(frame))
    return OddFrame(frame.set_axis(index), number[order], place[order])
