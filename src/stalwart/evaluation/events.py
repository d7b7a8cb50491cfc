"""What attacks on event rasters achieve: how many converge, with how many flips, and how many hold on a second model."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stalwart.attacks import Attack
from stalwart.attacks.event_patch import Patch
from stalwart.attacks.guard import undisturbed
from stalwart.core.checks import check_labels
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import derive
from stalwart.evaluation.results import Rate, Record
from stalwart.hardware import Hardware
from stalwart.sets import Events

_BATCH = 256


class FlipRow(Record):
    """One attack on the rasters that the model decides rightly.

    Attributes:
        attack: what the caller calls it.
        converged: how many fool the model within the cap of flips.
        flips: median number of flips of those, None if there are none.
        agreed: how many of those the second model decides rightly before the attack.
        transferred: how many of those fool the second model, which decided them rightly before.
        forwards, backwards: mean passes through the model for a raster.
        seconds: for a raster.
    """

    attack: str
    converged: Rate
    flips: float | None
    agreed: Rate | None = None
    transferred: Rate | None = None
    forwards: float
    backwards: float
    seconds: float


class PatchRow(Record):
    """A patch on the rasters of other classes that the model decides rightly.

    Attributes:
        target: its class.
        bins: how many it replaces.
        events: how many it holds.
        fitted: how many are taken for the target.
        control: how many are with a random patch of equal size and as many events.
        broken: how many are taken for any wrong class.
        control_broken: the same with the random patch.
    """

    target: int
    bins: int
    events: int
    fitted: Rate
    control: Rate
    broken: Rate
    control_broken: Rate


def few_flips(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    within: Events,
    second: nn.Module | Hardware | None = None,
    seed: int = 0,
) -> list[FlipRow]:
    """Run attacks that look for few flips, and report what converged and what transferred apart.

    Args:
        model: maps [B, ...] to logits [B, K]; left exactly as it was.
        x: binary rasters [N, ...]; those that the model decides wrongly are left out.
        y: labels [N].
        attacks: by name, such as ``{"spikefool": sw.attack("spikefool")}``.
        within: the cap of flips, one for all.
        second: another model of the same classes, or a device that holds this one, such as ``Quantise(8)``.
        seed: root of all randomness.

    Raises:
        InputError: values other than 0 and 1, wrong labels, or no raster that the model decides rightly.
        UsageError: a threat set with one number of flips a sample.
    """
    require(
        not isinstance(within.radius, Tensor), "few_flips takes one number of flips for all samples, not one a sample."
    )
    x, y = _right(model, x, y, within, seed)
    rows = []
    for name, attack in attacks.items():
        begun = time.monotonic()
        found = attack(model, x, y, within=within, seed=derive(seed, name))
        seconds = (time.monotonic() - begun) / len(x)
        done = found.success
        agreed, transferred = None, None
        if second is not None and done.any():
            agreed, transferred = _on_second(model, second, x[done], found.x_adv[done], y[done], seed)
        rows.append(
            FlipRow(
                attack=name,
                converged=_rate(done),
                flips=median_flips(x[done], found.x_adv[done]),
                agreed=agreed,
                transferred=transferred,
                forwards=float(found.cost.forwards.double().mean()),
                backwards=float(found.cost.backwards.double().mean()),
                seconds=seconds,
            )
        )
    return rows


def judge_patch(model: nn.Module, patch: Patch, x: Tensor, y: Tensor, seed: int = 0) -> PatchRow:
    """Measure a patch beside a random one of equal size and as many events, at the same places.

    Args:
        model: maps [B, ...] to logits [B, K]; left exactly as it was.
        patch: what :meth:`stalwart.attacks.event_patch.EventPatch.fit` returned.
        x: binary rasters [N, ..., H, W] that it was not learned on.
        y: labels [N].
        seed: of the places and of the random patch.

    Raises:
        InputError: as :func:`few_flips`, or rasters that the patch is not made for.
    """
    other = y != patch.target
    x, y = _right(model, x[other], y[other], Events(0), seed)
    decided = [
        _decisions(model, one.apply(x, derive(seed, "patch")), seed)
        for one in (patch, patch.shuffled(derive(seed, "control")))
    ]
    hits, broken = (
        [_rate(wanted) for wanted in found]
        for found in (
            [classes == patch.target for classes in decided],
            [classes != y for classes in decided],
        )
    )
    return PatchRow(
        target=patch.target,
        bins=patch.bins,
        events=patch.events,
        fitted=hits[0],
        control=hits[1],
        broken=broken[0],
        control_broken=broken[1],
    )


def median_flips(x: Tensor, x_adv: Tensor) -> float | None:
    """Return the median number of bins in which rasters [N, ...] differ; None if there are none."""
    if not len(x):
        return None
    return float((x != x_adv).flatten(1).sum(1).double().quantile(0.5))


def _right(model: nn.Module, x: Tensor, y: Tensor, within: Events, seed: int) -> tuple[Tensor, Tensor]:
    check_labels(y, len(x))
    within.bounds(x)  # refuses what is not binary
    right = _decisions(model, x, seed) == y if len(x) else torch.zeros(0, dtype=torch.bool)
    if not right.any():
        raise InputError(f"the model decides none of {len(x)} rasters rightly; there is nothing to attack.")
    return x[right], y[right]


def _on_second(
    model: nn.Module, second: nn.Module | Hardware, x: Tensor, x_adv: Tensor, y: Tensor, seed: int
) -> tuple[Rate, Rate]:
    if isinstance(second, Hardware):
        with second.chip(model, derive(seed, "chip")):
            before, after = _decisions(model, x, seed), _decisions(model, x_adv, seed)
    else:
        before, after = _decisions(second, x, seed), _decisions(second, x_adv, seed)
    return _rate(before == y), _rate((before == y) & (after != y))


def _decisions(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    with undisturbed(model, seed), torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(_BATCH)])


def _rate(which: Tensor) -> Rate:
    return Rate.of(int(which.sum()), len(which))
