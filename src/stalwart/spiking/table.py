"""Kinds of neurons that take the place of ReLUs, by name."""

NEURONS: dict[str, str] = {
    "lif": "stalwart.spiking.neurons:LIF",
    "rate": "stalwart.spiking.rate:RateNeuron",
    "hoyer": "stalwart.spiking.hoyer:HoyerNeuron",
}
