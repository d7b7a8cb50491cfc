"""Progressive tandem learning: layer after layer becomes spikes, and what comes behind is trained to live with them."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.convert.prepare import ACTIVATIONS, prepare
from stalwart.convert.rate import Rate
from stalwart.core.errors import InputError
from stalwart.core.layers import in_order
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.spiking import LIF, Direct, InTime, SpikingNetwork

Labelled = tuple[Tensor, Tensor]
_MEASURED = 1024


@dataclass(frozen=True, kw_only=True)
class Tandem:
    """Convert one activation after the other; train the layer before it and all behind it; freeze what is in front.

    The layer at work sends spikes forward, and its gradient is that of the activation it takes the place of: with a = act(W r)
    of the mean spikes r that it gets, and r' the mean of those it sends, the layers behind see a + (r' - a) with r' - a a
    constant. When the accuracy on held-out data has not grown for ``patience`` epochs the best weights come back, and the
    next layer follows. Batch norm is folded before.
    Source: Wu et al., "Progressive tandem learning for pattern recognition with deep spiking neural networks", 2020
    (arXiv 2007.01204). Theirs shows the input in the first step alone; here it is shown in every step, which gives each
    neuron the same charge.

    Attributes:
        steps: T.
        percentile: of an activation, that becomes its threshold when its turn comes.
        patience: epochs without a better validation accuracy, after which a layer is done.
        most: epochs of one layer at most.
        lr, weight_decay: of Adam.
        batch: inputs of one step.
        seed: of the batches.

    Raises:
        UsageError: a number out of range.
    """

    steps: int = 16
    percentile: Number = 99.9
    patience: int = 6
    most: int = 50
    lr: Number = 1e-3
    weight_decay: Number = 1e-5
    batch: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "patience", "most", "batch"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(0 < self.percentile <= 100, f"the percentile must lie in (0, 100], got {self.percentile}.")
        require(self.lr > 0, f"lr must be positive, got {self.lr}.")
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}.")

    def __call__(self, model: nn.Module, train: Labelled, validation: Labelled) -> SpikingNetwork:
        """Return the spiking network; the model is left as it was.

        Args:
            model: a trained network that converts into a plain stack of layers.
            train: inputs [N, ...] and labels [N].
            validation: held-out ones, which decide when a layer is done.

        Raises:
            InputError: branches, or no activation.
        """
        require(
            len(train[0]) > 0 and len(validation[0]) > 0, "tandem learning needs inputs to train on, and held-out ones."
        )
        layers, _ = prepare(model)
        chain = [layer for _, layer in in_order(layers)]
        if any(isinstance(layer, torch.fx.GraphModule) for layer in chain):
            raise InputError("tandem learning converts one layer after another, so the network must not have branches.")
        rate = Rate(threshold="percentile", percentile=self.percentile)
        for place in [at for at, layer in enumerate(chain) if isinstance(layer, ACTIVATIONS)]:
            stage = _Stage(chain, place, self.steps)
            with torch.no_grad():
                measured = stage.activation(train[0][:_MEASURED])
                neuron = rate.neurons(chain[place], tuple(measured.shape[1:]))
                rate.set_threshold(neuron, rate.threshold_of(measured, str(place), self.steps))
            self._train(stage, neuron, train, validation)
            chain[place] = InTime(neuron, self.steps)
        return SpikingNetwork(Direct(self.steps), nn.Sequential(*chain), self.steps).eval()

    def _train(self, stage: "_Stage", neuron: LIF, train: Labelled, validation: Labelled) -> None:
        live = [parameter for layer in stage.live for parameter in layer.parameters()]
        adam = torch.optim.Adam(live, self.lr, weight_decay=self.weight_decay)
        best, kept, waited = stage.accuracy(neuron, validation, self.batch), _copied(live), 0
        for epoch in range(self.most):
            order = torch.randperm(len(train[0]), generator=generator(self.seed, stage.place, epoch))
            for part in order.split(self.batch):
                adam.zero_grad()
                F.cross_entropy(stage(train[0][part], neuron), train[1][part]).backward()
                adam.step()
            now, waited = stage.accuracy(neuron, validation, self.batch), waited + 1
            if now > best:
                best, kept, waited = now, _copied(live), 0
            if waited >= self.patience:
                break
        with torch.no_grad():
            for parameter, value in zip(live, kept, strict=True):
                parameter.copy_(value)


class _Stage:
    """A chain of layers: spiking before a place, at work there, and as they were behind it."""

    def __init__(self, chain: list[nn.Module], place: int, steps: int) -> None:
        last = max((at for at in range(place) if isinstance(chain[at], InTime)), default=-1)
        self.front, self.work = chain[: last + 1], chain[last + 1 : place]
        self.act, self.behind = chain[place], chain[place + 1 :]
        self.place, self.steps = place, steps

    @property
    def live(self) -> list[nn.Module]:
        """The layers that are trained."""
        return [*self.work, *self.behind]

    def _spikes(self, x: Tensor) -> Tensor:
        """Return what the layer at work gets, [T, B, ...]."""
        with torch.no_grad():
            x = (
                x.unsqueeze(0).expand(self.steps, *x.shape).flatten(0, 1)
                if self.front
                else x.unsqueeze(0).flatten(0, 1)
            )
            for layer in self.front:
                x = layer(x)
            return x.unflatten(0, (self.steps if self.front else 1, -1))

    def activation(self, x: Tensor) -> Tensor:
        """Return the activation a of the mean spikes."""
        return self._activation(self._spikes(x))

    def _activation(self, spikes: Tensor) -> Tensor:
        out = spikes.mean(0)
        for layer in (*self.work, self.act):
            out = layer(out)
        return out

    def __call__(self, x: Tensor, neuron: LIF) -> Tensor:
        """Return the logits of inputs [B, ...]."""
        spikes = self._spikes(x)
        out = self._activation(spikes)
        with torch.no_grad():
            currents = spikes.flatten(0, 1)
            for layer in self.work:
                currents = layer(currents)
            currents = currents.unflatten(0, spikes.shape[:2])
            sent = neuron(currents.expand(self.steps, *currents.shape[1:])).mean(0)
        out = out + (sent - out).detach()
        for layer in self.behind:
            out = layer(out)
        return out

    @torch.no_grad()
    def accuracy(self, neuron: LIF, data: Labelled, batch: int) -> float:
        """Return the share of inputs that are classified rightly."""
        pairs = zip(data[0].split(batch), data[1].split(batch), strict=True)
        return sum(int((self(x, neuron).argmax(1) == y).sum()) for x, y in pairs) / len(data[0])


def _copied(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [copy.deepcopy(parameter.detach()) for parameter in parameters]
