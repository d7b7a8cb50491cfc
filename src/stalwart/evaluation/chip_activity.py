"""What neurons do on chips: networks on imperfect processors fall silent, and robust ones keep membranes off the threshold."""

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.hooks import removing
from stalwart.core.modes import evaluating
from stalwart.core.noise import noise
from stalwart.core.random import derive
from stalwart.evaluation.results import Record
from stalwart.hardware import Hardware
from stalwart.spiking import Neurons, monitor, neurons

EDGES = (-1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0)
"""Ends of the bins of distances from the threshold, in units of it; the first and last bins go on for ever."""
_INPUTS, _CHIPS, _BATCH = 200, 5, 50


class ChipActivity(Record):
    """What all neurons of a network do, averaged over a few chips.

    Attributes:
        rate: spikes of a neuron in a step, in [0, 1].
        silent, saturated: share of neurons that never fired, and that fired in every step, on the inputs seen.
        distances: shares of membranes, over neurons, steps and inputs, in the bins of distances u / θ - 1 between
            :data:`EDGES`; empty where some neurons have no threshold that a membrane is compared with.
    """

    rate: float
    silent: float
    saturated: float
    distances: list[float]

    @property
    def near(self) -> float | None:
        """The share of membranes within a tenth of the threshold; None where that is not known."""
        first, last = EDGES.index(-0.1), EDGES.index(0.1)
        return sum(self.distances[first + 1 : last + 1]) if self.distances else None


@torch.no_grad()
def chip_activity(
    model: nn.Module, x: Tensor, device: Hardware | None = None, seed: int = 0, chips: int = _CHIPS
) -> ChipActivity | None:
    """Return what a model's neurons do on the first 200 inputs; None if it has none. The model is left as it was.

    Args:
        model: maps [B, ...] to logits.
        x: inputs [N, ...].
        device: on chips of which it runs, the first ones that :func:`stalwart.hardware.accuracies` makes of this seed; None
            for the network itself.
        seed: of the chips.
        chips: how many at most.

    Raises:
        UsageError, InputError: the device does not fit the model.
    """
    if not neurons(model):
        return None
    seen = []
    with evaluating(model):
        for number in range(1 if device is None else min(chips, _CHIPS)):
            one = derive(seed, "chip", number)
            if device is None:
                seen.append(_watched(model, x[:_INPUTS], one))
            else:
                with device.chip(model, one):
                    seen.append(_watched(model, x[:_INPUTS], one))
    mean = torch.stack([numbers for numbers, _ in seen]).mean(0).tolist()
    bins = [found for _, found in seen if found is not None]
    shares = (sum(bins[1:], bins[0]) / sum(float(one.sum()) for one in bins)).tolist() if bins else []
    return ChipActivity(rate=mean[0], silent=mean[1], saturated=mean[2], distances=shares)


def _watched(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return rate, silent and saturated shares, and how many membranes fall in each bin."""
    counts = torch.zeros(len(EDGES) + 1, dtype=torch.float64)
    known = True

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counts, known
        assert isinstance(layer, Neurons)
        try:
            found = layer.distances(inputs[0])
        except InputError:
            known = False
            return
        edges = found.new_tensor(EDGES)
        counts += torch.bucketize(found.flatten(), edges).bincount(minlength=len(EDGES) + 1).double().cpu()

    handles = [layer.register_forward_hook(look) for layer in neurons(model).values()]
    with removing(handles), noise(model, "on", seed=seed), monitor(model) as seen:
        for part in x.split(_BATCH):
            model(part)
    layers = list(seen.layers.values())
    sizes = torch.tensor([one.counts.numel() for one in layers], dtype=torch.float64)
    numbers = torch.tensor([[one.rate, one.silent, one.saturated] for one in layers], dtype=torch.float64)
    return (sizes / sizes.sum()) @ numbers, counts if known else None
