"""Parametric noise injection: noise on the weights with one trained strength a layer.

    w~ = w + alpha * eta,    eta ~ N(0, std(w)^2)

std(w) and eta are constants in the backward pass; alpha starts at 0.25 and takes no weight decay.
Source: He, Rakin, Fan, "Parametric noise injection", CVPR 2019, equations 1-3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.noise import NoiseLayer
from stalwart.core.random import normal


class _WeightNoise(NoiseLayer):
    """Shares ``noisy(weight)``: one draw a forward pass, common to the batch (and to all data-parallel ranks)."""

    for_each_sample = False

    def __init__(self, layer: nn.Conv2d | nn.Linear, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.alpha = nn.Parameter(torch.full((1,), alpha, device=layer.weight.device))

    def noisy(self) -> Tensor:
        """Return w + alpha * eta, or w where the noise is off."""
        if self.mode == "off":
            return self.weight
        with torch.no_grad():
            draw = normal(self.weight.shape, self.stream(self.weight.device), self.weight, batch_axis=None)
            eta = draw * self.weight.std()
        return self.weight + self.alpha * eta


class PNILinear(_WeightNoise):
    """``nn.Linear`` with noise on its weights."""

    def __init__(self, layer: nn.Linear, alpha: float = 0.25) -> None:
        super().__init__(layer, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with fresh weight noise."""
        return F.linear(x, self.noisy(), self.bias)


class PNIConv2d(_WeightNoise):
    """``nn.Conv2d`` with noise on its weights."""

    def __init__(self, layer: nn.Conv2d, alpha: float = 0.25) -> None:
        if layer.padding_mode != "zeros":
            raise UsageError(f"PNI knows zero padding only, not padding_mode='{layer.padding_mode}'.")
        super().__init__(layer, alpha)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with fresh weight noise."""
        return F.conv2d(x, self.noisy(), self.bias, self.stride, self.padding, self.dilation, self.groups)


def inject(model: nn.Module, alpha: float = 0.25) -> nn.Module:
    """Replace every ``nn.Linear`` and ``nn.Conv2d`` below ``model`` by its PNI twin, in place; weights are shared.

    Layers inside a noise layer keep their own noise only.

    Raises:
        UsageError: there is no such layer, or one of them uses a padding that PNI does not know.
    """
    replaced = 0
    for parent in list(model.modules()):
        if isinstance(parent, NoiseLayer):
            continue  # a noisy head computes its draws from the plain weights of its own linear layer
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PNILinear(child, alpha))
                replaced += 1
            elif type(child) is nn.Conv2d:
                setattr(parent, name, PNIConv2d(child, alpha))
                replaced += 1
    if not replaced:
        raise UsageError(f"{type(model).__name__} holds no nn.Linear or nn.Conv2d to put noise on.")
    return model


def strengths(model: nn.Module) -> list[nn.Parameter]:
    """Return every trained noise strength alpha of the model: the parameters that must not decay."""
    return [layer.alpha for layer in model.modules() if isinstance(layer, _WeightNoise)]
