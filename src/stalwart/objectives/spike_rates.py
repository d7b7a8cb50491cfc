"""Firing rates near a wanted one, as a regulariser of any objective."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.hooks import removing
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment, Objective
from stalwart.objectives.wrapped import Wrapped
from stalwart.spiking import neurons


@dataclass(frozen=True, kw_only=True)
class SpikeRates(Wrapped):
    """Base loss + weight · mean over inputs of Σ_n (r_n - target)², r_n the rate of neuron n on one input in spikes a ms.

    Rates are those on the clean inputs at the network's own weights, of all layers of neurons. A base that computes its loss
    as a whole, such as "weight-kl", costs one more pass of the clean inputs.
    Source: Bellec et al., NeurIPS 2018. Büchel, Faber and Muir (ICLR 2022, code) take 0.001 of the sum over a batch of 100
    inputs, which is a weight of 0.1 here, and 10 Hz.

    Attributes:
        base: registered name of the objective inside, any one.
        options: its hyper-parameters.
        weight: of the regulariser, at least 0.
        target: wanted rate in Hz, at least 0.
        dt: length of a time step in ms, positive.
    """

    weight: Number = 0.1
    target: Number = 10.0
    dt: Number = 1.0

    def __post_init__(self) -> None:
        _ = self.inner  # refuses unknown names and options; unlike other wrappers it takes whole losses too
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")
        require(self.target >= 0, f"target must be at least 0 Hz, got {self.target}.")
        require(self.dt > 0, f"dt must be positive, got {self.dt}.")

    @property
    def updates(self) -> int:
        """As many as the base makes."""
        return self.inner.updates

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss with the regulariser, and the base's logits."""
        whole = type(self.inner).loss is not Objective.loss
        if whole:
            loss, logits = self.inner.loss(model, x, y, moment)
        else:
            x_adv = self.craft(model, x, y, moment)
        with _watched(model) as rates:
            clean = model(x)
        if not whole:
            loss, logits = self.combine(lambda z: clean if z is x else model(z), x, x_adv, y)
            loss = loss + self.inner.penalty(model)
        distances = [(one / self.dt - self.target / 1000).square().sum(1).mean() for one in rates]
        return loss + self.weight * sum(distances[1:], distances[0]), logits

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the base's penalty.

        Raises:
            UsageError: the model has no neurons.
        """
        if not neurons(model):
            raise UsageError(
                "the objective 'spike-rates' needs a model with spiking neurons, such as 'lsnn', or a spiking section."
            )
        return self.inner.penalty(model)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the rates [B, N] of every layer of neurons that runs inside the block, in spikes a step."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output.mean(0).flatten(1))

    handles = [layer.register_forward_hook(keep) for layer in neurons(model).values()]
    with removing(handles):
        yield found
