"""Linear models, and the exact distance of their nearest adversarial points."""

import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.hyperplanes import steps_to_hyperplanes
from stalwart.core.random import generator

BALLS = {"linf": sw.Linf, "l2": sw.L2, "l1": sw.L1}


def linear(classes, boxed, width=6):
    """Return a linear model, inputs, labels and their box; half of the boxed inputs lie on a face."""
    torch.manual_seed(classes)
    model = nn.Linear(width, classes).double()
    x = torch.rand(12, width, generator=generator(classes), dtype=torch.float64)
    x, box = ((1.6 * x - 0.3).clamp(0, 1), (0.0, 1.0)) if boxed else (2 * x - 1, (-4.0, 4.0))
    return model, x, model(x).argmax(1), {"low": box[0], "high": box[1]}


def distances(model, x, y, box, norm):
    """Return the exact distance of the nearest adversarial point inside the box, and whether a face binds there."""
    z, best, binds = model(x).detach(), torch.full((len(x),), torch.inf, dtype=torch.float64), torch.zeros(len(x)) > 0
    for k in range(z.shape[1]):
        slope = (model.weight[k][None] - model.weight[y]).detach()
        gap = z.gather(1, y[:, None])[:, 0] - z[:, k]
        _, sizes, short = steps_to_hyperplanes(norm, x, slope[:, None], gap[:, None], **box)
        size = sizes[:, 0].masked_fill((short[:, 0] > 1e-9) | (y == k), torch.inf)
        free = gap / slope.norm(p={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
        binds = torch.where(size < best, size > 1.001 * free, binds)
        best = torch.minimum(best, size)
    return best, binds


def radii_around(exact):
    """Return radii of which half are too small and half large enough, by 3 %."""
    return exact.nan_to_num(posinf=1.0) * torch.where(torch.arange(len(exact)) % 2 == 0, 0.97, 1.03)
