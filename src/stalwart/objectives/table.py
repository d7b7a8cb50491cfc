"""The training objectives: one line each."""

OBJECTIVES: dict[str, str] = {
    "awp": "stalwart.objectives.awp:AWP",
    "fgsm-rs": "stalwart.objectives.fgsm_rs:FGSMRS",
    "mart": "stalwart.objectives.mart:MART",
    "natural": "stalwart.objectives.natural:Natural",
    "pgd-at": "stalwart.objectives.pgd_at:PGDAT",
    "trades": "stalwart.objectives.trades:TRADES",
    "wca": "stalwart.objectives.wca:WCA",
}
