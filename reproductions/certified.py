"""Reproduce certified training at small scale: what relaxations say of networks trained with and without bounds.

    python reproductions/certified.py --out runs/certified [--models ibp natural ...] [--mnist-dir DIR]

Fashion-MNIST, MLP 784-128-128-10: verified errors of the first 3,000 test images by IBP and by CROWN-IBP with tight and
with adaptive lines, and the share of dead and unstable neurons, each the median over the seeds. With ``--mnist-dir`` also
DM-small on MNIST, trained at eps 0.4 with ReLUs and with ParamRamps. Finished runs are kept, their figures computed anew.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.bounds.methods import propagate
from stalwart.certify.neurons import neuron_status, together
from stalwart.cli.memory import keep_memory
from stalwart.recipes import load_recipe, runs

MLPS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "ibp": ("fashion-mnist-ibp", (), 0.1),
    "paramramp": ("fashion-mnist-paramramp", (), 0.1),
    "crown-ibp": ("fashion-mnist-crown-ibp", (), 0.1),
    "mtl-ibp": ("fashion-mnist-mtl-ibp", (), 0.1),
    "natural": ("fashion-mnist-ibp", ("objective={name: natural}", "training.epochs=6"), 0.01),
}
DMS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "dm-small-relu": ("mnist-dm-small-ibp-relu", (), 0.4),
    "dm-small-paramramp": ("mnist-dm-small-ibp-paramramp", (), 0.4),
}
WALKS = {"IBP": ("ibp", "tight"), "CROWN-IBP tight": ("crown-ibp", "tight"), "adaptive": ("crown-ibp", "adaptive")}
EXPECTED = {
    "ibp": {"clean": 23.2, "IBP": 39.5, "CROWN-IBP tight": 39.1, "adaptive": 42.9},
    "paramramp": {"clean": 23.5, "IBP": 38.9, "CROWN-IBP tight": 38.6, "adaptive": 42.4},
    "natural": {"clean": 13.4, "IBP": 93.4, "CROWN-IBP tight": 40.3, "adaptive": 31.0},
}
TOLERANCE = 2.0
_BATCH = 500


@dataclass(frozen=True)
class Row:
    """One model: errors in percent by name, and the share of neurons by layer and state."""

    eps: float
    errors: dict[str, float]
    states: list[dict[str, float]]


def measured(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Row:
    """Return the errors of a model on some inputs and the states of its neurons over their boxes."""
    within = sw.Linf(eps)
    wrong = {"clean": (model(x).argmax(1) != y).sum()} | {name: torch.tensor(0) for name in WALKS}
    parts, states = [], []
    for begun in range(0, len(x), _BATCH):
        part, labels = x[begun : begun + _BATCH], y[begun : begun + _BATCH]
        for name, (method, strategy) in WALKS.items():
            margin = sw.margin_bound(model, part, labels, within=within, method=method, strategy=strategy)
            # NaN proves nothing.
            wrong[name] = wrong[name] + (~(margin > 0)).sum()
        parts.append(neuron_status(propagate(model, part, within, "ibp")))
    for layer in together(parts):
        shares = {name: 100 * count / (layer.neurons * len(x)) for name, count in layer.counts.items()}
        open_ = shares["unstable"] + shares.get("right-unstable", 0.0)
        states.append({"dead": shares["dead"], "unstable": open_, "right-dead": shares.get("right-dead", 0.0)})
    return Row(eps, {name: 100 * float(count) / len(x) for name, count in wrong.items()}, states)


def trained(
    out: Path, name: str, recipe: str, overrides: tuple[str, ...], source: runs.Source
) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a model or read it, and return it with the test images and labels."""
    folder = out / name
    if not (folder / "model.safetensors").exists():
        wanted = load_recipe(recipe, [*overrides, f"name={name}"])
        runs.train(wanted, folder, source, resume=(folder / "recipe.yaml").exists(), device="cpu")
    _, model, data = runs.load_run(folder, source)
    x, y = data.test.take(3000 if recipe.startswith("fashion") else 10000).batch(slice(None))
    return model, x, y


def median(rows: list[Row]) -> Row:
    """Return the medians over seeds, figure by figure."""
    first = rows[0]
    errors = {name: statistics.median(row.errors[name] for row in rows) for name in first.errors}
    states = [
        {name: statistics.median(row.states[at][name] for row in rows) for name in layer}
        for at, layer in enumerate(first.states)
    ]
    return Row(first.eps, errors, states)


def checks(rows: dict[str, Row]) -> list[tuple[str, bool, str]]:
    """Return (check, whether it holds, its figures) for the models that are there."""
    found = []
    for name, wanted in EXPECTED.items():
        if name in rows:
            errors = rows[name].errors
            near = all(abs(errors[column] - value) <= TOLERANCE for column, value in wanted.items())
            figures = ", ".join(f"{column} {errors[column]:.1f} ({value})" for column, value in wanted.items())
            found.append((f"{name}: errors within {TOLERANCE:g}", near, figures))

    def ordered(name: str, better: str, worse: str) -> None:
        if name in rows:
            errors = rows[name].errors
            figures = f"{errors[better]:.1f}, {errors[worse]:.1f}"
            found.append((f"{name}: {better} <= {worse}", errors[better] <= errors[worse], figures))

    for name in ("ibp", "paramramp"):
        ordered(name, "CROWN-IBP tight", "IBP")
        ordered(name, "IBP", "adaptive")
    ordered("natural", "adaptive", "CROWN-IBP tight")
    ordered("natural", "CROWN-IBP tight", "IBP")

    def beats(first: str, second: str, limit: Callable[[float, float], bool], what: str) -> None:
        if first in rows and second in rows:
            a, b = rows[first].errors["IBP"], rows[second].errors["IBP"]
            found.append((f"{first} {what} {second}, IBP error", limit(a, b), f"{a:.1f}, {b:.1f}"))

    beats("paramramp", "ibp", lambda a, b: a <= b, "at most")
    beats("dm-small-paramramp", "dm-small-relu", lambda a, b: a < b, "below")
    return found


def main() -> int:
    """Train what is missing, print the table and the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/certified"))
    parser.add_argument("--models", nargs="+", choices=[*MLPS, *DMS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mnist-dir", type=Path, help="folder of MNIST's four files; trains DM-small too")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    models = MLPS | (DMS if chosen.mnist_dir else {})
    rows: dict[str, Row] = {}
    for name in chosen.models or models:
        recipe, overrides, eps = models[name]
        source = runs.Source(chosen.mnist_dir if name in DMS else None)
        found = []
        for seed in chosen.seeds if name in MLPS else chosen.seeds[:1]:
            model, x, y = trained(chosen.out, f"{name}-{seed}", recipe, (*overrides, f"seed={seed}"), source)
            with torch.no_grad():
                found.append(measured(model, x, y, eps))
        rows[name] = median(found)
    columns = ["clean", *WALKS]
    print("| model | eps | " + " | ".join(columns) + " | dead | unstable | right-dead |")
    print("|---" * (len(columns) + 5) + "|")
    for name, row in rows.items():
        cells = [f"{row.errors[column]:.1f}" for column in columns]
        cells += ["/".join(f"{layer[key]:.0f}" for layer in row.states) for key in ("dead", "unstable", "right-dead")]
        print(f"| {name} | {row.eps:g} | " + " | ".join(cells) + " |")
    results = checks(rows)
    for what, holds, figures in results:
        print(f"{'holds' if holds else 'FAILS'}  {what}  ({figures})")
    return 0 if all(holds for _, holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
