"""The per-sample table of an evaluation."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Samples:
    """Per-sample results: one row an input, one column a question (1: answered rightly)."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Add a column of integers or booleans [N]."""
        self.columns[name] = values.long().tolist()

    def csv(self) -> str:
        """Return the table as CSV text."""
        lines = [",".join(self.columns)]
        lines += [",".join(map(str, row)) for row in zip(*self.columns.values(), strict=True)]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> "Samples":
        """Read :meth:`csv` back; values stay text.

        Raises:
            ValueError: rows of different lengths.
        """
        head, *lines = text.splitlines()
        columns = zip(*(line.split(",") for line in lines), strict=True)
        return cls({name: list(column) for name, column in zip(head.split(","), columns, strict=True)})
