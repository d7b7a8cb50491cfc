"""stalwart: train robust networks, attack them honestly, read the result on one page."""

from stalwart.attacks import attack
from stalwart.sets import L0, L2, Linf

__version__ = "0.1.0"
__all__ = ["L0", "L2", "Linf", "__version__", "attack"]
