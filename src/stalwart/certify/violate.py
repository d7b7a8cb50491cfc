"""The attack that comes before a proof: gradient descent towards an unsafe set of outputs, inside a box of inputs."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.interchange.property import Case


@dataclass(frozen=True)
class Descent:
    """Projected gradient descent on how far outputs are from an unsafe set, max over its rows of C y - d.

    The steps are signs, first of a quarter of the box's radius, smaller later (Madry et al., 2018, on another loss).

    Attributes:
        steps: gradient steps.
        restarts: starts for each unsafe set: the centre, and random points of which every other one is a corner.
    """

    steps: int = 60
    restarts: int = 24

    def __post_init__(self) -> None:
        require(self.steps >= 1 and self.restarts >= 1, "steps and restarts must be at least 1.")


def inside(x: Tensor, case: Case) -> Tensor:
    """Return x [N, n] moved into the box of a case, in the precision of x: rounded inward, where the box has such numbers."""
    lower, upper = case.ends(x.dtype)
    return torch.minimum(torch.maximum(x, lower), upper)


def descend(
    model: nn.Module, shape: tuple[int, ...], case: Case, how: Descent, seed: int, deadline: float
) -> tuple[Tensor, Tensor]:
    """Return the best points [Q, n] found, one for each unsafe set of a case, and their distances [Q]; below 0 is unsafe.

    Args:
        model: maps [B, *shape] to [B, K], in float32.
        shape: of one input.
        case: box and unsafe sets.
        how: steps and restarts.
        seed: root of the random starts.
        deadline: the moment of :func:`time.monotonic` to stop at.
    """
    sets, rows = len(case.unsafe), max(len(one.d) for one in case.unsafe)
    C, d = padded(case, rows, torch.float32)
    low, high = case.lower.float(), case.upper.float()
    draws = torch.rand(how.restarts, sets, len(low), generator=generator(seed, "violate"))
    draws[::2] = draws[::2].round()
    draws[0] = 0.5
    index = torch.arange(sets).repeat(how.restarts)
    x = inside((low + draws * (high - low)).flatten(0, 1), case)
    best, value = x[:sets].clone(), torch.full((sets,), torch.inf)
    reach = (high - low) / 2
    for step in range(how.steps + 1):
        x.requires_grad_(True)
        y = model(x.unflatten(1, shape))
        excess = (torch.einsum("nrk,nk->nr", C[index], y) - d[index]).amax(1)
        (gradient,) = torch.autograd.grad(excess.sum(), x)
        x, now = x.detach(), excess.detach().nan_to_num(torch.inf)
        for one in range(sets):
            mine = now.view(how.restarts, sets)[:, one]
            at = int(mine.argmin())
            if mine[at] < value[one]:
                value[one], best[one] = mine[at], x.view(how.restarts, sets, -1)[at, one]
        if bool((value < 0).any()) or step == how.steps or time.monotonic() > deadline:
            break
        size = 0.25 * (1 - step / how.steps) + 0.01
        x = inside(x - size * reach * gradient.sign(), case)
    return best, value


def padded(case: Case, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return all unsafe sets as C [Q, R, K] and d [Q, R]; sets of fewer rows repeat their first one."""
    fill = [[*range(len(one.d)), *[0] * (rows - len(one.d))] for one in case.unsafe]
    C = torch.stack([one.C[at] for one, at in zip(case.unsafe, fill, strict=True)])
    d = torch.stack([one.d[at] for one, at in zip(case.unsafe, fill, strict=True)])
    return C.to(dtype), d.to(dtype)
