"""Operators that slide a window over the spatial axes: pooling, and the geometry that convolutions share with them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.interchange.onnx_graph import Computed, Node, Recipe, Result, batched

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
# torch counts windows in 32 bits.
_LONGEST = 2**31 - 1
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Window:
    """How a window moves: one number a spatial axis each; ``begin`` and ``end`` are the padding before and behind."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether both sides of every axis are padded alike, as torch's own argument has it."""
        return self.begin == self.end


def window_of(node: Node, kernel: Sequence[int], sides: Sequence[int], auto_pads: bool = True) -> Window:
    """Read strides, dilations and padding.

    Args:
        node: the node.
        kernel: the window's sides.
        sides: the spatial sides of the input.
        auto_pads: carry ``auto_pad`` out; a transposed convolution reads it otherwise.
    """
    axes = len(kernel)
    strides = tuple(node.ints("strides") or [1] * axes)
    dilations = tuple(node.ints("dilations") or [1] * axes)
    pads = tuple(node.ints("pads") or [0] * 2 * axes)
    auto = node.attribute("auto_pad", "NOTSET")
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
        raise node.refuse(f"strides, dilations or pads do not fit {axes} spatial axes")
    if min(strides) < 1 or min(dilations) < 1 or min(pads) < 0 or min(kernel) < 1:
        raise node.refuse("kernel, strides and dilations must be positive, and pads must not be negative")
    if max(*strides, *dilations, *pads, *kernel) > _LONGEST:
        raise node.refuse(f"kernel, strides, dilations and pads must be at most {_LONGEST}")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"the attribute auto_pad={auto} is not supported")
    begin, end = pads[:axes], pads[axes:]
    if auto == "VALID":
        begin = end = (0,) * axes
    elif auto != "NOTSET" and auto_pads:
        totals = [
            (math.ceil(side / stride) - 1) * stride + (width - 1) * dilation + 1 - side
            for side, width, stride, dilation in zip(sides, kernel, strides, dilations, strict=True)
        ]
        if min(totals) < -1:
            # onnxruntime cuts off at both ends here, of which the standard says nothing.
            raise node.refuse(f"auto_pad={auto} with strides {strides} that skip numbers is ambiguous", "Give pads.")
        totals = [max(total, 0) for total in totals]
        small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(strides, dilations, begin, end)


def torch_padding(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return the padding as ``F.pad`` wants it: last axis first, before and behind in turn."""
    return list(itertools.chain.from_iterable(zip(reversed(begin), reversed(end), strict=True)))


def _pool(node: Node) -> tuple[Computed, list[int], Window, bool]:
    """Return a pool's input, kernel, window and whether an incomplete last window counts."""
    x, kernel = node.computed(), node.ints("kernel_shape") or []
    if len(kernel) not in _MAX_POOL or len(x.shape) != len(kernel) + 2 or not batched(x.shape):
        raise node.refuse(
            f"a window of shape {kernel} meets a tensor of shape {list(x.shape)}; pools take [1, channels, ...]"
        )
    window = window_of(node, kernel, x.shape[2:])
    auto = node.attribute("auto_pad", "NOTSET")
    if auto.startswith("SAME") and set(window.dilations) != {1}:
        # onnxruntime leaves out the dilations here, so that it computes something else than the standard says.
        raise node.refuse(f"auto_pad={auto} with dilations {list(window.dilations)} is ambiguous", "Give pads.")
    if any(pad >= side for pad, side in zip(window.begin + window.end, kernel * 2, strict=True)):
        raise node.refuse(f"pads {window.begin + window.end} are not below the window's sides {kernel}")
    return x, kernel, window, node.flag("ceil_mode")


def max_pool(node: Node) -> Result:
    """Return the largest number of each window."""
    node.expect("storage_order", 0)
    x, kernel, window, ceil = _pool(node)
    function = _MAX_POOL[len(kernel)]
    # torch pads by at most half a window, the same on both sides; beyond that pad with what never wins.
    inside = window.symmetric and all(2 * pad <= side for pad, side in zip(window.begin, kernel, strict=True))
    if ceil and not inside:
        raise node.refuse("ceil_mode together with uneven padding is not supported")

    def run(x: Tensor) -> Tensor:
        if not inside:
            x = F.pad(x, torch_padding(window.begin, window.end), value=-torch.inf)
        padding = window.begin if inside else 0
        return function(x, kernel, window.strides, padding, window.dilations, ceil_mode=ceil)

    return Recipe(run, (x,))


def average_pool(node: Node) -> Result:
    """Return the mean of each window, over the padding too if ``count_include_pad``."""
    include = node.flag("count_include_pad")
    x, kernel, window, ceil = _pool(node)
    function = _AVG_POOL[len(kernel)]
    if set(window.dilations) != {1}:
        raise node.refuse("dilated average pooling is not supported")
    inside = window.symmetric and all(2 * pad <= side for pad, side in zip(window.begin, kernel, strict=True))
    if inside:
        return Recipe(lambda x: function(x, kernel, window.strides, window.begin, ceil, include), (x,))
    if ceil:
        raise node.refuse("ceil_mode together with uneven padding is not supported")
    padding = torch_padding(window.begin, window.end)
    if include:
        return Recipe(lambda x: function(F.pad(x, padding), kernel, window.strides), (x,))
    share = function(F.pad(torch.ones(1, 1, *x.shape[2:]), padding), kernel, window.strides)
    # Means, divided by which share of the window is no padding.
    return Recipe(
        lambda x, scale: function(F.pad(x, padding), kernel, window.strides) * scale,
        (x,),
        {"scale": share.reciprocal()},
    )


def global_average_pool(node: Node) -> Result:
    """Return the mean over all spatial axes."""
    x = node.computed()
    if len(x.shape) < 3 or not batched(x.shape):
        raise node.refuse(f"it pools a tensor of shape {list(x.shape)}; it takes [1, channels, ...]")
    dims = list(range(2, len(x.shape)))
    return Recipe(lambda x: x.mean(dims, keepdim=True), (x,))


def resize(node: Node) -> Result:
    """Repeat each number a whole number of times along the spatial axes (nearest neighbour)."""
    x = node.computed()
    mode = node.attribute("mode", "nearest")
    rule = _rounding(node)
    factors = _factors(node, x)
    if mode != "nearest" or rule not in _REPEATS:
        raise node.refuse(f"mode {mode} with {rule} is not supported; only nearest neighbours by whole factors are")
    if not batched(x.shape) or factors[:2] != [1, 1] or not 3 <= len(x.shape) <= 5:
        raise node.refuse(f"it scales a tensor of shape {list(x.shape)} by {factors}; only spatial axes can be scaled")
    sides = [side * factor for side, factor in zip(x.shape[2:], factors[2:], strict=True)]
    return Recipe(lambda x: F.interpolate(x, size=sides, mode="nearest"), (x,))


# With whole factors these rules all give each number's copies to itself.
_REPEATS = (
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
)


def _rounding(node: Node) -> tuple[str, str]:
    """Return how a Resize finds the nearest number; Upsample and opset 10 knew one way."""
    for name in ("cubic_coeff_a", "exclude_outside", "extrapolation_value"):
        node.attribute(name)  # they change nothing for nearest neighbours
    if node.op == "Upsample" or node.opset < 11:
        return "asymmetric", "floor"
    node.expect("antialias", 0)
    return (
        node.attribute("coordinate_transformation_mode", "half_pixel"),
        node.attribute("nearest_mode", "round_prefer_floor"),
    )


def _factors(node: Node, x: Computed) -> list[int]:
    """Return the whole factor of each axis."""
    if node.attribute("axes") is not None or node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("axes and keep_aspect_ratio_policy are not supported")
    if node.op == "Upsample" and node.opset < 9:
        scales = node.attribute("scales")
    else:
        scales = node.constant(1 if node.op == "Upsample" or node.opset < 11 else 2)
    sizes = node.constant(3)
    if scales is not None and len(scales):
        wanted = [float(scale) for scale in scales]
    elif sizes is not None and len(sizes) == len(x.shape):
        wanted = [int(size) / side for size, side in zip(sizes, x.shape, strict=True)]
    else:
        raise node.refuse("it names neither scales nor sizes")
    if len(wanted) != len(x.shape) or any(factor != int(factor) or factor < 1 for factor in wanted):
        raise node.refuse(f"it scales by {wanted}; only whole factors of at least 1 are supported")
    return [int(factor) for factor in wanted]
