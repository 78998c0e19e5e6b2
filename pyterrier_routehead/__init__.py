"""Re-ranking with the attention heads of decoder LLMs, as PyTerrier transformers.

The method, from top to bottom, is the order of the modules; each imports only from those above it:

=======================  ==============================================================================
``errors``               errors that callers may want to catch
``heads``                a head is a (layer, head) pair, written ``"layer-head"``
``template``             how a list is put to the model: prompt templates and the papers' presets
``encoding``             text to token ids, markup apart from data
``prompt``               a query and its candidates as ids, with exact spans
``document_attention``   how documents see each other: list-wise or block-wise
``token_filter``         from attention on tokens to scores of documents
``attention``            the one place where attention is computed and read
``fingerprint``          which weights a model has
``quiet``                keeps transformers' load reports out of a user's output
``default_model``        where SmolLM2-135M-Instruct comes from
``loading``              opens a model and takes its decoder apart
``check``                tries on a few tokens whether a model can be read exactly
``llm``                  `FrozenLLM`: the frozen model, run up to the deepest head that is needed
``kernel``               head scores of candidate lists
``reading``              what a vector of head scores speaks of
``reader``               reads head scores for candidate lists under some settings
``frames``               between PyTerrier's frames and candidate lists
``windows``              lists that do not fit into one prompt
``scorer``               `AttentionHeadScorer`: head scores as a column
``rerank``               `StaticHeadReranker` and `ICRReranker`
=======================  ==============================================================================

Importing the package loads neither torch nor transformers: they come with the first use of a model.
"""

from .errors import ListTooLongError, UnsupportedArchitectureError
from .heads import Head
from .llm import FrozenLLM
from .reading import Reading, ReadingSettings
from .rerank import ICRReranker, StaticHeadReranker
from .scorer import AttentionHeadScorer
from .template import ChatMarkup, PromptTemplate, get_template, paper_settings

__version__ = "0.1.0"

__all__ = [
    "AttentionHeadScorer",
    "ChatMarkup",
    "FrozenLLM",
    "Head",
    "ICRReranker",
    "ListTooLongError",
    "PromptTemplate",
    "Reading",
    "ReadingSettings",
    "StaticHeadReranker",
    "UnsupportedArchitectureError",
    "get_template",
    "paper_settings",
]
