"""Re-ranking with the attention heads of decoder LLMs, as PyTerrier transformers.

The method, from top to bottom, is the order of the modules; each imports only from those above it:

=======================  ==============================================================================
``version``              the package's version
``errors``               errors that callers may want to catch
``arguments``            checks of arguments, by the names that users typed
``schema``               what a file may say: strict JSON and its types
``paths``                paths as users type them, made absolute once
``tensors``              files of float32 arrays
``notices``              warnings that point at the user's own line
``progress``             progress bars where somebody looks
``locks``                locks that a forked process finds free, and values computed without any
``splits``               training and validation queries that give nothing away about the test queries
``measures``             nDCG@10, by which everything is compared
``criteria``             how well each head ranks a judged list
``heads``                a head is a (layer, head) pair, written ``"layer-head"``
``template``             how a list is put to the model: prompt templates and the papers' presets
``chat``                 the markup around a user's turn
``cutting``              how far a text must be read for its first tokens
``encoding``             text to token ids, markup apart from data
``masked``               exact attention of few rows, or of a sequence in pieces
``patterns``             reading patterns: where each token stands, and who sees whom
``prompt``               a query and its candidates as ids, with exact spans
``token_filter``         from attention on tokens to scores of documents
``masks``                what stands for transformers' masks: what a token may see
``attention``            the one place where attention is computed and read
``adapters``             which weights are in effect where PEFT's adapters are added
``fingerprint``          which weights a model has
``quiet``                keeps transformers' load reports out of a user's output
``hardware``             devices and dtypes, by their usual names
``model_arguments``      what `FrozenLLM` may be given
``default_model``        where SmolLM2-135M-Instruct comes from
``hub``                  whether a model is there: a folder, a file, or on the hub
``configuration``        a model's one configuration, and that of its first layers
``twin``                 a decoder's twin: modules of our own over the same weights
``loading``              opens a model and takes its decoder apart
``engine``               runs passes over a decoder, of which nothing is changed
``check``                tries on a few tokens whether a model can be read exactly
``llm``                  `FrozenLLM`: the frozen model, run up to the deepest head that is needed
``scores``               `ListScores`: head scores of one list, as numbers
``kernel``               head scores of candidate lists
``entries``              files of a store, and what is checked when one is read
``store``                `HeadScoreStore`: head scores on disk
``reading``              what a vector of head scores speaks of
``saving``               artifacts as folders, written whole or not at all and read with everything checked
``sharing``              uploads artifacts, with a card that says what they are
``head_set``             `HeadSet`: heads that rank well and where they come from, to be shared
``published``            head lists from the papers' own repositories
``plots``                heat maps and overlaps of head sets, and how training went
``reader``               reads head scores for candidate lists under some settings
``model_slot``           which model a transformer uses
``frames``               between PyTerrier's frames and candidate lists
``windows``              lists that do not fit into one prompt
``query_encoder``        query embeddings from the frozen model's hidden states
``evidence``             what a candidate list itself says about its heads
``search``               offline search for the heads that rank a list best
``labels``               pseudo labels for a router
``router``               `HeadRouter`: which heads suit a query
``registry``             the head sets and routers that can be asked for by name
``policy``               who says which heads rank a query
``options``              how transformers read candidate lists: their common arguments
``sources``              where head scores come from: the frame, or the model that reads its texts
``ranking``              from head scores to a ranking: the one function that every re-ranker ranks by
``scorer``               `AttentionHeadScorer`: head scores as a column
``reranker``             `HeadReranker`: what the re-rankers are made of
``rerank``               `StaticHeadReranker` and `ICRReranker`
``judged``               judged candidate lists, from which re-rankers learn
``detect``               `CoReHeadReranker` and `QRHeadReranker`: heads found by ``fit``
``training_settings``    how a router is trained, as values
``training``             trains a router's weights
``learning``             from judged lists to a router
``route``                `RouteHeadReranker`: heads chosen for every query
=======================  ==============================================================================

Importing the package loads neither torch nor transformers: they come with the first use of a model.
"""

from .criteria import CRITERIA, Criterion, core_criterion
from .detect import CoReHeadReranker, QRHeadReranker
from .errors import (
    ArtifactError,
    ListTooLongError,
    MismatchError,
    ModelNotFoundError,
    NotFittedError,
    StoreError,
    UnsupportedArchitectureError,
)
from .head_set import Detection, HeadSet
from .heads import Head
from .llm import FrozenLLM
from .plots import plot_heads, plot_overlap, plot_training
from .published import PUBLISHED, published_heads
from .reading import Reading, ReadingSettings
from .registry import available, named_heads, named_router
from .rerank import ICRReranker, StaticHeadReranker
from .reranker import HeadReranker
from .route import RouteHeadReranker
from .router import HeadRouter, Selection
from .scorer import AttentionHeadScorer
from .store import HeadScoreStore
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
    "FrozenLLM",
    "Head",
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
