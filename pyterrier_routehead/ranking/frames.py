"""Between PyTerrier's frames and candidate lists: which rows form a list, in which order, and back by row position.

Nothing here uses a frame's index: rows are identified by position. An error for a wrong value names column, qid and
docno; values that are not strings are not converted to strings.
"""

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..prompt.build import Candidate
from ..reading.reading import Reading


@dataclass(frozen=True)
class CandidateRows:
    """The rows of one query in a frame.

    Attributes:
        qid: the query's id, as a string.
        rows: positions of its rows in the frame, best candidate of the first stage first.
    """

    qid: str
    rows: np.ndarray


# Columns


def check_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise an error for a frame in which one of these columns is duplicate; missing columns are ignored.

    Raises:
        ValueError: naming the column, or if columns have several levels.
    """
    if frame.columns.nlevels > 1:
        raise ValueError(
            f"the frame's columns have {frame.columns.nlevels} levels, such as {frame.columns[0]!r}: "
            "give each column one name"
        )
    present = list(frame.columns)
    for name in names:
        if (count := present.count(name)) > 1:
            raise ValueError(f"the frame has {count} columns {name!r}: rename or drop all but one")


def used_title_field(columns: Iterable[str], title_field: str | None, text_field: str = "text") -> str | None:
    """The column of titles to read: for ``"auto"`` the column ``title``, if there is one; else the named column.

    A column ``title`` that is read as text is not read as title too.
    """
    if title_field != "auto":
        return title_field
    return "title" if "title" in list(columns) and text_field != "title" else None


# Which rows form a list


def candidate_lists(frame: pd.DataFrame) -> list[CandidateRows]:
    """One list per query, in order of first appearance, sorted by ``rank``, else ``score``, else row order.

    Raises:
        TypeError: naming column and row of a qid or docno that is neither a string nor an integer, or column, qid and
            docno of a rank or score that is not a number.
        ValueError: naming the same for a missing value, and for two different qids that are the same string.
    """
    if len(frame) == 0:
        return []
    qids = _ids(frame, "qid")
    _ids(frame, "docno")
    rows_of: dict[str, list[int]] = {}
    for row, qid in enumerate(qids):
        rows_of.setdefault(qid, []).append(row)
    key = next((column for column in ("rank", "score") if column in frame.columns), None)
    lists = []
    for qid, positions in rows_of.items():
        rows = np.array(positions)
        if key is not None:
            values = _numbers(frame, key, rows)
            rows = rows[np.argsort(values if key == "rank" else -values, kind="stable")]
        lists.append(CandidateRows(qid, rows))
    return lists


def _ids(frame: pd.DataFrame, column: str) -> list[str]:
    """The column ``qid`` or ``docno`` as strings."""
    values = list(frame[column])
    kinds: dict[str, bool] = {}
    for row, value in enumerate(values):
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_integer and not isinstance(value, str):
            place = _row(frame, row, beside=column)
            if _is_missing(value):
                raise ValueError(f"column {column!r} has a missing value in {place}")
            remedy = ".astype(int).astype(str)" if isinstance(value, numbers.Real) else ".astype(str)"
            raise TypeError(
                f"column {column!r} has {_shown(value)} in {place}, but ids are strings or integers: "
                f"frame[{column!r}]{remedy}"
            )
        if kinds.setdefault(str(value), is_integer) != is_integer and column == "qid":
            raise ValueError(
                f"column 'qid' has {str(value)!r} both as a string and as a number, in "
                f"{_row(frame, row, beside=column)} and before: if they are the same query, "
                "frame['qid'].astype(str) makes them one"
            )
    return list(map(str, values))


def _row(frame: pd.DataFrame, row: int, beside: str) -> str:
    """A row, for a message about one of its two ids."""
    other = "docno" if beside == "qid" else "qid"
    return f"row {row}, counted from 0 ({other} {_shown(frame[other].iloc[row])})"


def _numbers(frame: pd.DataFrame, column: str, rows: np.ndarray) -> np.ndarray:
    """Numbers in some rows of a column, float64; strings of numbers are accepted, as read from a run file."""
    values = np.empty(len(rows))
    for place, (row, value) in enumerate(zip(rows, frame[column].iloc[rows], strict=True)):
        if isinstance(value, str | numbers.Real | Decimal) and not isinstance(value, bool):
            try:
                values[place] = float(value)
            except (ValueError, OverflowError):
                values[place] = np.nan
        elif _is_missing(value):
            values[place] = np.nan
        else:
            raise TypeError(f"{_where(frame, row)}: column {column!r} has {_shown(value)}, which is no number")
        if np.isnan(values[place]):
            shown = "a missing value" if _is_missing(value) else f"{_shown(value)}, which is no number"
            raise ValueError(f"{_where(frame, row)}: column {column!r} has {shown}")
    return values


# Texts of a list


def query_text(frame: pd.DataFrame, candidates: CandidateRows) -> str:
    """The query of a list.

    Raises:
        TypeError: naming the qid, if the query is not a string.
        ValueError: naming the qid, if the query is missing or not the same in all rows.
    """
    texts = dict.fromkeys(_strings(frame, "query", candidates.rows))
    if any(_is_missing(value) for value in frame["query"].iloc[candidates.rows]):
        raise ValueError(f"query {candidates.qid!r}: column 'query' has missing values")
    if len(texts) > 1:
        raise ValueError(
            f"query {candidates.qid!r}: column 'query' has {len(texts)} different texts, such as "
            f"{' and '.join(repr(text) for text in list(texts)[:2])}"
        )
    return next(iter(texts))


def documents(frame: pd.DataFrame, rows: np.ndarray, text_field: str, title_field: str | None) -> list[Candidate]:
    """The candidates in some rows. A missing text or title counts as empty.

    Raises:
        TypeError: naming column, qid and docno of a value that is neither a string nor missing.
    """
    texts = _strings(frame, text_field, rows)
    titles = [""] * len(rows)
    if title_field is not None:
        titles = _strings(frame, title_field, rows, hint="; title_field=None reads no titles")
    return [Candidate(text, title) for text, title in zip(texts, titles, strict=True)]


def _strings(
    frame: pd.DataFrame, column: str, rows: np.ndarray, hint: str = ""
) -> list[str]:
    """Texts in some rows of a column; a missing one is empty."""
    texts = []
    for row, value in zip(rows, frame[column].iloc[rows], strict=True):
        if isinstance(value, str):
            texts.append(str(value))
        elif _is_missing(value):
            texts.append("")
        else:
            raise TypeError(
                f"{_where(frame, row)}: column {column!r} has {_shown(value)}, but a text is a string: "
                f"{_as_string(column, value)}{hint}"
            )
    return texts


def _as_string(column: str, value: object) -> str:
    """How to convert a column's values to strings, for a message."""
    if isinstance(value, bytes | bytearray):
        return f"frame[{column!r}].str.decode('utf-8')"
    return f"frame[{column!r}].astype(str)" if isinstance(value, numbers.Number) else "make one string of it"


# First stage


def first_stage_scores(frame: pd.DataFrame, candidates: CandidateRows, depth: int) -> np.ndarray:
    """Scores of the first stage for the first ``depth`` candidates of a list, best first: float64.

    Raises:
        TypeError: naming column, qid and docno of a score that is not a number.
        ValueError: naming the same for a score that is missing or infinite.
    """
    rows = candidates.rows[:depth]
    scores = _numbers(frame, "score", rows)
    if len(infinite := np.flatnonzero(np.isinf(scores))):
        first = infinite[0]
        raise ValueError(
            f"{_where(frame, rows[first])}: column 'score' has {scores[first]}, which cannot be weighed against others"
        )
    return scores


# Head scores in a frame


def vector_rows(frame: pd.DataFrame, candidates: CandidateRows) -> tuple[list[Reading], list[np.ndarray]]:
    """Reading and vector of the candidates of a list that have head scores: its first ones.

    Raises:
        TypeError: naming qid and docno of head scores that are not an array of real numbers.
        ValueError: naming qid and docno: if no row has a vector, one is missing before others, a vector has no reading,
            does not fit it or is not finite, or the list mixes readings of different models or settings.
    """
    values = frame["head_scores"].iloc[candidates.rows]
    vectors = [_vector(frame, row, value) for row, value in zip(candidates.rows, values, strict=True)]
    readings = list(frame["head_reading"].iloc[candidates.rows])
    has_vector = [vector is not None for vector in vectors]
    count = sum(has_vector)
    if count == 0:
        raise ValueError(f"query {candidates.qid!r}: no candidate has head_scores")
    if not all(has_vector[:count]):
        docno = _docno(frame, candidates.rows[has_vector.index(False)])
        raise ValueError(f"query {candidates.qid!r}: document {docno!r} has no head_scores, but one below it has")
    present = [vector for vector in vectors if vector is not None]
    first = readings[0]
    for row, reading, vector in zip(candidates.rows[:count], readings, present, strict=False):
        if not isinstance(reading, Reading):
            raise ValueError(f"{_where(frame, row)}: head_reading does not say what head_scores are")
        if vector.shape != (len(reading.heads),):
            raise ValueError(
                f"{_where(frame, row)}: {vector.shape} head_scores, but head_reading names {len(reading.heads)} heads"
            )
        if not np.isfinite(vector).all():
            raise ValueError(f"{_where(frame, row)}: head_scores has numbers that are not finite")
        if reading is not first and not reading.same_but_heads(first):
            raise ValueError(
                f"{_where(frame, row)}: its head_scores were read with other settings than those before it"
            )
    return readings[:count], present


def _vector(frame: pd.DataFrame, row: int, value: object) -> np.ndarray | None:
    """The vector in a row; None if it is missing (None, NaN or NA)."""
    if _is_missing(value):
        return None
    try:
        vector = np.asarray(value)
    except (TypeError, ValueError):  # such as lists of different lengths
        vector = None
    if vector is None or vector.ndim == 0 or vector.dtype.kind not in "fiu":
        raise TypeError(f"{_where(frame, row)}: head_scores has {_shown(value)}, which is no array of real numbers")
    return vector


# Back into a frame


def with_ranking(
    inp: pd.DataFrame, scores: np.ndarray, further: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """A frame with a new ranking.

    Args:
        inp: the frame, with a column ``qid``; it is not changed.
        scores: one finite number per row, by row position.
        further: further columns by name, by row position too.

    Returns:
        All columns of the frame, then ``score`` (float64), ``rank`` (int64, 0 is the best of its query; ties are ranked
        in row order) and the further ones. Rows and index are unchanged; with PyTerrier's ``STRICT_SORT`` the rows,
        with their index, are sorted by qid and rank.

    Raises:
        ValueError: naming the qid and docno of a score that is not finite.
    """
    scores = np.array(scores, dtype=np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(scores))):
        raise ValueError(f"{_where(inp, wrong[0])}: its new score is {scores[wrong[0]]}, which is no finite number")
    places = _query_places(inp["qid"])
    ranking = np.lexsort((-scores, places))  # stable, so that equal scores keep the order of the rows
    starts = np.searchsorted(places[ranking], places[ranking])
    ranks = np.empty(len(inp), dtype=np.int64)
    ranks[ranking] = np.arange(len(inp)) - starts + pt.model.FIRST_RANK
    out = inp.drop(columns=["score", "rank"], errors="ignore").assign(score=scores, rank=ranks, **(further or {}))
    return out.iloc[ranking] if pt.model.STRICT_SORT else out


def _query_places(qids: pd.Series) -> np.ndarray:
    """The position of each row's query in the order of qids, as in PyTerrier's ``STRICT_SORT``."""
    if isinstance(qids.dtype, pd.CategoricalDtype):
        return qids.cat.codes.to_numpy()
    values = list(qids)
    distinct = set(values)
    same_kind = all(isinstance(qid, str) for qid in distinct) or not any(isinstance(qid, str) for qid in distinct)
    place = {qid: i for i, qid in enumerate(sorted(distinct, key=None if same_kind else str))}
    return np.array([place[qid] for qid in values], dtype=np.int64)


def with_tail(scores: np.ndarray, length: int) -> np.ndarray:
    """Scores of the first candidates, then for the rest of the list finite, decreasing ones below them."""
    lowest = scores.min()
    step = max(1.0, abs(lowest) * 1e-6)  # large enough not to be lost to rounding
    return np.concatenate([scores, lowest - step * np.arange(1, length - len(scores) + 1)])


def object_column(length: int) -> np.ndarray:
    """A column of objects by row position, all None."""
    return np.full(length, None, dtype=object)


# Checks


def check_finite(scores: np.ndarray, qid: str) -> None:
    """Raise an error for scores that are not finite, naming the qid."""
    if not np.isfinite(scores).all():
        raise ValueError(f"query {qid!r}: attention scores are not finite; the model's dtype may overflow, try float32")


def _where(frame: pd.DataFrame, row: int) -> str:
    """The candidate in a row, for a message."""
    return f"query {str(frame['qid'].iloc[row])!r}, document {_docno(frame, row)!r}"


def _docno(frame: pd.DataFrame, row: int) -> str:
    return str(frame["docno"].iloc[row])


def _is_missing(value: Any) -> bool:  # whatever a column may hold
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _shown(value: object, most: int = 40) -> str:
    """Value and type, for a message."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return f"{text if len(text) <= most else text[: most - 1] + '…'} ({type(value).__name__})"
