"""Runs: a folder that holds a recipe, its weights and its results, and the steps that fill it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import read_bytes, require_writable, write_text
from stalwart.core.numbers import require
from stalwart.core.progress import progress
from stalwart.core.registry import build
from stalwart.core.tensors import load_weights, save_tensors
from stalwart.data import Data, epoch_batches
from stalwart.data import load as load_data
from stalwart.models import build_model
from stalwart.models.initialise import ibp_initialise
from stalwart.objectives.table import OBJECTIVES
from stalwart.recipes.conversions import converted, structure, write_comparison
from stalwart.recipes.load import dump_recipe, load_recipe
from stalwart.recipes.schema import Recipe
from stalwart.spiking import fluctuation_init
from stalwart.stochastic.table import NOISES, Noise
from stalwart.training import Fit, ranks
from stalwart.training.checkpoint import path_of

_MEASURED = 256
"""Training inputs that an initialisation measures rates on."""

_LINES = 10
"""Epochs printed of a long run; every one is in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Source:
    """Where data comes from: a folder of the user's own, and whether the publisher may be asked."""

    data_dir: Path | None = None
    download: bool = True

    def load(self, recipe: Recipe) -> Data:
        """Load the recipe's data."""
        return load_data(
            recipe.data.name, recipe.data.options, recipe.seed, self.data_dir, self.download, progress=True
        )

    def named(self, dataset: str) -> Data:
        """Load a registered dataset with its defaults, or the user's own: a file ``*.npz`` or a folder of images."""
        path = Path(dataset)
        options = {"path": str(path)} if path.suffix == ".npz" else {"root": str(path)} if path.is_dir() else {}
        name = "npz" if "path" in options else "folder" if "root" in options else dataset
        return load_data(name, options, 0, self.data_dir, self.download, progress=True)


def make_model(recipe: Recipe, data: Data) -> nn.Module:
    """Build the recipe's model, freshly initialised from its seed; of a conversion, what becomes of it."""
    model = make_network(recipe, data)
    if recipe.conversion is None:
        return model
    x, _ = data.train.batch(slice(0, 1))
    return structure(recipe.conversion, model, x)


def make_network(recipe: Recipe, data: Data) -> nn.Module:
    """Build the recipe's model before a conversion, freshly initialised from its seed."""
    section = recipe.model
    kind: Noise = build("noise", NOISES, section.noise.name, section.noise.options) if section.noise else Noise()
    classes = len(data.classes)
    model = build_model(
        section.name,
        data.shape,
        classes,
        section.options,
        kind.head,
        section.mean,
        section.std,
        recipe.seed,
        section.neurons,
        section.quantised,
    )
    if section.init == "ibp":
        ibp_initialise(model, recipe.seed)
    if section.init == "fluctuation" and section.neurons is not None:
        x, _ = data.train.batch(slice(0, _MEASURED))
        fluctuation_init(model, x, section.neurons.xi, seed=recipe.seed)
    return kind.apply(model)


def train(recipe: Recipe, out: Path, source: Source, resume: bool = False, device: str | None = None) -> nn.Module:
    """Train the recipe's model into the folder ``out`` and return it with the selected weights.

    Raises:
        UsageError: ``out`` holds another run, or one to be resumed without ``resume``.
        FileError, InputError, TrainingError: as the parts raise them.
    """
    text = dump_recipe(recipe)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    with ranks(pick_device(device)) as own:
        if own.first:
            _check_folder(out, text, resume)
        data = source.load(recipe)
        model, before = _start(recipe, data, out, source)
        model = model.to(own.device)
        objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
        objective.penalty(model)  # refuses a model the objective cannot train, before any work
        if own.first:
            write_text(out / "recipe.yaml", text)  # only now, so that a start that failed does not claim the folder
        if recipe.training.epochs == 0:
            if own.first:
                save_tensors(out / "model.safetensors", dict(model.state_dict()))
                write_comparison(out, before, model, data)
            return model
        size = len(data.train) if recipe.training.limit is None else min(recipe.training.limit, len(data.train))
        batches = len(epoch_batches(size, recipe.training.batch_size, recipe.seed, 0, own.rank, own.world))
        with progress(f"training {recipe.name}", batches * recipe.training.epochs, own.first) as advance:
            fit = Fit(
                model,
                objective,
                data,
                recipe.training,
                out,
                recipe.seed,
                recipe.augment,
                own,
                fingerprint,
                advance,
                _epoch_printer(recipe.training.epochs) if own.first else _say_nothing,
            )
            ended = fit.run(resume)
        if own.first:
            write_comparison(out, before, model, data)
        if own.first and ended.stopped:
            print(f"stopped early: {ended.stopped}", flush=True)
    return model


def _start(recipe: Recipe, data: Data, out: Path, source: Source) -> tuple[nn.Module, nn.Module | None]:
    """Return the model to train, and the network that it was converted from, if it was."""
    section = recipe.conversion
    if section is None:
        return make_model(recipe, data), None
    folder = (out / section.source).resolve()
    if not (folder / "model.safetensors").exists():
        raise FileError(
            f"there is no trained network to convert in {folder}; train one there first, or name another run by "
            "conversion.source, seen from this run's folder."
        )
    theirs = read_recipe(folder)
    for part in ("data", "model"):
        require(
            getattr(theirs, part) == getattr(recipe, part),
            f"the section '{part}' differs from that of the run to convert, {folder}; make it the same.",
        )
    _, network, _ = load_run(folder, source)
    return converted(section, network, data), network


def load_run(folder: Path, source: Source, device: str = "cpu") -> tuple[Recipe, nn.Module, Data]:
    """Return a finished run's recipe, its model with the selected weights, and its data.

    Raises:
        FileError: the folder holds no finished run, or one of its files is damaged.
    """
    recipe = read_recipe(folder)
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise FileError(
            f"{folder} has no model.safetensors: its training has not finished. Go on with "
            f"`stalwart train {folder / 'recipe.yaml'} --out {folder} --resume`."
        )
    data = source.load(recipe)
    model = make_model(recipe, data)
    load_weights(model, weights, "model")
    return recipe, model.to(device).eval(), data


def pick_device(name: str | None) -> str:
    """Return the named device, or a GPU where there is one.

    Raises:
        UsageError: torch knows no such device, or it is not there.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.startswith("cuda") and "LOCAL_RANK" in os.environ:
        require(chosen == "cuda", f"torchrun gives each process its own GPU; say --device cuda, not {chosen}.")
        chosen = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as problem:
        raise UsageError(f"device '{chosen}' cannot be used: {str(problem).splitlines()[0]}") from None
    return chosen


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run folder."""
    path = folder / "recipe.yaml"
    if not path.exists():
        raise FileError(f"{folder} is not a run: it has no recipe.yaml. Name a folder that `stalwart train` wrote.")
    return load_recipe(str(path))


def _check_folder(out: Path, recipe: str, resume: bool) -> None:
    require_writable(out)
    path = out / "recipe.yaml"
    if path.exists():
        if read_bytes(path, "recipe").decode(errors="replace") != recipe:
            raise UsageError(f"{out} holds a run of another recipe; choose another --out, or use its own recipe.yaml.")
        if not resume:
            done = "a finished" if (out / "model.safetensors").exists() else "an unfinished"
            raise UsageError(f"{out} holds {done} run of this recipe; add --resume to go on, or choose another --out.")
    elif path_of(out).exists() or (out / "model.safetensors").exists():
        raise FileError(f"{out} has a model or a checkpoint but no recipe.yaml; restore it or choose another --out.")
    if resume:
        for leftover in out.rglob(".*.part"):  # what a killed process was writing
            leftover.unlink(missing_ok=True)


def _epoch_printer(epochs: int) -> Callable[[dict[str, Any]], None]:
    every = -(-epochs // _LINES)

    def show(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] % every and metrics["epoch"] != epochs and "stopped" not in metrics:
            return
        parts = [
            f"epoch {metrics['epoch']}",
            f"loss {metrics['train_loss']:.4f}",
            f"train {metrics['train_accuracy']:.3f}",
        ]
        parts.append(f"validation {metrics['validation_accuracy']:.3f}")
        if "validation_robust_accuracy" in metrics:
            parts.append(f"robust {metrics['validation_robust_accuracy']:.3f}")
        if "validation_certified_accuracy" in metrics:
            parts.append(f"certified {metrics['validation_certified_accuracy']:.3f}")
        print("  ".join([*parts, f"{metrics['seconds']:.1f} s"]), flush=True)

    return show


def _say_nothing(metrics: dict[str, Any]) -> None:
    return None
