"""What attacks on binary rasters have in common: the set they work in, and the search for the fewest flips that fool."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack
from stalwart.attacks.losses import margin
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError
from stalwart.sets import Events, ThreatSet


@dataclass(frozen=True, kw_only=True)
class EventAttack(Attack):
    """Base record of attacks that look for few flips of a binary raster; the flips of the threat set are their cap.

    Success takes another logit that is larger than the label's: spiking networks tie often, and a tie changes no decision.
    """

    ties: ClassVar[bool] = False

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the threat set is one of flipped events."""
        return isinstance(within, Events)

    def require_events(self, within: ThreatSet) -> None:
        """Refuse other sets.

        Raises:
            InputError: the threat set is not one of flipped events.
        """
        if not isinstance(within, Events):
            name = type(self).__name__.lower()
            raise InputError(
                f"{name} flips bins of binary rasters within sw.Events(flips), not in {within.describe()}."
            )


def excess(oracle: Oracle, z: Tensor, y: Tensor, samples: Tensor) -> Tensor:
    """Return max_{j != y} f_j - f_y at z, [B]; the model is fooled where it is above 0. One query each."""
    return margin(oracle.logits(z, samples, oracle.eot).mean(0), y)


def first_fooling(oracle: Oracle, x: Tensor, y: Tensor, order: Tensor, counts: Tensor, samples: Tensor) -> Tensor:
    """Flip bins one after the other and stop at the first prefix that fools, so that its last flip is needed.

    Each pass asks about as many prefixes as there are inputs, several of each input once others are done.

    Args:
        oracle: the model.
        x: binary rasters [B, ...] that do not fool it.
        y: labels [B].
        order: bins in the order of flipping, positions in a flattened raster [B, F].
        counts: how many of them may be flipped, [B], at most F.
        samples: which of the oracle's samples these are, [B].

    Returns:
        rasters [B, ...]: the first prefix that fools or, without one, that of largest margin loss.
    """
    z, found = x.flatten(1).clone(), x.flatten(1).clone()
    best = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    flipped = torch.zeros_like(counts)
    alive = (counts > 0).nonzero()[:, 0]
    while len(alive):
        width = max(len(x) // len(alive), 1)
        ahead = flipped[alive, None] + torch.arange(width, device=x.device)  # [A, width]
        valid = ahead < counts[alive, None]
        bins = order[alive].gather(1, ahead.clamp_max(order.shape[1] - 1))
        tried = z[alive][:, None].repeat(1, width, 1)
        rows = torch.arange(len(alive), device=x.device)
        for j in range(width):
            here, place = rows[valid[:, j]], bins[valid[:, j], j]
            tried[here, j:, place] = 1 - tried[here, j:, place]
        value = torch.full_like(tried[..., 0], -torch.inf)
        owner = alive[:, None].expand_as(valid)[valid]
        value[valid] = excess(oracle, tried[valid].unflatten(1, x.shape[1:]), y[owner], samples[owner])
        fooled = value > 0
        # The first that fools, or the best.
        chosen = torch.where(fooled.any(1), fooled.int().argmax(1), value.argmax(1))
        reached = value[rows, chosen]
        better = reached > best[alive]
        found[alive[better]], best[alive[better]] = tried[rows, chosen][better], reached[better]
        z[alive] = tried[:, -1]
        flipped[alive] += valid.sum(1)
        alive = alive[~fooled.any(1) & (flipped[alive] < counts[alive])]
    return found.reshape(x.shape)
