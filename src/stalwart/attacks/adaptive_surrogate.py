"""An attack on spiking networks whose assumed derivative of a spike adapts to each neuron as the attack goes on."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.apgd import checkpoints
from stalwart.attacks.ascent import TRUSTED_DRAWS
from stalwart.attacks.base import Attack, Count
from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError, UsageError
from stalwart.core.hooks import removing
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.sets import Linf, ThreatSet
from stalwart.sets.base import expand
from stalwart.spiking import LIF, Surrogate, neurons
from stalwart.spiking.neurons import restored


class AdaptiveAtan(Surrogate):
    """σ' = (α/2) / (1 + (π α z / 2)²) with a sharpness of its own for each neuron, step and sample.

    α = a / (M + 1.5 D + 1e-4), where M and D follow |z| and its deviation from M from one gradient to the next, so that A of
    the derivative's mass lies within M + 1.5 D of the threshold: a = (2/π) tan(π A).

    Args:
        mass: A in (0, 1/2).

    Source: arXiv 2512.22522, adaptive sharpness surrogate gradient, code.
    """

    def __init__(self, mass: float) -> None:
        self.height = 2 / math.pi * math.tan(math.pi * mass)
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None
        self.learns = True

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z); where it learns, M and D are brought up to date before, once."""
        size = z.abs()
        if self.mean is None or self.deviation is None:
            self.mean, self.deviation = torch.ones_like(z), torch.zeros_like(z)
        if self.learns:
            self.mean = 0.9 * self.mean + 0.1 * size
            self.deviation = 0.9 * self.deviation + 0.1 * (size - self.mean).abs()
            self.learns = False
        alpha = self.height / (self.mean + 1.5 * self.deviation + 1e-4)
        return (alpha / 2) / (1 + (math.pi / 2 * alpha * z).square())


@dataclass(frozen=True, kw_only=True)
class AdaptiveSurrogateAttack(Attack):
    """SA-PGD with the adaptive sharpness surrogate: momentum over normalised gradients, steps scaled by their variance.

        m <- 0.5 m + g / mean|g|;  v <- 0.8 v + g² / mean(g²);  x <- Π(x + clip(η m / √v, -η, η))

    η starts at the radius and is halved after 0.22 of the steps, then after intervals that shrink by 0.03 to 0.06 of them.
    M and D stand still over the draws of one step of a randomised network.

    Attributes:
        steps: K, at least 1.
        loss: what is climbed.
        mass: A in (0, 1/2), see :class:`AdaptiveAtan`.

    Source: arXiv 2512.22522, code.
    """

    steps: Count = 100
    loss: LossName = "ce"
    mass: Number = 0.425

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(0 < self.mass < 0.5, f"mass must lie in (0, 1/2), got {self.mass}.")
        require(
            not self.loss.startswith("targeted"), "the adaptive surrogate attack is untargeted; use ce, margin or dlr."
        )
        require(
            self.surrogate is None and self.backward is None, "this attack chooses the surrogate itself; leave it out."
        )

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether all neurons are LIF neurons and the threat set is a linf ball."""
        return isinstance(within, Linf) and bool(_lif_layers(model))

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Keep each sample's iterate of highest loss, or on a deterministic network the first that is misclassified."""
        if not isinstance(within, Linf):
            raise UsageError(f"the adaptive surrogate attack works in linf balls, not in {within.describe()}.")
        goal, index = Goal(self.loss, y), torch.arange(len(x), device=x.device)
        z = within.sample(x, generator(seed, "start", device=x.device))
        found, best = z.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        radius = torch.as_tensor(expand(within.radius, x), dtype=x.dtype, device=x.device)
        halvings = checkpoints(self.steps)
        keep_best = not oracle.randomised or oracle.eot >= TRUSTED_DRAWS

        def keep(value: Tensor, logits: Tensor) -> None:
            wrong = goal.broken(logits) if oracle.decisive else torch.zeros_like(broken)
            better = ((value > best) | wrong) & ~broken
            found[better], best[better] = z[better], value[better]
            broken.logical_or_(wrong)

        with _adapted(oracle.model, self.mass) as surrogates:
            for k in range(self.steps):
                for one in surrogates:
                    one.learns = True
                value, logits, gradient = oracle.gradient(z, goal, index)
                keep(value, logits)
                if broken.all():
                    return found
                flat = gradient.flatten(1)
                mean = expand(flat.abs().mean(1).clamp_min(1e-30), x)
                power = expand(flat.square().mean(1).clamp_min(1e-30), x)
                first = 0.5 * first + gradient / mean
                second = 0.8 * second + gradient.square() / power
                eta = radius * 0.5 ** sum(k >= one for one in halvings)
                step = eta * first / second.sqrt().clamp_min(1e-12)
                z = within.project(x, z + step.clamp(-eta, eta))
            if not keep_best:
                return z
            last = oracle.logits(z, index, oracle.eot)
        keep(oracle.averaged(last, goal), last[-1])
        return found


@contextlib.contextmanager
def _adapted(model: nn.Module, mass: float) -> Iterator[list[AdaptiveAtan]]:
    """Let every layer of neurons take a surrogate of its own inside the block."""
    layers = _lif_layers(model)
    if not layers:
        raise InputError("the adaptive surrogate needs a spiking network of LIF neurons; attack this model by pgd.")
    surrogates = [AdaptiveAtan(mass) for _ in layers]
    # A watched network passes as a whole; in parts, M and D of one part would meet those of another.
    hooks = [layer.register_forward_hook(lambda module, inputs, out: None) for layer in layers]
    with removing(hooks), restored(layers):
        for layer, surrogate in zip(layers, surrogates, strict=True):
            layer.choose(surrogate, "bptt")
        yield surrogates


def _lif_layers(model: nn.Module) -> list[LIF]:
    """Return the model's layers of neurons; none if not all are LIF neurons."""
    layers = neurons(model).values()
    found = [layer for layer in layers if isinstance(layer, LIF)]
    return found if len(found) == len(layers) else []
