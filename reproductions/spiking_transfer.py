"""Reproduce the white-box and black-box matrices of Sharmin et al. (ECCV 2020) at the size of two cores.

    python reproductions/spiking_transfer.py --out runs/spiking-transfer [--samples 300] [--parts matrices sweeps]

Fashion-MNIST; two convolutions with average pooling, two linear layers, no biases. From an ANN come SNN-conv, its weights with
balanced thresholds (integrate-and-fire, signed Poisson coding, T = 200), and SNN-BP, trained further through time from there
(thresholds x 0.7, leak 0.99, T = 50). Adversarial examples of FGSM and PGD-7 (step 2/255) at 8/255 from each, crafted on the
spiking network itself, meet each: of the same weights (white box) and of a second, independently trained family (black box).
Accuracy is the mean over three draws of the coding; adversarial loss is clean minus adversarial accuracy. Trained networks
are kept.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.cli.memory import keep_memory
from stalwart.convert import balance_thresholds, spiking_copy
from stalwart.core.random import generator
from stalwart.core.tensors import load_weights, save_tensors
from stalwart.data import load as load_data
from stalwart.spiking import LIF, Poisson, Quantised, SpikingNetwork, neurons, set_steps
from stalwart.stochastic import noise, scores

ATTACKS = {"fgsm": ("fgsm", {}), "pgd-7": ("pgd", {"steps": 7, "step": 2 / 255})}
KINDS = ("ann", "snn-conv", "snn-bp")
EPS = "8/255"


class Centred(nn.Module):
    """x -> 2 x - 1, what the signed Poisson encoder's spikes are on average."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to the same shape."""
        return 2 * x - 1


def layers() -> nn.Sequential:
    """Return the plain network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 128, bias=False),
        nn.ReLU(),
        nn.Linear(128, 10, bias=False),
    )


def fit(model: nn.Module, x: Tensor, y: Tensor, optimiser: torch.optim.Optimizer, epochs: int, seed: int) -> None:
    """Train by cross-entropy in batches of 64."""
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator(seed * 1000 + epoch))
        for part in order.split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    model.eval()


def kept(path: Path, model: nn.Module, train: Callable[[], None]) -> None:
    """Load the model's weights, thresholds and leaks from a file, or train and write them."""
    if path.exists():
        load_weights(model, path)
        return
    train()
    save_tensors(path, dict(model.state_dict()))


def family(out: Path, seed: int, x: Tensor, y: Tensor) -> dict[str, nn.Module]:
    """Return the ANN, the converted and the trained spiking network of one seed."""
    torch.manual_seed(seed)
    plain = layers()
    ann = nn.Sequential(Centred(), plain)
    sgd = torch.optim.SGD(ann.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    kept(out / f"ann-{seed}.safetensors", ann, lambda: fit(ann, x, y, sgd, 5, seed))

    def neuron(path: str) -> LIF:
        return LIF(1.0, order="fire_first", surrogate="linear")

    converted = spiking_copy(plain, Poisson(200), 200, neuron)
    with noise(converted, "on", seed=seed):
        kept(out / f"snn-conv-{seed}.safetensors", converted, lambda: print(balance_thresholds(converted, x[:256])))
    trained = copy.deepcopy(converted)
    set_steps(trained, 50)
    for layer in neurons(trained).values():
        assert isinstance(layer, LIF)
        layer.threshold.mul_(0.7)
        layer.leak.fill_(0.99)
    adam = torch.optim.Adam(trained.parameters(), lr=1e-4, weight_decay=5e-4, amsgrad=True)
    with noise(trained, "on", seed=seed):
        kept(out / f"snn-bp-{seed}.safetensors", trained, lambda: fit(trained, x[:10000], y[:10000], adam, 2, seed))
    return {"ann": ann.eval(), "snn-conv": converted.eval(), "snn-bp": trained.eval()}


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in percent, the mean over three draws of a spiking network's coding."""
    right = []
    with noise(model, "on", seed=7):
        for _ in range(3 if isinstance(model, SpikingNetwork) else 1):
            found = torch.cat([scores(model, part, "single") for part in x.split(100)])
            right.append((found.argmax(1) == y).float().mean())
    return 100 * float(torch.stack(right).mean())


def main() -> int:
    """Train what is missing, craft, and print the matrices and sweeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/spiking-transfer"))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--parts", nargs="+", choices=["matrices", "sweeps"], default=["matrices", "sweeps"])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = load_data("fashion-mnist", {}, 0, None, True, progress=False)
    x_train, y_train = data.train.take(20000).batch(slice(None))
    x, y = data.test.take(chosen.samples).batch(slice(None))
    families = [family(chosen.out, seed, x_train, y_train) for seed in (0, 1)]
    targets = families[0]
    clean = {kind: accuracy(targets[kind], x, y) for kind in KINDS}
    print("clean: " + ", ".join(f"{kind} {value:.1f}" for kind, value in clean.items()), flush=True)
    results: dict[str, float] = {f"clean {kind}": value for kind, value in clean.items()}
    boxes = {"white box": families[0], "black box": families[1]} if "matrices" in chosen.parts else {}
    for box, sources in boxes.items():
        for name, (attack, options) in ATTACKS.items():
            print(f"\n{name}, {box}: accuracy (adversarial loss)")
            print("| source \\ target | " + " | ".join(KINDS) + " |\n|---|---|---|---|")
            for source in KINDS:
                crafted = sw.attack(attack, **options)(sources[source], x, y, within=sw.Linf(EPS), seed=0).x_adv
                row = {target: accuracy(targets[target], crafted, y) for target in KINDS}
                results |= {f"{box} {name} {source} on {target}": value for target, value in row.items()}
                cells = [f"{row[target]:.1f} ({clean[target] - row[target]:.1f})" for target in KINDS]
                print(f"| {source} | " + " | ".join(cells) + " |", flush=True)
    with torch.no_grad():
        longer = {}
        for steps in (12, 50, 200):
            model = copy.deepcopy(targets["snn-conv"])
            set_steps(model, steps)
            longer[steps] = accuracy(model, x, y)
    checks = [
        ("SNN-conv at T = 200 within 3 points of its ANN", clean["ann"] - clean["snn-conv"] <= 3),
        ("its error falls with T", longer[12] <= longer[50] <= longer[200]),
    ]
    for what, holds in checks:
        print(f"{'holds' if holds else 'FAILS'}  {what}", flush=True)
    if "sweeps" not in chosen.parts:
        return 0 if all(holds for _, holds in checks) else 1
    print(
        "\nPGD-7 in white box after the target's time steps or the levels of its input are changed, not trained again"
    )
    print("| target | T | bits | clean | attacked | loss |\n|---|---|---|---|---|---|")
    for kind in ("snn-conv", "snn-bp"):
        usual = 200 if kind == "snn-conv" else 50
        for steps, bits in [
            (12, None),
            (25, None),
            (50, None),
            (100, None),
            (200, None),
            (usual, 1),
            (usual, 2),
            (usual, 4),
        ]:
            model = copy.deepcopy(targets[kind])
            assert isinstance(model, SpikingNetwork)
            if bits is not None:
                model.encoder = Quantised(model.encoder, bits)
            set_steps(model, steps)
            before = accuracy(model, x, y)
            attack, options = ATTACKS["pgd-7"]
            after = accuracy(model, sw.attack(attack, **options)(model, x, y, within=sw.Linf(EPS), seed=0).x_adv, y)
            results[f"{kind} T={steps} bits={bits}"] = after
            print(
                f"| {kind} | {steps} | {bits or '-'} | {before:.1f} | {after:.1f} | {before - after:.1f} |", flush=True
            )
    (chosen.out / "results.json").write_text(json.dumps(results, indent=1))
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
