"""What a model goes on doing as in training although it was put in evaluation mode."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stalwart.attacks.guard import undisturbed
from stalwart.core.hooks import removing
from stalwart.stochastic import noise

_DROPOUTS = {
    F.dropout: True,
    F.dropout1d: True,
    F.dropout2d: True,
    F.dropout3d: True,
    F.alpha_dropout: False,
    F.feature_alpha_dropout: False,
}
"""Whether each drops where it is not told."""
_SHOWN = 3


@dataclass
class Leaks:
    """What was found.

    Attributes:
        places: modules in training mode after ``eval()``, and dropout that is on whatever the mode.
        changed: share of the inputs whose logits are others once all of it is made to behave as in evaluation.
        inputs: how many inputs were looked at.
    """

    places: list[str] = field(default_factory=list)
    changed: float = 0.0
    inputs: int = 0

    def named(self) -> str:
        """Return the places in words."""
        shown = ", ".join(self.places[:_SHOWN])
        return shown if len(self.places) <= _SHOWN else f"{shown} and {len(self.places) - _SHOWN} more"


def training_leaks(model: nn.Module, x: Tensor, seed: int) -> Leaks:
    """Run the model on inputs [B, ...] after ``eval()``, as it is and then made to evaluate; it is left as it was."""
    watch = _Watch()
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        with watch:
            own = model(x)
        stuck = [name or "the model" for name, module in model.named_modules() if module.training]
    if not stuck and not watch.calls:
        return Leaks(inputs=len(x))
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad(), _held(model), _Watch(off=True):
        forced = model(x)
    # A module in training mode makes such calls itself.
    places = stuck or [f"{call} with training=True" for call in watch.calls]
    # Other kernels round otherwise; what trains differs by far more.
    other = ~torch.isclose(own, forced, rtol=1e-3, atol=1e-6).all(1)
    return Leaks(places, float(other.float().mean()), len(x))


@contextlib.contextmanager
def _held(model: nn.Module) -> Iterator[None]:
    """Hold every submodule in evaluation mode at each of its calls."""

    def hold(module: nn.Module, inputs: Any) -> None:
        module.training = False

    hooks = [module.register_forward_pre_hook(hold) for module in model.modules()]
    with removing(hooks):
        yield


class _Watch(TorchFunctionMode):
    """Notes calls of dropout that drop, and leaves them out if it is to."""

    def __init__(self, off: bool = False) -> None:
        super().__init__()
        self.off = off
        self.calls: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look for dropout; every other function runs as it is."""
        given = kwargs or {}
        if func in _DROPOUTS and (args[2] if len(args) > 2 else given.get("training", _DROPOUTS[func])):
            name = f"functional.{func.__name__}"
            self.calls += [] if name in self.calls else [name]
            if self.off:
                return args[0] if args else given["input"]
        return func(*args, **given)
