"""A batch in parts, each in a thread of its own with a copy of the model, for plain stacks of layers on the CPU."""

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.losses import Goal
from stalwart.core.crew import is_one_of_many, is_plain, leaves_generator, one_thread_each, side_by_side
from stalwart.core.layers import is_stack
from stalwart.core.quick import flatten_as_stored, lean_copy

_LEAST = 32
"""Smaller batches stay in one part."""
_MOST = 192
"""Rows of a part, about."""


@dataclass(frozen=True, eq=False)
class Team:
    """Shares passes among copies of a model that is deterministic and treats each input for itself.

    How a batch is split depends on its size alone, so that results do not depend on the number of threads.

    Attributes:
        model: a copy whose gradients are taken.
        scorer: one rearranged to predict faster.
    """

    model: nn.Module
    scorer: nn.Module

    def logits(self, x: Tensor) -> Tensor:
        """Return logits [B, K] without gradient."""

        def work(part: slice) -> Tensor:
            with torch.no_grad():
                out: Tensor = self.scorer(x[part])
            return out

        return _joined(side_by_side(work, _slices(len(x))))

    def gradients(self, x: Tensor, goals: Sequence[Goal]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return losses [G, B], logits [B, K] and each loss's gradient [B, ...] at x."""

        def work(part: slice) -> tuple[Tensor, Tensor, list[Tensor]]:
            leaf = x[part].requires_grad_()
            with torch.enable_grad(), FastGradients():
                logits = self.model(leaf)
                values = [goal.select(part)(logits) for goal in goals]
                slopes = [
                    torch.autograd.grad(value.sum(), leaf, retain_graph=number < len(goals) - 1)[0]
                    for number, value in enumerate(values)
                ]
            return torch.stack(values).detach(), logits.detach(), slopes

        parts = side_by_side(work, _slices(len(x)))
        values, logits, slopes = zip(*parts, strict=True)
        clean = [_joined(some).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0) for some in zip(*slopes, strict=True)]
        return torch.cat(values, 1), _joined(logits), clean


@contextlib.contextmanager
def at_work(model: nn.Module, x: Tensor) -> Iterator[bool]:
    """Give each part of a batch a thread, where the model can have a team; the block learns whether it can.

    Whether it can does not depend on the number of threads.
    """
    suits = _suits(model, x)
    with one_thread_each() if suits else contextlib.nullcontext():
        yield suits


def team(model: nn.Module, x: Tensor) -> Team | None:
    """Return a team for a model that is a stack of torch's own layers, without hooks and on the CPU; None for any other.

    Args:
        model: in evaluation mode.
        x: a few inputs [B, ...] for one pass, in the memory layout of all that follow.
    """
    if not _suits(model, x):
        return None
    try:
        found = Team(copy.deepcopy(model, {id(one): one for one in model.parameters()}), lean_copy(model))
    except Exception:  # a parameter in an unusual place may raise anything
        return None
    if not leaves_generator(found.model, x):
        return None
    flatten_as_stored(found.model, x)
    flatten_as_stored(found.scorer, x)
    return found


def _suits(model: nn.Module, x: Tensor) -> bool:
    return _is_known(model) and is_plain(model, x)


def _is_known(model: nn.Module) -> bool:
    if is_stack(model):
        return all(_is_known(part) for part in model.children())
    kind = type(model)
    return kind.__module__.startswith("torch.nn.modules.") and not any(True for _ in model.children())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def even_parts(batch: int, most: int = _MOST) -> list[int]:
    """Return the sizes of an even number of nearly equal parts, ``most`` at most; one part where the batch is small."""
    parts = 1 if batch < _LEAST else 2 * -(-batch // (2 * most))
    return [batch * (number + 1) // parts - batch * number // parts for number in range(parts)]


def _slices(batch: int) -> list[slice]:
    # What runs beside others leaves them their cores.
    whole = is_one_of_many() and batch <= _MOST
    ends = [0, *itertools.accumulate([batch] if whole else even_parts(batch))]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
