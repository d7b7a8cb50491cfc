"""Realistic reports: six runs on 8x8 digits and one on 3-channel images, with invented but plausible numbers."""

import numpy as np
import pytest

from stalwart.evaluation.results import (
    AttackRow,
    CurvePoint,
    Evaluation,
    Flag,
    Picture,
    Rate,
    StochasticRow,
    StochasticSection,
    SweepPoint,
)
from stalwart.report import Report, RunReport, environment

N = 360
RADII = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
CHECKS = {
    "zero-gradient": ("Gradients vanish", "The loss has no gradient at many samples, so gradient attacks stand still."),
    "black-box-wins": (
        "Transfer beats white-box",
        "A transferred attack broke samples that white-box attacks did not: they failed to use the gradient.",
    ),
    "eps-flat": (
        "Unbounded attack does not reach zero",
        "With a radius so large that any image fits, accuracy must fall to zero; here it does not.",
    ),
    "steps-flat": ("More steps do not help", "The loss that PGD reaches does not grow with its steps."),
    "eot-helps": ("More draws help", "Averaging more noise draws still lowers accuracy: the attack was too weak."),
    "seed-spread": ("Seeds disagree", "Two seeds of the same attack give accuracies outside each other's interval."),
}


def rate(share: float, total: int = N) -> Rate:
    return Rate.of(round(min(max(share, 0.0), 1.0) * total), total)


def flags(*fired: str) -> list[Flag]:
    return [
        Flag(code=code, title=title, fired=code in fired, explanation=why, evidence=f"measured {0.42:.2f}, limit 0.10")
        for code, (title, why) in CHECKS.items()
    ]


def attacks(worst: float, eps: float, eot: int = 1) -> list[AttackRow]:
    table = [
        ("gaussian", "noise", 0.35, 1.0, 0.0, {"sigma": 0.1}),
        ("fgsm", "white-box", 0.17, 1.0, 1.0, {}),
        ("pgd", "white-box", 0.03, 100.0, 100.0, {"steps": 20, "restarts": 5, "step_size": 0.025}),
        ("margin-pgd", "white-box", 0.012, 100.0, 100.0, {"steps": 20, "restarts": 5}),
        ("transfer-pgd", "transfer", 0.25, 1.0, 0.0, {"steps": 40, "source": "natural"}),
    ]
    rows = []
    for name, kind, above, forwards, backwards, options in table:
        total = N // 2 if name == "transfer-pgd" else N
        rows.append(
            AttackRow(
                name=name,
                kind=kind,
                eps=eps,
                rule="mean-logits-16" if eot > 1 else "deterministic",
                eot=eot if backwards else 1,
                robust=rate(worst + above * (1 - worst), total),
                forwards=forwards * eot,
                backwards=backwards * eot,
                seconds=0.3 + 0.11 * backwards * eot,
                options=options,
            )
        )
    double = rows[2].model_copy(update={"eps": 2 * eps, "robust": rate(worst * 0.4)})
    return [*rows, double]


def training(epochs: int, clean: float, robust: float | None, noise: bool = False) -> list[dict]:
    lines = []
    for epoch in range(1, epochs + 1):
        grown = 1 - np.exp(-epoch / 4)
        line = {
            "epoch": epoch,
            "step": 12 * epoch,
            "lr": 1e-3,
            "seconds": 0.9,
            "train_loss": float(2.3 * np.exp(-epoch / 5) + (0.7 if robust else 0.05) + 0.03 * np.sin(7 * epoch)),
            "train_accuracy": float(clean * grown + 0.01),
            "validation_accuracy": float(clean * grown),
        }
        if robust is not None:
            line["validation_robust_accuracy"] = float(robust * grown**2)
        if noise:
            line |= {"noise_r": 0.05 * epoch, "noise_pairwise_std": 0.2 + 0.01 * epoch}
        lines.append(line)
    return lines


def pictures(channels: int, size: int, count: int = 3) -> list[Picture]:
    source = np.random.default_rng(0)
    found = []
    for i in range(count):
        y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
        ring = np.exp(-(((np.hypot(x, y * (0.7 + 0.2 * i)) - 0.3) / 0.12) ** 2))
        tint = np.array([0.95, 0.75 - 0.2 * i, 0.4 + 0.2 * i])[:channels, None, None]
        clean = (255 * ring * tint).astype(np.uint8)
        moved = clean + 26.0 * source.choice([-1.0, 1.0], clean.shape)
        found.append(
            Picture(
                label=i,
                clean_prediction=i,
                adversarial_prediction=(i + 5) % 10 if i < 2 else i,
                shape=clean.shape,
                clean=Picture.pack(clean),
                adversarial=Picture.pack(moved.clip(0, 255).astype(np.uint8)),
            )
        )
    return found


def stochastic(worst: float) -> StochasticSection:
    return StochasticSection(
        rules=[
            StochasticRow(rule="single-draw", clean=rate(0.94), robust=rate(worst)),
            StochasticRow(rule="mean-logits-16", clean=rate(0.955), robust=rate(worst + 0.03)),
            StochasticRow(rule="majority-16", clean=rate(0.953), robust=rate(worst + 0.025)),
        ],
        all_of_k=[SweepPoint(draws=k, robust=rate(worst - 0.04 * np.log2(k))) for k in (1, 2, 4, 8, 16)],
        sweep=[SweepPoint(draws=m, robust=rate(worst + 0.25 * 0.6 ** np.log2(m))) for m in (1, 2, 4, 8, 16, 32)],
        noise={"noise_r": 1.02, "pairwise_std": 0.347, "determinant": 0.0021},
    )


def evaluation(clean: float, worst: float, **changes: object) -> Evaluation:
    eps = float(changes.get("eps", 0.1))
    base: dict = {
        "suite": "standard",
        "dataset": "digits",
        "split": "test",
        "samples": N,
        "threat": "Linf",
        "eps": eps,
        "seed": 0,
        "randomised": False,
        "rule": "deterministic",
        "classes": [str(digit) for digit in range(10)],
        "clean": rate(clean),
        "worst": rate(worst),
        "attacks": attacks(worst, eps),
        "curve": [
            CurvePoint(eps=r * eps / 0.1, robust=rate(clean * (worst / clean + 1e-3) ** ((r / 0.1) ** 1.4)))
            for r in RADII
        ],
        "flags": flags(),
        "seconds": 41.3,
    }
    return Evaluation(**(base | changes))


def recipe(name: str) -> dict:
    return {
        "name": name,
        "seed": 0,
        "data": {"name": "digits", "batch": 128},
        "model": {"name": "small-cnn", "width": 32},
        "objective": {"name": name, "within": {"name": "linf", "eps": "0.1"}, "attack": {"steps": 7}},
        "optimiser": {"name": "adam", "lr": 1e-3},
        "epochs": 20,
    }


def six_runs() -> Report:
    plan = [("natural", 0.978, 0.02, None), ("pgd-at", 0.955, 0.62, 0.66), ("fgsm-rs", 0.958, 0.57, 0.63)]
    plan.append(("trades", 0.942, 0.64, 0.67))
    runs = [
        RunReport(
            name=name,
            evaluation=evaluation(clean, worst, pictures=pictures(1, 8)),
            training=training(20, clean, robust),
            recipe=recipe(name),
            environment=environment(),
        )
        for name, clean, worst, robust in plan
    ]
    random = {"randomised": True, "rule": "mean-logits-16"}
    fixed = evaluation(
        0.951, 0.69, attacks=attacks(0.69, 0.1, eot=16), flags=flags("black-box-wins", "eot-helps"),
        stochastic=stochastic(0.69), pictures=pictures(1, 8), **random,
    )  # fmt: skip
    wca = evaluation(0.947, 0.6, attacks=attacks(0.6, 0.1, eot=16), stochastic=stochastic(0.6), **random)
    runs.append(RunReport(name="fixed-noise", evaluation=fixed, training=training(20, 0.951, 0.7, noise=True)))
    runs.append(RunReport(name="wca", evaluation=wca, training=training(20, 0.947, 0.63, True), recipe=recipe("wca")))
    return Report(created="2025-06-01T09:30:00+00:00", title="Six ways to train on digits", runs=runs)


def bare_run(name: str = "bare", **changes: object) -> RunReport:
    return RunReport(name=name, evaluation=evaluation(0.9, 0.4, **changes))


@pytest.fixture(scope="session")
def full() -> Report:
    colour = evaluation(
        0.82, 0.44, dataset="colour-shapes", eps=8 / 255, suite="quick", pictures=pictures(3, 32, count=4),
        classes=["aeroplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    )  # fmt: skip
    run = RunReport(name="colour-at", evaluation=colour, training=training(40, 0.82, 0.47))
    return Report(created="2025-06-01T09:30:00+00:00", title="Two data sets", runs=[*six_runs().runs, run])


@pytest.fixture(scope="session")
def bare() -> Report:
    return Report(title="One run", runs=[bare_run()])


@pytest.fixture
def make_run():
    return bare_run
