"""Head lists from the papers' own repositories, as head sets: ``published_heads("core-llama-3.1-8b")``.

QRHead: princeton-pli/QRHead (arXiv 2506.09944), ``src/qrretriever/configs``, 16 heads per model and 32 for 70B. CoRe:
linhhtran/CoRe-Reranking (arXiv 2510.02219), ``head_data/*/core_temp*_prune0.0.json``, the 20 heads with the highest
scores, of which the paper ranks by 8. Neither contains a fingerprint of the weights: these sets are checked by id and
shape.
"""

from collections.abc import Callable
from functools import partial

from ..reading.reading import ModelIdentity
from ..template import paper_settings
from .head_set import HeadSet
from .provenance import Detection

_MODELS: dict[str, tuple[str, int, int]] = {
    # name: id on the hub, layers, heads per layer
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 32, 32),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B-Instruct", 80, 64),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", 16, 32),
    "llama-3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", 28, 24),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 28, 28),
    "mistral-7b-v0.2": ("mistralai/Mistral-7B-Instruct-v0.2", 32, 32),
    "granite-3.2-8b": ("ibm-granite/granite-3.2-8b-instruct", 40, 32),
    "phi-4": ("microsoft/phi-4", 40, 40),
}

_QR: dict[str, str] = {
    "nq-llama-3.1-8b": "14-22,13-16,14-28,14-31,16-19,14-1,16-26,17-24,14-0,13-0,16-25,13-12,13-1,13-10,17-27,20-14",
    "lme-llama-3.1-8b": "13-18,13-21,8-11,14-13,17-29,13-1,13-13,14-29,14-31,13-8,16-1,17-21,13-3,10-31,13-4,14-22",
    "nq-llama-3.2-1b": "8-21,8-14,7-22,6-31,8-28,10-26,10-0,5-5,8-3,6-30,8-0,7-26,7-25,7-23,11-4,8-20",
    "nq-llama-3.2-3b": "13-16,12-12,13-23,13-21,15-18,12-3,21-20,12-1,13-2,13-1,12-6,12-11,13-0,15-22,18-19,18-11",
    "lme-llama-3.2-3b": "15-18,15-22,16-15,18-19,13-23,12-1,21-20,20-11,18-11,18-18,13-16,16-16,18-15,19-8,15-17,17-2",
    "nq-qwen2.5-7b": "16-19,16-2,16-20,16-14,16-0,15-24,16-18,17-18,16-1,19-18,19-19,18-16,16-17,19-25,19-17,20-21",
    "nq-llama-3.1-70b": (
        "31-32,35-26,35-25,35-21,39-41,35-29,38-18,37-9,52-19,35-6,47-18,52-58,35-24,35-28,37-29,35-40,"
        "37-25,39-40,34-1,31-39,37-24,35-23,31-37,35-20,33-18,35-50,64-31,35-42,37-28,47-17,35-19,35-3"
    ),
    "lme-llama-3.1-70b": (
        "35-17,35-27,31-33,35-7,35-43,35-20,33-16,31-38,35-40,35-25,53-1,35-19,35-24,23-42,21-39,52-58,"
        "28-45,39-43,17-61,14-21,33-18,36-52,35-47,71-6,27-21,29-55,35-23,38-48,35-28,39-41,35-21,38-55"
    ),
}

_CORE: dict[str, tuple[float, str]] = {
    "llama-3.1-8b": (
        0.1,
        "13-18,13-1,14-13,13-21,14-31,13-13,8-11,14-20,14-22,13-8,14-29,16-1,13-4,13-3,14-30,8-1,10-31,17-29,17-24,13-11",
    ),
    "mistral-7b-v0.2": (
        0.001,
        "15-21,15-1,16-12,15-7,9-26,12-11,12-7,18-0,15-26,19-9,7-18,16-22,15-27,15-8,14-24,18-22,14-21,17-26,18-3,16-7",
    ),
    "granite-3.2-8b": (
        0.001,
        "19-1,17-20,19-19,34-28,17-25,17-7,19-4,19-31,32-11,16-31,36-23,35-19,35-22,17-2,14-28,34-26,10-31,12-11,36-11,"
        "35-17",
    ),
    "phi-4": (
        0.1,
        "17-1,23-1,19-5,19-29,19-34,19-0,18-6,19-7,14-33,21-0,26-29,20-19,18-30,25-14,17-7,18-4,18-35,21-1,12-29,17-33",
    ),
}

_GRANITE = (
    "CoRe's code divides the dot products of every model by the root of the head size, but Granite multiplies them by "
    "a factor of its own: these heads were found with another attention than the model's. Find them anew with "
    "CoReHeadReranker before relying on them."
)

_QR_DATA = {
    # data, queries, note
    "nq": ("NQ (BEIR)", 256, "Ranked by single-head nDCG@10. The paper says 256 queries, the repository 128."),
    "lme": ("LongMemEval, single-session user", 70, "Ranked by the attention that the gold documents get."),
}


def _qr(name: str) -> HeadSet:
    data, _, model = name.partition("-")
    data_name, queries, note = _QR_DATA[data]
    criterion = "ndcg@10" if data == "nq" else "qr-calibrated"
    source = "arXiv 2506.09944, https://github.com/princeton-pli/QRHead"
    detection = Detection(criterion, {"calibrated": True}, data_name, queries, source, note)
    settings = paper_settings("qr-qwen" if model.startswith("qwen") else "qr")
    count = _QR[name].count(",") + 1  # all heads of QRHead's lists rank
    return HeadSet.of(_QR[name], model=_identity(model), settings=settings, detection=detection, k=count)


def _core(model: str) -> HeadSet:
    temperature, heads = _CORE[model]
    settings = paper_settings("core-mistral" if model.startswith("mistral") else "core")
    source = "arXiv 2510.02219, https://github.com/linhhtran/CoRe-Reranking"
    criterion_settings = {"temperature": temperature, "calibrated": False, "positions": 5, "depth": 50}
    note = _GRANITE if model.startswith("granite") else ""
    detection = Detection("core", criterion_settings, "NQ train", 1000, source, note)
    return HeadSet.of(heads, model=_identity(model), settings=settings, detection=detection, k=8)


def _identity(model: str) -> ModelIdentity:
    name, num_layers, num_heads = _MODELS[model]
    return ModelIdentity(name, (), num_layers, num_heads)


_SETS: dict[str, Callable[[], HeadSet]] = {
    **{f"qr-{name}": partial(_qr, name) for name in _QR},
    **{f"core-{name}": partial(_core, name) for name in _CORE},
}

PUBLISHED = tuple(_SETS)
"""Names of the published sets: method, data if there are several, model."""


def published_heads(name: str) -> HeadSet:
    """A published list as a head set, with the prompt and order of its paper.

    Of ``published_heads("core-llama-3.1-8b")`` the first 8 rank: CoRe's choice for Llama-3.1-8B-Instruct. CoRe's list
    for Granite has a warning in ``detection.note``.

    Args:
        name: one of :data:`PUBLISHED`.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if name not in _SETS:
        raise ValueError(f"there is no published set {name!r}; known: {', '.join(PUBLISHED)}")
    return _SETS[name]()
