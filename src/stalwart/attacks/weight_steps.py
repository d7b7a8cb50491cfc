"""The steps of projected gradient ascent on weights, as pure functions; attacks and training losses share them."""

import torch
from torch import Tensor

from stalwart.core import random
from stalwart.sets import RelativeBox
from stalwart.sets.relative import Parameters


def started(
    params: Parameters, within: RelativeBox, noise: float, project: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return theta + noise |theta| R with R ~ N(0, 1), the start of the ascent.

    Args:
        params: the clean parameters theta, by name.
        within: the set around them.
        noise: standard deviation as a share of |theta|.
        project: whether what lies outside the set is put back.
        generator: the source of randomness, on the device of the parameters.
    """
    moved = {
        name: p + noise * p.abs() * random.normal(p.shape, generator, p, batch_axis=None) for name, p in params.items()
    }
    return within.project(params, moved) if project else moved


def stepped(
    params: Parameters, moved: Parameters, slopes: Parameters, within: RelativeBox, steps: int, project: bool
) -> dict[str, Tensor]:
    """Return theta' + (fraction / steps) |theta| sign(slope), one of ``steps`` that together cross half the set.

    Args:
        params: the clean parameters theta, by name.
        moved: the iterate theta'.
        slopes: the gradient there.
        within: the set around theta.
        steps: how many steps there are.
        project: whether what lies outside the set is put back.
    """
    share = within.fraction / steps
    found = {name: moved[name] + share * p.abs() * slopes[name].sign() for name, p in params.items()}
    return within.project(params, found) if project else found


def climbed(moved: Parameters, slopes: Parameters, length: float) -> dict[str, Tensor]:
    """Return theta' + length g / ||g||, the norm taken over all tensors together; theta' itself where g is 0.

    Args:
        moved: the iterate theta', by name.
        slopes: the gradient g there.
        length: of the step, in units of the weights.
    """
    norm = torch.stack([slope.norm() for slope in slopes.values()]).norm()
    scale = torch.where(norm > 0, length / norm, torch.zeros_like(norm))
    return {name: tensor + scale * slopes[name] for name, tensor in moved.items()}
