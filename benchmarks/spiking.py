"""Spiking neurons beside spikingjelly, snntorch, norse, sinabs and a plain loop: one layer, and a convolutional network.

    python benchmarks/spiking.py [--peers FOLDER ...] [--rounds 3] [--only lif conv8 conv32]

Each FOLDER holds one or more peers (``pip install --no-deps --target FOLDER spikingjelly==2.0.0 snntorch==1.0.0``, and
folders of their own for ``norse==1.1.0`` and ``sinabs==3.1.3`` with what they import); those in no folder are left out. Tools
run in turn, each in a process of its own, with the allocator as it is and with one that keeps memory; u = v / 2 + x, spikes
at u >= 1, reset by subtraction, atan surrogate (norse and sinabs: their own). Spikes are compared where dynamics are equal:
snntorch resets one step later.

``lif`` is a layer [32, 64, 4096]; ``conv8`` and ``conv32`` are conv 32 - LIF - pool - conv 64 - LIF - pool - linear on
[T, 64, 1, 28, 28] random spikes, T = 8 and 32. Seconds are medians; memory is the growth of the process's resident size.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (32, 64, 4096)
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "268435456"}
WORKLOADS = ("lif", "conv8", "conv32")
Layer = Callable[[Tensor], Tensor]


def stalwart() -> Layer:
    """Return our neurons."""
    from stalwart.spiking import lif

    return lambda x: lif(x, 0.5, 1.0)


def spikingjelly() -> Layer:
    """Return theirs, multi-step."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    layer = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_threshold=1.0,
        v_reset=None,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        step_mode="m",
    )

    def run(x: Tensor) -> Tensor:
        functional.reset_net(layer)
        spikes: Tensor = layer(x)
        return spikes

    return run


def snntorch() -> Layer:
    """Return theirs in the loop that its users write."""
    import snntorch as snn
    from snntorch import surrogate

    layer = snn.Leaky(beta=0.5, spike_grad=surrogate.atan())

    def run(x: Tensor) -> Tensor:
        membrane, out = torch.zeros_like(x[0]), []
        for current in x:
            spikes, membrane = layer(current, membrane)
            out.append(spikes)
        return torch.stack(out)

    return run


def norse() -> Layer:
    """Return their box neurons, multi-step; they scale currents by dt / tau = 1/2."""
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
    from norse.torch.functional.reset import reset_subtract
    from norse.torch.module.snn import SNN

    parameters = LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0), reset_method=reset_subtract)
    layer = SNN(lif_box_feed_forward_step, lambda x: LIFBoxFeedForwardState(v=torch.zeros_like(x[0])), parameters)
    return lambda x: layer(2 * x)[0]


def sinabs() -> Layer:
    """Return theirs; they take [B, T, ...]."""
    import sinabs.activation as activation
    import sinabs.layers as layers

    layer = layers.LIF(tau_mem=1 / math.log(2), norm_input=False, spike_fn=activation.SingleSpike)
    layer.tau_mem.requires_grad_(False)

    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x.transpose(0, 1)).transpose(0, 1)
        return spikes

    return run


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        context.save_for_backward(z)
        return (z >= 0).to(z)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (z,) = context.saved_tensors
        return gradients[0] / (1 + (math.pi * z).square())


def plain() -> Layer:
    """Return a loop in plain PyTorch."""

    def run(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for current in x:
            u = 0.5 * v + current
            s = _Spike.apply(u - 1)
            v = u - s.detach()
            out.append(s)
        return torch.stack(out)

    return run


TOOLS = {
    "stalwart": stalwart,
    "spikingjelly": spikingjelly,
    "snntorch": snntorch,
    "norse": norse,
    "sinabs": sinabs,
    "plain loop": plain,
}
SAME_SPIKES = ("spikingjelly", "norse", "sinabs", "plain loop")


class _ByFrames(nn.Module):
    """A layer without time, seeing [T * B, ...] once."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(0, 1))
        return out.unflatten(0, x.shape[:2])


class _Neurons(nn.Module):
    def __init__(self, tool: str) -> None:
        super().__init__()
        self.run = TOOLS[tool]()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def network(tool: str, steps: int) -> Layer:
    """Return the convolutional network, [T, B, 1, 28, 28] -> logits [B, 10], as the tool's users would run it."""
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(3136, 10)
    with torch.no_grad():
        # Doubled, so that the neurons fire, and in whole 64ths, so that sums are exact in whatever order.
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.mul_(128).round_().div_(64)
    if tool == "stalwart":
        from stalwart.spiking import LIF, EventFrames, SpikingNetwork, with_neurons

        stack = nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), last)
        model = SpikingNetwork(
            EventFrames(steps), with_neurons(stack, steps, lambda path: LIF(0.5, surrogate="atan")), steps
        )
        return lambda x: model(x.transpose(0, 1))
    layers = [first, None, nn.AvgPool2d(2), second, None, nn.AvgPool2d(2), nn.Flatten(), last]
    theirs = nn.Sequential(*(_Neurons(tool) if one is None else _ByFrames(one) for one in layers))
    return lambda x: theirs(x).mean(0)


@contextlib.contextmanager
def growth(found: dict[str, float], name: str) -> Iterator[None]:
    """Write by how many MiB the resident size grows at most inside the block, looked at every 2 ms."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    begun, peak, going = resident(), [resident()], [True]

    def watch() -> None:
        while going:
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield
    going.clear()
    watcher.join()
    found[name] = max(peak[0], resident()) - begun


def measure(tool: str, workload: str) -> dict[str, Any]:
    """Return seconds and memory of one tool in this process, and a digest of its spikes or logits."""
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    if workload == "lif":
        run, x = TOOLS[tool](), torch.randn(*SHAPE, generator=generator)
        g, leaf, repeats = torch.randn(*SHAPE), x.clone().requires_grad_(), 7

        def both() -> None:
            leaf.grad = None
            run(leaf).backward(g)

    else:
        steps = int(workload.removeprefix("conv"))
        run, repeats = network(tool, steps), 5 if steps < 16 else 3
        x = (torch.rand(steps, 64, 1, 28, 28, generator=generator) < 0.5).float() * 2
        y = torch.randint(0, 10, (64,), generator=generator)

        def both() -> None:
            nn.functional.cross_entropy(run(x), y).backward()

    def median(step: Callable[[], object]) -> float:
        step()
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(x)

    first, room, found = forward(), torch.empty_like(x), {}
    # Before anything was freed, so that what an earlier pass left is not used again unseen; the first pass compiled.
    with growth(found, "memory"):
        both()
    out = first.bool() if workload == "lif" else (first * 1000).round()
    found |= {"forward": median(forward), "both": median(both), "copy": median(lambda: room.copy_(x))}
    return found | {"digest": hashlib.sha256(out.numpy().tobytes()).hexdigest(), "logits": first.double().sum().item()}


def compare(workload: str, tools: list[str], rounds: int, environment: dict[str, str]) -> None:
    """Run the tools in turn and print medians and ratios."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name in tools:
            command = [sys.executable, __file__, "--tool", name, "--only", workload]
            paths = environment["PATHS"].split(os.pathsep)
            path = next((one for one in paths if one and (Path(one) / name).is_dir()), "")
            own = os.environ | environment | {"PYTHONPATH": path}
            done = subprocess.run(command, env=own, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name in SAME_SPIKES:
        if name in found and workload == "lif" and found[name][0]["digest"] != found["stalwart"][0]["digest"]:
            raise SystemExit(f"{name} gives other spikes than stalwart")
        if name in found and abs(found[name][0]["logits"] - found["stalwart"][0]["logits"]) > 1e-2:
            raise SystemExit(f"{name} gives other logits than stalwart")
    keys = ("forward", "both", "memory", "copy")
    figures = {name: {key: statistics.median(one[key] for one in rows) for key in keys} for name, rows in found.items()}
    own = figures["stalwart"]
    if workload == "lif":
        # Forward reads currents and writes spikes, as a copy does; backward reads two tensors and writes one.
        print(f"at the rate of a copy, forward would take {own['copy']:.4f} s, with backward {own['copy'] * 2.5:.4f} s")
    print(f"{'tool':<14}{'forward':>9}{'ratio':>7}{'and backward':>14}{'ratio':>7}{'MiB':>8}{'ratio':>7}")
    for name, one in figures.items():
        line = f"{name:<14}"
        for key, width, digits in (("forward", 9, 4), ("both", 14, 4), ("memory", 8, 0)):
            line += f"{one[key]:>{width}.{digits}f}{one[key] / own[key]:>7.2f}"
        print(line, flush=True)


def main() -> None:
    """Compare all workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.tool:
        print(json.dumps(measure(chosen.tool, chosen.only[0])))
        return
    here = [Path(one).resolve() for one in chosen.peers]
    tools = [
        name
        for name in TOOLS
        if name in ("stalwart", "plain loop")
        or importlib.util.find_spec(name)
        or any((one / name).is_dir() for one in here)
    ]
    for workload in chosen.only:
        for allocator, setting in (("as it is", {}), ("keeping memory", KEEPING)):
            print(f"\n{workload}, allocator {allocator}")
            compare(workload, tools, chosen.rounds, setting | {"PATHS": os.pathsep.join(map(str, here))})


if __name__ == "__main__":
    main()
