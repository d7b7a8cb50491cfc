"""What the command line prints of a report."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stalwart.evaluation import Evaluation
    from stalwart.report import Report


def print_report(found: "Report", folder: Path) -> None:
    """Print a line for each run, and where the page is."""
    print_runs(found)
    print(f"report: {folder / 'index.html'}")


def print_runs(found: "Report") -> None:
    """Print a line for each run: accuracies, what is proven, warnings."""
    width = max(len(run.name) for run in found.runs)
    for run in found.runs:
        e = run.evaluation
        checks = [*e.flags, run.certificates.order] if run.certificates else e.flags
        fired = [flag.code for flag in checks if flag.fired]
        proven = (
            f"  certified {run.certificates.best.value:6.1%}, n={run.certificates.samples}" if run.certificates else ""
        )
        note = f"  do not trust: {', '.join(fired)}" if fired else ""
        if "loss-dependence" in fired:
            note += "; not as robust as cross-entropy attacks make it look"
        print(
            f"{run.name:<{width}}  clean {e.clean.value:6.1%}  worst {e.worst.value:6.1%} "
            f"[{e.worst.low:.1%}, {e.worst.high:.1%}] at {e.threat}, n={e.samples}{proven}{note}"
        )
        if e.suite == "adaptive" and e.probe:
            _told(e)
        if run.corruptions is not None:
            mean = run.corruptions.mean
            print(f"{'':<{width}}  mean corruption accuracy {mean.value:6.1%} [{mean.low:.1%}, {mean.high:.1%}]")


def _told(found: "Evaluation") -> None:
    """Print what the suite saw in the model, what it did about it, and whether its attacks settled."""
    for trait in found.probe.traits if found.probe else []:
        if trait.found:
            print(f"  saw: {trait.title.lower()}: {trait.evidence} So: {trait.response}")
    for flag in found.flags:
        if flag.code == "not-settled":
            print(f"  {'not settled' if flag.fired else 'settled'}: {flag.evidence}")


def print_comparison(found: "Report") -> None:
    """Print paired differences between runs, and what several seeds come to."""
    from stalwart.report.wording import chance, points

    for one in found.differences:
        if one.worst is None:
            print(f"{one.first} and {one.second} are not compared: {one.reason}.")
            continue
        w = one.worst
        sure = "" if one.worst_adjusted == w.p else f", {chance(one.worst_adjusted or 0.0)} among all pairs"
        print(
            f"{one.first} minus {one.second}: {points(w.difference)} points robust [{points(w.low)}, {points(w.high)}], "
            f"p {chance(w.p)}{sure}"
        )
    for group in found.seeds:
        seeds = f"{group.recipe}, {len(group.seeds)} seeds"
        if group.worst is None:
            print(f"{seeds}: {group.reason}.")
        else:
            print(f"{seeds}: robust {group.worst.mean:.1%} [{group.worst.low:.1%}, {group.worst.high:.1%}]")
