"""Keys as rows on disk: a token's key in int8 with one scale, or in float16.

A key k is kept as round(k / s) with s = max |k| / 127, rounded up to a float16; so a number is off by at most s / 2.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

DTYPES = ("int8", "float16")
_LEVELS = 127
_SMALLEST = float(np.finfo(np.float16).smallest_normal)


def row_dtype(dtype: str, dim: int) -> np.dtype:
    """One token's key on disk."""
    if dtype == "int8":
        return np.dtype([("scale", "<f2"), ("key", "i1", (dim,))])
    return np.dtype([("key", "<f2", (dim,))])


def as_rows(keys: np.ndarray, dtype: str) -> np.ndarray:
    """Rows of keys, float32 [tokens, dim].

    Raises:
        ValueError: for numbers that are not finite, or beyond what the dtype holds.
    """
    rows = np.empty(len(keys), row_dtype(dtype, keys.shape[1]))
    largest = np.abs(keys).max(axis=1, initial=0.0)
    bound = float(np.finfo(np.float16).max) * (_LEVELS if dtype == "int8" else 1)
    if not (largest <= bound).all():  # NaN too
        raise ValueError(f"its keys are not finite, or too large for {dtype}")
    if dtype == "float16":
        rows["key"] = keys
        return rows
    exact = np.maximum(largest / _LEVELS, _SMALLEST)
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float16)
    rows["scale"] = scale
    rows["key"] = np.rint(keys / scale.astype(np.float32)[:, None])
    return rows


def as_keys(rows: np.ndarray, dtype: str, device: "torch.device | str" = "cpu") -> "torch.Tensor":
    """The keys, float32 [tokens, dim] on a device, of rows as bytes, uint8 [tokens, size of a row].

    The bytes travel as they are and become numbers there.
    """
    import torch

    raw = torch.from_numpy(rows)
    if torch.device(device).type != "cpu":
        raw = raw.pin_memory().to(device, non_blocking=True)
    if dtype == "float16":
        return raw.view(torch.float16).float()
    scale = raw[:, :2].contiguous().view(torch.float16).float()
    return raw[:, 2:].view(torch.int8) * scale
