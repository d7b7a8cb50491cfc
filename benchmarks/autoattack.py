"""AutoAttack (standard, linf) on three robust networks: stalwart beside pyautoattack, the port of the authors' code, in turn.

    python benchmarks/autoattack.py [--net madry kw cnn] [--images 200] [--repeats 1] [--threads 2] [--shared ../shared]

Both attack the same test images of the same network with the published settings and seed 0, pyautoattack in batches of 250 (its
default) and stalwart as it chooses by itself, each in a fresh process, so that neither meets what the other left, and after two
images whose time does not count, so that imports do not either. Printed are seconds, those of all processor cores together, the
ratios of both, and robust accuracies; asserted is that stalwart's is no higher than the other's plus one image. The networks:
an adversarially trained MNIST net at 0.3, one with proven bounds at 0.1, and an adversarially trained Fashion-MNIST CNN at 0.1.
All images take pyautoattack minutes a network. On a machine that others use, compare processor seconds, with --threads 1.
"""

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.core.tensors import load_weights
from stalwart.data import load


def kw_small() -> nn.Module:
    """Return two strided convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def small_cnn() -> nn.Module:
    """Return two convolutions with pooling and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], str, str, float]] = {
    "madry": (kw_small, "data/models/pgd_madry_mnist_linf0.3.safetensors", "mnist", 0.3),
    "kw": (kw_small, "data/models/kw_small_mnist_linf0.1.safetensors", "mnist", 0.1),
    "cnn": (small_cnn, "bench/nets/small_cnn_at.safetensors", "fashion-mnist", 0.1),
}


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return stalwart's points."""
    return sw.attack("autoattack")(model, x, y, within=sw.Linf(eps), seed=0).x_adv


def peer(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return pyautoattack's points."""
    from pyautoattack import AutoAttack

    return AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=0).run_standard_evaluation(x, y)[0]


def attacked(tool: str, name: str, images: int, threads: int, shared: Path) -> tuple[float, float, float]:
    """Return seconds, processor seconds and robust accuracy of one tool, run in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    build, weights, data, eps = NETS[name]
    model = build().eval()
    load_weights(model, shared / weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # spares the peer the weights' gradients, which stalwart never computes
    folder = shared / "data" / data
    x, y = load(data, data_dir=folder if folder.is_dir() else None).test.take(images).batch(slice(None))
    TOOLS[tool](model, x[:2], y[:2], eps)
    begun, spent = time.perf_counter(), time.process_time()
    x_adv = TOOLS[tool](model, x, y, eps)
    seconds, processor = time.perf_counter() - begun, time.process_time() - spent
    assert float((x_adv - x).abs().max()) <= eps + 1e-5, f"{tool} left the ball"
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1, f"{tool} left the box"
    with torch.no_grad():
        return seconds, processor, float((model(x_adv).argmax(1) == y).float().mean())


TOOLS = {"stalwart": ours, "pyautoattack": peer}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    chosen = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    print(f"{'net':<7}{'tool':<14}{'seconds':>9}{'ratio':>7}{'processor':>11}{'ratio':>7}{'robust accuracy':>17}")
    for name in chosen.net:
        runs: dict[str, list[tuple[float, float, float]]] = {tool: [] for tool in TOOLS}
        for _ in range(chosen.repeats):
            for tool, found in runs.items():
                with ProcessPoolExecutor(1, fresh) as alone:
                    job = alone.submit(attacked, tool, name, chosen.images, chosen.threads, chosen.shared)
                    found.append(job.result())
        middle = {
            tool: [statistics.median(column) for column in zip(*found, strict=True)] for tool, found in runs.items()
        }
        for tool, (seconds, processor, standing) in middle.items():
            ratios = [one / own for one, own in zip((seconds, processor), middle["stalwart"], strict=False)]
            print(
                f"{name:<7}{tool:<14}{seconds:>9.2f}{ratios[0]:>7.2f}{processor:>11.2f}{ratios[1]:>7.2f}{standing:>17.4f}",
                flush=True,
            )
        allowed = middle["pyautoattack"][2] + 1 / chosen.images + 1e-6
        assert middle["stalwart"][2] <= allowed, f"{name}: pyautoattack was the stronger attack by more than one image"


if __name__ == "__main__":
    main()
