"""Evaluation of a run or of a foreign model, alone or shared among workers, for the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stalwart.cli.scaling import crew
from stalwart.core.errors import UsageError
from stalwart.recipes import judging, runs
from stalwart.recipes.foreign import foreign_model
from stalwart.recipes.load import parse_evaluation
from stalwart.recipes.sharing import ForeignAt, RunAt
from stalwart.report import Report


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None leaves a default.

    Attributes:
        changes: of the recipe's ``evaluation`` section.
        seed: of all draws.
        workers: processes, or tasks at once on a cluster.
        address: of a Ray cluster.
        out: where the report goes.
        device: where the model runs.
    """

    changes: dict[str, Any]
    seed: int
    workers: int | None
    address: str | None
    out: Path | None
    device: str | None


def evaluate_run(run: Path, wish: Wish, source: runs.Source) -> tuple[Report, Path]:
    """Evaluate a run as its recipe says but for the changes, write its report, and return it with the folder it is in.

    Raises:
        StalwartError: no run, options that do not fit, data that cannot be had, a folder that cannot be written.
    """
    runs.read_recipe(run)
    folder, changes = wish.out or run, wish.changes
    runs.require_writable(folder)
    recipe, network, data = runs.load_run(run, source)
    held = recipe.evaluation.model_dump()
    if changes.get("certify") and held["certify"]:
        changes = changes | {"certify": held["certify"] | changes["certify"]}
    section, chosen = parse_evaluation(held | changes), runs.pick_device(wish.device)
    loaded = recipe, network, data
    with crew(wish.workers, wish.address, RunAt(run.absolute(), source), section, wish.seed, chosen) as work:
        return judging.evaluate_run(run, source, loaded, section, wish.seed, folder, chosen, work), folder


def evaluate_foreign(
    model: str, weights: Path | None, dataset: str | None, wish: Wish, source: runs.Source
) -> tuple[Report, Path]:
    """Evaluate the network that ``pkg.module:factory`` makes, write its report, and return it with the folder it is in.

    Raises:
        StalwartError: no data set, nothing to import, or as :func:`evaluate_run`.
    """
    if dataset is None:
        raise UsageError("a foreign model needs --dataset, such as cifar10, a .npz file or a folder of images.")
    folder = wish.out or Path("runs") / model.replace(":", "-")
    runs.require_writable(folder)
    section = parse_evaluation(wish.changes)
    network = foreign_model(model, weights)
    data, chosen = source.named(dataset), runs.pick_device(wish.device)
    at = ForeignAt(model, weights and weights.absolute(), dataset, source, Path.cwd())
    with crew(wish.workers, wish.address, at, section, wish.seed, chosen) as work:
        report = judging.evaluate_model(model, network, data, section, wish.seed, folder, device=chosen, work=work)
    return report, folder
