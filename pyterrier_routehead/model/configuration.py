"""A model's configuration, from the arguments given, and that of its first layers."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_ROPE = ("rope_parameters", "rope_scaling")
_BASE_ROPE = ("rope_theta", "partial_rotary_factor")
"""Rotary parameters of the model that are kept when only the scaling is given."""
_PLAIN = (bool, int, float, str, tuple, type(None))


def effective_config(
    path: str, where: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> "tuple[PreTrainedConfig, dict[str, Any]]":
    """The configuration to load a model with, and the remaining arguments of ``from_pretrained``.

    Args:
        path: the model's folder or hub id.
        where: hub arguments.
        kwargs: further arguments: ``config`` as an object, a dict with its ``model_type``, or a folder or file;
            and single values of the configuration, such as ``rope_parameters`` or ``max_position_embeddings``.

    Raises:
        TypeError: for a ``config`` of a wrong type.
        ValueError: for a dict without ``model_type``.
    """
    from transformers import AutoConfig, PreTrainedConfig

    rest = dict(kwargs)
    given = rest.pop("config", None)
    if given is None:
        config = AutoConfig.from_pretrained(path, **where)
    elif isinstance(given, PreTrainedConfig):
        config = copy.deepcopy(given)
    elif isinstance(given, Mapping):
        if "model_type" not in given:
            raise ValueError(
                "config in model_kwargs is a dict without model_type; give single values outside config, as "
                f"model_kwargs={{{next(iter(given), 'name')!r}: ...}}"
            )
        config = AutoConfig.for_model(**given)
    elif isinstance(given, str | Path):
        config = AutoConfig.from_pretrained(
            Path(given).expanduser(), trust_remote_code=where.get("trust_remote_code", False)
        )
    else:
        raise TypeError(
            "config in model_kwargs must be a transformers configuration, a dict, or the folder or file of one, "
            f"got {type(given).__name__}"
        )
    text_config = config.get_text_config(decoder=True)
    # The scaling of positions refers to the length before any change to it.
    for name in sorted(set(rest) - {"quantization_config"}, key=lambda name: name not in _ROPE):
        holder = next((part for part in (config, text_config) if hasattr(part, name)), None)
        if holder is not None:
            _override(holder, name, rest.pop(name))
    return config, rest


def _override(config: "PreTrainedConfig", name: str, value: object) -> None:
    from transformers import PreTrainedConfig

    if name == "rope_scaling" and hasattr(config, "rope_parameters"):
        name = "rope_parameters"  # the name before transformers 5
    before = getattr(config, name)
    if isinstance(before, PreTrainedConfig) and isinstance(value, Mapping):
        value = type(before)(**{**before.to_dict(), **value})
    elif name == "rope_parameters" and isinstance(value, Mapping):
        value = {**{key: before[key] for key in _BASE_ROPE if key in (before or {})}, **copy.deepcopy(dict(value))}
    setattr(config, name, value)
    if name == "rope_parameters" and hasattr(config, "standardize_rope_params"):
        config.standardize_rope_params()


def config_of_part(config: "PreTrainedConfig", keep: int) -> "PreTrainedConfig | None":
    """A configuration of the first layers alone; None if these would differ from those of the complete model.

    Some architectures scale by the number of layers (MiniCPM3) or let the last ones share keys (Gemma3n). Both models
    are built without weights, and all plain values of their common layers are compared.
    """
    import torch

    part = copy.deepcopy(config)
    text_part = part.get_text_config(decoder=True)
    text_part.num_hidden_layers = keep
    if getattr(text_part, "layer_types", None):
        text_part.layer_types = text_part.layer_types[:keep]
    try:
        with torch.device("meta"):
            complete, short = (_decoder_and_layers(copy.deepcopy(c), keep) for c in (config, part))
        same = len(complete) == len(short) == keep + 1 and all(
            _plain_values(a, deep=i > 0) == _plain_values(b, deep=i > 0)
            for i, (a, b) in enumerate(zip(complete, short, strict=True))
        )
    except Exception:  # architectures raise various errors for such a configuration
        return None
    return part if same else None


def _decoder_and_layers(config: "PreTrainedConfig", keep: int) -> "list[torch.nn.Module]":
    """A model's decoder and then its first layers; the decoder alone without a plain stack of layers."""
    from transformers import AutoModel

    model: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # unannotated there
    decoder: PreTrainedModel = model.get_decoder()  # type: ignore[no-untyped-call]  # unannotated there
    return [decoder, *list(layer_stack(decoder) or ())[:keep]]


def _plain_values(module: "torch.nn.Module", deep: bool) -> list[dict[str, object]]:
    return [
        {name: value for name, value in vars(part).items() if isinstance(value, _PLAIN)}
        for part in (module.modules() if deep else [module])
    ]


def layer_stack(decoder: "PreTrainedModel") -> "torch.nn.ModuleList | None":
    """The decoder's only stack with at least as many modules as it has layers."""
    import torch

    count = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    stacks = [m for m in decoder.children() if isinstance(m, torch.nn.ModuleList) and count and len(m) >= count]
    return stacks[0] if len(stacks) == 1 else None
