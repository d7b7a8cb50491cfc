"""From an ANN that was trained with quantised activations: everything is known already."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stalwart.convert.method import Method
from stalwart.convert.rate import Rate
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.spiking import LIF, QCFS, OffsetIF, SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class Quantised(Method):
    """θ = λ, membranes from λ / 2, soft reset, spikes worth λ, of an ANN with :class:`stalwart.spiking.QCFS` activations.

    Source: Bu et al., ICLR 2022, section 4.
    """

    calibrates: ClassVar[bool] = False

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons of the activation's height.

        Raises:
            InputError: an activation of another kind.
        """
        neuron = LIF(1.0, 1.0, reset="soft", extras={"height": (), "initial": ()})
        _set(neuron, activation)
        return neuron


def _set(neuron: LIF, activation: nn.Module) -> None:
    if not isinstance(activation, QCFS):
        raise InputError(
            f"this conversion takes networks trained with QCFS activations, not {type(activation).__name__}; train one with "
            "the model's section 'quantise', or convert by 'calibration' or 'rate'."
        )
    neuron.fill(threshold=activation.worth, height=activation.worth, initial=activation.worth / 2)


@dataclass(frozen=True, kw_only=True)
class OffsetSpikes(Rate):
    """Neurons that look ρ steps whether they fire one spike too many or too few, and then start shifted by it.

    On QCFS activations their heights are the thresholds; on ReLUs thresholds are found as :class:`Rate` says.
    Source: Hao et al., ICLR 2023; see :class:`stalwart.spiking.OffsetIF`.

    Attributes:
        look: ρ, at least 1; they come before the steps that count.
    """

    start: Number = 0.5
    look: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.look >= 1, f"neurons need at least 1 step to look at, got {self.look}.")
        require(
            self.per == "layer" and self.reset == "soft", "offset spikes need one threshold a layer and soft resets."
        )

    @property
    def wait(self) -> int:
        """The steps that only look."""
        return self.look

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons that look first."""
        neuron = OffsetIF(self.look, extras={"height": (), "initial": ()})
        if isinstance(activation, QCFS):
            _set(neuron, activation)
        return neuron

    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Set the thresholds that no activation gives."""
        super().settle(network, plain, [path for path in paths if not isinstance(plain.get_submodule(path), QCFS)], x)
