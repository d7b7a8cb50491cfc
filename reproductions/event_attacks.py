"""Reproduce attacks on event rasters: few flips by SpikeFool and its comparisons, transfer to 8 bits, patches, the defence.

    python reproductions/event_attacks.py --out runs/event-attacks [--samples 100] [--run RUN] [--defended RUN] [--data-dir DIR]

N-MNIST in ten binary frames, the recipes nmnist-spiking and nmnist-spiking-spikefool. SpikeFool, PGD on binary rasters and PGD
on probabilities look for the fewest flips, at most 1,000 of 23,120 bins, on recordings that the network decides rightly and did
not learn from (all of the test and then of the validation part); what converged is shown to the same network with 8-bit
weights. Then all of them within 20 flips beside plain PGD, discs of 2.5 % and 10 % of the frame beside random ones, and
SpikeFool on the network trained on SpikeFool's examples. Finished runs are kept.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.attacks.event_patch import EventPatch
from stalwart.cli.memory import keep_memory
from stalwart.data import Data
from stalwart.evaluation import FlipRow, few_flips, judge_patch
from stalwart.hardware import Quantise
from stalwart.recipes import load_recipe, runs

CAP, FEW, TARGET = 1000, 20, 3
NAMES = ("spikefool", "binary-pgd", "probabilistic-pgd")


def trained(folder: Path, recipe: str, source: runs.Source) -> tuple[nn.Module, Data]:
    """Train a recipe or read its run."""
    if not (folder / "model.safetensors").exists():
        runs.train(load_recipe(recipe), folder, source, resume=(folder / "recipe.yaml").exists(), device="cpu")
    _, model, data = runs.load_run(folder, source)
    return model, data


def percent(rate: object) -> str:
    """Return a rate as text."""
    return "" if rate is None else f"{100 * rate.value:.1f}"  # type: ignore[attr-defined]


def show(title: str, rows: list[FlipRow]) -> dict[str, FlipRow]:
    """Print rows and return them by name."""
    print(f"\n{title}, {rows[0].converged.total} recordings")
    print(
        "| attack | converged | median flips | forwards | backwards | seconds | agreed at 8 bits | transferred to 8 bits |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        flips = "" if row.flips is None else f"{row.flips:g}"
        print(
            f"| {row.attack} | {percent(row.converged)} | {flips} | {row.forwards:.0f} | {row.backwards:.0f} "
            f"| {row.seconds:.2f} | {percent(row.agreed)} | {percent(row.transferred)} |",
            flush=True,
        )
    return {row.attack: row for row in rows}


def main() -> int:
    """Train what is missing, attack, print the tables and the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/event-attacks"))
    parser.add_argument("--run", type=Path, help="a finished run of nmnist-spiking")
    parser.add_argument("--defended", type=Path, help="a finished run of nmnist-spiking-spikefool")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    source = runs.Source(chosen.data_dir)
    model, data = trained(chosen.run or chosen.out / "standard", "nmnist-spiking", source)
    unseen = [part.batch(slice(None)) for part in (data.test, data.validation)]

    def rightly(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([net(part).argmax(1) for part in inputs.split(50)]) == labels

    def accuracy(net: nn.Module) -> float:
        return 100 * float(rightly(net, *unseen[0]).float().mean())

    clean = accuracy(model)
    print(f"clean accuracy of {len(unseen[0][0])} test recordings: {clean:.1f}")
    x, y = (torch.cat(parts) for parts in zip(*unseen, strict=True))
    right = rightly(model, x, y).nonzero()[: chosen.samples, 0]
    x, y = x[right], y[right]
    fewest = {name: sw.attack(name) for name in NAMES}
    strong = {name: fewest[name] for name in ("spikefool", "binary-pgd")}
    with_pgd = {"noise": sw.attack("noise"), "pgd": sw.attack("pgd"), **strong}
    free = show(f"At most {CAP} flips", few_flips(model, x, y, fewest, sw.Events(CAP), Quantise(8)))
    short = show(f"At most {FEW} flips", few_flips(model, x, y, with_pgd, sw.Events(FEW), Quantise(8)))
    print(f"\nUniversal patches, target {TARGET}: percent of recordings of other classes")
    print(
        "| share of the frame | bins | events | taken for the target | random patch | broken | random patch | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    learn_x, learn_y = data.train.take(200).batch(slice(None))
    patches = {}
    for share in (0.025, 0.1):
        begun = time.monotonic()
        patch = EventPatch(target=TARGET, share=share, batch=50, steps=30).fit(model, learn_x, learn_y)
        row = patches[share] = judge_patch(model, patch, x, y)
        print(
            f"| {share:g} | {row.bins} | {row.events} | {percent(row.fitted)} | {percent(row.control)} "
            f"| {percent(row.broken)} | {percent(row.control_broken)} | {time.monotonic() - begun:.0f} |",
            flush=True,
        )

    robust, _ = trained(chosen.defended or chosen.out / "defended", "nmnist-spiking-spikefool", source)
    clean_robust = accuracy(robust)
    print(f"\nclean accuracy when trained on SpikeFool's examples: {clean_robust:.1f}")
    defended = show(
        f"Trained on SpikeFool's examples, at most {CAP} flips", few_flips(robust, x, y, strong, sw.Events(CAP))
    )
    defended_short = show(
        f"Trained on SpikeFool's examples, at most {FEW} flips",
        few_flips(robust, x, y, {"pgd": sw.attack("pgd"), **strong}, sw.Events(FEW)),
    )

    spikefool, binary, relaxed = (free[name] for name in NAMES)
    flips = [
        float(row.flips or 0) for row in (spikefool, binary, relaxed, defended["spikefool"], defended["binary-pgd"])
    ]
    moved = spikefool.transferred
    left = [100 * (1 - rows["spikefool"].converged.value) for rows in (short, defended_short)]
    large = patches[0.1]
    results = [
        ("clean accuracy at least 80", clean >= 80, f"{clean:.1f}"),
        (
            f"SpikeFool converges on at least 95 % within {CAP} flips",
            spikefool.converged.value >= 0.95,
            percent(spikefool.converged),
        ),
        ("its median is below 1 % of the bins", 0 < flips[0] < 0.01 * x[0].numel(), f"{flips[0]:g} of {x[0].numel()}"),
        (
            "it needs no more flips than PGD on binary rasters",
            flips[0] <= flips[1],
            f"{flips[0]:g}, {flips[1]:g}",
        ),
        ("it needs fewer flips than PGD on probabilities", flips[0] < flips[2], f"{flips[0]:g}, {flips[2]:g}"),
        (
            "it needs fewer passes than both",
            spikefool.forwards + spikefool.backwards < min(row.forwards + row.backwards for row in (binary, relaxed)),
            ", ".join(f"{row.forwards + row.backwards:.0f}" for row in (spikefool, binary, relaxed)),
        ),
        (
            f"within {FEW} flips each of SpikeFool, PGD and PGD on binary rasters fools more than random flips by 20 points",
            all(
                short[name].converged.value >= short["noise"].converged.value + 0.2
                for name in ("spikefool", "pgd", "binary-pgd")
            ),
            ", ".join(f"{name} {percent(row.converged)}" for name, row in short.items()),
        ),
        (
            "at least half of what converges also fools the network with 8-bit weights",
            moved is not None and moved.value >= 0.5,
            percent(moved),
        ),
        (
            "a patch of 10 % of the frame hits its target more often than a random one",
            large.fitted.value > large.control.value,
            f"{percent(large.fitted)}, {percent(large.control)}",
        ),
        (
            "trained on SpikeFool's examples: median flips grow by a quarter, for both attacks",
            flips[3] >= 1.25 * flips[0] and flips[4] >= 1.25 * flips[1],
            f"SpikeFool {flips[0]:g} to {flips[3]:g}, PGD on binary rasters {flips[1]:g} to {flips[4]:g}",
        ),
        (
            f"and more is left of it within {FEW} flips, at no more than 5 points of clean accuracy",
            left[1] > left[0] and clean_robust >= clean - 5,
            f"{left[0]:.1f} to {left[1]:.1f}, clean {clean:.1f} to {clean_robust:.1f}",
        ),
    ]
    print()
    for what, holds, figures in results:
        print(f"{'holds' if holds else 'FAILS'}  {what}  ({figures})")
    return 0 if all(holds for _, holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
