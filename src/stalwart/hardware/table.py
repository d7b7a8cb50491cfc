"""The device models by name."""

FAULTS: dict[str, str] = {
    "activation-quantise": "stalwart.hardware.converters:ActivationQuantise",
    "bit-flips": "stalwart.hardware.bit_flips:BitFlips",
    "membrane-noise": "stalwart.hardware.neurons:MembraneNoise",
    "mismatch": "stalwart.hardware.mismatch:Mismatch",
    "neuron-mismatch": "stalwart.hardware.neurons:NeuronMismatch",
    "output-noise": "stalwart.hardware.converters:OutputNoise",
    "pcm": "stalwart.hardware.pcm:PCM",
    "quantise": "stalwart.hardware.quantise:Quantise",
    "stuck-at": "stalwart.hardware.stuck:StuckAt",
}
