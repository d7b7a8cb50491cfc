"""Floor 2: attacks on inputs and on weights. ``attack(name, **options)`` builds any of them; calling it runs it."""

from typing import Any, Literal, overload

from stalwart.attacks.base import Attack, AttackResult, Cost
from stalwart.attacks.bit_budget import BitBudget
from stalwart.attacks.foolbox_style import as_foolbox
from stalwart.attacks.table import ATTACKS
from stalwart.attacks.torchattacks_style import as_torchattacks
from stalwart.attacks.weight_base import WeightAttack, WeightAttackResult
from stalwart.core.registry import build

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "BitBudget",
    "Cost",
    "WeightAttack",
    "WeightAttackResult",
    "as_foolbox",
    "as_torchattacks",
    "attack",
]


@overload
def attack(
    name: Literal["weight-amp", "weight-bitflip", "weight-corner", "weight-pgd"], **options: Any
) -> WeightAttack: ...


@overload
def attack(name: str, **options: Any) -> Attack: ...


def attack(name: str, **options: Any) -> Attack | WeightAttack:
    """Return the attack registered as ``name`` with the given hyper-parameters.

    Example:
        >>> import torch, stalwart as sw
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
        >>> result = sw.attack("pgd", steps=5)(model, x, y, within=sw.Linf(0.1), seed=0)
        >>> result.x_adv.shape
        torch.Size([2, 1, 2, 2])
        >>> sw.attack("weight-pgd", steps=5)(model, x, y, within=sw.RelativeBox(0.1), seed=0).parameters["1.weight"].shape
        torch.Size([3, 4])

    Raises:
        UsageError: an unknown name or option, or an impossible value.
    """
    built: Attack | WeightAttack = build("attack", ATTACKS, name, options)
    return built
