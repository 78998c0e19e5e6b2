"""Files of float32 arrays, in the safetensors format: whatever is in one is checked before it is used."""

from pathlib import Path

import numpy as np

from .paths import check_ordinary


def read_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file by name, all float32 and finite, and its header's metadata.

    Raises:
        ValueError: for a file of another format, and for other types or numbers.
        FileNotFoundError: where there is none.
        OSError: for whatever else keeps it from being read.
    """
    from safetensors import SafetensorError, safe_open

    check_ordinary(file)  # safetensors calls whatever it cannot open a file that is not there
    try:
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            types = {name: opened.get_slice(name).get_dtype() for name in names}
            if wrong := [f"{name!r} of {found}" for name, found in types.items() if found != "F32"]:
                raise ValueError(f"its arrays are of float32 (F32), found {', '.join(wrong)}")
            arrays = {name: opened.get_tensor(name) for name in names}
            header = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    check_finite_arrays(arrays)
    return arrays, header


def check_finite_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Check that arrays hold finite numbers only.

    Raises:
        ValueError: naming the first such array.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"its numbers {name!r} are not finite")
