"""What a scalar function must offer to be bounded, and the table of those that do."""

import abc
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.lines import Lines, Strategy


class Elementwise(abc.ABC):
    """A scalar function f, applied entry by entry, with its enclosures on intervals.

    Everywhere ``lower`` and ``upper`` are the ends l <= u of z, float32 or float64, of one shape. Everything is
    differentiable in the ends, the slopes and the function's parameters, with finite gradients. Parameters are rounded to the
    dtype of the ends. A NaN end makes lines NaN, and every end of an interval that depends on it.
    """

    piecewise_linear: ClassVar[bool] = False

    @abc.abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""

    @abc.abstractmethod
    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the smallest and the largest value of f on [l, u]."""

    @abc.abstractmethod
    def lines(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"], strategy: Strategy) -> Lines:
        """Return a line below and a line above f on [l, u].

        Raises:
            UsageError: an unknown strategy.
        """

    @abc.abstractmethod
    def lines_with_slope(
        self,
        lower: Float[Tensor, " *shape"],
        upper: Float[Tensor, " *shape"],
        lower_slope: Tensor,
        upper_slope: Tensor | None = None,
    ) -> Lines:
        """Return lines of given slopes, which may be any finite numbers, as optimised by alpha-CROWN (Xu et al., 2021).

        Args:
            lower: left ends of z.
            upper: right ends of z.
            lower_slope: slope of the lower line, shaped like l or with more leading axes. Where f is one linear piece on
                [l, u] that piece is taken instead.
            upper_slope: the same for the upper line; by default that of the "adaptive" strategy.
        """

    @abc.abstractmethod
    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where f is one linear piece on [l, u], so that a better interval of z cannot help."""

    def outward(self, lines: Lines, lower: Tensor, upper: Tensor) -> Lines:
        """Return the lines moved apart by what rounding may have cost; smooth functions have done so already."""
        return lines

    def outward_interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return :meth:`interval` with its ends moved apart by what rounding may have cost."""
        return self.interval(lower, upper)


ELEMENTWISE: dict[str, str] = {
    "relu": "stalwart.bounds.piecewise:relu",
    "leaky_relu": "stalwart.bounds.piecewise:leaky_relu",
    "prelu": "stalwart.bounds.piecewise:prelu",
    "abs": "stalwart.bounds.piecewise:absolute",
    "clamp": "stalwart.bounds.piecewise:clamp",
    "hardtanh": "stalwart.bounds.piecewise:hardtanh",
    "relu6": "stalwart.bounds.piecewise:relu6",
    "param_ramp": "stalwart.bounds.piecewise:param_ramp",
    "sign": "stalwart.bounds.curves.steps:Sign",
    "heaviside": "stalwart.bounds.curves.steps:Heaviside",
    "fire": "stalwart.bounds.curves.jumps:Fire",
    "keep": "stalwart.bounds.curves.jumps:Keep",
    "sigmoid": "stalwart.bounds.curves.sshaped:Sigmoid",
    "tanh": "stalwart.bounds.curves.sshaped:Tanh",
    "erf": "stalwart.bounds.curves.sshaped:Erf",
    "gelu": "stalwart.bounds.curves.gated:GELU",
    "silu": "stalwart.bounds.curves.gated:SiLU",
    "exp": "stalwart.bounds.curves.convex:Exp",
    "log": "stalwart.bounds.curves.convex:Log",
    "softplus": "stalwart.bounds.curves.convex:Softplus",
    "elu": "stalwart.bounds.curves.convex:ELU",
    "pow": "stalwart.bounds.curves.powers:Pow",
    "square": "stalwart.bounds.curves.powers:square",
    "sqrt": "stalwart.bounds.curves.powers:sqrt",
    "reciprocal": "stalwart.bounds.curves.powers:reciprocal",
    "sin": "stalwart.bounds.curves.periodic:Sin",
    "cos": "stalwart.bounds.curves.periodic:Cos",
}
"""Functions by operator name; calling what an entry names with the operator's parameters gives an :class:`Elementwise`."""
