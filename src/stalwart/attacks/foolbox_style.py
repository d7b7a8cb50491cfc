"""Our attacks in code that was written for foolbox: ``raw, clipped, is_adv = attack(fmodel, inputs, labels, epsilons=...)``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack
from stalwart.attacks.minimal import MinimalAttack
from stalwart.attacks.table import ATTACKS
from stalwart.core.errors import UsageError
from stalwart.core.numbers import require
from stalwart.core.registry import build
from stalwart.sets import L0, L1, L2, Linf, ThreatSet

_BALLS: dict[str, type[ThreatSet]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


class _Called(nn.Module):
    """A foolbox model as a module; the network inside is a submodule, so that it is left as it was."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = getattr(model, "_model", None)
        if isinstance(inner, nn.Module):
            self.inner = inner
        self.__dict__["call"] = model

    def forward(self, x: Tensor) -> Any:
        return self.__dict__["call"](x)


class FoolboxStyle:
    """An attack in one norm that is called as foolbox calls attacks.

    Attributes:
        attack, ball, seed: what is called.
    """

    def __init__(self, attack: Attack, ball: type[ThreatSet], seed: int) -> None:
        self.attack, self.ball, self.seed = attack, ball, seed

    def __call__(self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any) -> tuple[Any, Any, Any]:
        """Attack a foolbox model.

        Args:
            model: maps inputs to logits and has ``bounds``, such as a foolbox ``PyTorchModel``.
            inputs: [B, ...] tensor, or an eagerpy tensor around one.
            criterion: labels [B] or a criterion with ``labels``, that is, a misclassification.
            epsilons: one radius, a sequence of radii, or None for the nearest point at any distance, which takes an attack
                of minimal norm.

        Returns:
            the points found, the same put into the ball of each radius, and whether the model misclassifies these, [B] bool;
            for a sequence of radii two lists and a tensor [radii, B].

        Raises:
            UsageError: a targeted criterion, or no radius for an attack that needs one.
        """
        labels = getattr(criterion, "labels", criterion)
        if hasattr(criterion, "target_classes") or not hasattr(_raw(labels), "dim"):
            raise UsageError(
                "the criterion must be labels or Misclassification(labels); targeted criteria are not known."
            )
        x, y = _raw(inputs), _raw(labels)
        wrapped = x is not inputs
        several = isinstance(epsilons, Sequence)
        results = [self._at(model, x, y, eps) for eps in (epsilons if several else [epsilons])]
        raw, clipped = (
            [_like(part, inputs, wrapped) for part in parts] for parts in list(zip(*results, strict=True))[:2]
        )
        success = [one[2] for one in results]
        if several:
            return raw, clipped, _like(torch.stack(success), inputs, wrapped)
        return raw[0], clipped[0], _like(success[0], inputs, wrapped)

    def _at(self, model: Any, x: Tensor, y: Tensor, eps: Any) -> tuple[Tensor, Tensor, Tensor]:
        low, high = map(float, model.bounds)
        if eps is None:
            minimal = isinstance(self.attack, MinimalAttack)
            require(minimal, "epsilons=None takes an attack of minimal norm, such as 'fmn'; give a radius.")
            # The whole box, in the units of each norm.
            width, count = high - low, x[0].numel()
            eps = {Linf: width, L2: width * count**0.5, L1: width * count, L0: count}[self.ball]
        ball: Any = self.ball
        result = self.attack(_Called(model), x, y, within=ball(eps, low=low, high=high), seed=self.seed)
        return result.x_adv, result.x_adv, result.success


def as_foolbox(name: str, norm: str = "linf", seed: int = 0, **options: Any) -> FoolboxStyle:
    """Return the attack registered as ``name`` in one norm, to be called as foolbox calls attacks; foolbox is not needed.

    Args:
        name: of the attack.
        norm: "linf", "l2", "l1" or "l0", which counts pixels.
        seed: the same seed gives the same result at every call.
        options: hyper-parameters of the attack.

    Raises:
        UsageError: an unknown name, option or norm, or an attack on weights.
    """
    require(norm in _BALLS, f"unknown norm '{norm}'; known: {', '.join(_BALLS)}.")
    found = build("attack", ATTACKS, name, options)
    if not isinstance(found, Attack):
        raise UsageError(f"'{name}' attacks weights; only attacks on inputs can be called in foolbox style.")
    return FoolboxStyle(found, _BALLS[norm], seed)


def _raw(tensor: Any) -> Any:
    return tensor if isinstance(tensor, Tensor) else getattr(tensor, "raw", tensor)


def _like(tensor: Tensor, inputs: Any, wrapped: bool) -> Any:
    return type(inputs)(tensor) if wrapped else tensor
