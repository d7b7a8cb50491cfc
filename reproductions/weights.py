"""Reproduce insensitivity to parameter noise (Büchel, Faber, Muir, ICLR 2022) at the size of two cores.

    python reproductions/weights.py --out runs/weights [--families cnn rlif paper] [--seeds 0 1 2]

Fashion-MNIST. "cnn" is a small convolutional network and "rlif" a recurrent spiking one that reads an image row by row, both on
10,000 training images; "paper" is the published network of half a million weights, trained for less time than published. Each
is trained plainly (standard), against an adversary on its weights (beta), under random noise on them (FN), and both (FN+beta);
the small ones also with clipped weights (clip). Then come chips with mismatch, the worst weights nearby, flipped bits, and a
day of phase-change memory, on 2,000 test images, and the checks. Finished runs and figures are kept.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.cli.memory import keep_memory
from stalwart.evaluation.landscape import landscape
from stalwart.hardware import PCM, BitFlips, Hardware, Mismatch, accuracies
from stalwart.recipes import load_recipe, runs

SOURCE = runs.Source()
BOTH = ("*weight", "*bias")
DAY = 24 * 3600.0
SHORT = ("training.limit=10000", "training.schedule={name: cyclic, peak: 0.3}", "training.optimiser.lr=4e-3")
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cnn": ("fashion-mnist-cnn", (*SHORT, "training.epochs=4", "model.channels=[16, 32]", "model.hidden=null")),
    "rlif": ("fashion-mnist-rlif", ()),
    "paper": (
        "fashion-mnist-cnn",
        ("training.limit=30000", "training.epochs=5", "training.schedule={name: cyclic, peak: 0.3}"),
    ),
}
FASTER = "objective.steps=3"
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("standard", ()),
    "beta": ("weight-kl", (FASTER,)),
    "FN": ("forward-noise", ()),
    "FN+beta": ("fn-beta", (FASTER,)),
    "clip": ("standard", ("training.clip_weights=0.1",)),
}
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Standard deviations of mismatch, as shares."""
CHIPS: dict[str, tuple[Hardware, int]] = {
    **{f"mismatch {level:g}": (Mismatch(level), 20) for level in LEVELS},
    "flips 1 %": (BitFlips(0.01), 10),
    "a day": (PCM(DAY, compensate=False), 10),
    "a day, compensated": (PCM(DAY), 10),
}
ATTACKED = (0.05, 0.1)
PUBLISHED = {
    "standard": ("91.30", "90.45/88.80", "87.93/83.40", "82.70/71.99", "61.14/42.46", "36.93/20.17"),
    "beta": ("92.11", "91.59/90.91", "90.67/89.28", "89.64/87.10", "85.96/76.28", "79.39/59.15"),
    "FN": ("92.00", "91.94/91.69", "91.63/91.06", "91.01/90.01", "87.82/84.37", "78.48/69.67"),
    "FN+beta": ("91.88", "91.77/91.29", "91.62/91.19", "91.25/90.36", "89.36/86.84", "84.19/74.25"),
}
"""Table 1 of the paper, the convolutional network: accuracy as it is, then mean/minimum of chips at each of LEVELS."""

Figures = dict[str, float]


def trained(out: Path, family: str, name: str, seed: int) -> nn.Module:
    """Return a trained network, trained now if it is not there."""
    prefix, sizes = FAMILIES[family]
    recipe, overrides = MODELS[name]
    folder = out / f"{family}-{name.replace('+', '-').lower()}-{seed}"
    if not (folder / "model.safetensors").exists():
        chosen = [*sizes, *overrides, f"name={folder.name}", f"seed={seed}"]
        runs.train(load_recipe(f"{prefix}-{recipe}", chosen), folder, SOURCE, (folder / "recipe.yaml").exists(), "cpu")
    return runs.load_run(folder, SOURCE)[1]


def measured(out: Path, family: str, name: str, seed: int, x: Tensor, y: Tensor) -> Figures:
    """Return the figures of one network in percent, its slope as it is; from a file where they are known."""
    path = out / f"{family}-{name.replace('+', '-').lower()}-{seed}.json"
    if path.exists():
        known: Figures = json.loads(path.read_text())
        return known
    model = trained(out, family, name, seed)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(250)]).eq(y)
    found: Figures = {"clean": 100 * float(right.float().mean())}
    for what, (device, chips) in CHIPS.items():
        values = 100 * accuracies(model, device, x, y, chips, seed)
        found[what], found[f"{what}, worst"] = float(values.mean()), float(values.min())
    for fraction in ATTACKED:
        attack = sw.attack("weight-pgd", steps=10, restarts=3)
        moved = attack(model, x, y, within=sw.RelativeBox(fraction, BOTH), seed=seed)
        found[f"PGD {fraction:g}"] = 100 * float((~moved.success).float().mean())
    found["slope"] = landscape(model, x, y, seed=seed).slope
    path.write_text(json.dumps(found))
    return found


def checks(rows: dict[str, dict[str, Figures]]) -> Iterator[tuple[str, float, str, float]]:
    """Yield (what, figure, relation, bound); margins allow for seeds."""
    for family, models in rows.items():
        plain, beta = models["standard"], models["beta"]
        for name, row in models.items():
            means = [row["clean"], *(row[f"mismatch {level:g}"] for level in LEVELS)]
            rise = max(b - a for a, b in itertools.pairwise(means))
            yield f"{family} {name}: largest rise with mismatch", rise, "<=", 1
        if family == "rlif":
            yield "rlif: beta above standard, PGD .05", beta["PGD 0.05"] - plain["PGD 0.05"], ">=", 10
            yield (
                "rlif: beta above standard, worst at .3",
                beta["mismatch 0.3, worst"] - plain["mismatch 0.3, worst"],
                ">=",
                6,
            )
            yield "rlif: slope of beta / standard", beta["slope"] / plain["slope"], "<=", 0.4
            yield "rlif: what beta costs", plain["clean"] - beta["clean"], "<=", 7
            yield "rlif: clip above standard, flips 1 %", models["clip"]["flips 1 %"] - plain["flips 1 %"], ">=", 8
            yield "rlif: standard, compensation gains", plain["a day, compensated"] - plain["a day"], ">=", 4
            continue
        yield f"{family}: beta above standard, PGD .1", beta["PGD 0.1"] - plain["PGD 0.1"], ">=", 15
        yield f"{family}: beta above standard, mean at .7", beta["mismatch 0.7"] - plain["mismatch 0.7"], ">=", 6
        worst = beta["mismatch 0.7, worst"] - plain["mismatch 0.7, worst"]
        yield f"{family}: beta above standard, worst at .7", worst, ">=", 15
        if family == "paper":
            both, noise = models["FN+beta"]["mismatch 0.7"], models["FN"]["mismatch 0.7"]
            yield "paper: FN+beta above FN, mean at .7", both - noise, ">=", 0
        else:
            yield "cnn: what beta costs", plain["clean"] - beta["clean"], "<=", 2.5
        yield f"{family}: slope of beta / standard", beta["slope"] / plain["slope"], "<=", 0.7
        yield f"{family}: beta above FN, PGD .1", beta["PGD 0.1"] - models["FN"]["PGD 0.1"], ">=", 0


def table(rows: dict[str, Figures]) -> None:
    """Print one row a network; two numbers are the mean and the worst of the chips."""
    columns = ["clean", *CHIPS, *(f"PGD {fraction:g}" for fraction in ATTACKED), "slope"]
    print("| model | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [
            f"{row[column]:.{3 if column == 'slope' else 1}f}"
            + (f" / {row[f'{column}, worst']:.1f}" if f"{column}, worst" in row else "")
            for column in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def beside_published(rows: dict[str, Figures]) -> None:
    """Print the published mean/minimum beside ours, by mismatch."""
    print("\n| model | clean | " + " | ".join(f"mismatch {level:g}" for level in LEVELS) + " |\n" + "|---" * 7 + "|")
    for name, row in rows.items():
        ours = [f"{row['clean']:.2f}"] + [
            f"{row[f'mismatch {level:g}']:.2f}/{row[f'mismatch {level:g}, worst']:.2f}" for level in LEVELS
        ]
        print(f"| {name}, here | " + " | ".join(ours) + " |")
        print(f"| {name}, published | " + " | ".join(PUBLISHED[name]) + " |")


def main() -> int:
    """Train what is missing, measure, print the tables and the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/weights"))
    parser.add_argument("--families", nargs="+", default=["cnn", "rlif"], choices=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    x, y = SOURCE.load(load_recipe("fashion-mnist-cnn-standard")).test.take(2000).batch(slice(None))
    medians: dict[str, dict[str, Figures]] = {}
    for family in chosen.families:
        models = [name for name in MODELS if family != "paper" or name in PUBLISHED]
        by_seed = []
        for seed in chosen.seeds:
            by_seed.append({name: measured(chosen.out, family, name, seed, x, y) for name in models})
            print(f"{family}, seed {seed}: " + json.dumps(by_seed[-1]), flush=True)
        medians[family] = {
            name: {what: statistics.median(one[name][what] for one in by_seed) for what in by_seed[0][name]}
            for name in models
        }
    failed = False
    for family, rows in medians.items():
        print(f"\n{family}")
        table(rows)
        if family == "paper":
            beside_published(rows)
    for what, figure, relation, bound in checks(medians):
        holds = figure >= bound if relation == ">=" else figure <= bound
        failed |= not holds
        print(f"{'holds' if holds else 'FAILS'}  {what}: {figure:.2f} ({relation} {bound:g})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
