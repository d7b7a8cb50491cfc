"""Converted networks in the report: what was replaced, folded and kept, and how near the result is to what it was."""

import pydantic

from stalwart.evaluation.results import Record


class Replaced(Record):
    """One activation and the neurons in its place.

    Attributes:
        layer: the module path.
        kind: of the activation.
        error: ‖a - c r‖ / ‖a‖ of activations a and mean outputs r, see :class:`stalwart.convert.compare.LayerError`.
        rate: spikes of a neuron in a step, on average.
        threshold: mean threshold.
    """

    layer: str
    kind: str
    error: float
    rate: float
    threshold: float


class AtSteps(Record):
    """Accuracy after so many time steps."""

    steps: int
    accuracy: float


class Conversion(Record):
    """What ``conversion.json`` of a run says.

    Attributes:
        replaced: each layer of neurons.
        folded: each batch norm and the layer that it went into.
        kept: each other layer and its kind.
        accuracy: of the network before, on held-out data.
        over_steps: of the spiking one on the same data.
    """

    replaced: list[Replaced]
    folded: dict[str, str] = pydantic.Field(default_factory=dict)
    kept: dict[str, str] = pydantic.Field(default_factory=dict)
    accuracy: float | None = None
    over_steps: list[AtSteps] = pydantic.Field(default_factory=list)
