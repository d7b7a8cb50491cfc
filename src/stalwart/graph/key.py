"""What a module's computation depends on besides the values of its parameters and buffers, as a key for caches.

Changes of class attributes, of globals and of what a function closes over are not seen.
"""

import dataclasses
import enum
import types
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_SIMPLE = (str, bytes, bool, int, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout, enum.Enum)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, torch._ops.OpOverload)
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"}
_PLAIN = set(vars(nn.Module())) - _HOOKS
"""Attributes of every module that do not change what it computes in evaluation mode, or that are read one by one."""


class _UnknownError(Exception):
    """A value that no key can stand for."""


class _Same:
    """The identity of an object, without keeping it alive; no object that comes later at its address is taken for it."""

    def __init__(self, value: Any) -> None:
        self.reference = weakref.ref(value)
        self.number = id(value)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        value = self.reference()
        return value is not None and isinstance(other, _Same) and value is other.reference()


def structure(model: nn.Module) -> Hashable | None:
    """Return a key that differs whenever the model's computation may, or None where no key can tell.

    It holds every submodule's class and plain attributes, and the shapes, types and sharing of parameters and buffers.
    """
    seen: dict[int, int] = {}
    try:
        return torch.get_default_dtype(), _module(model, seen)
    except (_UnknownError, RecursionError):
        return None


def _module(module: nn.Module, seen: dict[int, int]) -> Hashable:
    if id(module) in seen:
        return seen[id(module)]
    seen[id(module)] = len(seen)
    parts: list[Any] = [type(module)]
    for name, value in vars(module).items():
        if name in _HOOKS:
            if value:
                parts.append((name, tuple(_value(one) for one in value.values())))
        elif name not in _PLAIN:
            parts.append((name, _value(value)))
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is not None:
                parts.append((name, seen.setdefault(id(tensor), len(seen)), tensor.shape, tensor.dtype, tensor.device))
    for name, child in module._modules.items():
        if child is not None:
            parts.append((name, _module(child, seen)))
    return tuple(parts)


def _value(value: Any) -> Hashable:
    if isinstance(value, _SIMPLE):
        return type(value), value
    if isinstance(value, float | complex):
        return repr(value)
    if isinstance(value, list | tuple):
        return (type(value), *[_value(one) for one in value])
    if isinstance(value, dict):
        return (type(value), *[(_value(key), _value(one)) for key, one in value.items()])
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_value(one) for one in value)
    if isinstance(value, type):
        return value
    if isinstance(value, _FUNCTIONS):
        return _Same(value)
    if isinstance(value, Tensor) and not value.is_inference():
        # The traced graph holds the tensor itself, so its values are read live; a new tensor or shape is another graph.
        return _Same(value), value._version, value.shape, value.dtype, value.device
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return (type(value), *[(one.name, _value(getattr(value, one.name, None))) for one in fields])
    raise _UnknownError
