"""What ``stalwart certify`` does: one property of one network, a test set in a box, or a test set by randomised smoothing."""

from pathlib import Path

from stalwart.certify.dataset import COMPLETE, METHODS, certify_dataset, statuses
from stalwart.certify.smoothing import Smoothing
from stalwart.certify.smoothing_run import certify_dataset as smooth_dataset
from stalwart.certify.verify import verify
from stalwart.core.errors import UsageError
from stalwart.core.numbers import parse_number
from stalwart.core.progress import progress
from stalwart.core.registry import build
from stalwart.interchange import write_result
from stalwart.recipes import judging, runs
from stalwart.sets import Linf

SAMPLES, TIMEOUT = 100, 60.0
"""How many inputs, and seconds for a property or an input, where neither a recipe nor the user says."""


def certify_property(network: Path, prop: Path, timeout: float, seed: int, out: Path | None) -> str:
    """Decide one VNN-LIB property of one ONNX network, write a VNN-COMP result file if asked for, and return the summary."""
    found = verify(network, prop, timeout, seed)
    if out is not None:
        write_result(out, found.status, found.witness, found.output)
    lines = [f"{found.status} after {found.seconds:.1f} s and {found.domains} domains"]
    if found.status in {"unknown", "timeout"}:
        lines.append(f"proven so far: the worst margin is at least {found.bound:.6g}; {found.reason}")
    lines += [f"note: {note}" for note in found.notes]
    if out is not None:
        lines.append(f"result: {out}")
    return "\n".join(lines)


def certify_run(
    folder: Path,
    source: runs.Source,
    eps: str | None,
    samples: int | None,
    timeout: float | None,
    methods: str | None,
    seed: int,
) -> str:
    """Verify a run's test inputs against a box, resuming what its folder holds, and return the summary.

    Methods, samples and timeout are by default those of the recipe's ``certify`` section. Verdicts of complete
    verification go into the run's report, if that speaks of the same radius.
    """
    recipe, model, data = runs.load_run(folder, source)
    radius = parse_number(eps) if eps is not None else recipe.evaluation.eps
    if eps is None and recipe.evaluation.norm != "linf":
        raise UsageError("complete verification takes Linf; name the radius of the box with --eps.")
    section = recipe.evaluation.certify
    if samples is None:
        samples = section.samples if section is not None and section.samples is not None else SAMPLES
    if timeout is None:
        timeout = section.timeout if section is not None else TIMEOUT
    x, y = data.test.take(samples).batch(slice(None))
    names = METHODS if section is None else section.methods
    if methods:
        names = tuple(methods.split(","))
    out = folder / f"certified-linf-{radius:g}"
    with progress(f"certifying {recipe.name}", len(x)) as advance:
        found = certify_dataset(model, x, y, Linf(radius), timeout, out, names, seed, advance)
    shown = []
    if COMPLETE in names:
        shown = [judging.add_verdicts(folder, radius, statuses(out), found.seconds, timeout)]
    settled = ", ".join(f"{name} {count}" for name, count in found.methods.items())
    return "\n".join(
        (
            f"{found.samples} inputs, Linf {radius:g}: clean {found.clean:.1%}, certified {found.certified:.1%}, "
            f"not broken {found.attacked:.1%}",
            f"verified {found.verified}, falsified {found.falsified}, wrong {found.wrong}, unknown {found.unknown}, "
            f"timeout {found.timeout}; settled by {settled or 'nothing'}",
            f"each input: {out / 'verified.jsonl'}",
            *shown,
        )
    )


def certify_smoothed(
    folder: Path, source: runs.Source, sigma: str, samples: int, n: int, alpha: float, seed: int, device: str | None
) -> str:
    """Certify a run's test inputs by randomised smoothing, resuming what its folder holds, and return the summary."""
    table = {"smoothing": "stalwart.certify.smoothing:Smoothing"}
    smoothing: Smoothing = build("certificate", table, "smoothing", {"sigma": sigma, "n": n, "alpha": alpha})
    place = runs.pick_device(device)
    recipe, model, data = runs.load_run(folder, source, place)
    x, y = data.test.take(samples).to(place).batch(slice(None))
    out = folder / f"smoothing-{smoothing.sigma:g}"
    with progress(f"smoothing {recipe.name}", len(x)) as advance:
        found = smooth_dataset(model, x, y, smoothing, out, seed, advance=advance)
    rows = [
        f"  L2 {point.radius:<6g} {point.value:6.1%}  ({point.low:.1%} to {point.high:.1%})" for point in found.curve
    ]
    return "\n".join(
        (
            f"{found.samples} inputs, sigma {found.sigma:g}, n {found.n}, alpha {found.alpha:g}: average certified radius "
            f"{found.acr:.3f} ({found.acr_low:.3f} to {found.acr_high:.3f}); n draws can certify {found.largest_radius:.3f}",
            f"right {found.right}, wrong {found.wrong}, abstained {found.abstained}; certified accuracy:",
            *rows,
            f"each input: {out / 'smoothing.jsonl'}",
        )
    )
