"""SparseFool: few changed pixels, from DeepFool's linearised boundary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.deepfool import cross
from stalwart.attacks.gaps import gaps
from stalwart.attacks.hyperplanes import step_to_hyperplane
from stalwart.attacks.minimal import MinimalAttack, misread
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import L0, L1, ThreatSet


@dataclass(frozen=True, kw_only=True)
class SparseFool(MinimalAttack):
    """Go to the boundary that DeepFool found, linearised there, by changing as few coordinates as can be; l0 and l1.

        z_B <- z + control (DeepFool(z) - z);  w <- grad (z_k - z_y)(z_B);  z <- argmin ||z' - z|| with <w, z' - z_B> = 0

    in the box, k the class at z_B. For l1 the minimum moves coordinates of largest |w_i| to their faces, one by one, as
    published; for l0 it moves whole locations (a pixel with all its channels), those of largest gain first.
    Source: Modas, Moosavi-Dezfooli, Frossard, CVPR 2019 (arXiv 1811.02248), algorithms 1 and 2.

    Attributes:
        steps: linearisations at most, at least 1.
        control: λ, how far behind DeepFool's point the plane is put, at least 1; a larger one takes fewer steps to a farther
            point.
        overshoot: how much farther than the plane a step goes, as a share of it.
        classes: how many of the likeliest classes DeepFool looks at.
    """

    steps: Count = 30
    control: Number = 1.0
    overshoot: Number = 0.02
    classes: Count = 10
    kinds = (L0, L1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "classes", "control"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.overshoot >= 0, f"overshoot must be at least 0, got {self.overshoot}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the first misclassified point of each sample's way."""
        found, index, z = x.clone(), torch.arange(len(x), device=x.device), x
        for _ in range(self.steps):
            own, ids = y[index], samples[index]
            edge = cross(oracle, z, own, within, "l2", ids, 50, self.overshoot, self.classes)
            edge = (z + self.control * (edge - z)).clamp(within.low, within.high)
            # At the edge another class leads, so that the likeliest one beside the label is the class there.
            _, slope, _ = gaps(oracle, edge, own, ids, 1)
            normal = slope[:, 0]
            gap = (normal * (edge - z)).flatten(1).sum(1).clamp_min(0) * (1 + self.overshoot)
            z = _sparse_step(gap, normal, z, within)
            found[index] = z
            left = (~misread(oracle, z, own, ids)).nonzero()[:, 0]
            if not len(left):
                break
            index, z = index[left], z[left]
        return found


def _sparse_step(gap: Tensor, slope: Tensor, z: Tensor, within: ThreatSet) -> Tensor:
    """Return z moved by the sparsest change that closes the gap [B] of a slope [B, ...] in the box."""
    if not isinstance(within, L0):
        change = step_to_hyperplane("l1", z.flatten(1), slope.flatten(1), gap, within.low, within.high)
        return (z + change.reshape(z.shape)).clamp(within.low, within.high)
    corner = torch.where(slope > 0, within.high, torch.where(slope < 0, within.low, z))
    gain = slope * (corner - z)
    places = (gain.sum(1) if z.dim() == 4 else gain).flatten(1)
    ranked, order = places.sort(1, descending=True)
    before = torch.nn.functional.pad(ranked.cumsum(1)[:, :-1], (1, 0))
    taken = torch.zeros_like(places, dtype=torch.bool).scatter(1, order, before < gap[:, None])
    mask = taken.reshape(len(z), 1, *z.shape[2:]) if z.dim() == 4 else taken.reshape(z.shape)
    return torch.where(mask, corner, z)
