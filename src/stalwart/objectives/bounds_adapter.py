"""What certified training asks of the bounds engine: one clean pass, and boxes pushed through the same network.

All that training needs of :mod:`stalwart.bounds` and :mod:`stalwart.graph` goes through here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stalwart.bounds.interval import Interval
from stalwart.bounds.methods import METHODS, REFINERS, find_method, finish, margin_rows, propagate
from stalwart.bounds.propagation import Propagation
from stalwart.bounds.region import Region
from stalwart.core.errors import InputError
from stalwart.core.hooks import removing
from stalwart.graph import Graph, Node, trace
from stalwart.sets import ThreatSet
from stalwart.stochastic import is_random

BoxMethod = Literal["ibp", "crown-ibp", "crown-lbp"]


class Box:
    """A box of inputs pushed through a network, every interval kept and differentiable in the parameters and the box.

    Args:
        graph, fixed: the network's operators, and the values of those that do not depend on the input.
        lower, upper: ends of the box, [B, ...].
    """

    def __init__(self, graph: Graph, fixed: dict[Node, Any], lower: Tensor, upper: Tensor) -> None:
        self._graph, self._fixed, self._region = graph, fixed, Region(Interval(lower, upper))
        self._known: dict[str, Propagation] = {}

    @property
    def output(self) -> Interval:
        """The interval of the output, last layer as it is."""
        return self._walk("ibp").interval(self._graph.output)

    @property
    def preactivations(self) -> list[tuple[str, Interval]]:
        """Module path and input interval of each activation, in order."""
        return self._walk("ibp").activations

    def margins(self, y: Tensor, method: BoxMethod = "ibp") -> Tensor:
        """Return lower bounds [B, K - 1] of f_y - f_j, j ascending without y, the last layer folded in."""
        return self.rows(margin_rows(y, self._graph.output.shape[0]).to(self._region.box.lower), method)

    def rows(self, rows: Tensor, method: BoxMethod = "ibp") -> Tensor:
        """Return lower bounds [B, R] of the linear functions ``rows`` [B, R, K] of the output."""
        return finish(self._walk(method), rows, METHODS[method])

    def _walk(self, method: BoxMethod) -> Propagation:
        inner = METHODS[method].inner
        if inner not in self._known:
            refine = REFINERS[inner](None)
            self._known[inner] = Propagation(self._graph, self._fixed, self._region, "adaptive", refine)
        return self._known[inner]


class CleanPass:
    """The clean forward pass of a training step, and the same network as bounds see it.

    In training mode batch norm normalises boxes by the statistics of the clean batch, with gradient; the running
    statistics move once, as in any forward pass (Shi et al., NeurIPS 2021, arXiv 2103.17268, section 4.3). Dropout is off
    in bounds.

    Args:
        model: [B, ...] -> [B, ...].
        x: the clean batch [B, ...].

    Attributes:
        logits: the output of the clean pass.

    Raises:
        InputError: the model is randomised, or has an operator that bounds do not know.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        if is_random(model):
            raise InputError(
                "certified training needs a model without noise layers; switch them off or leave them out."
            )
        self.model = model
        with _recorded(model) as self._statistics:
            self.logits: Tensor = model(x)
        self._graph = trace(model, x)
        self._fixed = self._graph.fixed(model, given=self._statistics)

    def box(self, lower: Tensor, upper: Tensor) -> Box:
        """Push the box [lower, upper], ends [N, ...], through the network."""
        return Box(self._graph, self._fixed, lower, upper)

    def at(self, z: Tensor) -> Tensor:
        """Return the output at the points z [N, ...], normalised like the clean batch."""
        if not self._statistics:
            out: Tensor = self.model(z)
            return out
        # torch's own batch norm passes no gradient to statistics it is given; the rule for boxes does.
        return self.box(z, z).output.centre


def certify(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, method: str) -> tuple[Tensor, Propagation]:
    """Return lower bounds [B, K - 1] of the margins f_y - f_j, and what is known of every node.

    Lines are "tight", as certifiably trained networks want them (Lyu et al., CVPR 2021, section 3.4).

    Args:
        model: maps [B, ...] to logits [B, K], in evaluation mode.
        x, y: inputs [B, ...] in data units, labels [B].
        within: the threat set.
        method: any name of :data:`stalwart.bounds.METHODS`.
    """
    known = propagate(model, x, within, method, strategy="tight")
    rows = margin_rows(y, known.graph.output.shape[0]).to(known.region.box.lower)
    return finish(known, rows, find_method(method)), known


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect the batch statistics of batch norms in training mode, by the names of the running ones."""
    found: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [0, *range(2, inputs[0].dim())]
            variance, mean = torch.var_mean(inputs[0], axes, correction=0)
            prefix = f"{path}." if path else ""
            found[f"{prefix}running_mean"], found[f"{prefix}running_var"] = mean, variance

        return record

    hooks = [
        module.register_forward_pre_hook(hook(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    with removing(hooks):
        yield found
