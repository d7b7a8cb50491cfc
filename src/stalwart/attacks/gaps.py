"""How far the other classes are behind the label, and in which direction each catches up."""

import torch
from torch import Tensor

from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError
from stalwart.stochastic import draw_logits


def gaps(
    oracle: Oracle, z: Tensor, y: Tensor, samples: Tensor, classes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z_y - z_k for the likeliest classes k != y and the gradient of z_k - z_y, from one pass forward.

    All samples share one pass backward a class. Logits of a randomised model are means over the oracle's draws.

    Args:
        oracle: the model.
        z: where [B, ...].
        y: labels [B].
        samples: which samples of the oracle's batch these are [B].
        classes: how many classes k, the likeliest at z first; all K - 1 by default.

    Returns:
        gaps [B, C], negative where the class has caught up, gradients [B, C, ...], and the classes [B, C].

    Raises:
        InputError: the model's output carries no gradient.
    """
    count = min(classes or oracle.classes - 1, oracle.classes - 1)
    z = oracle.arrange(z.detach()).requires_grad_()
    with torch.enable_grad(), FastGradients():
        logits = draw_logits(oracle.model, z, oracle.eot).mean(0)
        if not logits.requires_grad:
            raise InputError(
                "the model's output carries no gradient with respect to its input (it is detached, or computed outside "
                "torch); use 'hopskipjump' or 'square', which need none."
            )
        others = logits.detach().scatter(1, y[:, None], -torch.inf).topk(count, 1).indices
        lead = logits.gather(1, others) - logits.gather(1, y[:, None])
        slopes = [torch.autograd.grad(lead[:, one].sum(), z, retain_graph=one + 1 < count)[0] for one in range(count)]
    cheap = getattr(oracle.model, "cheap_draws", False)
    oracle.forwards[samples] += 1 if cheap else oracle.eot
    oracle.backwards[samples] += count * (1 if cheap else oracle.eot)
    return -lead.detach(), torch.nan_to_num(torch.stack(slopes, 1), nan=0.0, posinf=0.0, neginf=0.0), others
