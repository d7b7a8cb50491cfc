"""What every device model is: a frozen record that changes a dict of named parameters, and chains of them.

    Quantise(8) | Mismatch(0.1) | OutputNoise(0.02)

in the physical order quantise -> program -> drift -> read. What happens before the read is frozen for each chip; what
happens at the read is drawn anew at each forward pass.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.hardware.names import change, choose, draw_seed

if TYPE_CHECKING:
    from stalwart.hardware.chip import Chip

STAGES = ("quantise", "program", "drift", "read")


@runtime_checkable
class Handle(Protocol):
    """What takes a fault off a layer again."""

    def remove(self) -> None:
        """Take it off."""


Reader = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]
"""One read of a programmed chip: parameters and a source of randomness to parameters."""


class Hardware(abc.ABC):
    """A fault or a chain of faults."""

    @property
    @abc.abstractmethod
    def faults(self) -> tuple["Fault", ...]:
        """The faults in the order in which they act."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return one readable line: each level with its unit, and whether it is a standard deviation or a range."""

    def apply(self, params: dict[str, Tensor], source: torch.Generator) -> dict[str, Tensor]:
        """Return the parameters as one chip holds them at one read; those given stay as they are.

        Args:
            params: floating-point tensors by name; the same tensor under two names gets one draw.
            source: the source of randomness, on the CPU.

        Raises:
            UsageError: a fault's ``only`` names parameters that do not exist.
            InputError: a chosen tensor is not float32 or float64.
        """
        with torch.no_grad():
            for fault in self.faults:
                params, reader = fault.place(params, source)
                params = params if reader is None else reader(params, source)
        return params

    def chip(self, model: nn.Module, seed: int, reads: int = 0) -> "Chip":
        """Return chip number ``seed`` with the model's parameters: a context in which the model is that chip.

        Args:
            model: any module; outside the context it is as before, bit for bit.
            seed: of what is frozen in the chip.
            reads: of what is drawn anew at each forward pass.

        Raises:
            UsageError, InputError: as :meth:`apply`.
        """
        from stalwart.hardware.chip import Chip

        return Chip(model, self, seed, reads)

    def __or__(self, other: "Hardware") -> "Device":
        return Device(self.faults + other.faults)


@dataclass(frozen=True)
class Fault(Hardware):
    """One thing that is wrong with a device.

    Args:
        only: glob patterns of the parameters it acts on, such as "*weight" or ("fc*", "*threshold"). Without one: weights of
            two dimensions or more, and for most faults the biases beside them; normalisation layers never.
    """

    only: str | tuple[str, ...] = field(default=(), kw_only=True)
    biases: ClassVar[bool] = True
    """Whether the default choice takes the biases beside the matrices."""

    @property
    def faults(self) -> tuple["Fault", ...]:
        """This one alone."""
        return (self,)

    @property
    @abc.abstractmethod
    def stage(self) -> str:
        """When it happens: one of :data:`STAGES`."""

    @property
    def last_stage(self) -> str:
        """The stage at which it ends, where it is more than one thing."""
        return self.stage

    @property
    def must_change(self) -> bool:
        """Whether a chip on which it changed no parameter at all must be a mistake."""
        return False

    @property
    def on_layers(self) -> bool:
        """Whether it acts on what layers see or give rather than on parameters."""
        return False

    def place(self, params: dict[str, Tensor], source: torch.Generator) -> tuple[dict[str, Tensor], Reader | None]:
        """Return the parameters with what is frozen, and what each read then does to them, None for nothing."""
        if self.stage == "read":
            choose(params, self.only, self.biases)
            return params, self._changed
        return self._changed(params, source), None

    def hook(self, model: nn.Module, source: torch.Generator) -> Sequence[Handle]:
        """Hang the fault on layers of the model; ``source`` seeds each forward pass, or what is frozen in the chip."""
        return []

    def missed(self, model: nn.Module, x: Tensor) -> list[str]:
        """Return the layers it is meant for that it does not reach when the model runs on inputs [B, ...]."""
        return []

    def perturb(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        """Return one tensor as the device holds it.

        Args:
            tensor: float32 or float64, any shape.
            source: a stream of this tensor's own, on its device.
        """
        raise NotImplementedError

    def _changed(self, params: Mapping[str, Tensor], source: torch.Generator) -> dict[str, Tensor]:
        return change(params, choose(params, self.only, self.biases), source, self.perturb)

    def _where(self) -> str:
        if self.only:
            return f"on {self.only if isinstance(self.only, str) else ', '.join(self.only)}"
        return "on weight matrices and their biases" if self.biases else "on weight matrices"


@dataclass(frozen=True)
class Device(Hardware):
    """Faults one after the other.

    Args:
        parts: in the physical order quantise -> program -> drift -> read.

    Raises:
        UsageError: another order.
    """

    parts: tuple[Fault, ...]

    def __post_init__(self) -> None:
        require(bool(self.parts), "a device needs at least one fault.")
        for before, after in zip(self.parts, self.parts[1:], strict=False):
            if STAGES.index(before.last_stage) > STAGES.index(after.stage):
                raise UsageError(
                    f"{type(after).__name__} happens at stage '{after.stage}', before {type(before).__name__} at stage "
                    f"'{before.last_stage}'; write them in the physical order {' -> '.join(STAGES)}."
                )

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The parts."""
        return self.parts

    def describe(self) -> str:
        """Return the lines of the parts, joined by |."""
        return " | ".join(part.describe() for part in self.parts)


def streams(faults: tuple[Fault, ...], seed: int, *path: object) -> list[torch.Generator]:
    """Return a generator for each fault that depends on its kind alone, not on what stands before it.

    A chip's bit flips are thus the same with and without other faults in the chain; the second fault of a kind differs.
    """
    kinds = [type(fault).__name__ for fault in faults]
    return [generator(seed, *path, kind, kinds[:place].count(kind)) for place, kind in enumerate(kinds)]


def fresh(source: torch.Generator, like: Tensor) -> torch.Generator:
    """Return a new generator on the device of ``like``, seeded from ``source``."""
    return generator(draw_seed(source), device=like.device)


def check_share(value: float, what: str) -> None:
    """Refuse what is not a share in [0, 1].

    Raises:
        UsageError: out of range, or what looks like percent.
    """
    if not 0 <= value <= 1:
        hint = f" For {value:g} % write {value / 100:g}." if 1 < value <= 100 else ""
        raise UsageError(f"{what} is a share in [0, 1], got {value:g}.{hint}")


def percent(value: float) -> str:
    """Return a share as text in percent."""
    return f"{100 * value:.4g} %"
