"""PGD-20 (Linf, eps 0.1) on 1,000 Fashion-MNIST test images: stalwart beside torchattacks and foolbox, in turn in one run.

    python benchmarks/attacks.py [--weights FILE] [--repeats 5] [--relative-step 1/4]

All three attack the same adversarially trained CNN (two 3x3 convolutions of 32 and 64 channels, a linear layer of 128) with
the same steps, step size and random starts, on two threads; the peers in batches of 250 and of 100, stalwart as it chooses
by itself. Printed are medians over the repeats and ratios of seconds. Random starts move each robust accuracy by a few
images, so equal strength is asserted on the means over the repeats: within one image of 1,000 or two standard errors, or
stronger.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.core.numbers import parse_number
from stalwart.core.tensors import load_weights
from stalwart.data import load
from stalwart.recipes import load_recipe, runs

EPS, STEPS, IMAGES = 0.1, 20, 1000
RECIPE = (
    "name=benchmark-cnn",
    "model={name: pooled-cnn}",
    "objective={name: pgd-at, eps: 0.1, steps: 7}",
    "training.epochs=2",
    "training.limit=30000",
)
Attack = Callable[[Tensor, Tensor], Tensor]


def network(weights: Path | None) -> nn.Module:
    """Return the network: from a state dict of the plain ``nn.Sequential``, or trained here (two minutes, then kept)."""
    if weights is None:
        folder = Path("runs/benchmark-cnn")
        if not (folder / "model.safetensors").exists():
            runs.train(load_recipe("fashion-mnist-pgd-at", RECIPE), folder, runs.Source(), resume=folder.exists())
        return runs.load_run(folder, runs.Source())[1]
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    load_weights(model, weights)
    return model.eval()


def contenders(model: nn.Module, step: float, seed: int) -> dict[str, Attack]:
    """Return each tool's PGD as a function of images and labels; the peers take torch's global generator."""
    import foolbox
    import torchattacks

    peer = torchattacks.PGD(model, eps=EPS, alpha=step * EPS, steps=STEPS, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    other = foolbox.attacks.LinfPGD(rel_stepsize=step, steps=STEPS, random_start=True)
    own = sw.attack("pgd", steps=STEPS, relative_step=step)
    found: dict[str, Attack] = {"stalwart": lambda x, y: own(model, x, y, within=sw.Linf(EPS), seed=seed).x_adv}
    for batch in (100, 250):
        found[f"torchattacks/{batch}"] = in_batches(peer, batch)
        found[f"foolbox/{batch}"] = in_batches(lambda x, y: other(wrapped, x, y, epsilons=EPS)[1], batch)
    return found


def in_batches(attack: Attack, batch: int) -> Attack:
    """Run an attack batch by batch."""
    return lambda x, y: torch.cat([attack(a, b) for a, b in zip(x.split(batch), y.split(batch), strict=True)])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--repeats", type=int, default=7, help="at least 2")
    parser.add_argument("--relative-step", type=parse_number, default=0.25)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    model = network(chosen.weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # spares the peers the weights' gradients, which stalwart never computes
    test = load("fashion-mnist").test.take(IMAGES)
    x, y = test.batch(slice(None))
    seconds: dict[str, list[float]] = {}
    standing: dict[str, list[float]] = {}
    for repeat in range(chosen.repeats):
        torch.manual_seed(repeat)
        for name, attack in contenders(model, chosen.relative_step, seed=repeat).items():
            begun = time.perf_counter()
            x_adv = attack(x, y)
            seconds.setdefault(name, []).append(time.perf_counter() - begun)
            assert float((x_adv - x).abs().max()) <= EPS + 1e-5, f"{name} left the ball"
            assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1, f"{name} left the box"
            with torch.no_grad():
                standing.setdefault(name, []).append(float((model(x_adv).argmax(1) == y).float().mean()))
    own = statistics.median(seconds["stalwart"])
    print(f"{'tool/batch':<18}{'seconds':>9}{'ratio':>8}{'robust accuracy (mean)':>25}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<18}{median:>9.2f}{median / own:>8.2f}{statistics.mean(standing[name]):>25.4f}")
    for batch in (250, 100):
        median, name = min((statistics.median(seconds[n]), n) for n in seconds if n.endswith(f"/{batch}"))
        print(f"stalwart is {median / own:.2f} times as fast as {name}, the faster peer at that batch size")
    for name, values in standing.items():
        difference = statistics.mean(standing["stalwart"]) - statistics.mean(values)
        spread = statistics.variance(values) + statistics.variance(standing["stalwart"])
        allowed = max(1 / IMAGES, 2 * math.sqrt(spread / chosen.repeats))
        assert difference <= allowed, f"{name} was the stronger attack by {difference:.4f}, more than {allowed:.4f}"


if __name__ == "__main__":
    main()
