"""The state of a model, to test that it is not changed."""

import copy

import torch
from transformers import PreTrainedModel


def snapshot(model):
    """Everything about a model except the values of its weights."""
    modules = dict(model.named_modules())
    return {
        "training": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "hooks": {
            (name, kind): list(hooks)
            for name, module in modules.items()
            for kind, hooks in vars(module).items()
            if kind.endswith("hooks")
        },
        "attention": {n: m.config._attn_implementation for n, m in modules.items() if isinstance(m, PreTrainedModel)},
        "configuration": copy.deepcopy(model.config.to_dict()),
        "config": sorted(vars(model.config)),
        "tensors": {
            name: (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.is_inference())
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        },
    }


def weights(model):
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def bitwise_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
