"""Train any PyTorch model your own way, then let stalwart judge it: about ten seconds on a laptop.

python examples/attack_your_model.py [OUTPUT_FOLDER]
"""

import sys
from pathlib import Path

import torch
from torch import nn

import stalwart as sw
from stalwart.data import load


def main(out: Path) -> None:
    """Train a plain network on scikit-learn's digits, attack it once by hand and once with a whole suite."""
    data = load("digits")
    x, y = data.train.batch(slice(None))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    x, y = data.test.take(200).batch(slice(None))
    result = sw.attack("pgd", steps=20, loss="margin")(model, x, y, within=sw.Linf(0.1), seed=0)
    print(
        f"PGD breaks {result.success.float().mean():.1%} with {result.cost.backwards.float().mean():.1f} gradients an image"
    )

    report = sw.evaluate(model, (x, y), within=sw.Linf(0.1), suite="quick", curve=[0.05, 0.2], name="plain MLP")
    report.save(out)
    worst = report.runs[0].evaluation.worst
    print(f"worst case {worst.value:.1%} [{worst.low:.1%}, {worst.high:.1%}]; see {out / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("example-report"))
