"""The attacks: one line each."""

ATTACKS: dict[str, str] = {
    "adaptive-surrogate": "stalwart.attacks.adaptive_surrogate:AdaptiveSurrogateAttack",
    "apgd": "stalwart.attacks.apgd:APGD",
    "autoattack": "stalwart.attacks.autoattack:AutoAttack",
    "bim": "stalwart.attacks.pgd:BIM",
    "binary-pgd": "stalwart.attacks.binary_pgd:BinaryPGD",
    "fab": "stalwart.attacks.fab:FAB",
    "fgsm": "stalwart.attacks.fgsm:FGSM",
    "noise": "stalwart.attacks.random_noise:RandomNoise",
    "pgd": "stalwart.attacks.pgd:PGD",
    "probabilistic-pgd": "stalwart.attacks.probabilistic_pgd:ProbabilisticPGD",
    "rfgsm": "stalwart.attacks.rfgsm:RFGSM",
    "spikefool": "stalwart.attacks.spikefool:SpikeFool",
    "square": "stalwart.attacks.square:Square",
    "surrogate-ensemble": "stalwart.attacks.surrogate_ensemble:SurrogateEnsemble",
    "transfer": "stalwart.attacks.transfer:Transfer",
    "weight-amp": "stalwart.attacks.weight_amp:WeightAMP",
    "weight-bitflip": "stalwart.attacks.weight_bitflip:WeightBitFlip",
    "weight-corner": "stalwart.attacks.weight_corner:WeightCorner",
    "weight-pgd": "stalwart.attacks.weight_pgd:WeightPGD",
}
