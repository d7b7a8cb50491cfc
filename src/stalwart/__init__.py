"""stalwart: train robust networks, attack them honestly, read the result on one page."""

from stalwart import spiking, stochastic
from stalwart.attacks import attack
from stalwart.bounds import bound, margin_bound
from stalwart.certify.verify import Verdict, verify
from stalwart.convert import convert
from stalwart.core.errors import StalwartError
from stalwart.report import Report, evaluate
from stalwart.sets import L0, L1, L2, Box, Events, Linf, RelativeBox

__version__ = "0.1.0"
__all__ = [
    "L0",
    "L1",
    "L2",
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
    "margin_bound",
    "spiking",
    "stochastic",
    "verify",
]
