"""A box around the weights: every weight may move by a share of its own size."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from stalwart.core import random
from stalwart.core.errors import InputError, UsageError
from stalwart.core.numbers import parse_number, require
from stalwart.core.registry import suggest

Fraction = Annotated[Any, "a number in [0, 1], or a string such as '1/100'"]
Parameters = Mapping[str, Tensor]


def select_parameters(model: nn.Module, only: str | tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` whose names match a pattern, in the model's order.

    ``*`` stands for any characters, dots included. Parameters of batch normalisation are left out, since a network that is
    deployed has it folded or computed digitally, unless a pattern spells out the path of their module, as ``"1.weight"`` and
    ``"1.*"`` do for module ``1``. A parameter that several modules share is selected by any of its names and returned once,
    under the first of them.

    Raises:
        UsageError: nothing matches, or a match holds no floating-point numbers.
    """
    patterns = (only,) if isinstance(only, str) else only
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)}
    chosen: set[int] = set()
    left_out = False
    for name, parameter in model.named_parameters(remove_duplicate=False):
        matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]
        path = name.rpartition(".")[0]
        if path in norms and all(pattern.rpartition(".")[0] != path for pattern in matching):
            left_out = left_out or bool(matching)
        elif matching:
            if not parameter.is_floating_point():
                raise UsageError(
                    f"parameter '{name}' holds {parameter.dtype}, which cannot move by a share of its size; name only "
                    f"parameters of floating-point numbers, not {_spelled(patterns)}."
                )
            chosen.add(id(parameter))
    found = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in chosen}
    if not found:
        names = [name for name, _ in model.named_parameters()]
        reason = " but those of batch normalisation, which must be spelled out (such as 'bn1.*')" if left_out else ""
        hint = suggest(patterns[0], names) if patterns else ""
        raise UsageError(
            f"no parameter of {type(model).__name__} matches {_spelled(patterns)}{reason}.{hint} "
            f"It has: {', '.join(names) or 'none'}."
        )
    return found


@dataclasses.dataclass(frozen=True)
class RelativeBox:
    """The set {theta' : |theta'_i - theta_i| <= fraction |theta_i| for all i} around chosen parameters of a model.

    The radius is in units of each weight, so that a network gains nothing by growing its weights; weights that are 0 stay
    0. It serves attacks on weights and bounds over weights. Everything but :meth:`select` works on a dict from names to
    tensors, of which none is changed.
    Source: Büchel, Faber, Muir, ICLR 2022 (arXiv 2106.05009), section 2.

    Args:
        fraction: in [0, 1]: 0.05 for 5 %.
        only: a pattern, or several, that names of parameters must match, see :func:`select_parameters`.

    Raises:
        UsageError: a fraction outside [0, 1], or a pattern that is no text.

    Example:
        >>> box = RelativeBox(0.5)
        >>> box.bounds({"weight": torch.tensor([2.0, -4.0, 0.0])})["weight"]
        (tensor([ 1., -6.,  0.]), tensor([ 3., -2.,  0.]))
    """

    fraction: Fraction
    only: str | tuple[str, ...] = "*weight"

    def __post_init__(self) -> None:
        fraction = parse_number(self.fraction)
        require(0 <= fraction <= 1, f"fraction must lie in [0, 1], got {fraction:g}; write 5 % as 0.05.")
        object.__setattr__(self, "fraction", fraction)

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's own parameters that the set is about, by name; see :func:`select_parameters`."""
        return select_parameters(model, self.only)

    def bounds(self, params: Parameters) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the ends theta - fraction |theta| and theta + fraction |theta| by name; gradients flow to theta."""
        return {name: (p - self.fraction * p.abs(), p + self.fraction * p.abs()) for name, p in params.items()}

    def project(self, params: Parameters, moved: Parameters) -> dict[str, Tensor]:
        """Return the Euclidean projection of ``moved`` on the set around ``params``, a clip to :meth:`bounds`.

        Raises:
            InputError: other names or shapes than those of ``params``.
        """
        _check_alike(params, moved)
        return {name: moved[name].clamp(*ends) for name, ends in self.bounds(params).items()}

    def sample(self, params: Parameters, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a uniform point of the box around ``params``.

        Args:
            params: the centre, by name.
            generator: the source of randomness, on the device of the parameters.
        """
        return self._at(params, lambda p: 2 * random.uniform(p.shape, generator, p, batch_axis=None) - 1)

    def corner(self, params: Parameters, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a random corner of the box around ``params``; arguments as in :meth:`sample`."""
        return self._at(params, lambda p: (random.uniform(p.shape, generator, p, batch_axis=None) < 0.5).to(p) * 2 - 1)

    def contains(self, params: Parameters, moved: Parameters, tolerance: float = 1e-6) -> bool:
        """Return whether ``moved`` is in the set around ``params``; NaN never is.

        Args:
            params: the centre, by name.
            moved: the point to judge.
            tolerance: slack for rounding, as a share of each |theta|; a weight of 0 has none.

        Raises:
            InputError: other names or shapes than those of ``params``.
        """
        _check_alike(params, moved)
        for name, (lower, upper) in self.bounds(params).items():
            slack, point = tolerance * params[name].double().abs(), moved[name].double()
            if not ((point >= lower.double() - slack) & (point <= upper.double() + slack)).all():
                return False
        return True

    def describe(self) -> str:
        """Return one readable line such as ``"RelativeBox fraction=0.1 of '*weight'"``."""
        patterns = (self.only,) if isinstance(self.only, str) else self.only
        return f"RelativeBox fraction={self.fraction:.4g} of {_spelled(patterns)}"

    def _at(self, params: Parameters, share: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return self.project(params, {name: p + self.fraction * p.abs() * share(p) for name, p in params.items()})


def _spelled(patterns: tuple[str, ...]) -> str:
    return " or ".join(f"'{pattern}'" for pattern in patterns) or "an empty list of patterns"


def _check_alike(params: Parameters, moved: Parameters) -> None:
    if params.keys() != moved.keys():
        odd = sorted(params.keys() ^ moved.keys())
        raise InputError(f"the moved parameters must have the names of the clean ones; these differ: {', '.join(odd)}.")
    for name, parameter in params.items():
        if moved[name].shape != parameter.shape:
            raise InputError(
                f"parameter '{name}' has shape {[*parameter.shape]}, but was moved to one of {[*moved[name].shape]}."
            )
