"""What the card of a head set says: the README beside an upload."""

from typing import TYPE_CHECKING

from ..model.fingerprint import shown

if TYPE_CHECKING:
    from .head_set import HeadSet


def description(head_set: "HeadSet") -> str:
    """A paragraph on what the set is."""
    rank = "all of which rank" if head_set.k is None else f"of which the first {head_set.k} rank"
    detection = head_set.detection
    found = f", found by the criterion {detection.criterion} on {detection.data}" if detection else ""
    return (
        f"{len(head_set)} attention heads of {head_set.model.name}, best first, {rank}{found}. Candidates are "
        "re-ranked by the attention that these heads pay to them from the query, with the model's weights left as they "
        "are."
    )


def facts(head_set: "HeadSet") -> dict[str, object]:
    """What the set knows, by name, in the order of the card."""
    model, detection = head_set.model, head_set.detection
    known: dict[str, object] = {
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
        known |= {"criterion (measure of a head)": detection.criterion, "criterion's settings": settings}
        known |= {"data": detection.data, "judged queries": detection.queries}
        known |= {"source": detection.source, "note": detection.note}
    known |= {name: str(value) for name, value in head_set.settings.items()}
    return known | {"pyterrier-routehead": head_set.version}


def usage(head_set: "HeadSet", loaded: str) -> str:
    """Python code that uses the set, which an expression loads."""
    return (
        "from pyterrier_routehead import HeadSet, StaticHeadReranker\n\n"
        f"reranker = StaticHeadReranker({loaded})  # loads {head_set.model.name}\n"
        "reranker(candidates)  # qid, query, docno and text, as from: bm25 >> dataset.text_loader()"
    )
