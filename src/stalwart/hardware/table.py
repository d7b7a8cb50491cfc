"""The device models by name."""

FAULTS: dict[str, str] = {
    "activation-quantise": "stalwart.hardware.converters:ActivationQuantise",
    "bit-flips": "stalwart.hardware.bit_flips:BitFlips",
    "mismatch": "stalwart.hardware.mismatch:Mismatch",
    "output-noise": "stalwart.hardware.converters:OutputNoise",
    "pcm": "stalwart.hardware.pcm:PCM",
    "quantise": "stalwart.hardware.quantise:Quantise",
    "stuck-at": "stalwart.hardware.stuck:StuckAt",
}
