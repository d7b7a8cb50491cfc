"""The ℓ2 ball: the Euclidean length of the change is at most eps."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.sets.base import NormBall, expand, radii, round_up

# Farther out than this a point's direction is all that matters; the limit keeps infinities from turning into NaN.
_HORIZON = 1e18


@dataclasses.dataclass(frozen=True, eq=False)
class L2(NormBall):
    """The set {z : ||z - x||_2 <= eps, low <= z <= high}.

    Args:
        eps: radius in data units, at least 0: a float, a string such as ``"128/255"``, or one value a sample [B].
        low: smallest valid input value.
        high: largest valid input value, above ``low``.

    Raises:
        UsageError: a negative or non-finite radius, or ``low >= high``.

    Example:
        >>> L2(0.5).describe()
        'L2 eps=0.5'
    """

    name = "l2"

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return ``z`` drawn back along its ray to the sphere, then clipped to the box.

        Both are short cuts: the exact projection on the intersection needs an iteration. The result is in the set all
        the same, because clipping moves every coordinate towards ``x``, which is inside the box.
        """
        x = self._clean(x)
        delta = z.clamp(-_HORIZON, _HORIZON) - x
        length = _length(delta)
        eps = radii(self.radius, x)
        # Storing x + delta rounds every coordinate; a radius shorter by the worst sum of these stays inside for sure.
        largest = max(abs(self.low), abs(self.high))
        rounding = torch.finfo(x.dtype).eps / 2 * largest * delta[:1].numel() ** 0.5
        shrink = (eps - rounding).clamp_min(0) / length.clamp_min(torch.finfo(length.dtype).tiny)
        inside = (length <= eps).reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(inside, z, x + delta * expand(shrink, x)).clamp(self.low, self.high)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return a uniform point of the ball (direction normal, radius eps·U^(1/n)) clipped to the box."""
        direction = self.steepest(random.normal(x.shape, generator, x))
        share = random.uniform(x.shape[:1], generator, x) ** (1 / max(x[:1].numel(), 1))
        return self.project(x, x + direction * expand(share, x) * expand(self.radius, x))

    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return g / ||g||_2 of each sample."""
        # Dividing by the largest entry first keeps the squares of tiny and huge gradients in range.
        largest = gradient.abs().flatten(1).amax(1)
        even = gradient / expand(torch.where(largest > 0, largest, 1.0), gradient)
        return even / expand(_length(even).clamp_min(1.0), gradient)

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return max <c, z> over ball and box together, by its one-dimensional dual solved exactly; rounded up.

        With δ = z - x and the box's δ ∈ [low - x, high - x], the maximum is the least value over λ > 0 of

            <c, δ_λ> + (eps² - ||δ_λ||²) / (2λ),   δ_λ = clip(λc, low - x, high - x),

        attained where ||δ_λ|| = eps. Coordinate i meets its face at λ = t_i = face_i / c_i; between two neighbouring t
        the length is a closed form of λ, so that a sort finds the optimum. Every λ gives an upper bound (weak
        duality): rounding in λ cannot make the result too small.
        """
        centre = self._clean(x.double()).flatten(1)
        slope = c.double().flatten(1)
        face = torch.where(slope > 0, self.high - centre, torch.where(slope < 0, self.low - centre, 0.0))
        eps = radii(self.radius, x)
        with torch.no_grad():
            rate, within = _dual_optimum(face, slope, eps)
        clipped = slope.sign() * face.abs().minimum(slope.abs() * rate[:, None])
        delta = torch.where(within[:, None], face, clipped)
        slack = (eps.square() - delta.square().sum(1)) / (2 * torch.where(rate > 0, rate, 1.0))
        best = (slope * (centre + delta)).sum(1) + torch.where(within | (rate == 0), 0.0, slack)
        return round_up(best, x.dtype)

    def distance(self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return ||z - x||_2 of each sample, in float64."""
        return _length(z - x)

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        eps = radii(self.radius, x)
        return _length(z - x) <= eps + tolerance * eps.clamp_min(unit)


def _length(delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)


def _dual_optimum(face: Tensor, slope: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return λ [B] with ||clip(λc)|| = eps, and whether the farthest corner is inside the ball (then λ is free)."""
    meets = torch.where(slope == 0, 0.0, face / torch.where(slope == 0, 1.0, slope))
    meets, order = meets.sort(dim=1)
    stopped = face.gather(1, order).square().cumsum(1)
    squares = slope.gather(1, order).square()
    # A sum from the far end, not a difference of two sums, which would cancel.
    moving = squares.flip(1).cumsum(1).flip(1)
    after = torch.cat([moving[:, 1:], torch.zeros_like(moving[:, :1])], 1)
    reached = stopped + meets.square() * after <= eps.square()[:, None]
    within = reached[:, -1]
    count = reached.sum(1).clamp_max(face.shape[1] - 1)[:, None]
    before = torch.cat([torch.zeros_like(stopped[:, :1]), stopped], 1).gather(1, count).squeeze(1)
    still = moving.gather(1, count).squeeze(1)
    rate = ((eps.square() - before).clamp_min(0) / torch.where(still > 0, still, 1.0)).sqrt()
    return rate, within
