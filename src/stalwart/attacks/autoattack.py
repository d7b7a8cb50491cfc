"""AutoAttack: four attacks that fail in different ways, one after the other, each on what those before it have left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack, AttackResult, BallAttack, Cost
from stalwart.attacks.bit_budget import BitBudget
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.losses import margin
from stalwart.attacks.oracle import Oracle
from stalwart.core.checks import check_images, check_labels, check_logits
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import derive
from stalwart.core.registry import build
from stalwart.sets import RelativeBox, ThreatSet

Version = Literal["standard", "plus", "rand"]
MEMBERS: dict[Version, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_DRAWS = 20
_HORIZON = 10000


def member(name: str, version: Version, norm: str) -> tuple[str, dict[str, Any]]:
    """Return a member's registered name and hyper-parameters in a version and norm ("linf", "l2" or "l1"), as published."""
    wide = norm == "l1" and version == "standard"
    restarts = 5 if wide or version == "plus" else 1
    larger = {"larger_radii": True} if wide else {}
    members: dict[str, tuple[str, dict[str, Any]]] = {
        "apgd-ce": ("apgd", {"loss": "ce", "restarts": restarts, **larger}),
        "apgd-dlr": ("apgd", {"loss": "dlr", "restarts": restarts}),
        "apgd-t": ("apgd", {"loss": "targeted-dlr", "targets": 5 if wide else 9, **larger}),
        "fab": ("fab", {"early": True, "restarts": restarts}),
        "fab-t": ("fab", {"early": True, "targeted": True}),
        "square": ("square", {"queries": 5000, "horizon": _HORIZON}),
    }
    return members[name]


@dataclass(frozen=True, eq=False)
class AutoAttackResult(AttackResult):
    """What AutoAttack found.

    Attributes:
        left: samples that stood after "clean" and after each member, in order; an upper bound of the robust ones throughout.
        broken_by: for each sample the number of the member that broke it, [B] integers: 0 the first one, -1 a sample that
            was misclassified to begin with, -2 one that stands.
    """

    left: Mapping[str, int] = field(kw_only=True)
    broken_by: Tensor = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(BallAttack):
    """AutoAttack in an linf, l2 or l1 ball: no parameter to tune, the worst case over attacks of different kinds.

    - ``standard``: APGD on the cross entropy, APGD on the targeted DLR loss (9 targets), targeted FAB (9 targets), Square
      (5000 queries); in l1 APGD starts in larger balls, with 5 restarts and 5 targets.
    - ``plus``: APGD on the cross entropy and on DLR and untargeted FAB with 5 restarts each, Square, targeted APGD and FAB.
    - ``rand``: APGD on the cross entropy and on DLR, gradients averaged over 20 draws, for randomised models.

    Misclassified samples are left alone, and broken ones leave at once, in the middle of a member too. With fewer than four
    classes the DLR losses turn into margins, and targets are the K - 1 other classes, so that any model with two classes or
    more works. On a randomised model nothing leaves, since one lucky draw proves nothing, and the worst point over all
    members is kept.

    Source: Croce and Hein, ICML 2020 (arXiv 2003.01690), section 5; for l1 Croce and Hein, ICML 2021 (arXiv 2103.01208).

    Attributes:
        version: "standard", "plus" or "rand".
        only: names of the members to run; all of the version by default.
        eot: noise draws averaged in each gradient; 20 in ``rand`` unless it is given as more than 1.
    """

    version: Version = "standard"
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = MEMBERS[self.version]
        for name in self.only or ():
            require(name in known, f"unknown member '{name}'; '{self.version}' has {', '.join(known)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The members to run, in order."""
        return MEMBERS[self.version] if self.only is None else self.only

    def members(self, within: ThreatSet) -> dict[str, Attack]:
        """Return the attacks to run in a threat set, by name.

        Raises:
            InputError: the threat set is not an linf, l2 or l1 ball.
        """
        from stalwart.attacks.table import ATTACKS

        self.require_ball(within)
        draws = _DRAWS if self.version == "rand" and self.eot == 1 else self.eot
        shared = {"eot": draws, "average": self.average, "surrogate": self.surrogate, "backward": self.backward}
        found: dict[str, Attack] = {}
        for name in self.names:
            registered, options = member(name, self.version, within.name)
            found[name] = build("attack", ATTACKS, registered, {**shared, **options})
        return found

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the worst points, for an attack that runs this one against a model of its own."""

        def craft(inner: Attack, index: Tensor, own: int) -> Tensor:
            eot, average, rows = inner.eot, inner.average, oracle.rows
            view = Oracle(oracle.model, x[index], eot, average, is_target=oracle.decisive, rows=rows)
            z = inner.run(view, x[index], y[index], within.select(index), own)
            oracle.forwards[index] += view.forwards
            oracle.backwards[index] += view.backwards
            return within.project(x[index], z)

        found, least, alive = x.clone(), x.new_full((len(x),), torch.inf), torch.arange(len(x), device=x.device)
        for name, inner in self.members(within).items():
            z = craft(inner, alive, derive(seed, name))
            held = -margin(oracle.logits(z, alive, oracle.eot).mean(0), y[alive])
            better = held < least[alive]
            found[alive[better]], least[alive[better]] = z[better], held[better]
            if oracle.decisive:
                alive = alive[held > 0]
            if not len(alive):
                break
        return found

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        within: ThreatSet | RelativeBox | BitBudget,
        seed: int = 0,
        batch_size: int | None = None,
        after: Callable[[str, int], None] | None = None,
    ) -> AutoAttackResult:
        """Attack ``model`` as every attack does; all samples that are left are shared out anew for each member.

        Args:
            model: as in :class:`Attack`.
            x: inputs [B, ...].
            y: labels [B].
            within: an linf, l2 or l1 ball, with one radius or one per sample.
            seed: the same seed (and batch size) gives the same result.
            batch_size: rows run together; by default what suits the model.
            after: called with "clean" and with each member's name when it is done, and the number of samples that stand.

        Raises:
            InputError: as in :class:`Attack`, or a threat set that is no ball.
            UsageError: a batch size below 1.
        """
        if isinstance(within, RelativeBox | BitBudget):
            raise InputError(f"autoattack attacks inputs, but {within.describe()} is a set of weights; use weight-pgd.")
        members = self.members(within)
        check_images(x, within.low, within.high)
        check_labels(y, len(x))
        require(batch_size is None or batch_size >= 1, f"the batch size must be at least 1, got {batch_size}.")
        x, y = x.detach().clamp(within.low, within.high), y.long().to(x.device)
        within.bounds(x)
        with undisturbed(model, seed), torch.no_grad():
            logits = _clean(model, x, y, batch_size or 256)
            probe = Oracle(model, x)
        least = -margin(logits, y)
        forwards = torch.ones(len(x), dtype=torch.long, device=x.device)
        backwards = torch.zeros_like(forwards)
        forwards += probe.forwards
        found, alive = x.clone(), (~(least <= 0)).nonzero()[:, 0]
        broken_by = torch.full_like(forwards, -2)
        broken_by[least <= 0] = -1
        if probe.randomised:  # one draw says little: all are attacked, and what holds is known at the end
            least.fill_(torch.inf)
            alive, broken_by = torch.arange(len(x), device=x.device), torch.full_like(forwards, -2)
        left: dict[str, int] = {}

        def note(name: str) -> None:
            left[name] = len(x) - int((~(least > 0)).sum())
            if after is not None:
                after(name, left[name])

        note("clean")
        for number, (name, inner) in enumerate(members.items()):
            if len(alive):
                result = inner(model, x[alive], y[alive], within.select(alive), derive(seed, name), batch_size)
                forwards[alive] += result.cost.forwards
                backwards[alive] += result.cost.backwards
                better = ~(result.margin >= least[alive])
                at = alive[better]
                found[at], least[at] = result.x_adv[better], result.margin[better]
                fresh = result.success & (broken_by[alive] == -2)
                broken_by[alive[fresh]] = number
                if not probe.randomised:
                    alive = alive[~result.success]
            note(name)
        return AutoAttackResult(found, ~(least > 0), least, Cost(forwards, backwards), left=left, broken_by=broken_by)


def _clean(model: nn.Module, x: Tensor, y: Tensor, rows: int) -> Tensor:
    logits = torch.cat([_checked(model, part) for part in x.split(rows)])
    check_labels(y, len(x), logits.shape[1])
    return logits


def _checked(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x.clone())
    check_logits(logits, len(x))
    found: Tensor = logits
    return found
