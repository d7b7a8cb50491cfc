"""The threat models by name."""

SETS: dict[str, str] = {
    "linf": "stalwart.sets.linf:Linf",
    "l2": "stalwart.sets.l2:L2",
    "l0": "stalwart.sets.l0:L0",
}
