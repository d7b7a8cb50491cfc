"""Reproduce the sweeps over time steps, leak and threshold of a spiking network, with and without training it again.

    python reproductions/spiking_sweeps.py --out runs/spiking-sweeps [--samples 300]

Fashion-MNIST, two convolutions, direct coding, clean training. One value is changed at a time from T = 4, leak 0.9 and
threshold 1: in the trained network (as the code of Sharmin et al., 2020, does), or in the recipe before training. A dead
network looks robust, so clean accuracy and firing rates stand beside the adversarial loss, clean minus adversarial accuracy, of
PGD-10 under the network's own surrogate and of nineteen gradients at 8/255. Finished runs and rows are kept.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from spiking import PGD, trained
from stalwart.cli.memory import keep_memory
from stalwart.spiking import monitor, neurons, set_steps

SWEEPS: dict[str, tuple[float, ...]] = {
    "steps": (2, 4, 8, 16),
    "leak": (0.5, 0.9, 0.99, 1.0),
    "threshold": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25),
}
USUAL = {"steps": 4, "leak": 0.9, "threshold": 1.0}


def change(model: nn.Module, what: str, value: float) -> None:
    """Change the trained network in place."""
    if what == "steps":
        set_steps(model, int(value))
        return
    for layer in neurons(model).values():
        getattr(layer, what).fill_(value)


def measure(model: nn.Module, x: Tensor, y: Tensor, samples: int) -> dict[str, float]:
    """Return clean accuracy on all samples, the firing rate of each layer, and accuracy under attacks on the first samples."""
    with torch.no_grad(), monitor(model) as seen:
        model(x[:500])
    with torch.no_grad():
        right = model(x).argmax(1) == y
    part, within = slice(0, samples), sw.Linf("8/255")
    found = {
        "pgd": sw.attack("pgd", **PGD)(model, x[part], y[part], within=within, seed=0),
        "ensemble": sw.attack("surrogate-ensemble", options=PGD)(model, x[part], y[part], within=within, seed=0),
    }
    return {
        "clean": 100 * float(right.float().mean()),
        "clean, attacked samples": 100 * float(right[part].float().mean()),
        **{name: 100 * float((~one.success).float().mean()) for name, one in found.items()},
        **{f"rate {k}": layer.rate for k, layer in enumerate(seen.layers.values(), 1)},
    }


def main() -> int:
    """Train what is missing, measure what is missing, print the table; fail unless it is complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/spiking-sweeps"))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = chosen.out / f"rows-{chosen.samples}.json"
    rows: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    head = "| changed | value | trained again | clean | rate 1 | rate 2 | own PGD | loss | worst of nineteen | loss |"
    print(head + "\n" + "|---" * 10 + "|")
    complete = True
    for what, values in SWEEPS.items():
        for value in values:
            for again in (False, True):
                key = f"{what}={value:g} {'again' if again else 'as trained'}"
                if key not in rows:
                    usual = value == USUAL[what]
                    name = f"{what}-{value:g}" if again and not usual else "usual"
                    override = () if name == "usual" else (f"model.spiking.{what}={value:g}",)
                    model, x, y = trained(chosen.out, name, override)
                    if not again:
                        change(model, what, value)
                    rows[key] = measure(model, x, y, chosen.samples)
                    kept.write_text(json.dumps(rows, indent=1))
                row = rows[key]
                base = row["clean, attacked samples"]
                cells = [what, f"{value:g}", "yes" if again else "no", f"{row['clean']:.1f}"]
                cells += [f"{row['rate 1']:.3f}", f"{row['rate 2']:.3f}"]
                for attack in ("pgd", "ensemble"):
                    cells += [f"{row[attack]:.1f}", f"{base - row[attack]:.1f}"]
                print("| " + " | ".join(cells) + " |", flush=True)
                complete &= row["ensemble"] <= row["pgd"] + 1e-9
    print("holds" if complete else "FAILS", " every row is there, and no ensemble is weaker than its own member")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
