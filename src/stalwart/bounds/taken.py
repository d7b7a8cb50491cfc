"""Coefficients that are rows of a matrix, not copied yet: a walk that begins at neurons of a linear layer begins with these."""

from dataclasses import dataclass

from torch import Tensor

from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import is_wide
from stalwart.core import jit


@dataclass(frozen=True, eq=False)
class Taken:
    """Coefficients [B, S, n]: the rows ``places`` [B, S] of a matrix [K, n] times ``signs`` [S]."""

    matrix: Tensor
    places: Tensor
    signs: Tensor

    def dense(self) -> Tensor:
        """Return a copy of the rows."""
        taken = self.matrix.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)
        return taken.mul_(self.signs[:, None])

    def relax(self, lines: Lines, constant: Tensor, out: Tensor) -> None:
        """Write what a function's lines, [B, n] each, make of the rows; ``constant`` [B, S] grows by the intercepts' part."""
        from stalwart.bounds import kernels

        matrix = self.matrix.contiguous()
        batch, rows = self.places.shape
        jit.run(
            kernels.relax_taken,
            batch * rows,
            *(is_wide(matrix), rows, batch, *matrix.shape),
            *(matrix, self.places.contiguous(), self.signs.contiguous()),
            *(part.contiguous() for part in lines.parts),
            *(out, constant),
        )
