"""What every method of conversion decides: which neurons, and how their numbers are found."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stalwart.convert.activity import shown
from stalwart.core.errors import InputError
from stalwart.spiking import LIF, SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base record of the methods.

    Attributes:
        folds: whether batch norm is folded into the layers before it.
        calibrates: whether the method looks at data.
        wait: steps before those that count.
    """

    folds: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True

    @property
    def wait(self) -> int:
        """No step is waited for."""
        return 0

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return the neurons in the place of an activation whose values for one sample have this shape."""
        raise NotImplementedError

    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Set the numbers of all neurons, in place.

        Args:
            network: the spiking copy, in evaluation mode.
            plain: the prepared network that it is a copy of.
            paths: where the activations are, in both, in order.
            x: inputs [N, ...] to look at.
        """


def positive(values: Tensor, path: str) -> Tensor:
    """Return thresholds, where all are positive; channels that never fire get that of the largest.

    Raises:
        InputError: none is.
    """
    largest = values.max()
    if not largest > 0:
        raise InputError(
            f"the activation at '{shown(path)}' is 0 on all inputs for calibration, so that its neurons would "
            "never fire; use other inputs, or a network that is alive."
        )
    return values.where(values > 0, largest)
