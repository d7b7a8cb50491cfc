"""What must be said of a randomised model: every decision rule, retries, the sweep over draws, the noise itself."""

from stalwart.attacks import attack
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Candidates
from stalwart.evaluation.results import Rate, StochasticRow, StochasticSection, SweepPoint
from stalwart.stochastic import NoisyHead
from stalwart.stochastic.heads import noise_statistics

SWEEP = (1, 5, 20, 50)
_RETRIES = (1, 10, 100)


def sweep_draws(findings: Findings) -> None:
    """Run PGD-20 on the cross entropy with 1, 5, 20 and 50 averaged draws and note who survives each."""
    for draws in SWEEP:
        run = attack("pgd", steps=20, loss="ce", eot=draws)
        x_adv = run(findings.model, findings.x, findings.y, within=findings.within, seed=findings.seed).x_adv
        findings.sweep[draws] = findings.survives(x_adv)


def stochastic_section(findings: Findings, worst: Candidates) -> StochasticSection:
    """Return the section for a randomised model from its findings and its worst candidates."""
    clean = findings.judge.margins(findings.x, "clean")
    total = len(findings.x)
    retries = findings.judge.survived(worst.best["single"], _RETRIES[-1])
    statistics = {}
    for module in findings.model.modules():
        if isinstance(module, NoisyHead):
            statistics = noise_statistics(module)
    return StochasticSection(
        rules=[
            StochasticRow(
                rule=rule,
                clean=Rate.of(int((clean[rule] > 0).sum()), total),
                robust=Rate.of(int(worst.correct(rule).sum()), total),
            )
            for rule in findings.judge.rules
        ],
        all_of_k=[SweepPoint(draws=k, robust=Rate.of(int(retries[:k].all(0).sum()), total)) for k in _RETRIES],
        sweep=[
            SweepPoint(draws=draws, robust=Rate.of(int(survived.sum()), total))
            for draws, survived in findings.sweep.items()
        ],
        noise=statistics,
    )
