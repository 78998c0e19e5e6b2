"""What the benchmarks share: a table of results, clocks, and the peak of memory."""

import contextlib
import csv
import ctypes
import gc
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

K = TypeVar("K", bound=Hashable)
COLUMNS = ("model", "documents", "doc_tokens", "measure", "unit", "value", "low", "high", "target", "met")


class Table:
    """Prints rows as they come and keeps them for the file."""

    def __init__(self) -> None:
        self.rows: list[list[object]] = [[*COLUMNS]]

    def add(
        self, model: str, size: tuple[int, int], measure: str, unit: str, values: Sequence[float], limit: float = 0
    ) -> None:
        """Add the median, lowest and highest of some values.

        Args:
            model: what was measured.
            size: documents, and tokens a document.
            measure: what of it.
            unit: unit of the values; empty for a ratio.
            values: one value a round.
            limit: what the median should be at most; at least, if it is negative; 0 for no target.
        """
        figures = [f"{x:.4g}" for x in (np.median(values), min(values), max(values))]
        target = f"{'<=' if limit > 0 else '>='} {abs(limit):g}" if limit else ""
        met = ("yes" if np.median(values) * np.sign(limit) <= limit else "no") if limit else ""
        self.rows.append([model, *size, measure, unit, *figures, target, met])
        spread = " to ".join(figures[1:]) if len(values) > 1 else ""
        left = f"{model:<17} {size[0]:>3} x {size[1]:<3}  {measure:<50}"
        print(f"{left}{figures[0]:>9} {unit:<3} {spread:<18} {target:<7} {met}".rstrip(), flush=True)

    def write(self, path: Path) -> None:
        """Write all rows as CSV."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self.rows)


def clock(operation: Callable[[], object]) -> tuple[float, object]:
    """Seconds that a run takes, and its result."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else bool
    wait()
    start = time.perf_counter()
    result = operation()
    wait()
    return time.perf_counter() - start, result


def in_turns(
    operations: Mapping[K, Callable[[], object]], warm_ups: Iterable[Callable[[], object]], rounds: int
) -> tuple[dict[K, list[float]], dict[K, object]]:
    """Seconds a round, and last result, of some operations that take turns (A B A B), so that noise meets all alike."""
    times, results = {name: [] for name in operations}, {}
    for warm_up in warm_ups:
        warm_up()
    for name in [*operations] * rounds:
        seconds, results[name] = clock(operations[name])
        times[name].append(seconds)
    return times, results


def matrix_peak(device: torch.device) -> float:
    """Operations a second in the multiplication of two large bf16 matrices, the best of some runs."""
    size = 8192 if device.type == "cuda" else 256
    one, other = torch.randn(2, size, size, dtype=torch.bfloat16, device=device)
    return 2 * size**3 / min(clock(lambda: one @ other)[0] for _ in range(10))


def peak_memory(operation: Callable[[], object], warm_up: Callable[[], object], device: torch.device) -> int:
    """Bytes that one run takes at its peak above what is there before, such as a loaded model.

    Meant for a fresh process: memory that an earlier run has left to malloc would be used without being seen.

    Args:
        operation: what to measure; it is run once.
        warm_up: a small run of the same kind, for what is allocated once, on first use.
        device: where it runs.

    Raises:
        OSError: where the peak cannot be reset: it can on CUDA, and on the CPU under Linux.
    """
    warm_up()
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        operation()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)  # gives back what malloc has kept from loading
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # lowers the peak to the present size
    before = _process_memory("VmRSS")
    operation()
    return _process_memory("VmHWM") - before


def _process_memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
