"""Attacks of torchattacks and foolbox, or any function, run as ours are: the set is enforced, and success is judged by us."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import derive
from stalwart.sets import ThreatSet
from stalwart.sets.base import radii

_SLACK = 1e-5
"""What other tools may leave the set by for rounding, in units of the box or the radius; ours is then put back."""


@dataclass(frozen=True, kw_only=True)
class Foreign(Attack):
    """Somebody else's attack under our checks.

    Its points must lie in the threat set, whatever it was told; whether they succeed is judged on our own passes. It meets the
    model in evaluation mode, and torch's, numpy's and Python's global generators are seeded and restored. Costs are passes of
    the batch as a whole, a mean of its samples.

    Attributes:
        attack: with the style "torchattacks", a function of (model, within) that returns what is then called as ``atk(x, y)``,
            such as ``lambda model, within: torchattacks.PGD(model, eps=within.size)``, or such an object itself, whose model
            and radius stay what they are; with the style "foolbox", a foolbox attack.
        style: how it is called.
    """

    attack: Any
    style: Literal["torchattacks", "foolbox"] = "torchattacks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.attack):
            raise UsageError(f"a foreign attack must be callable, got a {type(self.attack).__name__}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return what the attack returns.

        Raises:
            InputError: it fails, returns something else than inputs of the same shape, NaN, or points outside the set.
        """
        with _global_seed(derive(seed, "foreign")), _counted(oracle, x), torch.enable_grad():
            # Others may write into their arguments.
            z = self._call(oracle.model, x.clone(), y.clone(), within)
        name = _name(self.attack)
        if not isinstance(z, Tensor) or z.shape != x.shape or not z.is_floating_point():
            got = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InputError(f"{name} must return adversarial inputs of shape {list(x.shape)}, but it returned {got}.")
        z = z.detach().to(x)
        inside = within.contains(x, z, _SLACK)
        if not inside.all():
            bad = int((~inside).nonzero()[0])
            raise InputError(
                f"{name} left {within.describe()} in {int((~inside).sum())} of {len(x)} samples, first in sample {bad}; give "
                "it the same norm, radius and box, or judge it in a larger set."
            )
        return z

    def _call(self, model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet) -> Any:
        if self.style == "foolbox":
            return self._foolbox(model, x, y, within)
        held = getattr(self.attack, "model", None)
        if isinstance(held, nn.Module):
            if held is not model:
                raise InputError(
                    f"{_name(self.attack)} holds another model than the one that is judged; hand over a function of "
                    "(model, within) that builds it."
                )
            return self.attack(x, y)
        return self.attack(model, within)(x, y)

    def _foolbox(self, model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet) -> Tensor:
        from foolbox import PyTorchModel

        network = PyTorchModel(model, bounds=(within.low, within.high), device=x.device)
        eps = radii(within.radius, x)
        z = x.clone()
        # foolbox takes one radius for all inputs.
        for one in eps.unique().tolist():
            index = (eps == one).nonzero()[:, 0]
            _, clipped, _ = self.attack(network, x[index], y[index], epsilons=one)
            z[index] = clipped
        return z


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's and Python's global generators inside the block, which other tools draw from; torch's already are."""
    before, own = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        random.setstate(own)


@contextlib.contextmanager
def _counted(oracle: Oracle, x: Tensor) -> Iterator[None]:
    """Add the passes of the model inside the block to the oracle's, as a mean of the batch, rounded up."""
    forwards = backwards = 0

    def passed(module: nn.Module, inputs: Any, logits: Any) -> None:
        nonlocal forwards
        forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(returned)

    def returned(gradient: Tensor) -> None:
        nonlocal backwards
        backwards += len(gradient)

    with oracle.model.register_forward_hook(passed):
        yield
    oracle.forwards += -(-forwards // len(x))
    oracle.backwards += -(-backwards // len(x))


def _name(attack: Callable[..., Any]) -> str:
    return getattr(attack, "__name__", type(attack).__name__)
