"""TAPS and STAPS: intervals up to a split layer, adversarial examples of the rest inside them."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.random import uniform
from stalwart.models.classifier import Classifier
from stalwart.models.param_ramp import ParamRamp
from stalwart.objectives.base import Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.certified import Certified, Step, margin_loss, margins_of
from stalwart.objectives.sabr import SmallBoxes

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, ParamRamp)
_HALVES: weakref.WeakKeyDictionary[nn.Module, dict[int, tuple[nn.Module, nn.Module]]] = weakref.WeakKeyDictionary()
"""The halves of each model, kept so that they are traced once; they hold the model's own layers."""


def halves(model: nn.Module, activations: int) -> tuple[nn.Module, nn.Module]:
    """Cut a chain of layers behind an activation so that so many activations are left for the second half.

    Args:
        model: a Classifier whose backbone is a Sequential, or a Sequential.
        activations: of the second half, at least 1.

    Raises:
        UsageError: the model is no chain, or has too few activations.
    """
    kept = _HALVES.setdefault(model, {})
    if activations not in kept:
        chain = _chain(model)
        places = [i for i, layer in enumerate(chain) if isinstance(layer, _ACTIVATIONS)]
        require(
            len(places) > activations,
            f"taps leaves {activations} activations behind the split, but the model has {len(places)} in all; lower split.",
        )
        cut = places[-activations - 1] + 1
        kept[activations] = nn.Sequential(*chain[:cut]), nn.Sequential(*chain[cut:])
    return kept[activations]


def _chain(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, Classifier) and isinstance(model.backbone, nn.Sequential):
        return [model.normalise, *model.backbone, model.head]
    if isinstance(model, nn.Sequential):
        return list(model)
    raise UsageError(
        f"taps splits a chain of layers, which {type(model).__name__} is not; use a plain model or another loss."
    )


class _Connect(torch.autograd.Function):
    """Points of a box; backward, each coordinate's gradient goes to the face it is near."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor, z: Tensor, reach: float) -> Tensor:
        width = upper - lower
        place = torch.where(width > 0, (z - lower) / width, 0.5)
        down, up = (1 - place / reach).clamp_min(0), (1 - (1 - place) / reach).clamp_min(0)
        # A box that is a point moves with both its ends.
        ctx.save_for_backward(torch.where(width > 0, down, 0.5), torch.where(width > 0, up, 0.5))
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        down, up = ctx.saved_tensors
        return gradients[0] * down, gradients[0] * up, None, None


def connect(lower: Tensor, upper: Tensor, z: Tensor, reach: float | int) -> Tensor:
    """Return the points z of the box [lower, upper], with a gradient with respect to its ends.

    With t the place of a coordinate between lower (0) and upper (1), its gradient reaches the lower end with the weight
    max(0, 1 - t / reach) and the upper end with max(0, 1 - (1 - t) / reach).
    Source: Mao, Müller, Fischer, Vechev, NeurIPS 2023 (arXiv 2305.04574), section 3.2, the rectified linear connector.
    """
    found: Tensor = _Connect.apply(lower, upper, z.detach(), float(reach))
    return found


def expand_gradient(value: Tensor, factor: float | int) -> Tensor:
    """Return ``value`` itself, its gradient multiplied by ``factor``."""
    return value.detach() + factor * (value - value.detach())


@dataclass(frozen=True, kw_only=True)
class TAPS(Certified):
    """L_TAPS L_IBP of each sample, where the gradient of L_TAPS counts ``expansion`` times.

    Intervals reach the split layer; inside them one attack for each class j climbs z_j - z_y of the layers behind, and
    L_TAPS = log(1 + Σ_j exp(z_j - z_y)) at those points. L_IBP is that of the whole network's interval bounds.
    Source: Mao, Müller, Fischer, Vechev, "Connecting certified and adversarial training", NeurIPS 2023 (arXiv 2305.04574).

    Attributes:
        split: activations behind the split layer.
        latent_steps: steps of each attack behind it, 2.5 / latent_steps of the interval's half-width each.
        expansion: factor α on the gradient of L_TAPS.
        reach: share c of the interval from a face in which that face gets a gradient, in (0, 0.5].
    """

    split: int = 1
    latent_steps: int = 20
    expansion: Number = 5.0
    reach: Number = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.split >= 1, f"split must leave at least 1 activation behind it, got {self.split}.")
        require(self.latent_steps >= 1, f"latent_steps must be at least 1, got {self.latent_steps}.")
        require(self.expansion > 0, f"expansion must be positive, got {self.expansion}.")
        require(0 < self.reach <= 0.5, f"reach must lie in (0, 0.5], got {self.reach}.")

    def step(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Step:
        """Return the mean of the product of losses."""
        lower, upper = self.region(model, x, y, eps, moment)
        first, second = halves(model, self.split)
        before = CleanPass(first, x)
        after = CleanPass(second, before.logits)
        box = before.box(lower, upper)
        latent = box.output
        behind = after.box(latent.lower, latent.upper)
        z = self.latent_attack(second, latent.lower.detach(), latent.upper.detach(), y, moment)
        each = (len(z) // len(x), *[1] * (z.dim() - 1))
        points = connect(latent.lower.repeat(each), latent.upper.repeat(each), z, self.reach)
        outputs = after.at(points).unflatten(0, (-1, len(x)))
        # Of the attack on class j only the margin to class j counts.
        margins = torch.stack([margins_of(out, y)[:, j] for j, out in enumerate(outputs)], 1)
        attacked = expand_gradient(margin_loss(margins), self.expansion)
        loss = (attacked * margin_loss(behind.margins(y))).mean()
        return Step(loss, after.logits, (box, behind))

    def latent_attack(self, net: nn.Module, lower: Tensor, upper: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Return for each other class in turn the points that maximise z_j - z_y: [(K - 1) B, ...], class by class."""
        with evaluating(net), torch.no_grad():
            others = net(lower[:1]).shape[1] - 1
        target = torch.arange(others, device=y.device).repeat_interleave(len(y))
        low, high, own = (one.repeat(others, *[1] * (one.dim() - 1)) for one in (lower, upper, y))
        # Drawn sample by sample, so that data-parallel processes draw what one process draws.
        draw = uniform((len(y), others, *lower.shape[1:]), moment.generator(lower, "latent"), lower)
        z = low + draw.transpose(0, 1).flatten(0, 1) * (high - low)
        step = 2.5 / self.latent_steps * (high - low) / 2
        with evaluating(net), torch.enable_grad():
            for _ in range(self.latent_steps):
                z.requires_grad_()
                margins = margins_of(net(z), own)
                (gradient,) = torch.autograd.grad(-margins.gather(1, target[:, None]).sum(), z)
                z = (z.detach() + step * gradient.sign()).clamp(low, high)
        return z.detach()


@dataclass(frozen=True, kw_only=True)
class STAPS(SmallBoxes, TAPS):
    """TAPS on SABR's small boxes."""
