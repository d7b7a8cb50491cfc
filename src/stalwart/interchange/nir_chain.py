"""A spiking network as a chain of what NIR has: weights, sum pooling, flattening, neurons, with everything else folded in.

Between two layers of neurons everything is affine. A factor that has no layer in NIR, such as what a spike is worth or the
1/k² of average pooling, waits for the next weights; if there are none before the next neurons it goes back into those before,
and only where there are none either it becomes a ``Scale`` node. Numbers are folded in float64 and rounded once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from stalwart.core.errors import InputError
from stalwart.core.layers import in_order
from stalwart.interchange.nir_parts import Factor, Fires, Flat, Part, Scale, SumPool, Weights
from stalwart.spiking import LIF, Direct, InTime, SharedDropout, SpikingNetwork
from stalwart.spiking.recurrent import RecurrentLIF

_CONVS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, SharedDropout)


def split(model: nn.Module) -> tuple[SpikingNetwork, bool, list[tuple[str, nn.Module]]]:
    """Return the spiking network in a stack, whether layers stand before its encoder, and all layers in order by module path.

    Raises:
        InputError: the model is no stack with one spiking network, or what stands before it does not pass its encoder.
    """
    outer = list(in_order(model))
    networks = [at for at, (_, layer) in enumerate(outer) if isinstance(layer, SpikingNetwork)]
    if len(networks) != 1:
        raise InputError(
            f"NIR is written from one spiking network, alone or in a stack; this {type(model).__name__} has "
            f"{len(networks)}. Convert it first, or make it an nn.Sequential."
        )
    path, network = outer[networks[0]]
    assert isinstance(network, SpikingNetwork)
    before = [one for one in outer[: networks[0]] if not isinstance(one[1], _DROPPED)]
    if before and type(network.encoder) is not Direct:
        raise InputError(
            f"'{before[0][0]}' stands before the encoder {type(network.encoder).__name__}, which it would have to pass; "
            "only the encoder 'direct' lets it. Put it behind the encoder."
        )
    inside = in_order(network.layers, f"{path}.layers" if path else "layers")
    return network, bool(before), [*before, *inside, *outer[networks[0] + 1 :]]


def chain_of(layers: list[tuple[str, nn.Module]], shape: tuple[int, ...], allow_lossy: tuple[str, ...]) -> list[Part]:
    """Return layers as parts that NIR has.

    Args:
        layers: in order, by path, in evaluation mode.
        shape: of one sample at one step.
        allow_lossy: what may be left to metadata: "soft-reset", "initial".

    Raises:
        InputError: a layer that NIR cannot express, by its path, with what to do.
    """
    chain = _Chain(shape, allow_lossy)
    with torch.no_grad():
        for path, layer in layers:
            chain.add(path, layer)
        chain.finish()
    return chain.parts


class _Chain:
    """Parts so far, and the affine map x * scale + shift that still waits for weights; both broadcast to ``shape``."""

    def __init__(self, shape: tuple[int, ...], allow_lossy: tuple[str, ...]) -> None:
        self.parts: list[Part] = []
        self.shape, self.allow_lossy = shape, allow_lossy
        self.scale, self.shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        # The last weights, if only sums and changes of shape follow, and how much those sums multiply a constant.
        self.anchor: Weights | None = None
        self.gain: float | None = 1.0

    def add(self, path: str, layer: nn.Module) -> None:
        """Append one layer."""
        known: dict[Any, Callable[[str, Any], None]] = {
            _DROPPED: lambda path, layer: None,
            nn.Linear: self._linear,
            _CONVS: self._conv,
            _NORMS: self._norm,
            _POOLS: self._pool,
            nn.Flatten: self._flatten,
            InTime: self._neurons,
            Scale: self._scale,
        }
        method = next((method for kinds, method in known.items() if isinstance(layer, kinds)), None)
        if method is not None:
            method(path, layer)
        elif getattr(layer, "affine_map", False) and hasattr(layer, "mean") and hasattr(layer, "std"):
            self._normalise(layer)
        else:
            raise InputError(
                f"'{path}' ({type(layer).__name__}) has no counterpart in NIR; use stacks of convolutions in one or two "
                "dimensions, linear layers, average pooling, flattening, batch norm and LIF neurons."
            )

    def finish(self) -> None:
        """Settle what waits at the end."""
        self._settle("output")

    def _scale(self, path: str, layer: Scale) -> None:
        factor = layer.scale.double().cpu()
        self.scale, self.shift = self.scale * factor, self.shift * factor

    def _normalise(self, layer: Any) -> None:
        column = (-1, *[1] * (len(self.shape) - 1))
        mean, std = (one.detach().double().cpu().reshape(column) for one in (layer.mean, layer.std))
        self.scale, self.shift = self.scale / std, (self.shift - mean) / std

    def _linear(self, path: str, layer: nn.Linear) -> None:
        if len(self.shape) != 1:
            raise InputError(
                f"'{path}' (Linear) sees samples of shape {list(self.shape)}; NIR's see vectors. Flatten first."
            )
        weight, bias = layer.weight.double().cpu(), None if layer.bias is None else layer.bias.double().cpu()
        if self._waits():
            shift = weight @ self.shift.expand(self.shape)
            bias = shift + bias if bias is not None else shift if bool(self.shift.any()) else None
            weight = weight * self.scale.expand(self.shape)
        self._anchored(Weights(path, weight, bias, self.shape), layer)

    def _conv(self, path: str, layer: Any) -> None:
        kernel, padding = layer.kernel_size, _padding(path, layer)
        if layer.padding_mode != "zeros":
            raise InputError(f"'{path}' pads by '{layer.padding_mode}'; NIR's convolutions pad zeros only.")
        if len(set(kernel)) > 1:
            raise InputError(f"'{path}' has a {kernel} window; the package nir gives shapes of square ones only.")
        weight, bias = _dense(layer), None if layer.bias is None else layer.bias.double().cpu()
        if self._waits():
            scale, shift = self._channels(self.scale), self._channels(self.shift)
            if scale is None or shift is None:
                self._flush(path)
                scale, shift = torch.ones(self.shape[0], dtype=torch.float64), self._channels(self.shift)
            if shift is None or (bool(shift.any()) and any(padding)):
                raise InputError(
                    f"a normalisation with means other than 0 stands before '{path}', which pads its zeros behind it: no "
                    "bias says the same at the border. Use means of 0, no padding there, or normalise inputs beforehand."
                )
            column = (1, -1, *[1] * len(kernel))
            moved = (weight * shift.reshape(column)).flatten(1).sum(1)
            bias = moved + bias if bias is not None else moved if bool(shift.any()) else None
            weight = weight * scale.reshape(column)
        self._anchored(Weights(path, weight, bias, self.shape, layer.stride, padding, layer.dilation), layer)

    def _anchored(self, part: Weights, layer: nn.Module) -> None:
        self._append(part, layer)
        self._forget()
        self.anchor, self.gain = part, 1.0

    def _norm(self, path: str, layer: Any) -> None:
        anchor = self.anchor
        if anchor is None or self.parts[-1] is not anchor:
            raise InputError(
                f"'{path}' ({type(layer).__name__}) has no linear layer or convolution right before it to be folded into; "
                "NIR has no batch norm. Put it behind one."
            )
        self._settle(path)
        if layer.running_mean is None:
            raise InputError(f"'{path}' uses the statistics of each batch; NIR has none. Track running statistics.")
        numbers = [None if one is None else one.double().cpu() for one in (layer.weight, layer.bias)]
        mean, variance = layer.running_mean.double().cpu(), layer.running_var.double().cpu()
        one_d = not anchor.stride
        fuse: Any = fuse_linear_bn_weights if one_d else fuse_conv_bn_weights
        weight, bias = fuse(anchor.weight, anchor.bias, mean, variance, layer.eps, *numbers)
        anchor.weight, anchor.bias = weight.detach(), bias.detach()

    def _pool(self, path: str, layer: Any) -> None:
        kernel, stride, padding, divisor = self._windows(path, layer)
        scale, shift = self._channels(self.scale), self._channels(self.shift)
        if scale is None:
            self._flush(path)
        if shift is None or (bool(shift.any()) and any(padding)):
            raise InputError(
                f"a normalisation with means other than 0 stands before '{path}', which pads; use means of 0."
            )
        area = kernel[0] * kernel[1]
        self._append(SumPool(path, kernel, stride, padding), layer)
        self.scale, self.shift = self.scale / divisor, self.shift * (area / divisor)
        self.gain = None if any(padding) or self.gain is None else self.gain * area

    def _windows(self, path: str, layer: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        if len(self.shape) != 3:
            raise InputError(f"'{path}' pools samples of shape {list(self.shape)}; NIR pools [C, H, W] only.")
        sides = self.shape[1:]
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            wanted = [side if one is None else one for one, side in zip(_pair(layer.output_size), sides, strict=True)]
            kernel = (sides[0] // wanted[0], sides[1] // wanted[1])
            if (kernel[0] * wanted[0], kernel[1] * wanted[1]) != sides:
                raise InputError(
                    f"'{path}' pools {list(sides)} to {wanted} in windows of unequal size, which NIR lacks."
                )
            return kernel, kernel, (0, 0), kernel[0] * kernel[1]
        kernel, stride, padding = (_pair(one) for one in (layer.kernel_size, layer.stride, layer.padding))
        whole = all((n + 2 * p - k) % s == 0 for n, p, k, s in zip(sides, padding, kernel, stride, strict=True))
        if (layer.ceil_mode and not whole) or (any(padding) and not layer.count_include_pad):
            raise InputError(f"'{path}' divides border windows by fewer pixels, which NIR lacks; pool whole windows.")
        return kernel, stride, padding, layer.divisor_override or kernel[0] * kernel[1]

    def _flatten(self, path: str, layer: nn.Flatten) -> None:
        axes = len(self.shape)
        start, end = ((one if one >= 0 else axes + 1 + one) - 1 for one in (layer.start_dim, layer.end_dim))
        if start < 0:
            raise InputError(f"'{path}' flattens the batch; start at dimension 1.")
        if start >= end:
            return
        # Counted from the end they are the same axes with and without a batch, which some readers confuse.
        self._append(Flat(path, self.shape, start - axes, end - axes), layer)

    def _neurons(self, path: str, layer: InTime) -> None:
        neuron = layer.neuron
        if type(neuron) is RecurrentLIF:
            self._linear(f"{path}.input", neuron.input)
            weight = neuron.recurrent.weight.detach().cpu()
            own = weight * (1 - torch.eye(len(weight), dtype=weight.dtype))
            leak, threshold = (torch.full(self.shape, one) for one in (neuron.leak, neuron.threshold))
            self._fires(Fires(path, leak, threshold, neuron.reset, None, own), None, None)
        elif type(neuron) is LIF:
            if neuron.order != "integrate_first":
                raise InputError(f"'{path}' decides a spike before its step's current; use order 'integrate_first'.")
            leak, threshold = (one.detach().float().cpu().expand(self.shape) for one in neuron._numbers())
            initial = neuron.initial
            if initial is not None:
                initial = initial.float().cpu().expand(self.shape) if bool(initial.any()) else None
            self._fires(Fires(path, leak, threshold, neuron.reset, initial), neuron.bias, neuron.height)
        else:
            raise InputError(f"'{path}' ({type(neuron).__name__}) has no counterpart in NIR; use LIF neurons.")

    def _fires(self, part: Fires, bias: Tensor | None, height: Tensor | None) -> None:
        path = part.path
        if part.reset == "none":
            raise InputError(f"'{path}' has no reset; NIR's neurons have one. Use reset 'hard'.")
        if part.reset == "soft" and "soft-reset" not in self.allow_lossy:
            raise InputError(
                f"'{path}' subtracts its threshold at a spike (soft reset), which NIR cannot say: its neurons go to v_reset. "
                "Convert or train with reset 'hard', or pass allow_lossy=('soft-reset',), on the command line --lossy "
                "soft-reset, to leave it to metadata that other readers do not know."
            )
        if part.initial is not None and "initial" not in self.allow_lossy:
            raise InputError(
                f"'{path}' starts from membranes other than 0, which NIR cannot say. Convert with start 0, or pass "
                "allow_lossy=('initial',), on the command line --lossy initial, to leave them to metadata that other readers "
                "do not know."
            )
        if bias is not None:
            self.shift = self.shift + bias.double().cpu()
        self._settle(path)
        self.parts.append(part)
        self._forget()
        if height is not None:
            if not bool((height != 0).all()):
                raise InputError(f"'{path}' has spikes worth 0, which nothing can tell from none; take the layer out.")
            self.scale = height.double().cpu()

    def _settle(self, path: str) -> None:
        """Put what waits into the weights before, or into a node of its own."""
        if bool((self.scale != 1).any()):
            scale = self._rows(self.scale)
            if self.anchor is None or scale is None:
                self._flush(path)
            else:
                self._multiply(self.anchor, scale)
                self.scale = torch.ones((), dtype=torch.float64)
        if bool(self.shift.any()):
            shift = self._rows(self.shift)
            if self.anchor is None or self.gain is None or shift is None:
                raise InputError(
                    f"there are no weights before '{path}' that could hold its constant current (bias or mean), and NIR has "
                    "no node for one alone. Put a linear layer or convolution right before it."
                )
            before = self.anchor.bias
            rows = len(self.anchor.weight)
            moved = (shift / self.gain).expand(rows) if shift.dim() == 0 else shift / self.gain
            self.anchor.bias = moved.clone() if before is None else before + moved
            self.shift = torch.zeros((), dtype=torch.float64)

    @staticmethod
    def _multiply(part: Weights, scale: Tensor) -> None:
        rows = scale.expand(len(part.weight))
        part.weight = part.weight * rows.reshape(-1, *[1] * (part.weight.dim() - 1))
        part.bias = None if part.bias is None else part.bias * rows

    def _rows(self, value: Tensor) -> Tensor | None:
        """Return what waits as one number, or one for each row of the weights before; None if it varies in another way."""
        if bool((value == value.flatten()[0]).all()):
            return value.flatten()[0]
        if self.anchor is None or any(isinstance(part, Flat) for part in self.parts[self._anchored_at() :]):
            return None
        return self._channels(value)

    def _anchored_at(self) -> int:
        return next(at for at, part in enumerate(self.parts) if part is self.anchor)

    def _channels(self, value: Tensor) -> Tensor | None:
        """Return a tensor that broadcasts to the shape as one number a channel; None if it varies inside one."""
        full = value.expand(self.shape).reshape(self.shape[0], -1)
        return full[:, 0] if bool((full == full[:, :1]).all()) else None

    def _flush(self, path: str) -> None:
        if bool((self.scale != 1).any()):
            self.parts.append(Factor(f"{path}.scale", self.scale.expand(self.shape)))
            self.anchor = None
        self.scale = torch.ones((), dtype=torch.float64)

    def _waits(self) -> bool:
        return bool((self.scale != 1).any()) or bool(self.shift.any())

    def _forget(self) -> None:
        self.scale, self.shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        self.anchor, self.gain = None, 1.0

    def _append(self, part: Part, layer: nn.Module) -> None:
        """Append a part and find the shape behind its layer."""
        try:
            after = layer(torch.zeros(1, *self.shape, dtype=_dtype(layer), device=_device(layer)))
        except (RuntimeError, IndexError) as problem:
            first = str(problem).splitlines()[0]
            raise InputError(f"'{part.path}' cannot take samples of shape {list(self.shape)}: {first}.") from problem
        if isinstance(part, Flat):
            self.scale, self.shift = (
                one if one.dim() == 0 else one.expand(self.shape).flatten(part.start, part.end)
                for one in (self.scale, self.shift)
            )
        self.parts.append(part)
        self.shape = tuple(after.shape[1:])


def _dtype(layer: nn.Module) -> torch.dtype:
    return next((one.dtype for one in layer.parameters()), torch.float32)


def _device(layer: nn.Module) -> torch.device:
    return next((one.device for one in layer.parameters()), torch.device("cpu"))


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _padding(path: str, layer: Any) -> tuple[int, ...]:
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding != "same":
        return tuple(layer.padding)
    total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(one % 2 for one in total):
        raise InputError(f"'{path}' pads one side more than the other; use a kernel of odd size.")
    return tuple(one // 2 for one in total)


def _dense(layer: Any) -> Tensor:
    """Return a convolution's weight without groups: nir's rule for shapes does not know them, and few readers do."""
    weight: Tensor = layer.weight.detach().double().cpu()
    if layer.groups == 1:
        return weight
    rows, inside = len(weight) // layer.groups, weight.shape[1]
    full = weight.new_zeros(len(weight), layer.in_channels, *weight.shape[2:])
    for g in range(layer.groups):
        full[g * rows : (g + 1) * rows, g * inside : (g + 1) * inside] = weight[g * rows : (g + 1) * rows]
    return full
