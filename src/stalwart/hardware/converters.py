"""What happens around the arrays: noise on what a layer gives, and converters with few bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stalwart.core.errors import InputError, UsageError
from stalwart.core.hooks import removing
from stalwart.core.layers import WEIGHTED
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.hardware.base import Fault, check_share, fresh, percent
from stalwart.hardware.codes import check_bits

Ranges = Mapping[str, tuple[float, float]]
"""The largest |input| and |output| of layers, by module path."""


def layers(model: nn.Module, only: str | tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """Return the linear and convolutional layers of the model by module path, those that ``only`` matches.

    Raises:
        InputError: there are none.
        UsageError: a pattern matches none of them.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if not found:
        raise InputError(
            f"{type(model).__name__} has no linear or convolutional layer whose output could be disturbed."
        )
    patterns = (only,) if isinstance(only, str) else only
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in found):
            raise UsageError(f"no layer is called '{pattern}'. There is: {', '.join(found)}.")
    return {path: one for path, one in found.items() if not patterns or any(fnmatchcase(path, p) for p in patterns)}


@torch.no_grad()
def layer_ranges(model: nn.Module, x: Tensor) -> dict[str, tuple[float, float]]:
    """Return the largest |input| and |output| of each linear and convolutional layer over inputs [B, ...]."""
    ranges: dict[str, tuple[float, float]] = {}

    def note(path: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before = ranges.get(path, (0.0, 0.0))
            ranges[path] = max(before[0], float(inputs[0].abs().max())), max(before[1], float(output.abs().max()))

        return look

    handles = [module.register_forward_hook(note(path)) for path, module in layers(model).items()]
    with removing(handles), evaluating(model):
        model(x)
    return ranges


def uncalled(model: nn.Module, x: Tensor, only: str | tuple[str, ...] = ()) -> list[str]:
    """Return the layers that ``only`` matches but that the model does not call on inputs [B, ...], so that hooks miss them."""
    called = set()
    found = layers(model, only)
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path)) for path, module in found.items()
    ]
    with removing(handles):
        model(x)
    return [path for path in found if path not in called]


@dataclass(frozen=True)
class LayerFault(Fault):
    """A fault of the read that acts on what layers see or give, by hooks on linear and convolutional layers.

    Weights that a module uses without calling their layer, as recurrent neurons do, are not reached; :func:`uncalled` tells.

    Args:
        ranges: of layers by module path, as :func:`layer_ranges` finds them. Without: each vector (of a linear layer) or
            image (of a convolution) has the range of its own largest absolute value, as arrays with scaled inputs do;
            nothing depends on the rest of the batch.
        only: glob patterns of module paths; without one, all such layers.
    """

    ranges: Ranges = field(default_factory=dict, kw_only=True, hash=False)

    @property
    def stage(self) -> str:
        """The read."""
        return "read"

    @property
    def on_layers(self) -> bool:
        """Yes."""
        return True

    def apply(self, params: dict[str, Tensor], source: torch.Generator) -> dict[str, Tensor]:
        """Return the parameters as they are: what is disturbed are activations, in :meth:`chip`."""
        return params

    def place(self, params: dict[str, Tensor], source: torch.Generator) -> tuple[dict[str, Tensor], None]:
        """Leave the parameters."""
        return params, None

    def hook(self, model: nn.Module, source: torch.Generator) -> list[RemovableHandle]:
        """Hang the fault on the layers; ``source`` seeds each call."""
        chosen = layers(model, self.only)
        for path in chosen:
            require(
                not self.ranges or path in self.ranges,
                f"ranges has no layer '{path}', only {', '.join(self.ranges)}; find them by layer_ranges(model, x).",
            )
        return [handle for path, module in chosen.items() for handle in self.hang(path, module, source)]

    def missed(self, model: nn.Module, x: Tensor) -> list[str]:
        """Return the layers that the model uses without calling them."""
        return uncalled(model, x, self.only)

    def hang(self, path: str, module: nn.Module, source: torch.Generator) -> list[RemovableHandle]:
        """Hang the fault on one layer."""
        raise NotImplementedError

    def reach(self, path: str, module: nn.Module, values: Tensor, side: int) -> Tensor:
        """Return the range of inputs (side 0) or outputs (side 1), so that it broadcasts against ``values``."""
        if self.ranges:
            return values.new_tensor(self.ranges[path][side])
        return values.detach().abs().amax(_of_one(module), keepdim=True)

    def _layers(self) -> str:
        if self.only:
            return f"on layers {self.only if isinstance(self.only, str) else ', '.join(self.only)}"
        return "on all linear and convolutional layers"


@dataclass(frozen=True)
class OutputNoise(LayerFault):
    """Thermal noise: N(0, σ²) on each output of a layer, drawn anew at each forward pass.

        of="range":  σ = level·max|y|      of="std":  σ = level·std(y)

    over one vector or image, see :class:`LayerFault`; with ``ranges`` the maximum is the layer's.

    Args:
        level: share in [0, 1]; 0.04 for 4 %.
        of: what the level is a share of.

    Raises:
        UsageError: a level out of range, or ``ranges`` with of="std".
    """

    level: Number
    of: Literal["range", "std"] = "range"

    def __post_init__(self) -> None:
        check_share(self.level, "the level of output noise")
        require(not self.ranges or self.of == "range", "ranges belong to output noise of='range'; leave them out.")

    def hang(self, path: str, module: nn.Module, source: torch.Generator) -> list[RemovableHandle]:
        """Add noise to what the layer gives."""

        def disturb(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if self.of == "range":
                unit = self.reach(path, module, output, 1)
            else:
                unit = output.std(_of_one(module), correction=0, keepdim=True)
            draw = normal(output.shape, fresh(source, output), output, batch_axis=None)
            return output + draw.mul_(self.level * unit.detach())

        return [module.register_forward_hook(disturb)]

    def describe(self) -> str:
        """Return the level with its unit."""
        what = "the output's standard deviation" if self.of == "std" else "the output's range max|y|"
        return (
            f"output noise of standard deviation {percent(self.level)} of {what}, fresh at each read, {self._layers()}"
        )


@dataclass(frozen=True)
class ActivationQuantise(LayerFault):
    """Converters at a layer: inputs by a DAC, outputs by an ADC, clipped to their range and rounded.

        r = clip·range,   step = r / (2^(bits-1) - 1),   v' = step·round(clamp(v, -r, r) / step)

    Gradients pass the rounding as if it were not there and stop where values are clipped.

    Args:
        bits: 2 to 16.
        clip: the share of the range that is kept, in (0, 1].
        at: the "dac", the "adc" or "both".

    Raises:
        UsageError: a number out of range.
    """

    bits: int
    clip: Number = 1.0
    at: Literal["dac", "adc", "both"] = "both"

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, "a converter")
        check_share(self.clip, "clip")
        require(self.clip > 0, "clip must be positive: nothing would be left of the values.")

    def hang(self, path: str, module: nn.Module, source: torch.Generator) -> list[RemovableHandle]:
        """Round what the layer sees and gives."""

        def dac(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._rounded(inputs[0], self.reach(path, module, inputs[0], 0)), *inputs[1:]

        def adc(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return self._rounded(output, self.reach(path, module, output, 1))

        handles = [] if self.at == "adc" else [module.register_forward_pre_hook(dac)]
        return handles if self.at == "dac" else [*handles, module.register_forward_hook(adc)]

    def _rounded(self, values: Tensor, reach: Tensor) -> Tensor:
        most = 2 ** (self.bits - 1) - 1
        limit = (self.clip * reach).clamp_min(math.sqrt(torch.finfo(values.dtype).tiny))
        step = limit / most
        codes = (values.detach() / step).round_().clamp_(-most, most).mul_(step)
        if not (torch.is_grad_enabled() and values.requires_grad):
            return codes
        kept = torch.minimum(torch.maximum(values, -limit), limit)
        return codes + (kept - kept.detach())

    def describe(self) -> str:
        """Return the bits and the range."""
        kind = "calibrated range" if self.ranges else "range max|v| of each vector or image"
        where = {"dac": "DAC", "adc": "ADC", "both": "DAC and ADC"}[self.at]
        return f"{where} of {self.bits} bits, clipped at {percent(self.clip)} of the {kind}, {self._layers()}"


def _of_one(module: nn.Module) -> tuple[int, ...]:
    """Return the axes of one vector or image in what a layer sees or gives."""
    axes = {nn.Conv1d: 2, nn.Conv2d: 3, nn.Conv3d: 4}
    return tuple(range(-next((count for kind, count in axes.items() if isinstance(module, kind)), 1), 0))
