"""Straight through: gradients that pass steps which have none, or whose own gradient misleads, as if they were not there."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stalwart.attacks.around import AroundAttack
from stalwart.attacks.oracle import Oracle
from stalwart.core.hooks import removing
from stalwart.core.random import generator
from stalwart.sets import ThreatSet

_FLAT = {
    getattr(home, name)
    for home in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
}
_NEAR = 0.25
_LOOKED_AT = 32
_ALIGNED = 0.5


@dataclass(frozen=True, kw_only=True)
class StraightThrough(AroundAttack):
    """Run another attack with gradients straight through the model's flat steps: backward pass differentiable approximation.

    Two kinds of steps count. Rounding (round, floor, ceil, trunc, sign), wherever the model does it, has the derivative 1.
    A submodule without parameters whose output is close to its input, such as a quantiser or a JPEG layer, also one outside
    torch, has the identity's gradient if its own does not point the same way. Outputs stay the model's, bit for bit.
    Source: Athalye, Carlini, Wagner, ICML 2018 (arXiv 1802.00420), section 4.1.1, with g(x) = x.

    Attributes:
        attack: registered name of the attack to run.
        options: its hyper-parameters.
    """

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the inner attack is made for this kind of model and threat set."""
        return self.inner().fits(model, within)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Run the inner attack; its passes are counted.

        Raises:
            InputError: the output still carries no gradient, since the model leaves torch in a step that is no submodule.
        """
        inner = self.inner()
        with straight_through(oracle.model, x[:_LOOKED_AT]), inner.chosen_gradients(oracle.model):
            view = Oracle(oracle.model, x, inner.eot, inner.average, rows=oracle.rows)
            found = inner.run(view, x, y, within, seed)
        oracle.forwards += view.forwards
        oracle.backwards += view.backwards
        return found


@contextlib.contextmanager
def straight_through(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Let gradients go straight through flat steps inside the block; ``x`` [B, ...] are inputs to find submodules with."""
    hooks = [module.register_forward_hook(_as_identity) for module in near_identities(model, x)]
    with removing(hooks), _StraightRounding():
        yield


def near_identities(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """Return the submodules that change their input little, but whose gradient is not that of the identity.

    Little: the root mean square of the change is below a quarter of the input's standard deviation. Not that of the identity:
    the cosine of a random output gradient and what becomes of it at the input is below a half.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> Tensor | None:
        if len(inputs) == 1 and _alike(inputs[0], out) and _near(inputs[0], out) and not _passes(inputs[0], out):
            found.append(module)
            return _as_identity(module, inputs, out)  # what comes behind it must see a gradient
        return None

    bare = [module for module in model.modules() if module is not model and not any(True for _ in module.parameters())]
    hooks = [module.register_forward_hook(look) for module in bare]
    with removing(hooks), torch.enable_grad():
        model(x.detach().clone().requires_grad_())
    return found


def _alike(x: Any, out: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and isinstance(out, Tensor)
        and x.shape == out.shape
        and x.dtype == out.dtype
        and x.is_floating_point()
        and x.requires_grad
    )


def _near(x: Tensor, out: Tensor) -> bool:
    change, spread = (out - x).detach(), (x - x.mean()).detach()
    return float(change.square().mean()) < _NEAR**2 * float(spread.square().mean())


def _passes(x: Tensor, out: Tensor) -> bool:
    if not out.requires_grad:
        return False
    sent = torch.randn(out.shape, generator=generator(0, "straight-through", device=x.device), device=x.device).to(out)
    (came,) = torch.autograd.grad(out, x, sent, retain_graph=True, allow_unused=True)
    return came is not None and float(F.cosine_similarity(came.flatten(), sent.flatten(), dim=0)) >= _ALIGNED


def _as_identity(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return _straight(inputs[0], out.detach())


def _straight(x: Tensor, out: Tensor) -> Tensor:
    straight: Tensor = _Straight.apply(x, out)
    return straight


class _Straight(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor) -> Tensor:
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _StraightRounding(TorchFunctionMode):
    """Inside this context rounding has the derivative 1."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the gradients of roundings; every other function runs as it is."""
        out = func(*args, **(kwargs or {}))
        if func in _FLAT and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return _straight(args[0], out.detach())
        return out
