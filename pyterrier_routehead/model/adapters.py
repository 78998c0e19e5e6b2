"""The weights of a model that are in effect, with PEFT adapters added, switched, disabled or merged.

An adapter that is disabled or merged computes nothing, so a model with such adapters is distinguished from its base by
the weights of the base alone. PEFT itself is not needed: its layers are recognised by their attributes.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def weights_in_effect(module: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """A module's tensors by name, as if its base had been unwrapped from adapters and compilation.

    Adapters that are not in effect are left out. The others are named by their number among those in effect, since
    their names do not matter.
    """
    import torch

    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    if not any(_is_wrapper(part) for part in module.modules()):
        return state
    named = ((_plain_name(module, name), value) for name, value in state.items())
    return {name: value for name, value in named if name is not None}


def settings_in_effect(module: "torch.nn.Module") -> list[str]:
    """Settings other than tensors of the adapters in effect, such as their scaling."""
    settings = []
    for name, part in module.named_modules():
        if not _is_tuner(part):
            continue
        for number, adapter in enumerate(_in_effect(part)):
            for setting in (*part.other_param_names, "scaling"):
                by_adapter = getattr(part, setting, None)
                value = by_adapter.get(adapter) if isinstance(by_adapter, dict) else None
                if isinstance(value, bool | int | float | str):
                    settings.append(f"{_plain_name(module, name)}:{type(part).__name__}:{number}:{setting}={value!r}")
    return settings


def adapters_in_effect(module: "torch.nn.Module") -> bool:
    """Whether any adapter changes the output of this module."""
    return any(
        (_is_tuner(part) or _is_saved_copy(part)) and bool(_in_effect(part)) for part in module.modules()
    )


def refuse_pending_unmerge(modules: "Iterable[torch.nn.Module]") -> None:
    """Raise an error for adapters that the next forward, by any caller, would unmerge from the weights.

    Raises:
        ValueError: naming the adapters.
    """
    for module in modules:
        disabled = getattr(module, "_disable_adapters", False)
        merged = getattr(module, "merged_adapters", None) if disabled else None
        if merged:
            raise ValueError(
                f"adapters ({', '.join(merged)}) are merged into the loaded model's weights and "
                "disabled as well, so that its next forward would change its weights: call unmerge_adapter() first"
            )


def virtual_tokens(model: "torch.nn.Module") -> str | None:
    """PEFT's name of an active adapter that prepends virtual tokens to every prompt, which passes would not see."""
    for config in _active_configs(model):
        if getattr(config, "is_prompt_learning", False):
            return str(getattr(config.peft_type, "value", config.peft_type))
    return None


def _active_configs(model: Any) -> Iterator[Any]:
    configs, active = getattr(model, "peft_config", None), getattr(model, "active_adapters", None)
    if isinstance(configs, dict) and not callable(active):
        yield from (configs[name] for name in active or () if name in configs)


def _is_tuner(module: object) -> bool:
    return hasattr(module, "adapter_layer_names") and "base_layer" in getattr(module, "_modules", {})


def _is_saved_copy(module: object) -> bool:
    return hasattr(module, "adapter_layer_names") and "modules_to_save" in getattr(module, "_modules", {})


def _is_wrapper(module: "torch.nn.Module") -> bool:
    return hasattr(module, "adapter_layer_names") or "_orig_mod" in module._modules


def _in_effect(layer: Any) -> list[str]:
    if layer.disable_adapters or getattr(layer, "merged_adapters", None):
        return []
    return list(dict.fromkeys(layer.active_adapters))


def _plain_name(module: Any, name: str) -> str | None:
    """A tensor's or module's name without wrappers; None if it is not in effect."""
    plain: list[str] = []
    segments = iter(name.split("."))
    for segment in segments:
        if _is_saved_copy(module):
            active = [adapter for adapter in _in_effect(module) if adapter in module.modules_to_save][:1]
            if segment == "original_module" and not active:
                pass
            elif segment == "modules_to_save" and next(segments, None) in active:
                module = module.modules_to_save[active[0]]
                continue
            else:
                return None
        elif _is_tuner(module) and segment in (*module.adapter_layer_names, *module.other_param_names):
            adapter, active = next(segments, None), _in_effect(module)
            if adapter not in active:
                return None
            plain += [segment, str(active.index(adapter))]
            module = module._modules.get(segment)
            segment = adapter
        elif segment not in ("base_layer", "token_adapter", "_orig_mod") or not _is_wrapper(module):
            plain.append(segment)
        module = getattr(module, "_modules", {}).get(segment)
    return ".".join(plain)
