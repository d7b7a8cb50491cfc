"""Certify a published network: Wong and Kolter's small MNIST net, trained for a provable error of 5.8 % at Linf 0.1.

    python reproductions/published_net.py --weights kw_small_mnist_linf0.1.safetensors --mnist-dir DIR --out runs/kw-small

CROWN on the first 200 test images, complete verification of the first 1,000 within 60 seconds each, and an attack on the
same 1,000 that may break none of those proven. A stopped run goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

import stalwart as sw
from stalwart.certify.dataset import SAMPLES, certify_dataset
from stalwart.cli.memory import keep_memory
from stalwart.core.progress import progress
from stalwart.core.tensors import load_weights
from stalwart.data import load

EPS = 0.1
PUBLISHED_ERROR = 0.058
SETTLED, CROWN_OF_200 = 0.99, 193


def network() -> nn.Module:
    """Return the architecture, weights still random."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def main() -> int:
    """Run the checks and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--mnist-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/kw-small"))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    model = network()
    load_weights(model, chosen.weights)
    model.eval().requires_grad_(False)
    test = load("mnist", data_dir=chosen.mnist_dir, download=False).test
    x, y = test.take(chosen.samples).batch(slice(None))
    within = sw.Linf(EPS)
    crown = sum(
        int((sw.margin_bound(model, x[at : at + 20], y[at : at + 20], within=within, method="crown") > 0).sum())
        for at in range(0, min(200, len(x)), 20)
    )
    print(f"CROWN certifies {crown} of the first 200")
    with progress("certifying", len(x)) as advance:
        found = certify_dataset(
            model, x, y, within, chosen.timeout, chosen.out, ("crown", "branch-and-bound"), advance=advance
        )
    print(found)
    rows = [json.loads(line) for line in (chosen.out / SAMPLES).read_text().splitlines()[1:]]
    proven = torch.tensor([row["status"] == "verified" for row in rows])
    attacked = sw.attack("pgd", steps=40, restarts=2, loss="margin")(model, x, y, within=within, seed=0)
    contradicted = int((attacked.success & proven).sum())
    settled = 1 - (found.unknown + found.timeout) / found.samples
    error = 1 - found.certified
    results = [
        (f"CROWN certifies at least {CROWN_OF_200} of 200", crown >= CROWN_OF_200, f"{crown}"),
        (f"at least {SETTLED:.0%} settled", settled >= SETTLED, f"{settled:.1%}"),
        ("error not above the published bound", error <= PUBLISHED_ERROR, f"{error:.1%}, {PUBLISHED_ERROR:.1%}"),
        (
            "no attack breaks what is proven",
            contradicted == 0,
            f"{contradicted}; PGD error {attacked.success.float().mean():.1%}",
        ),
    ]
    for what, holds, figures in results:
        print(f"{'holds' if holds else 'FAILS'}  {what}  ({figures})")
    return 0 if all(holds for _, holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
