"""The demo: one small model of each family on scikit-learn's digits, trained, attacked and compared."""

from pathlib import Path

from stalwart.core.files import require_writable
from stalwart.recipes import judging, load_recipe, runs
from stalwart.report import Report, side_by_side

RECIPES = (
    "digits-natural",
    "digits-gaussian",
    "digits-wca",
    "digits-fgsm-rs",
    "digits-pgd-at",
    "digits-trades",
    "digits-weight-kl",
    "digits-ibp",
    "digits-spiking",
    "digits-robust-snn",
)


def tell(out: Path) -> Report:
    """Train, evaluate and compare the demo's models below ``out``; runs that are already there are reused."""
    require_writable(out)
    source = runs.Source(download=False)
    for name in RECIPES:
        folder, recipe = out / name, load_recipe(name)
        if not (folder / "report.json").exists():
            print(f"\n{name}: {recipe.description}", flush=True)
            runs.train(recipe, folder, source, resume=(folder / "recipe.yaml").exists(), device="cpu")
            judging.evaluate_run(folder, source, runs.load_run(folder, source), recipe.evaluation, 0, folder)
    print()
    combined = side_by_side([out / name for name in RECIPES], "Robustness on digits")
    combined.save(out)
    return combined
