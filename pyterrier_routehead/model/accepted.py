"""Checks of the arguments of `FrozenLLM`, without importing torch or transformers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.arguments import check_text

_REJECTED_KWARGS = {
    "dtype": "give dtype as FrozenLLM(dtype=...), not in model_kwargs",
    "torch_dtype": "give torch_dtype as FrozenLLM(dtype=...), not in model_kwargs",
    "revision": "give revision as FrozenLLM(revision=...), not in model_kwargs",
    "device": "give device as FrozenLLM(device=...), not in model_kwargs",
    "num_hidden_layers": "give num_hidden_layers as FrozenLLM(max_layers=...), not in model_kwargs",
    "attn_implementation": "attn_implementation in model_kwargs cannot be honoured: the package computes attention "
    "itself; leave it out",
    "proxies": "proxies in model_kwargs are ignored by huggingface_hub: set the environment variable HTTPS_PROXY",
    "state_dict": "state_dict in model_kwargs cannot be honoured: load the model with transformers and give it, as "
    "FrozenLLM(model, tokenizer=...)",
    "output_loading_info": "output_loading_info in model_kwargs cannot be honoured: leave it out",
    "load_in_8bit": "give load_in_8bit as model_kwargs={'quantization_config': BitsAndBytesConfig(load_in_8bit=True)}",
    "load_in_4bit": "give load_in_4bit as model_kwargs={'quantization_config': BitsAndBytesConfig(load_in_4bit=True)}",
}
_WRAPPED = ("module", "model", "pretrained_model")
"""Attributes in which wrappers keep their model: DataParallel, pipelines and trainers, value heads."""


def check_model_kwargs(model_kwargs: object) -> None:
    """Raise an error for arguments that loading would ignore, saying what to use instead.

    Raises:
        TypeError: unless it is a dict with strings as keys, or None.
        ValueError: for an argument that must be given elsewhere or is not supported.
    """
    if model_kwargs is None:
        return
    if not isinstance(model_kwargs, Mapping) or not all(isinstance(name, str) for name in model_kwargs):
        raise TypeError(f"model_kwargs must be a dict of arguments of from_pretrained, got {model_kwargs!r}")
    for name, message in _REJECTED_KWARGS.items():
        if name in model_kwargs:
            raise ValueError(message)


def check_loaded_model(model: object) -> None:
    """Raise an error unless it is a loaded transformers model; PEFT's and compiled models are accepted.

    Raises:
        TypeError: saying what was found, and where it holds the model.
    """
    if _is_model(model):
        return
    message = f"model must be a hub id, a folder, a GGUF file or a loaded transformers model, got {_kind(model)}"
    for attribute in _WRAPPED:
        if _is_model(getattr(model, attribute, None)):
            tokenizer = "wrapper.tokenizer" if _is_tokenizer(getattr(model, "tokenizer", None)) else "..."
            raise TypeError(f"{message}: give the model in it, FrozenLLM(wrapper.{attribute}, tokenizer={tokenizer})")
    raise TypeError(message)


def check_tokenizer(tokenizer: object) -> None:
    """Raise an error unless it is a tokenizer or the id or folder of one.

    Raises:
        TypeError: saying what was found, and where it holds the tokenizer.
    """
    if tokenizer is None or isinstance(tokenizer, Path) or _is_tokenizer(tokenizer):
        return
    if isinstance(tokenizer, str):
        check_text("tokenizer", tokenizer)
        return
    message = f"tokenizer must be a transformers tokenizer, a hub id or a folder, got {_kind(tokenizer)}"
    if _is_tokenizer(getattr(tokenizer, "tokenizer", None)):
        raise TypeError(f"{message}: give the tokenizer in it, tokenizer=processor.tokenizer")
    if type(tokenizer).__module__.partition(".")[0] == "tokenizers":
        raise TypeError(f"{message}: wrap it, tokenizer=PreTrainedTokenizerFast(tokenizer_object=...)")
    raise TypeError(message)


def _is_model(value: object) -> bool:
    # torch.compile's wrapper holds the model and forwards attribute access to it.
    plain = getattr(value, "_orig_mod", value)
    return _is_a(plain, "transformers.modeling_utils", "PreTrainedModel") or _is_a(plain, "peft", "PeftModel")


def _is_tokenizer(value: object) -> bool:
    return _is_a(value, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase")


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether it is an instance of a class; False if the class's module was never imported."""
    kind: Any = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
