"""Networks on imperfect chips beside plain PyTorch and IBM's analog hardware kit, on the small CNN (32-64-FC128).

    python benchmarks/weights.py [--rounds 5] [--chips 100] [--only mismatch step pcm] [--kit FOLDER]

``mismatch`` judges chips of 10 % mismatch on 1,000 Fashion-MNIST test images beside the loop one would write, one forward pass
after the other, in batches of 1,000 and of 250 (its best); the accuracies are asserted to be the same, to one image a chip for
rounding. ``step`` is one adversarial training step (weight-kl, 10 steps of ascent, batch 128) beside the algorithm written down
plainly: each step of the ascent computes the nominal output again, and autograd takes the Jacobian; loss and gradients are
asserted equal. ``pcm`` programs, drifts and reads the cells of all weights at five times beside the kit's noise model alone,
which FOLDER holds (the source's ``src`` will do, compiled or not); left out without it.

Tools run in turn, two threads each, in two processes: with the allocator as it is, and with one that keeps memory. Printed are
medians of seconds and ratios to stalwart's, so that other load on the machine falls on all alike.
"""

import argparse
import copy
import importlib
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stalwart.core.layout import channels_last
from stalwart.core.random import derive, generator
from stalwart.data import load
from stalwart.hardware import PCM, Mismatch, accuracies
from stalwart.objectives.base import Moment
from stalwart.objectives.weight_kl import WeightKL

IMAGES, LEVEL = 1000, 0.1
BATCH, STEPS, ZETA, BETA, INIT = 128, 10, 0.1, 0.25, 1e-3
TIMES = (25.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0)
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "268435456"}
WORKLOADS = ("mismatch", "step", "pcm")
Result = Any


def network() -> nn.Sequential:
    """Return the network, trained for an epoch of 6,000 images, so that its accuracies mean something."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    x, y = load("fashion-mnist", {"validation": 0.0}).train.take(6000).batch(slice(None))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for images, labels in zip(channels_last(x).split(BATCH), y.split(BATCH), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def loop(model: nn.Module, x: Tensor, y: Tensor, chips: int, batch: int) -> Tensor:
    """Return accuracies of chips as one writes it down: one forward pass after the other with other weights."""
    found = []
    for number in range(chips):
        # Stalwart's own chips, whose draws cost what any cost, so that accuracies can be compared.
        moved = Mismatch(LEVEL).chip(model, derive(0, "chip", number)).parameters
        pairs = zip(x.split(batch), y.split(batch), strict=True)
        right = sum(int((functional_call(model, moved, (a,)).argmax(1) == b).sum()) for a, b in pairs)
        found.append(right / len(x))
    return torch.tensor(found, dtype=torch.float64)


def mismatch(model: nn.Module, chips: int) -> dict[str, Callable[[], Result]]:
    """Return the tools that judge chips."""
    x, y = load("fashion-mnist").test.take(IMAGES).batch(slice(None))
    return {
        "stalwart": lambda: accuracies(model, Mismatch(LEVEL), x, y, chips, seed=0),
        "loop, batch 250": lambda: loop(model, x, y, chips, 250),
        "loop, batch 1000": lambda: loop(model, x, y, chips, 1000),
    }


def plain_step(model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> list[Tensor]:
    """Return loss and gradients of the regulariser, written down from the paper: Büchel et al., ICLR 2022, algorithm 1."""
    model.zero_grad()
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    source = moment.generator(x, "weights")
    moved = {}
    for name, p in weights.items():
        draw = torch.randn(p.shape, generator=source, dtype=p.dtype)
        moved[name] = (p + INIT * p.abs() * draw).detach()

    def divergence(at: dict[str, Tensor], nominal: Tensor) -> Tensor:
        log_p = functional_call(model, at, (x,)).log_softmax(1)
        return F.kl_div(log_p, nominal.softmax(1), reduction="batchmean")

    for _ in range(STEPS):
        with torch.no_grad():
            nominal = model(x)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in moved.items()}
        slopes = torch.autograd.grad(divergence(leaves, nominal), list(leaves.values()))
        for (name, p), slope in zip(weights.items(), slopes, strict=True):
            size = p.detach().abs()
            step = moved[name] + ZETA / STEPS * size * slope.sign()
            moved[name] = torch.clamp(step, p.detach() - ZETA * size, p.detach() + ZETA * size)
    ends = {}
    for name, p in weights.items():
        size = p.detach().abs()
        share = torch.where(size > 0, (moved[name] - p.detach()) / size, torch.zeros_like(size))
        ends[name] = p + p.abs() * share
    loss = F.cross_entropy(model(x), y) + BETA * divergence(ends, model(x))
    loss.backward()
    return [loss.detach(), *(gradient(p) for p in model.parameters())]


def own_step(model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> list[Tensor]:
    """Return the same of the objective, on images as the trainer hands them over."""
    model.zero_grad()
    objective = WeightKL(beta=BETA, zeta=ZETA, steps=STEPS, init_noise=INIT)
    loss, _ = objective.loss(model, channels_last(x), y, moment)
    loss.backward()
    return [loss.detach(), *(gradient(p) for p in model.parameters())]


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return a copy of the parameter's gradient."""
    assert parameter.grad is not None
    return parameter.grad.clone()


def step(model: nn.Module) -> dict[str, Callable[[], Result]]:
    """Return the tools that compute one training step; where rounding decides no sign, in float64, they must agree."""
    x, y = load("fashion-mnist").train.take(BATCH).batch(slice(None))
    moment, exact = Moment(seed=3), copy.deepcopy(model).double()
    pairs = zip(own_step(exact, x.double(), y, moment), plain_step(exact, x.double(), y, moment), strict=True)
    for own, plain in pairs:
        torch.testing.assert_close(own, plain, rtol=1e-6, atol=1e-9)
    return {
        "stalwart": lambda: own_step(model, x, y, moment),
        "plain": lambda: plain_step(model, x, y, moment),
    }


def kit_model(folder: Path) -> Any:
    """Return the kit's noise model, loaded without the compiled simulator that importing the whole package would load."""
    root = folder / "aihwkit"
    for name in ("", "inference", "inference.noise", "inference.converter"):
        package = types.ModuleType(f"aihwkit.{name}".rstrip("."))
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    return importlib.import_module("aihwkit.inference.noise.pcm").PCMLikeNoiseModel()


def pcm(model: nn.Module, folder: Path) -> dict[str, Callable[[], Result]]:
    """Return the tools that program the network's matrices and read them at five times, without compensation."""
    peer = kit_model(folder)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}

    def own() -> list[dict[str, Tensor]]:
        return [PCM(t, compensate=False).apply(weights, generator(0, t)) for t in TIMES]

    def theirs() -> list[dict[str, Tensor]]:
        return [{name: peer.apply_noise(weight, t) for name, weight in weights.items()} for t in TIMES]

    for ours, other in zip(own(), theirs(), strict=True):
        name, weight = max(weights.items(), key=lambda item: item[1].numel())
        large = weight.abs() > 0.1 * weight.abs().max()
        spread = [((held[name] - weight) / weight)[large] for held in (ours, other)]
        torch.testing.assert_close(spread[0].mean(), spread[1].mean(), rtol=0.05, atol=0.005)
        torch.testing.assert_close(spread[0].std(), spread[1].std(), rtol=0.05, atol=0.0)
    return {"stalwart": own, "aihwkit": theirs}


def check(workload: str, results: dict[str, Result]) -> None:
    """Assert that tools that must agree do."""
    own = results["stalwart"]
    for name, other in results.items():
        if workload == "mismatch":
            worst = float((own - other).abs().max())
            assert worst <= 1 / IMAGES + 1e-12, f"{name} judges a chip otherwise by {worst:.4f}"
        elif workload == "step":
            torch.testing.assert_close(own[0], other[0], rtol=1e-4, atol=0)
            for a, b in zip(own[1:], other[1:], strict=True):
                # In float32 rounding decides a few signs of slopes near 0, each of which moves a weight by two steps.
                assert float((a - b).norm()) <= 0.01 * float(b.norm()), f"{name} has other gradients"


def measured(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield lines of seconds and ratios."""
    model = network()
    for workload in chosen.only:
        if workload == "pcm" and chosen.kit is None:
            yield "pcm: left out, since --kit names no folder"
            continue
        options: dict[str, Callable[[], dict[str, Callable[[], Result]]]] = {
            "mismatch": lambda: mismatch(model, chosen.chips),
            "step": lambda: step(model),
            "pcm": lambda: pcm(model, chosen.kit),
        }
        tools = options[workload]()
        seconds: dict[str, list[float]] = {name: [] for name in tools}
        for turn in range(chosen.rounds + 1):
            results = {}
            for name, tool in tools.items():
                begun = time.perf_counter()
                results[name] = tool()
                if turn or workload == "mismatch":  # the rest warms up in the first round
                    seconds[name].append(time.perf_counter() - begun)
            check(workload, results)
            if workload == "mismatch" and turn + 1 == chosen.rounds:
                break
        own = statistics.median(seconds["stalwart"])
        for name, times in seconds.items():
            median = statistics.median(times)
            yield f"{workload:<10}{name:<18}{median:>9.3f} s  {median / own:>6.2f} times stalwart's"


def main() -> None:
    """Run the benchmark: a process for each allocator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chips", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--kit", type=Path, help="folder that holds aihwkit 1.2")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        torch.set_num_threads(2)
        for line in measured(chosen):
            print(line, flush=True)
        return
    for title, variables in (("allocator as it is", {}), ("allocator that keeps memory", KEEPING)):
        print(f"{title}:", flush=True)
        subprocess.run([sys.executable, *sys.argv, "--child"], env={**os.environ, **variables}, check=True)


if __name__ == "__main__":
    main()
