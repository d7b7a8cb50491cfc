"""Transfer: craft on another model, or on the same one with its noise off, and judge on the target."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from stalwart.attacks.around import AroundAttack
from stalwart.attacks.base import Attack
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError
from stalwart.sets import ThreatSet
from stalwart.stochastic import noise


@dataclass(frozen=True, kw_only=True)
class Transfer(AroundAttack):
    """Run another attack against a source model; only the result meets the target.

    Against a stochastic model the source "noise-off" is mandatory reading: for a linear noisy head the best perturbation of
    the noisy net is nearly that of its mean network, which gives clean gradients.

    Attributes:
        source: a module, or "noise-off" for the target itself with its noise switched off.
        attack: registered name of the attack to run on the source.
        options: its hyper-parameters.
    """

    source: nn.Module | Literal["noise-off"] = "noise-off"

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Craft on the source; its passes are counted like the target's."""
        inner = self.inner()
        if isinstance(self.source, nn.Module):
            with undisturbed(self.source, seed):
                return self._craft(inner, self.source, oracle, x, y, within, seed)
        with noise(oracle.model, "off"):
            return self._craft(inner, oracle.model, oracle, x, y, within, seed)

    @staticmethod
    def _craft(
        inner: Attack, source: nn.Module, target: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int
    ) -> Tensor:
        with inner.chosen_gradients(source):
            return Transfer._crafted(inner, source, target, x, y, within, seed)

    @staticmethod
    def _crafted(
        inner: Attack, source: nn.Module, target: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int
    ) -> Tensor:
        view = Oracle(source, x, inner.eot, inner.average, is_target=False, rows=target.rows)
        if view.classes != target.classes:
            raise InputError(
                f"the transfer's source returns {view.classes} logits but the target {target.classes}; both must know the same "
                "classes in the same order."
            )
        x_adv = inner.run(view, x, y, within, seed)
        target.forwards += view.forwards
        target.backwards += view.backwards
        return x_adv
