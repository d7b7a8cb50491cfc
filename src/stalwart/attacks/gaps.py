"""How far the other classes are behind the label, and in which direction each catches up."""

import torch
from torch import Tensor

from stalwart.attacks.oracle import Oracle


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
    leaf, logits = oracle.trace(z, samples)
    others = logits.detach().scatter(1, y[:, None], -torch.inf).topk(count, 1).indices
    lead = logits.gather(1, others) - logits.gather(1, y[:, None])
    slopes = [oracle.pull(lead[:, one], leaf, samples, again=one + 1 < count) for one in range(count)]
    return -lead.detach(), torch.stack(slopes, 1), others
