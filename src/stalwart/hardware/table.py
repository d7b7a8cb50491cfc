"""The device models by name."""

FAULTS: dict[str, str] = {
    "bit-flips": "stalwart.hardware.bit_flips:BitFlips",
    "mismatch": "stalwart.hardware.mismatch:Mismatch",
    "quantise": "stalwart.hardware.quantise:Quantise",
    "stuck-at": "stalwart.hardware.stuck:StuckAt",
}
