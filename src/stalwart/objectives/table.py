"""The training objectives: one line each."""

OBJECTIVES: dict[str, str] = {
    "awp": "stalwart.objectives.awp:AWP",
    "cc-ibp": "stalwart.objectives.expressive:CCIBP",
    "crown-ibp": "stalwart.objectives.crown_ibp:CrownIBP",
    "crown-lbp": "stalwart.objectives.crown_ibp:CrownLBP",
    "exp-ibp": "stalwart.objectives.expressive:ExpIBP",
    "fgsm-rs": "stalwart.objectives.fgsm_rs:FGSMRS",
    "ibp": "stalwart.objectives.ibp:IBP",
    "macer": "stalwart.objectives.macer:MACER",
    "mart": "stalwart.objectives.mart:MART",
    "mtl-ibp": "stalwart.objectives.expressive:MTLIBP",
    "natural": "stalwart.objectives.natural:Natural",
    "pgd-at": "stalwart.objectives.pgd_at:PGDAT",
    "sabr": "stalwart.objectives.sabr:SABR",
    "smooth-adv": "stalwart.objectives.smooth_adv:SmoothAdv",
    "smooth-gaussian": "stalwart.objectives.smooth_gaussian:SmoothGaussian",
    "smooth-mix": "stalwart.objectives.smooth_mix:SmoothMix",
    "staps": "stalwart.objectives.taps:STAPS",
    "taps": "stalwart.objectives.taps:TAPS",
    "trades": "stalwart.objectives.trades:TRADES",
    "wca": "stalwart.objectives.wca:WCA",
}
