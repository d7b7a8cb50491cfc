"""Train the networks of certified.py anew in plain PyTorch, with nothing of the library but its data: a twin to compare with.

    python reproductions/certified_twin.py [--seeds 0 1 2] [--unclipped]

Fashion-MNIST, MLP 784-128-128-10, interval training at eps 0.1 in 12 epochs (1 clean, 3 of growing eps), kappa 1 to 0.5,
Adam 5e-4, a tenth of it after epoch 9; ReLU, and ParamRamp of slope 0 whose lengths start from mean activations.
Prints clean and interval errors of the first 3,000 test images, in percent. ``--unclipped`` trains on boxes that leave [0, 1].
"""

import argparse
import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.data import load

EPS, EPOCHS, BATCH, LR = 0.1, 12, 256, 5e-4


class Twin(nn.Module):
    """The MLP; ``ramps`` are its lengths of ramps, endless for ReLU."""

    def __init__(self, ramp: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(784, 128), nn.Linear(128, 128), nn.Linear(128, 10)])
        self.ramps = nn.ParameterList([nn.Parameter(torch.full((1, 128), 1e30), requires_grad=ramp) for _ in range(2)])

    def act(self, z: Tensor, at: int) -> Tensor:
        """Cut below 0 and above the ramp."""
        return torch.minimum(z.clamp_min(0), self.ramps[at].clamp_min(1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 784] to logits."""
        for at in range(2):
            x = self.act(self.layers[at](x), at)
        out: Tensor = self.layers[2](x)
        return out

    def margins(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        """Return interval bounds of z_y - z_j [B, 10] over boxes; 0 at j = y."""
        for at in range(2):
            layer = self.layers[at]
            assert isinstance(layer, nn.Linear)
            z, r = layer((lower + upper) / 2), F.linear((upper - lower) / 2, layer.weight.abs())
            lower, upper = self.act(z - r, at), self.act(z + r, at)
        last = self.layers[2]
        assert isinstance(last, nn.Linear)
        rows = last.weight[y][:, None] - last.weight
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        worst = torch.einsum("bkd,bd->bk", rows, centre) - torch.einsum("bkd,bd->bk", rows.abs(), radius)
        return worst + last.bias[y][:, None] - last.bias

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Set each ramp to its neuron's mean activation."""
        for at in range(2):
            x = self.act(self.layers[at](x), at)
            self.ramps[at].copy_(x.mean(0, keepdim=True).clamp_min(1e-4))


def box(x: Tensor, eps: float, clip: bool) -> tuple[Tensor, Tensor]:
    """Return the ends of the box around x."""
    lower, upper = x - eps, x + eps
    return (lower.clamp_min(0), upper.clamp_max(1)) if clip else (lower, upper)


def trained(x: Tensor, y: Tensor, ramp: bool, clip: bool, seed: int) -> Twin:
    """Train one network."""
    torch.manual_seed(seed)
    net = Twin(ramp)
    optimiser = torch.optim.Adam(net.parameters(), lr=LR)
    batches = -(-len(x) // BATCH)
    for epoch in range(EPOCHS):
        if epoch == 1 and ramp:
            net.measure(x)
        for group in optimiser.param_groups:
            group["lr"] = LR * (0.1 if epoch >= 9 else 1)
        for number, part in enumerate(torch.randperm(len(x)).split(BATCH)):
            share = min(max((epoch + number / batches - 1) / 3, 0), 1)
            loss = (1 - share / 2) * F.cross_entropy(net(x[part]), y[part])
            if share > 0:
                worst = net.margins(*box(x[part], share * EPS, clip), y[part])
                loss = loss + share / 2 * F.cross_entropy(-worst, y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net


def main() -> None:
    """Train both kinds from every seed and print their errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--unclipped", action="store_true")
    chosen = parser.parse_args()
    data = load("fashion-mnist", {"validation": 0.02}, 0, None, True, progress=False)
    x, y = data.train.batch(slice(None))
    test, labels = data.test.take(3000).batch(slice(None))
    x, test = x.flatten(1), test.flatten(1)
    for ramp in (False, True):
        name, errors = "ParamRamp" if ramp else "ReLU", []
        for seed in chosen.seeds:
            net = trained(x, y, ramp, not chosen.unclipped, seed)
            with torch.no_grad():
                worst = net.margins(*box(test, EPS, True), labels).scatter(1, labels[:, None], torch.inf).amin(1)
                errors.append(
                    (float((net(test).argmax(1) != labels).float().mean()), float((worst <= 0).float().mean()))
                )
            print(
                f"{name} seed {seed}: clean {errors[-1][0]:.1%}, IBP {errors[-1][1]:.1%}",
                flush=True,
            )
        clean, interval = (statistics.median(column) for column in zip(*errors, strict=True))
        print(f"{name}, median: clean {clean:.1%}, IBP {interval:.1%}")


if __name__ == "__main__":
    main()
