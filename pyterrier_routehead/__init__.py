"""Re-ranking with the attention heads of decoder LLMs, as PyTerrier transformers.

The method:

1. A query and its candidates become one prompt, with the place of every document (``prompt``).
2. A frozen LLM runs over it, no farther than the deepest head that is needed (``model``).
3. Each head's score of a document is the attention that the query's tokens pay to it, less what they pay when the query
   is free of content (``kernel``).
4. Not all heads rank well. A fixed set is found once, by a criterion on judged lists (``detection``).
5. Or a router chooses, for every query, the heads that suit it (``routing``).
6. The chosen heads' scores are summed, and that is the ranking (``ranking``).

Where to read on: ``kernel.score`` first, which is the method in one function; then ``ranking.rank``. The folders in the
order of the method, and the files beside them; each imports only from those above it:

==============  ========================================================================================================
``version``     the package's version
``common``      what every folder may use: errors, checks of arguments, files
``evaluation``  how rankings are compared, and on which queries
``heads``       a head is a (layer, head) pair, written ``"layer-head"``
``template``    how a list is put to the model: prompt templates and the papers' presets
``prompt``      a query and its candidates as token ids
``kernel``      from token ids to head scores
``model``       the frozen LLM
``reading``     head scores with what they speak of, and their store
``detection``   which heads rank well over all queries
``routing``     which heads suit a query
``registry``    head sets and routers that can be asked for by name
``index``       keys of documents, computed once for late reading
``ranking``     from frames to rankings
``fitting``     what ``fit`` learns from judged lists
``plots``       heat maps and overlaps of head sets, and how training went
``scorer``      `AttentionHeadScorer`: head scores as a column
``static``      `StaticHeadReranker` and `ICRReranker`
``detected``    `CoReHeadReranker` and `QRHeadReranker`: heads found by ``fit``
``routed``      `RouteHeadReranker`: heads chosen for every query
==============  ========================================================================================================

Importing the package loads neither torch nor transformers: they come with the first use of a model.
"""

from .common.errors import (
    ArtifactError,
    ListTooLongError,
    MismatchError,
    ModelNotFoundError,
    NotFittedError,
    StoreError,
    UnsupportedArchitectureError,
)
from .detected import CoReHeadReranker, QRHeadReranker
from .detection.criteria import CRITERIA, Criterion, core_criterion
from .detection.head_set import HeadSet
from .detection.provenance import Detection
from .detection.published import PUBLISHED, published_heads
from .heads import Head
from .index.head_index import HeadIndex
from .model.frozen import FrozenLLM
from .plots import plot_heads, plot_overlap, plot_training
from .ranking.reranker import HeadReranker
from .reading.reading import Reading, ReadingSettings
from .reading.store import HeadScoreStore
from .registry import available, named_heads, named_router
from .routed import RouteHeadReranker
from .routing.router import HeadRouter, Selection
from .routing.settings import Extensions, RouterTraining
from .scorer import AttentionHeadScorer
from .static import ICRReranker, StaticHeadReranker
from .template import ChatMarkup, PromptTemplate, get_template, paper_settings
from .version import __version__

__all__ = [
    "CRITERIA",
    "PUBLISHED",
    "ArtifactError",
    "AttentionHeadScorer",
    "ChatMarkup",
    "CoReHeadReranker",
    "Criterion",
    "Detection",
    "Extensions",
    "FrozenLLM",
    "Head",
    "HeadIndex",
    "HeadReranker",
    "HeadRouter",
    "HeadScoreStore",
    "HeadSet",
    "ICRReranker",
    "ListTooLongError",
    "MismatchError",
    "ModelNotFoundError",
    "NotFittedError",
    "PromptTemplate",
    "QRHeadReranker",
    "Reading",
    "ReadingSettings",
    "RouteHeadReranker",
    "RouterTraining",
    "Selection",
    "StaticHeadReranker",
    "StoreError",
    "UnsupportedArchitectureError",
    "__version__",
    "available",
    "core_criterion",
    "get_template",
    "named_heads",
    "named_router",
    "paper_settings",
    "plot_heads",
    "plot_overlap",
    "plot_training",
    "published_heads",
]
