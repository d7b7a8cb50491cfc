"""What a VNN-LIB file asks: is there an input in one of these boxes whose output is unsafe?"""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import require

_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class Conjunction:
    """An unsafe set of outputs: all rows of C y <= d.

    Attributes:
        C: one row a constraint [m, K], exact.
        d: right-hand sides [m], the largest float64 numbers that the file's constraint allows (see ``read_vnnlib``).
    """

    C: Float64[Tensor, " rows outputs"]
    d: Float64[Tensor, " rows"]

    def met_by(self, y: Float[Tensor, " batch outputs"]) -> Bool[Tensor, " batch"]:
        """Tell which outputs are unsafe, in exact arithmetic on the numbers as they are; NaN and infinity never are."""
        wide = y.double()
        excess = wide @ self.C.T - self.d
        # Any order of summation errs by less than this; what is nearer to 0 is decided by fractions.
        doubt = 4 * (self.C.shape[1] + 2) * _UNIT * (wide.abs() @ self.C.abs().T + self.d.abs()) + 1e-300
        met = excess <= 0
        finite = wide.isfinite().all(1)
        for row, at in ((excess.abs() <= doubt) & finite[:, None]).nonzero().tolist():
            terms = zip(self.C[at].tolist(), wide[row].tolist(), strict=True)
            met[row, at] = sum(Fraction(c) * Fraction(v) for c, v in terms if c) <= Fraction(float(self.d[at]))
        return met.all(1) & finite


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs and the outputs that are unsafe for it.

    Attributes:
        lower: smallest inputs [n].
        upper: largest inputs [n], none below ``lower``.
        unsafe: the unsafe sets; any one of them is enough.
    """

    lower: Float64[Tensor, " inputs"]
    upper: Float64[Tensor, " inputs"]
    unsafe: tuple[Conjunction, ...]

    def contains(self, x: Float[Tensor, " batch inputs"], tolerance: float | int = 0.0) -> Bool[Tensor, " batch"]:
        """Tell which inputs lie in the box, give or take ``tolerance`` in each coordinate."""
        wide = x.double()
        return ((wide >= self.lower - tolerance) & (wide <= self.upper + tolerance)).all(1)

    def ends(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest numbers of a type in the box, crossed where it holds none."""
        lower, upper = self.lower.to(dtype), self.upper.to(dtype)
        far = torch.full_like(lower, torch.inf)
        lower = torch.where(lower.double() < self.lower, torch.nextafter(lower, far), lower)
        upper = torch.where(upper.double() > self.upper, torch.nextafter(upper, -far), upper)
        return lower, upper

    def readable(self) -> "Case":
        """Return the case for a network that reads float32: inputs whose range holds no such number get the nearest ones.

        An input fixed at 0.1 reaches the network as the float32 nearest to it, half a unit in the last place away. The box
        grows by that much, so that it holds both: what is proven on it is proven on the original one. A few float64 units
        more keep the original ends inside when a bound computes with centre and radius.
        """
        low, high = self.ends(torch.float32)
        near = [end.float().double() for end in (self.lower, self.upper)]
        grows = (low > high) & near[0].isfinite() & near[1].isfinite()
        lower, upper = torch.minimum(self.lower, near[0]), torch.maximum(self.upper, near[1])
        room = 16 * _UNIT * torch.maximum(lower.abs(), upper.abs())
        return replace(
            self,
            lower=torch.where(grows, lower - room, self.lower),
            upper=torch.where(grows, upper + room, self.upper),
        )


@dataclass(frozen=True, eq=False)
class Property:
    """A property of a network with ``inputs`` inputs and ``outputs`` outputs; each case is a way to violate it."""

    inputs: int
    outputs: int
    cases: tuple[Case, ...]

    def violated_by(
        self, x: Float[Tensor, " batch *shape"], y: Float[Tensor, " batch outputs"], tolerance: float | int = 0.0
    ) -> Bool[Tensor, " batch"]:
        """Tell which inputs violate the property: x lies in the box of a case and y in one of its unsafe sets.

        Args:
            x: inputs [B, ...], any shape of ``inputs`` numbers a row.
            y: the network's outputs for them [B, K].
            tolerance: how far x may lie outside the box, in each coordinate; y has no tolerance. VNN-COMP credits
                witnesses with 1e-4, but takes only those with 0 for proofs against other tools.

        Raises:
            InputError: x or y has another size than the property.
            UsageError: a negative tolerance.
        """
        require(tolerance >= 0, f"tolerance must be at least 0, got {tolerance}.")
        flat = x.flatten(1)
        if flat.shape[1] != self.inputs or y.shape[1] != self.outputs:
            raise InputError(
                f"the property speaks of {self.inputs} inputs and {self.outputs} outputs, but got {flat.shape[1]} and "
                f"{y.shape[1]}. Do the network and the property belong together?"
            )
        violated = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for case in self.cases:
            inside = case.contains(flat, tolerance) & ~violated
            for conjunction in case.unsafe if inside.any() else ():
                violated |= inside & conjunction.met_by(y)
        return violated
