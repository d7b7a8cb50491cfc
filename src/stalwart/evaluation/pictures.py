"""Pairs of clean and adversarial images for the report."""

import numpy as np
import torch
from torch import Tensor

from stalwart.evaluation.judge import Judge
from stalwart.evaluation.results import Picture
from stalwart.stochastic import noise
from stalwart.stochastic.rules import Rule

_COUNT = 8


def pictures(judge: Judge, rule: Rule, x: Tensor, x_adv: Tensor) -> list[Picture]:
    """Return up to eight pairs, one for each of the first inputs that were right and then broken; none for non-images.

    Inputs that no attack broke fill up the row, so that a robust model shows its survivors.
    """
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return []
    with noise(judge.model, "off" if rule == "mean-network" else None):
        before = judge.logits(x, 1, "pictures")[0].argmax(1)
        after = judge.logits(x_adv, 1, "pictures")[0].argmax(1)
    right = before == judge.y
    broken = (right & (after != judge.y)).nonzero()[:, 0]
    held = (right & (after == judge.y)).nonzero()[:, 0]
    chosen = torch.cat([broken, held])[:_COUNT].tolist()
    return [
        Picture(
            label=int(judge.y[i]),
            clean_prediction=int(before[i]),
            adversarial_prediction=int(after[i]),
            shape=(x.shape[1], x.shape[2], x.shape[3]),
            clean=Picture.pack(_bytes(x[i])),
            adversarial=Picture.pack(_bytes(x_adv[i])),
        )
        for i in chosen
    ]


def _bytes(image: Tensor) -> np.ndarray:
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
