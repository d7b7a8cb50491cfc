"""What the neurons of a network can still do inside a threat set: always off, always on, or either."""

import math
from dataclasses import dataclass

from torch import Tensor

from stalwart.bounds.propagation import Propagation
from stalwart.bounds.rules.base import batched_arguments
from stalwart.bounds.rules.elementwise import function_of

STATES = ("dead", "unstable", "alive", "right-unstable", "right-dead")
"""From left to right along the function; the last two exist where it bends twice, as ParamRamp does."""

_ACTIVATIONS = {"relu", "leaky_relu", "prelu", "relu6", "hardtanh", "stalwart::param_ramp"}


@dataclass(frozen=True)
class LayerStatus:
    """How many neurons of one activation layer are in which state.

    Attributes:
        layer: the activation's module path.
        neurons: of one sample.
        counts: by state, summed over samples; each neuron is in one state.
    """

    layer: str
    neurons: int
    counts: dict[str, float]


def neuron_status(known: Propagation) -> list[LayerStatus]:
    """Count, for each layer of piecewise-linear activations, in which state the known intervals leave its neurons.

    With the kinks a <= b of the function and the interval [l, u] of its operand: "dead" is u <= a, "right-dead" l >= b,
    "right-unstable" l < b < u, "unstable" l < a < u where b is not inside, "alive" the rest. A function of one kink has
    b = infinity. ReLU and its leaky relatives bend at 0, ParamRamp at 0 and r (Lyu et al., CVPR 2021, section 4).
    """
    found = []
    for node in known.graph.nodes:
        if node not in known.relaxed or node.op not in _ACTIVATIONS:
            continue
        (parent,) = batched_arguments(node)
        z = known.interval(parent)
        kinks = function_of(node, known).breakpoints
        left, right = kinks[0], kinks[1] if len(kinks) > 1 else math.inf
        low, high = z.lower, z.upper
        dead, right_dead = high <= left, low >= right
        right_unstable = (low < right) & (high > right)
        unstable = (low < left) & (high > left) & ~right_unstable
        states: dict[str, Tensor] = {
            "dead": dead,
            "unstable": unstable,
            "alive": ~(dead | right_dead | right_unstable | unstable),
        }
        if len(kinks) > 1:
            states |= {"right-unstable": right_unstable, "right-dead": right_dead & ~dead}
        counts = {name: float(state.sum()) for name, state in states.items()}
        found.append(LayerStatus(node.path or node.op, math.prod(node.shape), counts))
    return found


def together(parts: list[list[LayerStatus]]) -> list[LayerStatus]:
    """Add the counts of several batches, layer by layer."""
    return [
        LayerStatus(
            layers[0].layer,
            layers[0].neurons,
            {state: sum(one.counts[state] for one in layers) for state in layers[0].counts},
        )
        for layers in zip(*parts, strict=True)
    ]
