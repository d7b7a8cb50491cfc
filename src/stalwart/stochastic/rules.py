"""How a randomised model decides: one draw, the mean softmax of several, or the network without its noise."""

from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.core.noise import noise

Rule = Literal["single", "mean-softmax", "mean-network"]
RULES: tuple[Rule, ...] = ("single", "mean-softmax", "mean-network")


def passes(model: nn.Module, draws: int) -> int:
    """Return how many passes :func:`draw_logits` takes: one with ``cheap_draws``, where all noise is in the head."""
    return 1 if getattr(model, "cheap_draws", False) else draws


def draw_logits(model: nn.Module, x: Tensor, draws: int) -> Tensor:
    """Return the logits of ``draws`` independent noise draws, [draws, B, K].

    A model with ``cheap_draws`` runs its backbone once; any other runs ``draws`` times.
    """
    if draws > 1 and passes(model, draws) == 1:
        return model.draw(x, draws)  # type: ignore[operator]
    return torch.stack([model(x) for _ in range(draws)])


def scores(model: nn.Module, x: Tensor, rule: Rule = "single", draws: int = 1) -> Tensor:
    """Return scores [B, K] whose largest entry is the model's decision under ``rule``.

    "single" gives the logits of one draw, "mean-softmax" the log of the softmax averaged over ``draws``, and
    "mean-network" the logits with all noise off. For a linear noisy head the mean network is also the limit of averaged
    logits: averaging logits over many draws gives back the deterministic network.
    """
    if rule == "mean-network":
        with noise(model, "off"):
            return model(x)
    if rule == "single":
        return model(x)
    return draw_logits(model, x, draws).log_softmax(-1).logsumexp(0) - torch.tensor(float(draws)).log()
