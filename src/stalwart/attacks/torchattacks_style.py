"""Our attacks in code that was written for torchattacks: ``adv = atk(x, y)``."""

from typing import Any

from torch import Tensor, nn

from stalwart.attacks.base import Attack, AttackResult
from stalwart.attacks.table import ATTACKS
from stalwart.core.errors import UsageError
from stalwart.core.registry import build
from stalwart.sets import ThreatSet


class TorchattacksStyle:
    """An attack that is bound to a model and a threat set and returns adversarial inputs alone.

    Attributes:
        model, attack, within, seed: what is called.
        result: of the last call, with success, margin and cost; None before.
    """

    def __init__(self, model: nn.Module, attack: Attack, within: ThreatSet, seed: int) -> None:
        self.model, self.attack, self.within, self.seed = model, attack, within, seed
        self.result: AttackResult | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial inputs [B, ...] of the inputs [B, ...] with labels [B]; errors are those of the attack."""
        self.result = self.attack(self.model, inputs, labels, within=self.within, seed=self.seed)
        return self.result.x_adv


def as_torchattacks(model: nn.Module, name: str, within: ThreatSet, seed: int = 0, **options: Any) -> TorchattacksStyle:
    """Return the attack registered as ``name`` as an object to be called as ``adv = atk(x, y)``; torchattacks is not needed.

    Args:
        model: maps [B, ...] to logits [B, K].
        name: of the attack.
        within: the threat set, which takes the place of torchattacks' ``eps``.
        seed: the same seed gives the same result at every call.
        options: hyper-parameters of the attack.

    Raises:
        UsageError: an unknown name or option, or an attack on weights.

    Example:
        >>> import torch, stalwart as sw
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> atk = sw.attacks.as_torchattacks(model, "pgd", within=sw.Linf("8/255"), steps=5)
        >>> atk(torch.rand(2, 1, 2, 2), torch.tensor([0, 1])).shape
        torch.Size([2, 1, 2, 2])
    """
    found = build("attack", ATTACKS, name, options)
    if not isinstance(found, Attack):
        raise UsageError(f"'{name}' attacks weights; only attacks on inputs can be called as atk(x, y).")
    return TorchattacksStyle(model, found, within, seed)
