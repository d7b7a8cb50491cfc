"""From a name to a classifier with reproducible weights."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from stalwart.core import registry
from stalwart.core.numbers import require
from stalwart.core.random import isolated
from stalwart.models.classifier import Classifier, Normalise
from stalwart.models.spiking import Spiking
from stalwart.models.stack import check_shape
from stalwart.models.table import MODELS
from stalwart.spiking.qcfs import Quantise


def build_model(
    name: str,
    shape: Sequence[int],
    classes: int,
    options: Mapping[str, Any] = MappingProxyType({}),
    head: Callable[[int, int], nn.Module] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    spiking: Spiking | None = None,
    quantise: Quantise | None = None,
) -> Classifier:
    """Return a freshly initialised classifier; the same arguments give the same weights, bit for bit.

    Args:
        name: a name in :data:`stalwart.models.MODELS`.
        shape: the shape of one input without the batch, such as ``(3, 32, 32)``.
        classes: K, the number of logits, at least 2.
        options: hyper-parameters of the architecture, as its record names them.
        head: a function ``(D, K) -> module`` from features to logits; by default one linear layer.
        mean: mean to subtract, one value a channel in data units; by default 0.
        std: scale to divide by, one positive value a channel in data units; by default 1.
        seed: root seed of the initialisation; torch's global generator is left as it was.
        spiking: what neurons to put in the place of the backbone's ReLUs, if any.
        quantise: what quantised activations to put there, if any.

    Raises:
        UsageError: an unknown name or option, a shape the architecture cannot take, fewer than two classes, or a
            normalisation that does not fit the channels.

    Example:
        >>> build_model("mlp", (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    record = registry.build("model", MODELS, name, options)
    check_shape(name, shape, image=False)
    require(
        isinstance(classes, int) and not isinstance(classes, bool) and classes >= 2,
        f"a classifier needs at least 2 classes, got {classes!r}.",
    )
    channels = shape[0]
    for what, values in (("mean", mean), ("std", std)):
        require(
            values is None or len(values) == channels,
            f"{what} must have one value a channel: {channels} for inputs of shape {tuple(shape)}, got {values}.",
        )
    normalise = Normalise([0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std)
    with isolated(seed):
        backbone, width = record.build(tuple(shape) if spiking is None else spiking.seen(tuple(shape)))
        if quantise is not None:
            backbone = quantise.apply(backbone)
        if spiking is not None:
            backbone = spiking.apply(backbone)
        return Classifier(normalise, backbone, (head or nn.Linear)(width, classes))
