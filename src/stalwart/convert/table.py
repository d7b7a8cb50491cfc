"""The methods of conversion: one line each."""

METHODS: dict[str, str] = {
    "balancing": "stalwart.convert.balancing:Balancing",
    "calibration": "stalwart.convert.calibration:Calibration",
    "local-balancing": "stalwart.convert.local:LocalBalancing",
    "offset-spikes": "stalwart.convert.quantised:OffsetSpikes",
    "qcfs": "stalwart.convert.quantised:Quantised",
    "rate": "stalwart.convert.rate:Rate",
    "robust": "stalwart.convert.robust:Robust",
}
