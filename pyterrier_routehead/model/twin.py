"""A decoder's twin: other modules over the same weights.

The owner of a loaded model may be training it, or generating with it in another thread. So the model is not changed,
not even during a pass: passes run on a twin, in which every module, its dictionaries of weights,
buffers, children and hooks, and every configuration are copies, while the weights themselves are the model's. Only
the twin is in evaluation mode, uses this package's attention and runs eagerly.

Objects that a module holds or calls are rebound to the twin if they recognisably belong to the model: in containers,
bound methods (accelerate's hooks), partial functions and closures. Where this fails, an attention function other than
this package's receives this package's mask, which raises an error.
"""

import copy
import functools
import types
import weakref
from collections import OrderedDict
from typing import Any

import torch
from transformers import PreTrainedConfig

from .adapters import refuse_pending_unmerge

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.nn.Parameter, torch.dtype)
_CONTAINERS = (dict, OrderedDict, list, tuple, set)


class Twin:
    """A twin of a decoder in its current state.

    Args:
        decoder: the model below its language-model head.
        attention: name of the twin's attention implementation.

    Attributes:
        decoder: the twin itself.
    """

    def __init__(self, decoder: torch.nn.Module, attention: str) -> None:
        modules = [module for module in decoder.modules() if not isinstance(module, torch.jit.ScriptModule)]
        refuse_pending_unmerge(modules)
        self._twins = {id(module): object.__new__(type(module)) for module in modules if uncompiled(module) is module}
        self._configs: dict[int, Any] = {}  # one memo, so that configurations shared by modules stay shared
        self._under_way: set[int] = set()
        self._attention = attention
        for module in modules:
            if id(module) in self._twins:
                object.__setattr__(self._twins[id(module)], "__dict__", self._state(module))
        self.decoder = self.of(decoder)

    def of(self, module: torch.nn.Module) -> torch.nn.Module:
        """The counterpart of one of the decoder's modules; any other module itself."""
        return self._twins.get(id(uncompiled(module)), module)

    def _state(self, module: torch.nn.Module) -> dict[str, Any]:
        state = dict(vars(module))
        if "forward" in state:
            state["forward"] = _uncompiled_function(state["forward"])
        for name, value in state.items():
            if type(value) not in _PLAIN:
                state[name] = self._counterpart(value, 2)
        # Non-persistent buffers may be recomputed in place in a forward, as rotary frequencies are.
        for name in state["_non_persistent_buffers_set"]:
            if state["_buffers"].get(name) is not None:
                state["_buffers"][name] = state["_buffers"][name].clone()
        state["training"] = False
        state["_compiled_call_impl"] = None
        return state

    def _counterpart(self, value: Any, depth: int = 0) -> Any:
        """The counterpart of an attribute's value: the value itself unless it refers to an object with a twin."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if depth and kind in _CONTAINERS:
            if isinstance(value, dict):
                items = ((key, self._counterpart(item, depth - 1)) for key, item in value.items())
                return kind(items) if value else kind()
            return kind(self._counterpart(item, depth - 1) for item in value)
        if isinstance(value, torch.nn.Module):
            return self.of(value)
        if isinstance(value, PreTrainedConfig):
            return self._config(value)
        if kind is types.MethodType:
            bound = self._counterpart(value.__self__)
            return value if bound is value.__self__ else types.MethodType(value.__func__, bound)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is functools.partial:
            return self._partial(value)
        if kind is weakref.ReferenceType:
            return weakref.ref(self.of(value())) if isinstance(value(), torch.nn.Module) else value
        if kind.__module__ == "accelerate.hooks":
            return copy.copy(value)  # it remembers where its input came from
        return value

    def _config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        if id(config) not in self._configs:
            copy.deepcopy(config, self._configs)
            self._configs[id(config)]._attn_implementation = self._attention  # of its parts, too
        twin: PreTrainedConfig = self._configs[id(config)]
        return twin

    def _partial(self, value: "functools.partial[Any]") -> "functools.partial[Any]":
        twin = functools.partial(
            self._counterpart(value.func),
            *(self._counterpart(argument) for argument in value.args),
            **{name: self._counterpart(argument) for name, argument in value.keywords.items()},
        )
        vars(twin).update({name: self._counterpart(attribute) for name, attribute in vars(value).items()})
        return twin

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function that a closure ties to modules, tied to their twins."""
        if not function.__closure__ or id(function) in self._under_way:
            return function
        self._under_way.add(id(function))
        try:
            cells = [self._cell(cell) for cell in function.__closure__]
        finally:
            self._under_way.discard(id(function))
        if all(new is old for new, old in zip(cells, function.__closure__, strict=True)):
            return function
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        twin.__kwdefaults__ = function.__kwdefaults__
        return twin

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            return cell
        counterpart = self._counterpart(_uncompiled_function(held))
        return cell if counterpart is held else types.CellType(counterpart)


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` has wrapped, or the module itself."""
    while type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        module = module.get_submodule("_orig_mod")
    return module


def _uncompiled_function(function: Any) -> Any:
    return getattr(function, "_torchdynamo_orig_callable", function) if callable(function) else function
