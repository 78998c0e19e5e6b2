"""Devices and dtypes: as users name them, and the defaults of a machine."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SHORT = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
    "fp64": "float64", "double": "float64",
}  # fmt: skip
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_DEVICE = re.compile(r"[a-z]+(:\d+)?")


def dtype_name(dtype: "str | torch.dtype") -> str:
    """The full name of a dtype, such as ``"bfloat16"``, or ``"auto"``; does not import torch.

    Args:
        dtype: a torch dtype, its name, with or without ``torch.``, or a common short one: ``"bf16"``, ``"fp16"``,
            ``"half"``, ``"fp32"``, ``"float"``.

    Raises:
        TypeError: for a value of a wrong type.
        ValueError: for an unsupported dtype.
    """
    expected = f"dtype must be 'auto' or one of {', '.join(map(repr, (*_DTYPES, *_SHORT)))}, got {dtype!r}"
    # A torch dtype is recognised by its class's name, since torch may not be imported here.
    if not isinstance(dtype, str) and (type(dtype).__module__, type(dtype).__name__) != ("torch", "dtype"):
        raise TypeError(expected)
    name = str(dtype).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in ("auto", *_DTYPES):
        raise ValueError(f"{expected}; quantised weights are loaded by model_kwargs={{'quantization_config': ...}}")
    return name


def check_device_name(device: "str | torch.device | None") -> None:
    """Raise an error for an invalid device name; whether the machine has the device is checked once torch is imported.

    Raises:
        TypeError: for a value of a wrong type.
        ValueError: for a string of a wrong form.
    """
    if device is None or (type(device).__module__, type(device).__name__) == ("torch", "device"):
        return
    expected = f"device must be a string such as 'cpu', 'cuda' or 'cuda:1', a torch device or None, got {device!r}"
    if not isinstance(device, str):
        raise TypeError(expected)
    if not _DEVICE.fullmatch(device) or device.partition(":")[0] == "gpu":
        raise ValueError(expected)


def find_device(device: "str | torch.device | None") -> "torch.device":
    """The device with this name on this machine; None means its GPU, else the CPU.

    Raises:
        ValueError: naming a device that the machine lacks.
    """
    import torch

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        target = torch.device(device)
        module = None if target.type == "cpu" else torch.get_device_module(target)
    except RuntimeError as error:
        raise ValueError(f"device={str(device)!r} is unknown to torch: {_first_line(error)}") from None
    if module is not None:
        # torch.meta and the like hold no values and have no such function.
        count = module.device_count() if getattr(module, "is_available", bool)() else 0
        if (target.index or 0) >= count:
            raise ValueError(
                f"device={str(device)!r} is not on this machine: torch {torch.__version__} finds {count} "
                f"{target.type} devices; leave device out for the best one"
            )
    return target


def find_dtype(dtype: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The dtype with this name; ``"auto"`` means bf16 where the device multiplies it natively, else fp32."""
    import torch

    name = dtype_name(dtype)
    if name != "auto":
        named: torch.dtype = getattr(torch, name)
        return named
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bf16_matrices()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16_matrices() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware: AMX or AVX512-BF16 on x86, BF16 (BFMMLA) on Arm."""
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # missing in older releases: fp32 then
    capabilities = get_capabilities() if get_capabilities else {}
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
