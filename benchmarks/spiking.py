"""One layer of LIF neurons beside spikingjelly and snntorch: forward and backward of [32, 64, 4096], with equal spikes.

    PYTHONPATH=FOLDER python benchmarks/spiking.py [--rounds 3]

FOLDER holds the peers (``pip install --no-deps --target FOLDER spikingjelly==2.0.0 snntorch==1.0.0``); those that are not
there are left out. Tools run in turn, each in a process of its own, with the allocator as it is and with one that keeps
memory; u = v / 2 + x, spikes at u >= 1, reset by subtraction, atan surrogate. snntorch resets one step later, so its spikes are
not compared.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHAPE = (32, 64, 4096)
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "268435456"}
REPEATS = 7


def stalwart() -> Callable[[Tensor], Tensor]:
    """Return our neurons."""
    from stalwart.spiking import lif

    return lambda x: lif(x, 0.5, 1.0)


def spikingjelly() -> Callable[[Tensor], Tensor]:
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


def snntorch() -> Callable[[Tensor], Tensor]:
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


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        context.save_for_backward(z)
        return (z >= 0).to(z)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (z,) = context.saved_tensors
        return gradients[0] / (1 + (math.pi * z).square())


def plain() -> Callable[[Tensor], Tensor]:
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


TOOLS = {"stalwart": stalwart, "spikingjelly": spikingjelly, "snntorch": snntorch, "plain loop": plain}


def measure(tool: str) -> dict[str, Any]:
    """Return the median seconds of one tool in this process, and a digest of its spikes."""
    torch.set_num_threads(2)
    run = TOOLS[tool]()
    x = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))
    g, leaf = torch.randn(*SHAPE), x.clone().requires_grad_()

    def median(step: Callable[[], object]) -> float:
        step()
        seconds = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(x)

    def both() -> None:
        leaf.grad = None
        run(leaf).backward(g)

    digest = hashlib.sha256(forward().bool().numpy().tobytes()).hexdigest()
    room = torch.empty_like(x)
    return {"forward": median(forward), "both": median(both), "copy": median(lambda: room.copy_(x)), "spikes": digest}


def main() -> None:
    """Run the tools in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.tool:
        print(json.dumps(measure(chosen.tool)))
        return
    tools = [name for name in TOOLS if name == "plain loop" or importlib.util.find_spec(name)]
    for allocator, setting in (("as it is", {}), ("keeping memory", KEEPING)):
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
        for _ in range(chosen.rounds):
            for name in tools:
                command = [sys.executable, __file__, "--tool", name]
                done = subprocess.run(command, env=os.environ | setting, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        for name in ("spikingjelly", "plain loop"):
            if name in found and found[name][0]["spikes"] != found["stalwart"][0]["spikes"]:
                raise SystemExit(f"{name} gives other spikes than stalwart")
        figures = {
            name: {key: statistics.median(one[key] for one in rows) for key in ("forward", "both", "copy")}
            for name, rows in found.items()
        }
        own = figures["stalwart"]
        # Forward reads currents and writes spikes, as a copy does; backward reads two tensors and writes one.
        limit = own["copy"] * 2.5
        print(f"allocator {allocator}; at the rate of a copy, forward and backward would take {limit:.4f} s")
        print(f"{'tool':<16}{'forward':>9}{'ratio':>7}{'and backward':>14}{'ratio':>7}")
        for name, one in figures.items():
            ratios = one["forward"] / own["forward"], one["both"] / own["both"]
            print(f"{name:<16}{one['forward']:>9.4f}{ratios[0]:>7.2f}{one['both']:>14.4f}{ratios[1]:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
