"""Copies of models that only predict, rearranged so that they do so faster on the CPU."""

import copy
import itertools

import torch
from torch import Tensor, nn

from stalwart.core.layers import WEIGHTED, in_order, is_stack, put
from stalwart.core.layout import has_channels_last


def lean_copy(model: nn.Module) -> nn.Module:
    """Return a copy that gives the same predictions, with the model's own parameters and buffers of its own.

    Where the model is a stack of layers, the largest of four values is found before their ReLU, which then has a quarter of
    the work and comes to the same, and a ReLU works in place. Layers with parameters keep their names. Stacks inside other
    modules stay as they are: those may use parts of them in ways of their own.

    Raises:
        Exception: whatever a module raises that cannot be copied.
    """
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    _rearrange(twin)
    return twin


@torch.no_grad()
def flatten_as_stored(stack: nn.Module, x: Tensor) -> None:
    """Let a stack flatten channels-last images in the order they have in memory, in place, where a linear layer comes next.

    Flattening them channel by channel is a copy, and a gradient that comes back in that order is passed thirty times slower by
    the ReLU before it. The linear layer is replaced by one with its columns in the other order, whose weight is a copy.

    Args:
        stack: layers in a row, which see images of one size.
        x: a few inputs [B, ...] as the stack will get them, for one pass.
    """
    z, flat = x.clone(), None
    for path, layer in list(in_order(stack)):
        if flat is not None and type(layer) is nn.Linear:
            place, image = flat
            put(stack, place, FlattenAsStored())
            put(stack, path, _reordered(layer, image))
        whole = type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
        flat = (path, z.shape[1:]) if whole and has_channels_last(z) else None
        z = layer(z)


def _reordered(layer: nn.Linear, image: torch.Size) -> nn.Linear:
    """Return the layer for images [C, H, W] flattened as [H, W, C]."""
    twin = copy.copy(layer)
    weight = layer.weight.unflatten(1, image).permute(0, 2, 3, 1).flatten(1)
    twin._parameters = layer._parameters | {"weight": nn.Parameter(weight, requires_grad=False)}
    return twin


class FlattenAsStored(nn.Module):
    """Flatten images [B, C, H, W] as [B, H * W * C], without a copy where they are channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, C, H, W] as [B, H * W * C]."""
        return x.permute(0, 2, 3, 1).flatten(1)


def _rearrange(stack: nn.Module) -> None:
    if not is_stack(stack):
        return
    for part in stack.children():
        _rearrange(part)
    layers = list(stack._modules.items())
    for (first, one), (second, other) in itertools.pairwise(layers):
        if type(one) is nn.ReLU and type(other) is nn.MaxPool2d and _halves(other):
            stack._modules[first], stack._modules[second] = Halved(), nn.ReLU(inplace=True)
        elif type(one) in WEIGHTED and type(other) is nn.ReLU:
            stack._modules[second] = nn.ReLU(inplace=True)


def _halves(pool: nn.MaxPool2d) -> bool:
    twice, plain = (2, (2, 2)), not (pool.ceil_mode or pool.return_indices)
    return plain and pool.kernel_size in twice and pool.stride in twice and _is_all(pool.padding, 0, pool.dilation, 1)


def _is_all(*pairs: object) -> bool:
    return all(value in (wanted, (wanted, wanted)) for value, wanted in zip(pairs[::2], pairs[1::2], strict=True))


class Halved(nn.Module):
    """Max pooling 2x2; torch's own also notes where each maximum was for gradients, which takes three times as long."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest of every 2 x 2 values of x [B, C, H, W]."""
        if torch.is_grad_enabled() or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            return nn.functional.max_pool2d(x, 2)
        height, width = 2 * (x.shape[2] // 2), 2 * (x.shape[3] // 2)
        values = x.permute(0, 2, 3, 1)
        rows = torch.maximum(values[:, 0:height:2], values[:, 1:height:2])
        return torch.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2]).permute(0, 3, 1, 2)
