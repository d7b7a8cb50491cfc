"""The threat models by name."""

SETS: dict[str, str] = {
    "linf": "stalwart.sets.linf:Linf",
    "l2": "stalwart.sets.l2:L2",
    "l1": "stalwart.sets.l1:L1",
    "l0": "stalwart.sets.l0:L0",
    "events": "stalwart.sets.events:Events",
    "box": "stalwart.sets.box:Box",
}
