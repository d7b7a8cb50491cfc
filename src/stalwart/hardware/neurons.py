"""What differs from neuron to neuron on a chip of spiking neurons, and the noise on their membranes."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.core.disturbed import Disturbance, Disturbed
from stalwart.core.errors import InputError, UsageError
from stalwart.core.numbers import Number
from stalwart.core.random import generator, normal
from stalwart.hardware.base import Fault, check_share, fresh, percent

_LEAST = 1e-3
"""No threshold or time constant falls below this share of what was trained."""
_NAMES = {"threshold": ("threshold",), "tau": ("leak", "leak_adaptation"), "bias": ("bias",)}
_NEEDED = {"threshold": "threshold", "tau": "leak", "bias": "bias"}


class _Hung:
    """A disturbance that hangs on a layer until it is removed."""

    def __init__(self, layer: Disturbed, disturbance: Disturbance) -> None:
        self._layer, self._disturbance = layer, disturbance
        layer.disturbances = (*layer.disturbances, disturbance)

    def remove(self) -> None:
        """Take it off."""
        self._layer.disturbances = tuple(one for one in self._layer.disturbances if one is not self._disturbance)


@dataclass(frozen=True)
class NeuronFault(Fault):
    """A fault of layers of neurons.

    Args:
        only: glob patterns of module paths; without one, all layers of neurons.
    """

    @property
    def on_layers(self) -> bool:
        """Yes."""
        return True

    def apply(self, params: dict[str, Tensor], source: torch.Generator) -> dict[str, Tensor]:
        """Return the parameters as they are: what is disturbed are neurons, in :meth:`chip`."""
        return params

    def place(self, params: dict[str, Tensor], source: torch.Generator) -> tuple[dict[str, Tensor], None]:
        """Leave the parameters."""
        return params, None

    def hook(self, model: nn.Module, source: torch.Generator) -> list[_Hung]:
        """Hang the fault on layers of neurons.

        Raises:
            InputError: the model has none, or one of those chosen cannot be disturbed so.
            UsageError: a pattern matches none of them.
        """
        chosen = neuron_layers(model, self.only)
        for path, layer in chosen.items():
            if self.needed not in layer.disturbable:
                raise InputError(
                    f"neurons at '{path}' ({type(layer).__name__}) let no device change their {self.needed}, so this fault "
                    f"would not reach them: {self.describe()}. Choose other layers with only=, or use LIF neurons."
                )
        return [_Hung(layer, self.on(path, source)) for path, layer in chosen.items()]

    @property
    def needed(self) -> str:
        """What layers must let a device change."""
        raise NotImplementedError

    def on(self, path: str, source: torch.Generator) -> Disturbance:
        """Return what happens to the layer at a path."""
        raise NotImplementedError

    def _where(self) -> str:
        if self.only:
            return f"on neurons {self.only if isinstance(self.only, str) else ', '.join(self.only)}"
        return "on all neurons"


def neuron_layers(model: nn.Module, only: str | tuple[str, ...] = ()) -> dict[str, Disturbed]:
    """Return the model's layers of neurons by module path, those that ``only`` matches.

    Raises:
        InputError: there are none.
        UsageError: a pattern matches none of them.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, Disturbed)}
    if not found:
        raise InputError(f"{type(model).__name__} has no spiking neurons that could differ from each other.")
    patterns = (only,) if isinstance(only, str) else only
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in found):
            raise UsageError(f"no layer of neurons is called '{pattern}'. There is: {', '.join(found)}.")
    return {path: one for path, one in found.items() if not patterns or any(fnmatchcase(path, p) for p in patterns)}


@dataclass(frozen=True)
class NeuronMismatch(NeuronFault):
    """Thresholds, time constants or biases that differ from neuron to neuron, drawn once for each chip, R ~ N(0, 1):

        threshold:  θ' = θ·exp(level·R)
        tau:        τ' = τ·exp(level·R), so that a membrane keeps λ' = λ^(τ/τ') in a step; adaptive thresholds likewise
        bias:       a current of level·θ·R flows in every step

    or 1 + level·R in the place of exp(level·R) with mode="gaussian", at least 0.001. Every neuron has a draw of its own, also
    where a layer has one threshold or leak for all. A leak of 0 or 1 has no time constant and stays. Biases of weights are no
    neurons': ``Mismatch(level, only="*bias")`` disturbs them in proportion to themselves.

    Args:
        level: a standard deviation, share in [0, 1]; 0.1 for 10 %.
        of: which of the three.
        mode: for thresholds and time constants, "log-normal" or "gaussian".
        only: glob patterns of module paths; without one, all layers of neurons.

    Raises:
        UsageError: a level out of range.
    """

    level: Number
    of: Literal["threshold", "tau", "bias"] = "threshold"
    mode: Literal["log-normal", "gaussian"] = "log-normal"

    def __post_init__(self) -> None:
        check_share(self.level, "the level of a mismatch of neurons")

    @property
    def stage(self) -> str:
        """Programming."""
        return "program"

    @property
    def needed(self) -> str:
        """The number that is changed."""
        return _NEEDED[self.of]

    def hook(self, model: nn.Module, source: torch.Generator) -> list[_Hung]:
        """Hang the fault on layers of neurons; see :meth:`NeuronFault.hook`.

        Raises:
            InputError: all chosen layers have leaks of 0 or 1, which no time constant changes.
        """
        chosen = neuron_layers(model, self.only)
        if self.of == "tau" and all(_timeless(layer) for layer in chosen.values()):
            raise InputError(
                f"neurons at {', '.join(chosen)} have leaks of 0 or 1, which no time constant changes, so this fault does "
                f"nothing: {self.describe()}."
            )
        return super().hook(model, source)

    def on(self, path: str, source: torch.Generator) -> Disturbance:
        """Return what happens to the layer at a path; its draws depend on the chip and the path alone."""
        # One root for all layers: a layer's draw must not depend on which others are chosen.
        root = source.initial_seed()

        def factor(name: str, value: Tensor) -> Tensor:
            kind = "tau" if name.startswith("leak") else name
            draw = normal(value.shape, generator(root, kind, name, path, device=value.device), value, batch_axis=None)
            draw.mul_(self.level)
            if self.of == "bias":
                return draw
            return draw.exp_() if self.mode == "log-normal" else draw.add_(1).clamp_min_(_LEAST)

        return _Frozen(_NAMES[self.of], factor)

    def describe(self) -> str:
        """Return the level with its unit."""
        if self.of == "bias":
            return f"offset currents of standard deviation {percent(self.level)} of the threshold, {self._where()}"
        what = "θ" if self.of == "threshold" else "τ"
        level = f"{self.level:.4g} in ln {what} (log-normal)" if self.mode == "log-normal" else None
        level = level or f"{percent(self.level)} of {what} (gaussian)"
        return f"mismatch of neurons of standard deviation {level}, {self._where()}"


class _Frozen:
    """Numbers of neurons times, or plus, what their chip says."""

    def __init__(self, names: tuple[str, ...], factor: Callable[[str, Tensor], Tensor]) -> None:
        self._names, self._factor = names, factor

    def changed(self, name: str, value: Tensor) -> Tensor:
        """Return one number of each neuron as the chip has it."""
        if name not in self._names:
            return value
        factor = self._factor(name, value)
        if name == "bias":
            return value + factor
        return value * factor if name == "threshold" else value ** (1 / factor)

    def membrane(self, like: Tensor) -> None:
        """Add nothing."""
        return


@dataclass(frozen=True)
class MembraneNoise(NeuronFault):
    """Noise on membranes: u' = u + level·θ·R with R ~ N(0, 1) for each neuron, step, sample and forward pass.

    Membranes keep what the noise did, as they keep currents. Neurons whose membranes take up a step's current as it is get
    it with the current, so that the compiled loops run as ever.

    Args:
        level: a standard deviation as a share of the threshold, in [0, 1]; 0.1 for 10 %.
        only: glob patterns of module paths; without one, all layers of neurons.

    Raises:
        UsageError: a level out of range.
    """

    level: Number

    def __post_init__(self) -> None:
        check_share(self.level, "the level of membrane noise")

    @property
    def stage(self) -> str:
        """The read."""
        return "read"

    @property
    def needed(self) -> str:
        """Their membranes."""
        return "membrane"

    def on(self, path: str, source: torch.Generator) -> Disturbance:
        """Return what happens to a layer."""
        return _Noisy(self.level, source)

    def describe(self) -> str:
        """Return the level with its unit."""
        return (
            f"membrane noise of standard deviation {percent(self.level)} of the threshold, fresh at each step and read, "
            f"{self._where()}"
        )


class _Noisy:
    """Fresh noise at each call."""

    def __init__(self, level: float, source: torch.Generator) -> None:
        self._level, self._source = level, source

    def changed(self, name: str, value: Tensor) -> Tensor:
        """Change nothing."""
        return value

    def membrane(self, like: Tensor) -> Tensor:
        """Return noise in units of the threshold."""
        return normal(like.shape, fresh(self._source, like), like, batch_axis=None).mul_(self._level)


def _timeless(layer: Disturbed) -> bool:
    """Tell whether a layer's leaks are all 0 or 1; one whose leak is called otherwise has time constants."""
    leak = getattr(layer, "leak", None)
    if leak is None:
        return False
    values = torch.as_tensor(leak).detach()
    return bool(((values <= 0) | (values >= 1)).all())
