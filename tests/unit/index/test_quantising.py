"""Keys as rows on disk: how far the numbers may be off."""

import numpy as np
import pytest

from pyterrier_routehead.index.quantising import as_rows, row_dtype


def test_one_token_takes_a_scale_and_a_byte_a_number():
    assert row_dtype("int8", 64).itemsize == 66
    assert row_dtype("float16", 64).itemsize == 128


@pytest.mark.parametrize("size", [1e-6, 0.01, 1.0, 300.0])
def test_int8_is_off_by_at_most_half_a_step(size):
    keys = (np.random.default_rng(1).normal(size=(50, 16)) * size).astype(np.float32)
    rows = as_rows(keys, "int8")
    scale = rows["scale"].astype(np.float64)[:, None]
    assert np.abs(rows["key"].astype(int)).max() <= 127
    assert (np.abs(rows["key"] * scale - keys) <= scale * (0.5 + 1e-6)).all()
    if size > 0.01:  # no coarser than the largest number of a token asks for
        assert (scale[:, 0] <= np.abs(keys).max(axis=1) / 127 * 1.001).all()


def test_a_key_of_zeros_stays_one():
    assert not as_rows(np.zeros((2, 4), np.float32), "int8")["key"].any()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "int8"), (np.inf, "int8"), (1e7, "int8"), (7e4, "float16")])
def test_what_does_not_fit_is_refused(value, dtype):
    keys = np.ones((3, 4), np.float32)
    keys[1, 2] = value
    with pytest.raises(ValueError, match=f"too large for {dtype}"):
        as_rows(keys, dtype)


def test_no_documents():
    assert len(as_rows(np.zeros((0, 4), np.float32), "int8")) == 0
