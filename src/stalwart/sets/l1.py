"""The ℓ1 ball: the absolute changes of all coordinates together are at most eps."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.sets.base import NormBall, expand, radii, round_up

# In units of high - low. Coordinates farther out than this count as equally far; nearer ones keep differences of 1e-10.
_HORIZON = 2.0**20


@dataclasses.dataclass(frozen=True, eq=False)
class L1(NormBall):
    """The set {z : ||z - x||_1 <= eps, low <= z <= high}.

    Args:
        eps: radius in data units, at least 0: a float, a string such as ``"12"``, or one value a sample [B].
        low: smallest valid input value.
        high: largest valid input value, above ``low``.

    Raises:
        UsageError: a negative or non-finite radius, or ``low >= high``.

    Example:
        >>> L1(12).describe()
        'L1 eps=12'
    """

    name = "l1"

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return the Euclidean projection of ``z`` on ball and box together, exact to rounding.

        With d = z - x and a multiplier λ >= 0 of the ball, the problem falls apart into coordinates:

            w_i(λ) = clip(x_i + sign(d_i) max(|d_i| - λ, 0), low, high).

        ||w(λ) - x||_1 falls with λ and is linear between the 2n values |d_i|, where coordinate i starts to move, and
        |d_i| - room_i, where it meets its face; sorting them finds the λ at which it is eps. Changes are rounded towards
        ``x``, so that the point never leaves the ball, however many coordinates there are.

        Source: Duchi et al., ICML 2008 (the ball alone); Croce and Hein, ICML 2021 (arXiv 2103.01208), proposition 2.1
        (ball and box).
        """
        x = self._clean(x)
        near = z.clamp(self.low, self.high)
        eps = radii(self.radius, x)
        centre = x.double()
        far = _HORIZON * (self.high - self.low)
        delta = (z.double() - centre).clamp(-far, far)
        room = torch.where(delta > 0, self.high - centre, centre - self.low).clamp_min(0)
        size = _shrink(delta.abs().flatten(1), room.flatten(1), eps).reshape(x.shape)
        point = (centre + delta.sign() * size).to(x.dtype)
        beyond = (point.double() - centre).abs() > size
        point = torch.where(beyond, torch.nextafter(point, x), point).clamp(self.low, self.high)
        inside = _length(near.double() - centre) <= eps
        return torch.where(inside.reshape(-1, *[1] * (x.dim() - 1)), near, point)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return a uniform point of the ball clipped to the box.

        δ = eps·s·e / (Σ_i e_i + e') with independent exponential e_1..e_n, e' and random signs s is uniform in the ball
        (Barthe, Guédon, Mendelson and Naor, Annals of Probability 33(2), 2005, with p = 1).
        """
        amount = _exponential(x.shape, generator, x)
        signs = torch.where(random.uniform(x.shape, generator, x) < 0.5, -1.0, 1.0)
        total = _length(amount) + _exponential(x.shape[:1], generator, x)
        share = radii(self.radius, x) / total.clamp_min(torch.finfo(x.dtype).tiny)
        return self.project(x, x + signs * amount * expand(share, x))

    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return sign(g_i) at the coordinate i of largest |g_i| (the first of equals) and 0 elsewhere.

        This is the vertex of the unit ball, whatever room the box leaves there; :meth:`uphill` looks at that room. Sparse steps
        over several coordinates (SLIDE, Tramèr and Boneh, 2019; APGD for ℓ1, Croce and Hein, 2021) need fewer of them.
        """
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(1, keepdim=True)
        signs = flat.gather(1, largest).sign()
        return torch.zeros_like(flat).scatter(1, largest, signs).reshape(gradient.shape)

    def uphill(
        self, z: Float[Tensor, " batch *shape"], gradient: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return the steepest direction among coordinates that can still move: others would waste the whole step."""
        blocked = ((z >= self.high) & (gradient > 0)) | ((z <= self.low) & (gradient < 0))
        return self.steepest(gradient.masked_fill(blocked, 0.0))

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return max <c, z> over ball and box together, rounded up.

        A fractional knapsack (Dantzig, 1957): coordinates in order of falling |c_i| move to their face of the box, which
        takes room_i of eps and gains |c_i| room_i, until eps is spent; the last one goes as far as it gets.
        """
        centre, slope = self._clean(x.double()).flatten(1), c.double().flatten(1)
        room = torch.where(slope > 0, self.high - centre, centre - self.low)
        order = slope.abs().argsort(1, descending=True)
        ranked = room.gather(1, order)
        spent = torch.nn.functional.pad(ranked[:, :-1].cumsum(1), (1, 0))
        taken = (radii(self.radius, x)[:, None] - spent).clamp_min(0).minimum(ranked)
        best = (slope * centre).sum(1) + (slope.abs().gather(1, order) * taken).sum(1)
        return round_up(best, x.dtype)

    def distance(self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return ||z - x||_1 of each sample, in float64."""
        return _length(z - x)

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        eps = radii(self.radius, x)
        return _length(z - x) <= eps + tolerance * eps.clamp_min(unit)


def _length(delta: Tensor) -> Tensor:
    return delta.abs().flatten(1).sum(1, dtype=torch.float64)


def _exponential(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    return -torch.log1p(-random.uniform(shape, generator, like))


def _shrink(length: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Return min(max(length - λ, 0), room) [B, n] with the λ >= 0 that brings its sum down to eps [B]."""
    coordinates = length.shape[1]
    turn, order = torch.cat([length, length - room], 1).sort(1, descending=True)
    moving = torch.where(order < coordinates, 1.0, -1.0).double().cumsum(1)
    # As λ falls from one turn to the next the sum grows by what moves: terms of one sign, which do not cancel.
    reached = (moving[:, :-1] * (turn[:, :-1] - turn[:, 1:])).cumsum(1)
    last = (reached < eps[:, None]).sum(1, keepdim=True).clamp_max(max(2 * coordinates - 2, 0))
    before = torch.nn.functional.pad(reached, (1, 0)).gather(1, last)
    rate = moving.gather(1, last).clamp_min(1)
    # Distances from the last turn, unlike λ itself, are as exact as eps needs.
    past, step = length - turn.gather(1, last), (eps[:, None] - before) / rate
    return (past + step).clamp_min(0).minimum(room)
