"""An attack on spiking networks under many assumed derivatives of a spike, the worst one for each input."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks.around import AroundAttack
from stalwart.attacks.base import JUDGE_DRAWS
from stalwart.attacks.losses import margin
from stalwart.attacks.oracle import Oracle
from stalwart.core.random import derive
from stalwart.sets import ThreatSet
from stalwart.spiking import gradients, neurons

MEMBERS: dict[str, dict[str, Any]] = {
    **{f"triangle-{g:g}": {"surrogate": {"name": "triangle", "gamma": g}} for g in (0.25, 0.5, 1, 2, 3)},
    **{
        f"exponential-{a:g}-{b:g}": {"surrogate": {"name": "exponential", "scale": a, "beta": b}}
        for a in (0.3, 1.0)
        for b in (0.5, 1, 2)
    },
    **{f"rectangle-{g:g}": {"surrogate": {"name": "rectangle", "gamma": g}} for g in (0.25, 0.5, 1, 2, 4)},
    "straight-through": {"surrogate": "straight-through"},
    "bptr": {"backward": "bptr"},
    "cba": {"backward": "cba"},
}
"""The nineteen gradients of Özdenizci and Legenstein, TMLR 2024 (arXiv 2311.09266), section 4."""


def members_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the members whose mode all of the model's neurons have."""
    kinds = [layer.modes for layer in neurons(model).values()]
    return {
        name: member
        for name, member in MEMBERS.items()
        if all(member.get("backward", "bptt") in modes for modes in kinds)
    }


@dataclass(frozen=True, kw_only=True)
class SurrogateEnsemble(AroundAttack):
    """Run an attack once for each of :data:`MEMBERS` on the inputs that are left, and keep the worst point of each input.

    Which surrogate breaks a spiking network is not known beforehand: the one it was trained with often is not among the
    best, and a sharp one alone fakes robustness. A randomised network keeps all inputs to the end, so that no member's luck
    counts. Modes that a kind of neurons does not have are left out.
    Source: Özdenizci and Legenstein, TMLR 2024 (arXiv 2311.09266).

    Attributes:
        attack: registered name of the attack to run.
        options: its hyper-parameters.
    """

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the model has neurons, and the attack takes the threat set."""
        return bool(neurons(model)) and self.inner().fits(model, within)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Run every member; its passes are counted."""
        inner, found, alive = self.inner(), x.clone(), torch.arange(len(x), device=x.device)
        least = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        draws = JUDGE_DRAWS if oracle.randomised else 1
        for name, member in members_of(oracle.model).items():
            with gradients(oracle.model, **member):
                view = Oracle(oracle.model, x[alive], inner.eot, inner.average, rows=oracle.rows)
                z = inner.run(view, x[alive], y[alive], within.select(alive), derive(seed, name))
            oracle.forwards[alive] += view.forwards
            oracle.backwards[alive] += view.backwards
            held = -margin(oracle.logits(z, alive, draws), y[alive]).mean(0)
            better = held < least[alive]
            at = alive[better]
            found[at], least[at] = z[better], held[better]
            if oracle.decisive:
                alive = alive[held > 0]
            if not len(alive):
                break
        return found
