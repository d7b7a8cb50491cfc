"""stalwart: train robust networks, attack them honestly, read the result on one page."""

from typing import TYPE_CHECKING

from stalwart import hardware, spiking, stochastic
from stalwart.attacks import BitBudget, attack
from stalwart.bounds import bound, margin_bound
from stalwart.certify.verify import Verdict, verify
from stalwart.core.errors import StalwartError
from stalwart.report import Report, evaluate
from stalwart.sets import L0, L1, L2, Box, Events, Linf, RelativeBox

if TYPE_CHECKING:
    from stalwart.convert.pipeline import convert
else:
    from stalwart import convert  # the room, which can be called

__version__ = "0.1.0"
__all__ = [
    "L0",
    "L1",
    "L2",
    "BitBudget",
    "Box",
    "Events",
    "Linf",
    "RelativeBox",
    "Report",
    "StalwartError",
    "Verdict",
    "__version__",
    "attack",
    "bound",
    "convert",
    "evaluate",
    "hardware",
    "margin_bound",
    "spiking",
    "stochastic",
    "verify",
]
