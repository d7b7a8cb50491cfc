"""Double precision: an attack on the model computed in float64, judged on the model as it is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.around import AroundAttack
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.replaced import run_with
from stalwart.sets import ThreatSet
from stalwart.spiking import neurons


class Doubled(nn.Module):
    """A model with its weights, buffers and inputs in float64; its own stay as they are.

    A softmax in float64 has a gradient where the logits lie up to 745 apart, in float32 up to 103.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        named = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
        self._tensors = {name: one.detach().double() for name, one in named.items() if one.is_floating_point()}

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to logits [B, K] in float64."""
        return run_with(self.inner, self._tensors, x.double())


@dataclass(frozen=True, kw_only=True)
class DoublePrecision(AroundAttack):
    """Run another attack on the model in float64, for gradients that float32 rounds away.

    Source: Carlini and Wagner, 2016 (arXiv 1607.04311), on logits too large for the softmax.

    Attributes:
        attack: registered name of the attack to run.
        options: its hyper-parameters.
    """

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the inner attack is made for the model and the set; the passes of spiking neurons are float32."""
        return not neurons(model) and self.inner().fits(model, within)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Run the inner attack; its passes are counted."""
        inner = self.inner()
        view = Oracle(Doubled(oracle.model).eval(), x.double(), inner.eot, inner.average, rows=oracle.rows)
        found = inner.run(view, x.double(), y, within, seed)
        oracle.forwards += view.forwards
        oracle.backwards += view.backwards
        return found.to(x.dtype)


def runs_in_double(model: nn.Module, x: Tensor) -> bool:
    """Tell whether the model runs in float64 on inputs [B, ...], as one that makes float32 tensors by itself does not."""
    try:
        with torch.no_grad():
            return bool(Doubled(model)(x).isfinite().all())
    except (RuntimeError, TypeError):
        return False
