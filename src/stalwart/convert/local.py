"""Thresholds that grow until little of an activation exceeds them, all layers at once and without labels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.convert.activity import neurons_at, shapes
from stalwart.convert.method import positive
from stalwart.convert.rate import Rate
from stalwart.core.hooks import removing
from stalwart.core.numbers import Number, require
from stalwart.spiking import SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class LocalBalancing(Rate):
    """θ_c ← θ_c + rate · mean[a - θ_c]₊ over one batch after another, a channel each, from 0.

    Activations are cut at θ meanwhile. Membranes start from θ / 2.
    Source: Bu et al., "Inference-scale complexity in ANN-SNN conversion for high-performance and low-power applications", 2024
    (arXiv 2409.03368), algorithm 1.

    Attributes:
        rate: the rate of the updates, positive; 2 makes each one gradient step of the mean squared excess.
        rounds: how often all inputs are gone through.
        batch: inputs of one update.
    """

    rate: Number = 2.0
    rounds: int = 20
    batch: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rate > 0, f"the rate of updates must be positive, got {self.rate}.")
        require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}.")
        require(self.batch >= 1, f"a batch must have at least 1 input, got {self.batch}.")

    @torch.no_grad()
    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Let all thresholds grow together."""
        sizes = shapes(plain, paths, x)
        thresholds = {path: torch.zeros(self.shape(sizes[path])) for path in paths}

        def hook(path: str) -> Any:
            def cut(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
                held = thresholds[path]
                excess = (out - held).clamp_min(0)
                over = (
                    excess.mean() if held.dim() == 0 else excess.transpose(0, 1).flatten(1).mean(1).reshape(held.shape)
                )
                held += self.rate * over
                return out.minimum(held)

            return cut

        hooks = [plain.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
        with removing(hooks):
            for _ in range(self.rounds):
                for part in x.split(self.batch):
                    plain(part)
        for path in paths:
            self.set_threshold(neurons_at(network, path), positive(thresholds[path], path))
