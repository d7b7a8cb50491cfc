"""Reproduce the study of weight-covariance alignment on Fashion-MNIST: seven models, three seeds, two radii.

    python reproductions/wca.py --out runs/wca-study [--seeds 0 1 2] [--models none full ...]

Every model is trained by a shipped recipe with the overrides below and evaluated by the stochastic suite on the first 500
test images. Finished parts are kept, so an interrupted study goes on where it was, and several processes may share the
work by taking different models. The last process prints the tables and the gates, and writes ``study.json``.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from stalwart.cli.memory import keep_memory
from stalwart.recipes import judging, load_recipe, runs
from stalwart.recipes.load import parse_evaluation
from stalwart.report import Report

WCA = "fashion-mnist-wca"
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("fashion-mnist-natural", ()),
    "gaussian": ("fashion-mnist-gaussian", ()),
    "full-no-wca": (WCA, ("objective={name: natural}",)),
    "logsum": (WCA, ("model.noise.regulariser=logsum", "model.noise.init=uniform")),
    "diagonal": ("fashion-mnist-wca-diagonal", ()),
    "full": (WCA, ()),
    "pgd-at": ("fashion-mnist-pgd-at", ("training.epochs=6", "training.limit=30000")),
}
RADII = (0.05, 0.1)
COLUMNS = ("fgsm", "pgd-ce-1draw", "pgd-ce", "noise-off-ce")


def part(out: Path, model: str, seed: int) -> dict[str, object]:
    """Train and evaluate one model with one seed, or read what is there; return its numbers in percent."""
    recipe_name, overrides = MODELS[model]
    folder = out / f"{model}-{seed}"
    recipe = load_recipe(recipe_name, [*overrides, f"seed={seed}", f"name={model}-{seed}"])
    source = runs.Source()
    if not (folder / "model.safetensors").exists():
        runs.train(recipe, folder, source, resume=(folder / "recipe.yaml").exists(), device="cpu")
    found: dict[str, object] = {}
    for eps in RADII:
        at = folder / f"eps-{eps:g}"
        if not (at / "report.json").exists():
            _, network, data = runs.load_run(folder, source)
            section = parse_evaluation({"suite": "stochastic", "eps": eps, "samples": 500, "rule": "single"})
            judging.evaluate_model(recipe.name, network, data, section, seed, at, device="cpu")
        evaluation = Report.load(at).runs[0].evaluation
        rows = {row.name: 100 * row.robust.value for row in evaluation.attacks}
        flags = {flag.code: flag.fired for flag in evaluation.flags}
        noise = evaluation.stochastic.noise if evaluation.stochastic else {}
        found[f"{eps:g}"] = {
            "clean": 100 * evaluation.clean.value,
            "noise": rows["noise"],
            **{name: rows[name] for name in COLUMNS},
            "worst": 100 * evaluation.worst.value,
            "masked": flags["loss-dependence"] or flags["zero-gradients"],
            "zero-gradients": next(f.evidence for f in evaluation.flags if f.code == "zero-gradients"),
            "marginal_std": noise.get("marginal_std"),
            "r": noise.get("r"),
        }
    return found


def table(study: dict[str, dict[str, dict[str, dict[str, float]]]], eps: str) -> str:
    """Return the accuracy table at one radius: every seed's figure, in the order of the seeds."""
    names = ("clean", *COLUMNS, "worst")
    lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for model, seeds in study.items():
        cells = ["/".join(f"{parts[eps][name]:.0f}" for parts in seeds.values()) for name in names]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gates(study: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[tuple[str, bool, str]]:
    """Return (gate, whether it holds, the figures) for checks 1 to 5, on medians over the seeds."""

    def median(model: str, eps: str, name: str) -> float:
        return statistics.median(parts[eps][name] for parts in study[model].values())

    def masked(model: str) -> list[bool]:
        return [bool(parts["0.1"]["masked"]) for parts in study[model].values()]

    ce = {model: median(model, "0.05", "pgd-ce") for model in study}
    worst05 = {model: median(model, "0.05", "worst") for model in study}
    worst10 = {model: median(model, "0.1", "worst") for model in study}
    fires = {model: sum(masked(model)) for model in study}
    seeds = len(study["full"])
    stds = {m: statistics.median(p["0.1"]["marginal_std"] for p in study[m].values()) for m in ("full", "full-no-wca")}
    r = {m: [p["0.1"]["r"] for p in study[m].values()] for m in ("full", "diagonal", "logsum")}
    near = max(
        abs(statistics.median(p[eps][c] for p in study["logsum"].values()) - median("none", eps, c))
        for eps in ("0.05", "0.1")
        for c in (*COLUMNS, "worst")
    )
    return [
        (
            "1a eps .05, EoT-CE: full - none >= 15",
            ce["full"] - ce["none"] >= 15,
            f"{ce['full']:.1f} - {ce['none']:.1f}",
        ),
        (
            "1b eps .05, EoT-CE: full >= diagonal",
            ce["full"] >= ce["diagonal"],
            f"{ce['full']:.1f}, {ce['diagonal']:.1f}",
        ),
        (
            "2 eps .05, worst: full - none >= 4",
            worst05["full"] - worst05["none"] >= 4,
            f"{worst05['full']:.1f} - {worst05['none']:.1f}",
        ),
        ("3a eps .1, worst: full <= 20", worst10["full"] <= 20, f"{worst10['full']:.1f}"),
        (
            "3b eps .1, worst: AT - full >= 35",
            worst10["pgd-at"] - worst10["full"] >= 35,
            f"{worst10['pgd-at']:.1f} - {worst10['full']:.1f}",
        ),
        ("4a eps .1: detector fires on full and diagonal", fires["full"] == fires["diagonal"] == seeds, str(fires)),
        (
            "4b eps .1: silent on none, gaussian, AT",
            not (fires["none"] or fires["gaussian"] or fires["pgd-at"]),
            str(fires),
        ),
        (
            "5a marginal logit std: full >= 20 x without WCA",
            stds["full"] >= 20 * stds["full-no-wca"],
            f"{stds['full']:.2f}, {stds['full-no-wca']:.3f}",
        ),
        ("5b r(logsum, uniform init) < 0.01", max(r["logsum"]) < 0.01, f"{max(r['logsum']):.5f}"),
        ("5c r(sumlog) > 0.2", min(r["full"] + r["diagonal"]) > 0.2, f"{min(r['full'] + r['diagonal']):.3f}"),
        ("5d logsum within 5 points of none everywhere", near <= 5, f"{near:.1f}"),
    ]


def main() -> int:
    """Run the chosen parts; with all parts there, print the tables and the gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/wca-study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    for seed in chosen.seeds:
        for model in chosen.models:
            part(chosen.out, model, seed)
    if set(chosen.models) != set(MODELS):
        return 0
    study = {model: {str(seed): part(chosen.out, model, seed) for seed in chosen.seeds} for model in MODELS}
    results = gates(study)  # type: ignore[arg-type]
    for eps in RADII:
        print(f"\neps {eps:g}\n{table(study, f'{eps:g}')}")  # type: ignore[arg-type]
    print()
    for name, holds, figures in results:
        print(f"{'holds' if holds else 'FAILS'}  {name}  ({figures})")
    (chosen.out / "study.json").write_text(json.dumps({"study": study, "gates": results}, indent=1))
    return 0 if all(holds for _, holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
