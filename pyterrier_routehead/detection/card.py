"""The card of a head set: the README of an upload."""

from typing import Any, Protocol

from ..model.fingerprint import shown
from ..reading.reading import ModelIdentity
from .provenance import Detection


class Described(Protocol):
    """A head set, as far as its card shows it."""

    k: int | None
    model: ModelIdentity
    settings: dict[str, Any]
    detection: Detection | None
    version: str

    def __len__(self) -> int:
        """Number of heads."""


def description(head_set: Described) -> str:
    """A paragraph that describes the set."""
    rank = "all of which rank" if head_set.k is None else f"of which the first {head_set.k} rank"
    detection = head_set.detection
    found = f", found by the criterion {detection.criterion} on {detection.data}" if detection else ""
    return (
        f"{len(head_set)} attention heads of {head_set.model.name}, best first, {rank}{found}. Candidates are "
        "re-ranked by the attention that these heads pay to them from the query, with the model's weights "
        "unchanged."
    )


def facts(head_set: Described) -> dict[str, object]:
    """The set's properties by name, in the order of the card."""
    model, detection = head_set.model, head_set.detection
    properties: dict[str, object] = {
        "model": model.name,
        "revision": model.revision,
        "tokenizer": model.tokenizer,
        "weights": shown(model.fingerprint),
        "shape": f"{model.num_layers} layers with {model.num_heads} heads each",
        "heads": len(head_set),
        "heads that rank (k)": head_set.k or len(head_set),
    }
    if detection is not None:
        settings = ", ".join(f"{name}={value}" for name, value in detection.settings.items())
        properties |= {"criterion (measure of a head)": detection.criterion, "criterion's settings": settings}
        properties |= {"data": detection.data, "judged queries": detection.queries}
        properties |= {"source": detection.source, "note": detection.note}
    properties |= {name: str(value) for name, value in head_set.settings.items()}
    return properties | {"pyterrier-routehead": head_set.version}


def usage(head_set: Described, loaded: str) -> str:
    """Python code that uses the set, given the expression that loads it."""
    return (
        "from pyterrier_routehead import HeadSet, StaticHeadReranker\n\n"
        f"reranker = StaticHeadReranker({loaded})  # loads {head_set.model.name}\n"
        "reranker(candidates)  # qid, query, docno and text, as from: bm25 >> dataset.text_loader()"
    )
