"""A second module tree over the tensors of a model, so that decoding changes nothing of the model itself.

A view shares every parameter with its model and has modules, a configuration and small buffers of its own. Attention
functions are named and linear layers replaced in the view; the user's model can meanwhile generate, train, move or be
copied, in this thread or another.
"""

from __future__ import annotations

import copy
import inspect
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from lessen.architectures.loading import hugging_face

_OWN_BUFFER_BYTES = 1 << 20
"""A forward may write to small buffers (rotary frequencies), so a view has its own; larger ones hold weights."""


def shared_view(model: nn.Module, attention: str | None = None) -> Any:
    """Return a module tree of the same classes over the same parameters, with a configuration of its own.

    Args:
        attention: attention function the view's configuration names; the model's own without it.
    """
    twins = {id(module): type(module).__new__(type(module)) for module in model.modules()}
    memo: dict[int, Any] = {}
    configuration = hugging_face().PretrainedConfig
    for module in model.modules():
        state = {
            name: _turned(value, twins, configuration, memo)
            for name, value in vars(module).items()
            if not getattr(value, "not_in_views", False)
        }
        state["_parameters"] = dict(module._parameters)
        state["_buffers"] = {name: _own_buffer(buffer, memo) for name, buffer in module._buffers.items()}
        state["_modules"] = {
            name: None if child is None else twins[id(child)] for name, child in module._modules.items()
        }
        vars(twins[id(module)]).update(state)
    view: Any = twins[id(model)]
    if attention is not None:
        view.config._attn_implementation = attention
    return view


def _turned(value: Any, twins: dict[int, nn.Module], configuration: type, memo: dict[int, Any]) -> Any:
    """Return an attribute with modules and methods of the model turned into those of the view."""
    if isinstance(value, configuration):
        return copy.deepcopy(value, memo)
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in twins:
        return MethodType(value.__func__, twins[id(value.__self__)])
    if type(value) is partial:
        given = [_turned(argument, twins, configuration, memo) for argument in value.args]
        return partial(_turned(value.func, twins, configuration, memo), *given, **value.keywords)
    return value


def _own_buffer(buffer: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    if buffer is None or buffer.numel() * buffer.element_size() > _OWN_BUFFER_BYTES:
        return buffer
    if id(buffer) not in memo:
        memo[id(buffer)] = buffer.clone()
    found: Tensor = memo[id(buffer)]
    return found


def condition(model: nn.Module) -> tuple[object, ...]:
    """Return what a view depends on; it differs after weights, modules, devices, modes or hooks have changed."""
    facts: list[object] = [getattr(getattr(model, "config", None), "_attn_implementation", None)]
    for module in model.modules():
        facts.append((id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
        for tensor in module._parameters.values():
            if tensor is not None:
                facts.append((id(tensor), tensor.dtype, tensor.device, _version(tensor)))
    return tuple(facts)


def _version(tensor: Tensor) -> tuple[int, int]:
    """Return where the tensor lies and how often it was written in place; inference tensors do not count."""
    try:
        return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
    except (RuntimeError, NotImplementedError):  # no storage: a meta or wrapper tensor
        return 0, 0


def cache_argument(model: Any) -> str:
    """Return the name under which the model's forward takes its cache; it changed between releases of transformers."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
