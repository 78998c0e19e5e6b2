"""Loads a model from the hub, a folder or a GGUF file, or adopts a loaded one.

Only the decoder below the language-model head is kept, together with its stack of layers and its tokenizer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..common.errors import UnsupportedArchitectureError
from ..prompt.encoding import TextEncoder
from .adapters import virtual_tokens
from .configuration import config_of_part, effective_config, layer_stack
from .default import ModelSource, require_gguf
from .fingerprint import layer_hashes
from .hardware import find_device, find_dtype
from .hub import ACCESS, PLACE, TOKENIZER_FILES, Place, as_typed, look_up, short_errors
from .loaded import LoadedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def adopt_model(
    model: "PreTrainedModel", tokenizer: "str | Path | PreTrainedTokenizerBase", name: str, max_layers: int | None
) -> LoadedModel:
    """Adopt a loaded model, which is not changed.

    Args:
        model: the model.
        tokenizer: its tokenizer, or the id or folder of one.
        name: the model's name in results and messages.
        max_layers: maximum number of layers to use; None for all.

    Raises:
        ModelNotFoundError: for a tokenizer by name that cannot be loaded.
        UnsupportedArchitectureError: for a model whose decoder cannot be extracted.
    """
    _check_not_offloaded(model)
    loaded = _extract_decoder(model, open_tokenizer(tokenizer), name)
    loaded.live, loaded.max_layers = True, max_layers
    return loaded


def load_model(
    source: ModelSource,
    *,
    tokenizer: "str | Path | PreTrainedTokenizerBase | None",
    device: "str | torch.device | None",
    dtype: "str | torch.dtype",
    revision: str | None,
    max_layers: int | None,
    model_kwargs: dict[str, Any],
) -> LoadedModel:
    """Load a model, or its first layers; arguments as for :class:`~pyterrier_routehead.model.frozen.FrozenLLM`.

    Raises:
        ModelNotFoundError: for a model or tokenizer that is missing or cannot be downloaded.
        UnsupportedArchitectureError: for a model whose decoder cannot be extracted.
        ValueError: for a device that the machine lacks, and for values that transformers rejects.
    """
    import torch
    from transformers import AutoModel

    target = find_device(device)
    target_dtype = find_dtype(dtype, target)
    # Code from a repository runs only on request: without a value, transformers asks on the terminal.
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    where |= {name: value for name, value in model_kwargs.items() if name in (*ACCESS, *PLACE)}
    kwargs = {name: value for name, value in model_kwargs.items() if name not in where}
    files: tuple[str, ...] = () if "config" in kwargs else (where.get("gguf_file", "config.json"),)
    place = look_up(source.path, source.name, where, files=files, advice=source.advice)
    if "gguf_file" in place.arguments:
        require_gguf()
    with short_errors(place):
        config, kwargs = effective_config(place.path, place.arguments, kwargs)
    text_config = config.get_text_config(decoder=True)
    total = getattr(text_config, "num_hidden_layers", None)
    keep = total if max_layers is None or total is None else min(max_layers, total)
    if keep is not None and keep != total and "gguf_file" not in place.arguments:
        config = config_of_part(config, keep) or config
    # fp16 has a smaller range than bf16: the fingerprint is computed before the cast.
    quantised = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    cast_later = target_dtype == torch.float16 and not quantised
    initial_dtype = "auto" if cast_later else target_dtype
    with short_errors(place), _unknown_arguments(kwargs, config):
        model = AutoModel.from_pretrained(place.path, config=config, dtype=initial_dtype, **place.arguments, **kwargs)
    model_tokenizer = open_tokenizer(tokenizer, of=place)
    _check_not_offloaded(model)
    loaded = _extract_decoder(model.eval(), model_tokenizer, source.name, total)
    loaded.max_layers = max_layers
    # A forward must use the complete model's number of layers; it ends before the missing layers.
    loaded.decoder.config.num_hidden_layers = total
    del loaded.layers[keep:]
    if cast_later:
        loaded.early_fingerprint = layer_hashes(loaded.layers)
        _move(loaded, target_dtype)
    if not getattr(model, "hf_device_map", None) and not getattr(model, "is_quantized", False):
        _move(loaded, target)
    return loaded


def _move(loaded: LoadedModel, target: "torch.device | torch.dtype") -> None:
    import torch

    module: torch.nn.Module = loaded.decoder  # transformers hides the signature of this method
    module.to(target)


def open_tokenizer(
    tokenizer: "str | Path | PreTrainedTokenizerBase | None", of: Place | None = None
) -> "PreTrainedTokenizerBase":
    """A tokenizer: as given, by name, or the model's.

    Args:
        tokenizer: a tokenizer, its hub id or folder, or None.
        of: the model's place, whose hub arguments also apply to a tokenizer by name.
    """
    from transformers import AutoTokenizer

    if tokenizer is None:
        assert of is not None, "a loaded model has no place, so it needs a tokenizer"
        place = replace(of, what=f"the tokenizer of {of.what}", advice="give one as FrozenLLM(..., tokenizer=...)")
    elif isinstance(tokenizer, str | Path):
        where = {name: value for name, value in (of.arguments if of else {}).items() if name in ACCESS}
        path = as_typed(tokenizer)
        place = look_up(path, f"the tokenizer {tokenizer}", where, files=TOKENIZER_FILES)
    else:
        return tokenizer
    with short_errors(place, ValueError, TypeError):
        return AutoTokenizer.from_pretrained(place.path, **place.arguments)


@contextmanager
def _unknown_arguments(kwargs: dict[str, Any], config: "PreTrainedConfig") -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        unknown = [name for name in kwargs if f"unexpected keyword argument {name!r}" in str(error)]
        if not unknown:
            raise
        raise TypeError(
            f"{unknown[0]!r} in model_kwargs is neither an argument of from_pretrained nor a value of "
            f"{type(config).__name__}"
        ) from None


def _decoders(model: "PreTrainedModel") -> "Iterator[PreTrainedModel]":
    """Candidates for the decoder: ``get_decoder`` returns some architectures' language-model head, or the model."""
    from .twin import uncompiled

    decoder = model.get_decoder()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    candidates = (decoder, getattr(model, "base_model", None), getattr(model, "model", None))
    yield from (cast("PreTrainedModel", uncompiled(module)) for module in candidates if module is not None)


def _extract_decoder(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str, total_layers: int | None = None
) -> LoadedModel:
    from .twin import uncompiled

    architecture = type(uncompiled(model)).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(f"{architecture} cannot be read: it is not decoder-only")
    adapter = virtual_tokens(model)
    if adapter is not None:
        raise UnsupportedArchitectureError(
            f"{architecture} cannot be read: its adapter ({adapter}) prepends virtual tokens to every prompt"
        )
    candidates = ((decoder, layer_stack(decoder)) for decoder in _decoders(model))
    decoder, stack = next(((decoder, stack) for decoder, stack in candidates if stack is not None), (None, None))
    heads = getattr(getattr(decoder, "config", None), "num_attention_heads", None)
    if decoder is None or stack is None or not heads:
        raise UnsupportedArchitectureError(f"{architecture} cannot be read: it has no plain stack of layers")
    return LoadedModel(name, decoder, stack, TextEncoder(tokenizer), total_layers or len(stack), heads)


def _check_not_offloaded(model: "PreTrainedModel") -> None:
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise ValueError(
            f"{type(model).__name__} is offloaded ({', '.join(sorted(places))}): "
            "the model must reside entirely on GPUs, or on the CPU"
        )
