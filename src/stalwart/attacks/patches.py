"""What a stack of layers makes of images that differ from known ones in a window each: only what the window reaches is run.

A window of 3 x 3 pixels reaches 5 x 5 outputs of a 3 x 3 convolution, whatever the size of the image. Each layer therefore
sees a patch, cut out of what it is known to have seen and overlaid with the patch that the layer before it has made; at the
end the first linear layer's known output is changed by what the patch changes. Logits are those of the whole pass up to
rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stalwart.core import jit
from stalwart.core.layers import in_order
from stalwart.core.quick import FlattenAsStored, Halved

_EACH = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh)
_STILL = (nn.Identity, nn.Dropout, nn.Dropout2d)
_PER_CHANNEL = (*_EACH, *_STILL, nn.BatchNorm2d)
"""Layers that treat each pixel for itself."""

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Stage:
    """A layer whose outputs see a window of its input, and those after it that treat each pixel for itself.

    Attributes:
        kernel, stride, padding: rows and columns.
        layer: the layer, which is given inputs already padded.
        each: the layers after it.
        work: products for one output pixel; 0 for pooling.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    layer: nn.Module
    each: list[nn.Module] = field(default_factory=list)
    work: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs [B, H, W, C] for padded inputs [B, H, W, C]."""
        # One channel is channels first as well. As channels last, oneDNN misreads it where outputs are one pixel wide.
        z = x.permute(0, 3, 1, 2) if x.shape[3] > 1 else x.view(len(x), 1, *x.shape[1:3])
        if isinstance(self.layer, nn.Conv2d):
            conv = self.layer
            z = nn.functional.conv2d(z, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        else:
            z = self.layer(z)
        for layer in self.each:
            z = layer(z)
        return z.permute(0, 2, 3, 1).contiguous()

    def padded(self, x: Tensor) -> Tensor:
        """Return inputs [B, H, W, C] with zeros around them, in memory of their own."""
        down, across = self.padding
        return nn.functional.pad(x, (0, 0, across, across, down, down)).contiguous()

    def outputs(self, seen: Tensor) -> Pair:
        """Return how many rows and columns come out of padded inputs [B, H, W, C]."""
        sizes = zip(seen.shape[1:3], self.kernel, self.stride, strict=True)
        return _pair([(size - kernel) // stride + 1 for size, kernel, stride in sizes])

    def reached(self, window: Pair, seen: Tensor) -> Pair:
        """Return how many outputs, rows and columns, a window of inputs reaches at most."""
        sizes = zip(window, self.kernel, self.stride, self.outputs(seen), strict=True)
        return _pair([min((size + kernel - 2) // stride + 1, most) for size, kernel, stride, most in sizes])


def _stage(layer: nn.Module) -> _Stage | None:
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        reach = [step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return _Stage(_pair(reach), _pair(layer.stride), _pair(layer.padding), layer, work=layer.weight.numel())
    if type(layer) is Halved:
        return _Stage((2, 2), (2, 2), (0, 0), layer)
    if type(layer) is nn.MaxPool2d:
        plain = _pair(layer.dilation) == (1, 1) and not layer.return_indices
    elif type(layer) is nn.AvgPool2d:
        plain = True
    else:
        return None
    if not plain or layer.ceil_mode or _pair(layer.padding) != (0, 0):
        return None
    return _Stage(_pair(layer.kernel_size), _pair(layer.stride), (0, 0), layer)


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@dataclass(eq=False)
class Known:
    """Images [B, ...] and what each layer makes of them.

    Attributes:
        stages: layers that see images.
        inputs: what each of them has seen, [B, H, W, C], padded.
        last: what the last of them has made, [B, H, W, C].
        columns: the transposed weight of the linear layer that sees it flattened, [H * W * C, n].
        hidden: that layer's output, [B, n].
        rest: the layers after it.
    """

    stages: list[_Stage]
    linear: nn.Linear
    rest: list[nn.Module]
    inputs: list[Tensor] = field(default_factory=list)
    last: Tensor = field(default_factory=torch.Tensor)
    hidden: Tensor = field(default_factory=torch.Tensor)

    def __post_init__(self) -> None:
        self._who = torch.empty(0, dtype=torch.long)
        self._trail: list[tuple[Tensor, Tensor]] = []
        self.columns = self.linear.weight.detach().t().contiguous()

    @staticmethod
    def of(stack: nn.Module) -> "Known | None":
        """Return a record of no images yet for a stack that :func:`flatten_as_stored` has rearranged, None where it has not.

        None also where anything but convolutions, poolings and layers that treat each pixel for itself comes before.
        """
        layers = [layer for _, layer in in_order(stack)]
        flat = next((number for number, layer in enumerate(layers) if type(layer) is FlattenAsStored), None)
        if flat is None:
            return None
        stages: list[_Stage] = []
        for layer in layers[:flat]:
            stage = _stage(layer)
            if stage is not None:
                stages.append(stage)
            elif stages and type(layer) in _PER_CHANNEL:
                stages[-1].each.append(layer)
            else:
                return None
        linear = layers[flat + 1]
        assert isinstance(linear, nn.Linear)
        return Known(stages, linear, layers[flat + 2 :]) if stages else None

    @torch.no_grad()
    def look(self, images: Tensor) -> None:
        """Get to know images [B, C, H, W] instead of all others."""
        *self.inputs, self.last, self.hidden = self._walk(images)

    @torch.no_grad()
    def settle(self, rows: Tensor) -> None:
        """Take those images that rows [R] of the last call of :meth:`logits` were about, one row each, as known from now on."""
        from stalwart.attacks import patch_kernels as kernels

        who = self._who
        paddings = [*(stage.padding for stage in self.stages), (0, 0)]
        for seen, padding, (patch, place) in zip((*self.inputs, self.last), paddings, self._trail, strict=True):
            sizes = (*patch.shape, *seen.shape[:3], *padding)
            jit.run(kernels.paste, len(rows), *sizes, rows, who, place, patch, seen)
        settled = who[rows]
        self.hidden[settled] = self._hidden(self.last[settled])

    def select(self, stay: Tensor) -> None:
        """Forget all images but those in the places ``stay``."""
        *self.inputs, self.last, self.hidden = (one[stay] for one in (*self.inputs, self.last, self.hidden))

    @torch.no_grad()
    def logits(self, window: Tensor, corner: Tensor, who: Tensor) -> Tensor:
        """Return the logits [R, K] of known images ``who`` [R] with a window [R, C, H, W] of others at ``corner`` [R, 2]."""
        from stalwart.attacks import patch_kernels as kernels

        patch, place, rows = window.permute(0, 2, 3, 1).contiguous(), corner, len(who)
        self._who, self._trail = who, [(patch, place)]
        for stage, seen in zip(self.stages, self.inputs, strict=True):
            reached = stage.reached(_pair(patch.shape[1:3]), seen)
            spans = [(n - 1) * s + k for n, s, k in zip(reached, stage.stride, stage.kernel, strict=True)]
            cut, moved = seen.new_empty(rows, *spans, seen.shape[3]), torch.empty_like(place)
            sizes = (*seen.shape[:3], seen.shape[3], *patch.shape[1:3], *spans, *reached, *stage.outputs(seen))
            geometry = (*stage.kernel, *stage.stride, *stage.padding)
            jit.run(kernels.cut, rows, *sizes, *geometry, who, place, moved, seen, patch, cut)
            patch, place = stage(cut), moved
            self._trail.append((patch, place))
        hidden = self.hidden.new_empty(rows, self.hidden.shape[1])
        sizes = (*self.last.shape, *patch.shape[1:3], self.hidden.shape[1])
        by = patch.new_empty(rows, patch[0].numel() + 1)
        at = torch.empty_like(by, dtype=torch.long)
        jit.run(kernels.fold, rows, *sizes, who, place, self.last, patch, self.columns, self.hidden, hidden, at, by)
        return self._finish(hidden)

    def share(self, window: Pair) -> float:
        """Return the products of a pass for windows of this size, in those of a whole pass."""
        some = whole = 0.0
        for stage, seen in zip(self.stages, self.inputs, strict=True):
            window = stage.reached(window, seen)
            some += stage.work * math.prod(window)
            whole += stage.work * math.prod(stage.outputs(seen))
        weights = self.columns.numel()
        return (some + weights * math.prod(window) / math.prod(self.last.shape[1:3])) / (whole + weights)

    def _walk(self, images: Tensor) -> list[Tensor]:
        found, z = [], images.permute(0, 2, 3, 1)
        for stage in self.stages:
            z = stage.padded(z)
            found.append(z)
            z = stage(z)
        return [*found, z, self._hidden(z)]

    def _hidden(self, last: Tensor) -> Tensor:
        return nn.functional.linear(last.flatten(1), self.linear.weight, self.linear.bias)

    def _finish(self, hidden: Tensor) -> Tensor:
        for layer in self.rest:
            hidden = layer(hidden)
        return hidden
