"""Reproduce robust ANN-to-SNN conversion (Özdenizci and Legenstein, TMLR 2024) and plain conversion at the size of two cores.

    python reproductions/conversion.py --out runs/conversion [--seeds 0 1 2] [--limit 8000] [--samples 200]

Fashion-MNIST, a small VGG. From a natural and from a TRADES network (eps 0.05) come spiking networks of eight steps: converted
as they are, and converted with low thresholds and fine-tuned robustly. Beside them two spiking networks trained from scratch,
without defence and by SNN-RAT. Each is attacked through one gradient and through nineteen (the worst for each image), with
PGD-10 at 0.05 and FGSM at 0.1. Then, without any attack, what plain conversions lose at T time steps. Finished runs are kept.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.cli.memory import keep_memory
from stalwart.recipes import load_recipe, runs
from stalwart.spiking import monitor, neurons

SOURCE = runs.Source()
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "natural": ("fashion-mnist-vgg-natural", ("training.epochs=4",)),
    "trades": ("fashion-mnist-vgg-trades", ("training.epochs=5",)),
    "qcfs": ("fashion-mnist-vgg-qcfs", ("training.epochs=5",)),
    "plain": ("fashion-mnist-vgg-snn", ("conversion.source=../natural-{seed}",)),
    "plain from trades": ("fashion-mnist-vgg-snn", ("conversion.source=../trades-{seed}",)),
    "robust": ("fashion-mnist-vgg-robust-snn", ("conversion.source=../trades-{seed}",)),
    "robust from natural": ("fashion-mnist-vgg-robust-snn", ("conversion.source=../natural-{seed}",)),
    "from scratch": ("fashion-mnist-vgg-spiking", ()),
    "rat": ("fashion-mnist-vgg-spiking-rat", ()),
}
PGD: dict[str, Any] = {"steps": 10}
ATTACKS: dict[str, tuple[float, str, dict[str, Any]]] = {
    "PGD .05": (0.05, "pgd", PGD),
    "PGD .05, 19": (0.05, "surrogate-ensemble", {"attack": "pgd", "options": PGD}),
    "FGSM .1": (0.1, "fgsm", {}),
    "FGSM .1, 19": (0.1, "surrogate-ensemble", {"attack": "fgsm"}),
    "FGSM .1, sharp": (0.1, "fgsm", {"surrogate": {"name": "rectangle", "gamma": 0.25}}),
    "adaptive .05": (0.05, "adaptive-surrogate", {"steps": 50}),
}
STEPS = (1, 2, 4, 8, 16, 32)
PLAIN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "99.9 %, soft, from 0": ("natural", "rate", {"threshold": "percentile", "start": 0.0}),
    "99.9 %, hard, from 0": ("natural", "rate", {"threshold": "percentile", "start": 0.0, "reset": "hard"}),
    "99.9 %, soft, from half": ("natural", "rate", {"threshold": "percentile"}),
    "MSE, soft, from half": ("natural", "rate", {}),
    "MSE, a channel each": ("natural", "rate", {"per": "channel"}),
    "calibration, light": ("natural", "calibration", {}),
    "calibration, advanced": ("natural", "calibration", {"correction": "advanced"}),
    "local balancing": ("natural", "local-balancing", {"per": "channel"}),
    "offset spikes (4 more steps)": ("natural", "offset-spikes", {}),
    "QCFS": ("qcfs", "qcfs", {}),
    "QCFS, offset spikes (4 more)": ("qcfs", "offset-spikes", {}),
}


@dataclass(frozen=True)
class Kept:
    """Where runs are, and how large they are."""

    out: Path
    limit: int

    def model(self, name: str, seed: int) -> nn.Module:
        """Return a trained network, trained now if it is not there."""
        folder = self.out / f"{name.replace(' ', '-')}-{seed}"
        recipe, overrides = RECIPES[name]
        if not (folder / "model.safetensors").exists():
            chosen = [*(one.format(seed=seed) for one in overrides), f"name={folder.name}", f"seed={seed}"]
            if "conversion.source" not in str(chosen) or name.startswith("robust"):
                chosen.append(f"training.limit={self.limit}")
            runs.train(load_recipe(recipe, chosen), folder, SOURCE, (folder / "recipe.yaml").exists(), "cpu")
        return runs.load_run(folder, SOURCE)[1]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in percent."""
    with torch.no_grad():
        return 100 * float(torch.cat([model(part).argmax(1) for part in x.split(200)]).eq(y).float().mean())


def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[str, float]]:
    """Yield what each attack leaves, in percent."""
    for name, (eps, attack, options) in ATTACKS.items():
        if neurons(model) or "surrogate" not in f"{attack} {options}":
            found = sw.attack(attack, **options)(model, x, y, within=sw.Linf(eps), seed=0)
            yield name, 100 * float((~found.success).float().mean())


def measured(kept: Kept, name: str, seed: int, x: Tensor, y: Tensor, samples: int) -> dict[str, float]:
    """Return the figures of one model, from a file where they are known."""
    path = kept.out / f"{name.replace(' ', '-')}-{seed}.json"
    if path.exists():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    model = kept.model(name, seed)
    found = {"clean": accuracy(model, x, y), **dict(attacked(model, x[:samples], y[:samples]))}
    if neurons(model):
        with monitor(model) as seen, torch.no_grad():
            model(x[:samples])
        found["rate"] = statistics.mean(one.rate for one in seen.layers.values())
        found["energy"], found["ANN's energy"] = (one / 1e6 for one in seen.picojoules)
    path.write_text(json.dumps(found))
    return found


def checks(
    rows: dict[str, dict[str, float]], plain: dict[str, dict[str, float]]
) -> Iterator[tuple[str, float, str, float]]:
    """Yield (what, figure, relation, bound)."""
    robust, control, trades = rows["robust"], rows["robust from natural"], rows["trades"]
    yield "natural: clean", rows["natural"]["clean"], ">=", 84
    yield "natural: PGD .05", rows["natural"]["PGD .05"], "<=", 55
    yield "trades: clean", trades["clean"], ">=", 78
    yield "trades: PGD .05", trades["PGD .05"], ">=", 67
    yield "robust: clean below its source's", trades["clean"] - robust["clean"], "<=", 3
    yield "robust: PGD .05, 19", robust["PGD .05, 19"], ">=", 60
    yield "robust: one gradient above nineteen, FGSM .1", robust["FGSM .1"] - robust["FGSM .1, 19"], ">=", 3
    yield "robust: sharp gradient above nineteen", robust["FGSM .1, sharp"] - robust["FGSM .1, 19"], ">=", 15
    for attack in ("PGD .05, 19", "FGSM .1, 19"):
        yield f"robust above robust from natural, {attack}", robust[attack] - control[attack], ">=", 6
        yield f"robust above plain, {attack}", robust[attack] - rows["plain"][attack], ">=", 15
        yield f"robust above from scratch, {attack}", robust[attack] - rows["from scratch"][attack], ">=", 10
    soft, half, hard = (plain[f"99.9 %, {one}"] for one in ("soft, from 0", "soft, from half", "hard, from 0"))
    before = soft["ANN"]
    yield "99.9 %, soft, from 0: loses at T = 32", before - soft["32"], "<=", 2
    yield "99.9 %, soft, from 0: loses at T = 8", before - soft["8"], ">=", 15
    for steps, most in (("4", 4), ("8", 3), ("16", 2)):
        yield f"99.9 %, soft, from half: loses at T = {steps}", before - half[steps], "<=", most
    yield "hard below soft at T = 8", soft["8"] - hard["8"], ">=", 0
    yield "QCFS: loses at T = 4", plain["QCFS"]["ANN"] - plain["QCFS"]["4"], "<=", 4
    yield "QCFS: loses at T = 16", plain["QCFS"]["ANN"] - plain["QCFS"]["16"], "<=", 1
    for name in ("calibration, light", "calibration, advanced"):
        yield f"{name}: loses at T = 16", plain[name]["ANN"] - plain[name]["16"], "<=", 1


def main() -> int:
    """Train what is missing, attack, print the tables and the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/conversion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=8000, help="training images")
    parser.add_argument("--samples", type=int, default=200, help="attacked images")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    kept = Kept(chosen.out, chosen.limit)
    data = SOURCE.load(load_recipe("fashion-mnist-vgg-natural"))
    x, y = data.test.take(2000).batch(slice(None))
    seen, _ = data.train.take(1024).batch(slice(None))
    models = [name for name in RECIPES if name != "qcfs"]
    by_seed: list[dict[str, dict[str, float]]] = []
    for seed in chosen.seeds:
        by_seed.append({name: measured(kept, name, seed, x, y, chosen.samples) for name in models})
        print(f"seed {seed}: " + json.dumps(by_seed[-1]), flush=True)
    plain: dict[str, dict[str, float]] = {}
    for name, (source, method, options) in PLAIN.items():
        found: dict[str, list[float]] = {}
        for seed in chosen.seeds:
            model = kept.model(source, seed)
            found.setdefault("ANN", []).append(accuracy(model, x, y))
            for steps in STEPS:
                made = sw.convert(model, seen, steps=steps, method=method, **options)
                found.setdefault(str(steps), []).append(accuracy(made, x, y))
        plain[name] = {what: statistics.median(values) for what, values in found.items()}
    rows = {
        name: {what: statistics.median(one[name][what] for one in by_seed) for what in by_seed[0][name]}
        for name in models
    }
    columns = ["clean", *ATTACKS, "rate", "energy"]
    print("| model | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [
            "-" if column not in row else f"{row[column]:.{2 if column in ('rate', 'energy') else 1}f}"
            for column in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(
        "\n| conversion | ANN | "
        + " | ".join(f"T = {steps}" for steps in STEPS)
        + " |\n"
        + "|---" * (len(STEPS) + 2)
        + "|"
    )
    for name, row in plain.items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |")
    failed = False
    for what, figure, relation, bound in checks(rows, plain):
        holds = figure >= bound if relation == ">=" else figure <= bound
        failed |= not holds
        print(f"{'holds' if holds else 'FAILS'}  {what}: {figure:.1f} ({relation} {bound:g})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
