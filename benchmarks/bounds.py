"""Bounds beside auto_LiRPA 0.7.1: tightness row by row, seconds and peak memory.

    python benchmarks/bounds.py --reference auto_lirpa_reference.npz --nets FOLDER [--only mlp/std/crown ...]

The peer's current version is not on PyPI, so its bounds and times were stored when it ran: lower bounds of the nine margins on
the first Fashion-MNIST test images at Linf 0.1, two threads, and the rate of a 2048-cubed float32 matrix product on that
machine. The same product is timed here in turn with each line, and the stored seconds are scaled by the ratio of the rates.
Two numbers count for each line: how many rows are looser than the peer's by over 1e-5 of their size, and the peer's seconds
over ours. Looser rows are computed again in float64: where the peer's lies further above that than ours below it, rounding
claims what the method does not prove, and the row is named apart.

With --live, the auto_LiRPA that is installed runs in turn with each line, and its seconds over ours are printed too.
"""

import argparse
import copy
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.bounds import margin_bounds
from stalwart.bounds.methods import margin_rows
from stalwart.core.tensors import load_weights
from stalwart.data import load

PEER_GFLOPS = 168.0
"""Rate of the matrix product on the peer's machine."""

# (net, weights, method, images): the peer's seconds and its peak memory in MiB.
PEER: dict[tuple[str, str, str, int], tuple[float, int]] = {
    ("mlp", "init", "ibp", 128): (0.0038, 5),
    ("mlp", "init", "crown-ibp", 128): (0.0131, 19),
    ("mlp", "init", "crown", 128): (1.2976, 294),
    ("mlp", "std", "ibp", 128): (0.0059, 4),
    ("mlp", "std", "crown-ibp", 128): (0.0166, 22),
    ("mlp", "std", "crown", 128): (1.5473, 294),
    ("mlp", "std", "alpha-crown", 16): (11.1975, 491),
    ("mlp", "ibp", "ibp", 128): (0.0071, 4),
    ("mlp", "ibp", "crown-ibp", 128): (0.0199, 18),
    ("mlp", "ibp", "crown", 128): (0.7783, 355),
    ("dm_small", "init", "ibp", 32): (0.0050, 5),
    ("dm_small", "init", "crown-ibp", 32): (0.0230, 36),
    ("dm_small", "init", "crown", 32): (1.8531, 598),
    ("dm_small", "std", "ibp", 32): (0.0036, 5),
    ("dm_small", "std", "crown-ibp", 32): (0.0189, 35),
    ("dm_small", "std", "crown", 32): (1.6605, 597),
    ("dm_small", "std", "alpha-crown", 4): (8.1943, 633),
    ("dm_small", "ibp", "ibp", 32): (0.0051, 4),
    ("dm_small", "ibp", "crown-ibp", 32): (0.0205, 35),
    ("dm_small", "ibp", "crown", 32): (1.4102, 658),
    ("dm_large", "std", "crown", 1): (43.86, 8366),
}
PEER_MEAN = {"dm_large/std/crown": -136.61}
"""The mean of the peer's bounds, where that is all that was stored."""


def network(name: str) -> nn.Module:
    """Return one of the three networks, seeded."""
    torch.manual_seed(0)
    relu = nn.ReLU
    if name == "mlp":
        sides = [(784, 256), (256, 256), (256, 256)]
        hidden = [layer for a, b in sides for layer in (nn.Linear(a, b), relu())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))
    if name == "dm_small":
        body = [nn.Conv2d(1, 16, 4, 2), relu(), nn.Conv2d(16, 32, 4), relu()]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(3200, 100), relu(), nn.Linear(100, 10))
    widths = [(1, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)]
    body = [layer for a, b, step in widths for layer in (nn.Conv2d(a, b, 3, step, 1), relu())]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(25088, 512), relu(), nn.Linear(512, 10))


def trained(model: nn.Module) -> None:
    """Train as the peer's largest network was, whose weights were not stored: Adam, one epoch of 6,000 images."""
    x, y = load("fashion-mnist", {"validation": 0.0}).train.take(6000).batch(slice(None))
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.randperm(len(x))
    for at in range(0, len(x) - 127, 128):
        rows = order[at : at + 128]
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()


class Product:
    """A 2048-cubed float32 matrix product, timed whenever asked."""

    def __init__(self) -> None:
        self._a, self._b = torch.rand(2048, 2048), torch.rand(2048, 2048)
        self.gflops()

    def gflops(self) -> float:
        """Return its rate now."""
        return 2 * 2048**3 / timed(lambda: self._a @ self._b)[0] / 1e9


def timed(run: Callable[[], Tensor], times: int = 1) -> tuple[float, Tensor]:
    """Return the seconds that one of several runs takes, and a result."""
    begun = time.perf_counter()
    for _ in range(times):
        out = run()
    return (time.perf_counter() - begun) / times, out


class Live:
    """The peer that is installed, on one network and its inputs."""

    NAMES: ClassVar = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "alpha-CROWN"}

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, method: str) -> None:
        import auto_LiRPA  # type: ignore[import-not-found]

        options = {"conv_mode": "patches", "optimize_bound_args": {"iteration": 20}}
        self._bounded = auto_LiRPA.BoundedModule(
            copy.deepcopy(model), torch.empty_like(x), bound_opts=options, verbose=False
        )
        lower, upper = sw.Linf(0.1).bounds(x)
        box = auto_LiRPA.PerturbationLpNorm(norm=float("inf"), eps=0.1, x_L=lower, x_U=upper)
        self._x, self._rows = auto_LiRPA.BoundedTensor(x, box), margin_rows(y, 10)
        self._method = self.NAMES[method]

    def __call__(self) -> Tensor:
        """Return its lower bounds."""
        with torch.set_grad_enabled(self._method == "alpha-CROWN"):
            lower = self._bounded.compute_bounds(x=(self._x,), C=self._rows, method=self._method, bound_upper=False)[0]
        found: Tensor = lower.detach()
        return found


class PeakMemory:
    """How much the process grew at most inside the block, in MiB, sampled every 2 ms."""

    def __enter__(self) -> "PeakMemory":
        self.mib, self._base, self._running = 0.0, _resident(), True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.mib = max(self.mib, _resident() - self._base)
            time.sleep(0.002)


def exact(model: nn.Module, x: Tensor, y: Tensor, method: str, strategy: str, wanted: Tensor) -> Tensor:
    """Return bounds [B, 9] as float64 has them, of samples with any ``wanted`` [B, 9]; infinity for others."""
    found = torch.full(wanted.shape, float("inf"), dtype=torch.float64)
    rows = wanted.any(1)
    if rows.any():
        wide = copy.deepcopy(model).double()
        found[rows] = margin_bounds(wide, x[rows].double(), y[rows], sw.Linf(0.1), method, strategy=strategy)
    return found


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="the peer's stored bounds, .npz")
    parser.add_argument("--nets", type=Path, required=True, help="folder of NET_WEIGHTS.safetensors")
    parser.add_argument("--only", nargs="*", default=[], help="lines such as mlp/std/crown")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--strategy", default="adaptive")
    parser.add_argument("--live", action="store_true", help="time the installed auto_LiRPA in turn")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    reference = np.load(chosen.reference, allow_pickle=False)
    images, labels = load("fashion-mnist").test.take(128).batch(slice(None))
    product = Product()
    print(f"a matrix product ran at {PEER_GFLOPS:.0f} GFLOP/s on the peer's machine")
    print(
        f"{'line':<28}{'seconds':>9}{'GFLOP/s':>9}{'peer':>9}{'ratio':>7}"
        f"{'MiB':>7}{'peer':>7}{'looser rows':>13}{'mean gain':>11}"
    )
    for (net, tag, method, count), (seconds, memory) in PEER.items():
        line = f"{net}/{tag}/{method}"
        if chosen.only and line not in chosen.only:
            continue
        model = network(net)
        if net == "dm_large":
            trained(model)
        else:
            load_weights(model, chosen.nets / f"{net}_{tag}.safetensors")
        model.eval().requires_grad_(False)
        x, y = images[:count], labels[:count]

        def run(model: nn.Module = model, x: Tensor = x, y: Tensor = y, method: str = method) -> Tensor:
            return margin_bounds(model, x, y, sw.Linf(0.1), method, strategy=chosen.strategy)

        margin_bounds(model, x, y, sw.Linf(0.1), "ibp")
        with PeakMemory() as peak:
            first, found = timed(run)
        times, rates, lives = [first], [product.gflops()], list[float]()
        if first < 10:
            at_once = max(1, round(0.1 / first))
            live = Live(model, x, y, method) if chosen.live else None
            if live is not None:
                live()
            times, rates = [], []
            for _ in range(chosen.repeats):
                times.append(timed(run, at_once)[0])
                rates.append(product.gflops())
                if live is not None:
                    lives.append(timed(live, at_once)[0] / times[-1])
        own, gflops = statistics.median(times), statistics.median(rates)
        scaled = seconds * PEER_GFLOPS / gflops
        if line in reference:
            peer = torch.from_numpy(reference[line])
            gain = (found - peer) / peer.abs().clamp_min(1)
            looser = gain < -1e-5
            wide = exact(model, x, y, method, chosen.strategy, looser)
            overstated = looser & (peer - wide > (wide - found).abs())
            tightness = f"{int((looser & ~overstated).sum()):>6} of {gain.numel():<5}{float(gain.mean()):>10.1e}"
            if overstated.any():
                tightness += f"  ({int(overstated.sum())} more by the peer's rounding)"
        else:
            tightness = f"  mean {float(found.mean()):.1f}, the peer's {PEER_MEAN[line]:.1f}"
        if lives:
            tightness += f"   live peer / ours {statistics.median(lives):.2f}"
        ratio = scaled / own
        print(
            f"{line:<28}{own:>9.4f}{gflops:>9.0f}{scaled:>9.4f}{ratio:>7.2f}{peak.mib:>7.0f}{memory:>7}{tightness}",
            flush=True,
        )


if __name__ == "__main__":
    main()
