"""Faster input gradients on the CPU for what most image networks begin with.

A first convolution has one to four input channels. The library kernels for its backward pass are built for many channels and
take as long as a much larger layer; a matrix product with the kernel and one shifted sum for each of its taps give the same
numbers two to six times faster.

2 x 2 max pooling of channels-last images, and a ReLU before it, take one pass over memory forward and one backward where
numba is installed, instead of five.

Where channels-last images are flattened, the gradient comes back with channels first, and a ReLU before takes up to thirty
times longer over two tensors of different layouts than it takes to copy one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stalwart.core import jit
from stalwart.core.layout import has_channels_last

_THIN = 4
_RELU = (F.relu, torch.relu, Tensor.relu)
_FLATTEN = (torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape)
_POOL = (F.max_pool2d, torch.max_pool2d)


class FastGradients(TorchFunctionMode):
    """Inside this context, thin convolutions, 2 x 2 max pooling and flattening use the faster passes.

    It is for code that takes gradients with respect to inputs only: weights of thin convolutions get none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rectified: tuple[Tensor, Tensor] | None = None  # the last ReLU's output and input

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace eligible calls; every other function runs as it is."""
        kwargs = kwargs or {}
        if func is F.conv2d:
            call = _conv2d_arguments(*args, **kwargs)
            if _thin(call):
                return _ThinConv2d.apply(call["input"], call["weight"], call["bias"], call["stride"], call["padding"])
        elif func in _RELU and jit.available() and not kwargs.get("inplace", False) and len(args) == 1:
            out = func(*args, **kwargs)
            self._rectified = (out, args[0])
            return out
        elif func in _POOL and jit.available():
            call = _pool_arguments(*args, **kwargs)
            if _halving(call):
                x = call["input"]
                known, self._rectified = self._rectified, None
                if known is not None and known[0] is x:
                    return _HalvingPool.apply(known[1], x.detach())
                return _HalvingPool.apply(x, None)
        elif (
            func in _FLATTEN
            and args
            and torch.is_grad_enabled()
            and args[0].requires_grad
            and has_channels_last(args[0])
        ):
            return func(_SameLayout.apply(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)


class _SameLayout(torch.autograd.Function):
    """Channels-last images, whose gradient is put into the same layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def _conv2d_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> dict[str, Any]:
    return {
        "input": input,
        "weight": weight,
        "bias": bias,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def _thin(call: dict[str, Any]) -> bool:
    x = call["input"]
    plain = call["groups"] == 1 and call["dilation"] in (1, (1, 1), [1, 1]) and not isinstance(call["padding"], str)
    thin = x.dim() == 4 and x.shape[1] <= _THIN and x.device.type == "cpu" and x.is_floating_point()
    uniform = not torch.is_autocast_enabled("cpu") and x.dtype == call["weight"].dtype
    return plain and thin and uniform and x.requires_grad and torch.is_grad_enabled()


class _ThinConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, _pair(stride), _pair(padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        width, _, tall, wide = weight.shape
        batch, _, height, length = gradient.shape
        kernel = weight.reshape(width, -1).t()
        if not jit.available() or gradient.dtype != torch.float32:
            products = kernel @ gradient.reshape(batch, width, -1)
            found = F.fold(products, ctx.shape[2:], (tall, wide), padding=ctx.padding, stride=ctx.stride)
            return found, None, None, None, None
        from stalwart.attacks import kernels

        if gradient.is_contiguous():
            products = (kernel @ gradient.reshape(batch, width, -1)).transpose(0, 1)
        else:
            products = kernel @ gradient.permute(0, 2, 3, 1).reshape(-1, width).t()
        found = gradient.new_empty(ctx.shape)
        sizes = (*ctx.shape[1:], tall, wide, *ctx.padding, *ctx.stride, height, length)
        jit.run(kernels.gather, batch, *sizes, products.contiguous(), found)
        return found, None, None, None, None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1] if len(value) > 1 else value[0])


def _pool_arguments(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> dict[str, Any]:
    return {
        "input": input,
        "kernel_size": _pair(kernel_size),
        "stride": _pair(kernel_size if stride is None or stride == [] else stride),
        "padding": _pair(padding),
        "dilation": _pair(dilation),
        "ceil_mode": ceil_mode,
        "return_indices": return_indices,
    }


def _halving(call: dict[str, Any]) -> bool:
    x = call["input"]
    halving = call["kernel_size"] == call["stride"] == (2, 2) and call["padding"] == (0, 0)
    plain = call["dilation"] == (1, 1) and not call["ceil_mode"] and not call["return_indices"]
    fitting = x.dim() == 4 and x.shape[2] % 2 == x.shape[3] % 2 == 0 and x.numel() > 0
    stored = x.device.type == "cpu" and x.dtype == torch.float32
    return halving and plain and fitting and stored and x.is_contiguous(memory_format=torch.channels_last)


class _HalvingPool(torch.autograd.Function):
    """2 x 2 max pooling of channels-last x; with ``rectified``, which is ReLU(x), that of ReLU(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectified: Tensor | None) -> Tensor:
        from stalwart.attacks import kernels

        batch, channels, height, width = x.shape
        out = x.new_empty(batch, height // 2, width // 2, channels)
        winner = torch.empty(out.shape, dtype=torch.uint8)
        values = _channels_inside(x.detach() if rectified is None else rectified)
        jit.run(kernels.largest, batch, *out.shape[1:], rectified is not None, values, out, winner)
        ctx.winner = winner
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        from stalwart.attacks import kernels

        batch, channels, height, width = gradient.shape
        found = gradient.new_empty(batch, 2 * height, 2 * width, channels)
        jit.run(kernels.spread, batch, height, width, channels, _channels_inside(gradient), ctx.winner, found)
        return found.permute(0, 3, 1, 2), None


def _channels_inside(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
