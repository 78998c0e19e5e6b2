"""Between PyTerrier's frames and candidate lists: which rows form a list, in which order, and back by row position."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .prompt import Candidate
from .reader import CandidateList
from .reading import Reading


@dataclass(frozen=True)
class CandidateRows:
    """The rows of one query in a frame.

    Attributes:
        qid: the query's id.
        rows: positions of its rows in the frame, best candidate of the first stage first.
    """

    qid: str
    rows: np.ndarray


def candidate_lists(frame: pd.DataFrame) -> list[CandidateRows]:
    """One list per query, in order of first appearance. Candidates go by ``rank``, else ``score``, else row order.

    Raises:
        ValueError: naming the row of a missing qid, or the qid of a list whose ranks or scores are not all numbers.
    """
    key = next((column for column in ("rank", "score") if column in frame.columns), None)
    values = None if key is None else pd.to_numeric(frame[key], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    if frame.empty:
        return []
    numbers, qids = pd.factorize(frame["qid"])
    if (numbers < 0).any():
        raise ValueError(f"column 'qid' has a missing value in row {int(np.argmax(numbers < 0))}, counted from 0")
    lists = []
    ends = np.cumsum(np.bincount(numbers, minlength=len(qids)))
    for qid, rows in zip(qids, np.split(np.argsort(numbers, kind="stable"), ends[:-1]), strict=True):
        if values is not None:
            own = values[rows]
            if np.isnan(own).any():
                raise ValueError(f"query {qid!r}: column {key!r} has values that are not numbers")
            rows = rows[np.argsort(own if key == "rank" else -own, kind="stable")]
        lists.append(CandidateRows(str(qid), rows))
    return lists


def query_text(frame: pd.DataFrame, candidates: CandidateRows) -> str:
    """The query of a list.

    Raises:
        ValueError: naming the qid, where the query is missing or not the same in all rows.
    """
    queries = frame["query"].iloc[candidates.rows]
    if queries.isna().any():
        raise ValueError(f"query {candidates.qid!r}: column 'query' has missing values")
    texts = {str(query) for query in queries}
    if len(texts) > 1:
        raise ValueError(f"query {candidates.qid!r}: column 'query' has {len(texts)} different texts")
    return texts.pop()


def candidate_texts(
    frame: pd.DataFrame, candidates: CandidateRows, depth: int | None, text_field: str, title_field: str | None
) -> CandidateList:
    """Query and documents of a list, down to a depth."""
    top = candidates.rows[:depth]
    return CandidateList(
        candidates.qid, query_text(frame, candidates), documents(frame, top, text_field, title_field)
    )


def documents(frame: pd.DataFrame, rows: np.ndarray, text_field: str, title_field: str | None) -> list[Candidate]:
    """The candidates in some rows. A missing text or title counts as empty."""
    titles = _strings(frame[title_field], rows) if title_field is not None else [""] * len(rows)
    return [
        Candidate(text, title) for text, title in zip(_strings(frame[text_field], rows), titles, strict=True)
    ]


def _strings(column: pd.Series, rows: np.ndarray) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in column.iloc[rows]]


def first_stage_scores(frame: pd.DataFrame, candidates: CandidateRows, depth: int) -> np.ndarray:
    """Scores of the first stage for so many candidates of a list, best first.

    Raises:
        ValueError: naming the qid of a list with a missing or infinite score.
    """
    scores = pd.to_numeric(frame["score"].iloc[candidates.rows[:depth]], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(scores).all():
        raise ValueError(f"query {candidates.qid!r}: column 'score' has values that are not finite numbers")
    return scores


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores of one list less their mean, over their standard deviation; all 0 where that is 0.

    Shape [documents], or [documents, heads] for each head by itself.
    """
    centred = scores - scores.mean(axis=0)
    deviation = scores.std(axis=0)
    # Equal scores can leave a deviation of rounding errors, which must not be blown up to 1.
    differ = deviation > 1e-12 * np.abs(scores).max(axis=0)
    return np.where(differ, centred / np.where(differ, deviation, 1), 0)


def with_tail(scores: np.ndarray, length: int) -> np.ndarray:
    """Scores of the first candidates, then for the rest of the list finite ones that fall from below them."""
    lowest = scores.min()
    step = max(1.0, abs(lowest) * 1e-6)  # one that is not lost to rounding
    return np.concatenate([scores, lowest - step * np.arange(1, length - len(scores) + 1)])


def vector_rows(frame: pd.DataFrame, candidates: CandidateRows) -> tuple[list[Reading], list[np.ndarray]]:
    """Reading and vector of the candidates of a list that carry head scores: its first ones.

    Raises:
        ValueError: naming qid and docno: where no row has a vector, where one is missing before others, where a vector
            comes without its reading or does not fit it, or where the list mixes readings of unlike models or settings.
    """
    vectors = [
        vector if vector is None or np.isscalar(vector) or vector is pd.NA else np.asarray(vector)
        for vector in frame["head_scores"].iloc[candidates.rows]
    ]
    readings = list(frame["head_reading"].iloc[candidates.rows])
    there = [isinstance(vector, np.ndarray) for vector in vectors]  # a missing one may be None, NaN or NA
    count = sum(there)
    if count == 0:
        raise ValueError(f"query {candidates.qid!r}: no candidate has head_scores")
    if not all(there[:count]):
        docno = frame["docno"].iloc[candidates.rows[there.index(False)]]
        raise ValueError(f"query {candidates.qid!r}: document {docno!r} has no head_scores, but one below it has")
    first = readings[0]
    for row, reading, vector in zip(candidates.rows[:count], readings, vectors, strict=False):
        where = f"query {candidates.qid!r}, document {frame['docno'].iloc[row]!r}"
        if not isinstance(reading, Reading):
            raise ValueError(f"{where}: head_reading does not say what head_scores are")
        if vector.shape != (len(reading.heads),):
            raise ValueError(f"{where}: {vector.shape} head_scores, but head_reading names {len(reading.heads)} heads")
        if reading is not first and not reading.same_but_heads(first):
            raise ValueError(f"{where}: its head_scores were read otherwise than those of other candidates")
    return readings[:count], vectors[:count]


def check_finite(scores: np.ndarray, qid: str) -> None:
    """Refuse scores that are not finite, naming the qid."""
    if not np.isfinite(scores).all():
        raise ValueError(f"query {qid!r}: attention scores are not finite; the model's dtype may overflow, try float32")


def check_numbers(depth: int | None, batch_size: int) -> None:
    """Refuse a depth or batch size below 1."""
    for name, number in (("depth", depth), ("batch_size", batch_size)):
        if number is not None and (not isinstance(number, int | np.integer) or number < 1):
            raise ValueError(f"{name} is a whole number from 1, got {number!r}")
    if batch_size is None:
        raise ValueError("batch_size is a whole number from 1, got None")


def object_column(length: int) -> np.ndarray:
    """A column of objects by row position, all None."""
    return np.full(length, None, dtype=object)
