"""One report as one HTML page: no network, no script, everything inline."""

import base64
import dataclasses
import datetime
import io
import itertools
import math
from typing import Any, Literal

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from stalwart.evaluation.hardware import ChipsRow
from stalwart.evaluation.results import AttackRow, Evaluation, Flag, Picture, Rate
from stalwart.report import chip_plots, plots, proof_plots, spike_plots, wording
from stalwart.report.certificates import Certificates
from stalwart.report.differences import Difference, SeedGroup, setting
from stalwart.report.schema import Report, RunReport


@dataclasses.dataclass(frozen=True)
class Cell:
    """One rate in the comparison table, with what must be said beside it; no rate if a method was refused."""

    rate: Rate | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class RunView:
    """What the page shows of one run beyond its record: its style number, figures, pictures and recipe as text."""

    style: int
    anchor: str
    run: RunReport
    swatch: Markup
    fired: list[Flag]
    silent: list[Flag]
    metrics: list[str]
    loss: Markup
    learning: Markup
    sweep: Markup
    pictures: list[dict[str, Any]]
    recipe: str
    gap: Markup
    neurons: Markup
    states: list[str]
    spikes: list[tuple[Markup, str]]
    chips: list[tuple[Markup, str]]
    devices: list[tuple[str, list[ChipsRow]]]

    @property
    def evaluation(self) -> Evaluation:
        """The run's evaluation."""
        return self.run.evaluation

    @property
    def certificates(self) -> Certificates | None:
        """What is proven of the run."""
        return self.run.certificates


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that were evaluated alike, so that their numbers may stand in one table."""

    setting: Evaluation
    samples: list[int]
    views: list[RunView]
    columns: list[str]
    cells: dict[str, dict[str, Cell]]
    best: RunView | None
    rivals: list[RunView]
    curves: Markup
    proofs: list[str]
    proof_cells: dict[str, dict[str, Cell]]
    certified: Markup
    differences: list[tuple[RunView, RunView, Difference]]
    seeds: list[SeedGroup]


def render(report: Report) -> str:
    """Return the whole page; user text is escaped, figures and images are inline.

    Args:
        report: one or many runs. Runs whose dataset, threat model, radius or suite differ get tables of their own.
    """
    views = [_view(index, run) for index, run in enumerate(report.runs)]
    loader = jinja2.PackageLoader("stalwart", "report")
    pages = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    pages.filters.update(
        percent=wording.percent,
        interval=wording.interval,
        radius=wording.radius,
        duration=wording.duration,
        quantity=wording.quantity,
        bound=wording.bound,
        level=wording.level,
        points=wording.points,
        chance=wording.chance,
    )
    together = [(index, run.training) for index, run in enumerate(report.runs) if run.training]
    several = len(together) > 1
    return pages.get_template("page.html").render(
        report=report,
        created=datetime.datetime.fromisoformat(report.created),
        views=views,
        groups=_groups(views, report),
        warned=[view for view in views if view.fired],
        loss=Markup(plots.loss_curves("all-loss", together)) if several else "",
        learning=Markup(plots.learning_curves("all-learning", together)) if several else "",
        trained=[views[index] for index, _ in together],
        tones=proof_plots.STATE_TONES,
    )


def _view(index: int, run: RunReport) -> RunView:
    evaluation, anchor = run.evaluation, f"run-{index + 1}"
    own = [(index, run.training)]
    stochastic = evaluation.stochastic
    sweep = plots.draw_sweep(f"{anchor}-sweep", index, stochastic.sweep) if stochastic and stochastic.sweep else ""
    plain = run.model_dump(mode="json")["recipe"]
    proofs = run.certificates
    flags = [*evaluation.flags, proofs.order] if proofs else evaluation.flags
    layers = proofs.neurons if proofs else []
    return RunView(
        style=index,
        anchor=anchor,
        run=run,
        swatch=Markup(plots.swatch(index)),
        fired=[flag for flag in flags if flag.fired],
        silent=[flag for flag in flags if not flag.fired],
        metrics=list(dict.fromkeys(key for entry in run.training for key in entry)),
        loss=Markup(plots.loss_curves(f"{anchor}-loss", own)) if run.training else Markup(),
        learning=Markup(plots.learning_curves(f"{anchor}-learning", own, with_training=True))
        if run.training
        else Markup(),
        sweep=Markup(sweep),
        pictures=[_pair(picture, evaluation.classes) for picture in evaluation.pictures],
        recipe=yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain is not None else "",
        gap=Markup(proof_plots.gap(f"{anchor}-gap", index, evaluation, proofs)) if proofs else Markup(),
        neurons=Markup(proof_plots.neuron_bars(f"{anchor}-neurons", layers)) if layers else Markup(),
        states=[state for state in proof_plots.STATE_TONES if any(state in layer.shares for layer in layers)],
        spikes=_spike_figures(anchor, index, run),
        chips=_chip_figures(anchor, index, run),
        devices=_devices(run),
    )


def _spike_figures(anchor: str, style: int, run: RunReport) -> list[tuple[Markup, str]]:
    """Return figures of a spiking network with their captions."""
    spikes = run.spikes
    if spikes is None:
        return []
    figures = []
    if len(spikes.over_steps) > 1:
        svg = spike_plots.accuracy_over_steps(f"{anchor}-steps", style, spikes)
        figures.append((svg, f"Clean accuracy where the output is read earlier, on {spikes.samples} inputs."))
    for number, trace in enumerate(spikes.traces):
        layer = f"“{trace.layer}” on the first input"
        rows = f"The {len(trace.spikes)} most active neurons of {layer}."
        figures.append((spike_plots.raster(f"{anchor}-raster-{number}", spikes.steps, trace), rows))
        curves = f"Membranes before a spike resets them, of {len(trace.membranes)} of these neurons."
        figures.append((spike_plots.membranes(f"{anchor}-membranes-{number}", spikes.steps, trace), curves))
    return [(Markup(svg), caption) for svg, caption in figures]


def _chip_figures(anchor: str, style: int, run: RunReport) -> list[tuple[Markup, str]]:
    """Return figures of imperfect processors with their captions."""
    found = run.hardware
    if found is None:
        return []
    figures = [
        (
            chip_plots.violins(f"{anchor}-mismatch", style, found),
            "Chips with mismatch: spread, mean, and the worst chip.",
        ),
        (
            chip_plots.drift(f"{anchor}-drift", style, found),
            "Phase-change memory: mean and extremes of chips, with the global compensation of drift, and dashed without.",
        ),
    ]
    if found.landscape is not None:
        around = chip_plots.around(f"{anchor}-landscape", style, found.landscape)
        figures.append((around, "The loss where all weights move along a random direction."))
    return [(Markup(svg), caption) for svg, caption in figures if svg]


def _devices(run: RunReport) -> list[tuple[str, list[ChipsRow]]]:
    """Return the rows of imperfect processors by block, in order."""
    rows = run.hardware.rows if run.hardware else []
    return [(block, list(own)) for block, own in itertools.groupby(rows, lambda row: row.block)]


def _groups(views: list[RunView], report: Report) -> list[Group]:
    alike: dict[tuple[Any, ...], list[RunView]] = {}
    for view in views:
        alike.setdefault(setting(view.evaluation), []).append(view)
    return [_group(f"curves-{number}", members, report) for number, members in enumerate(alike.values(), 1)]


def _group(name: str, members: list[RunView], report: Report) -> Group:
    named = {view.run.name: view for view in members}
    cells = {view.anchor: _cells(view.evaluation) for view in members}
    # A run whose masking checks fired cannot win: its number may be an artefact of the attack failing.
    trusted = [view for view in members if not view.fired]
    best = max(trusted, key=lambda view: view.evaluation.worst.value) if trusted else None
    floor = best.evaluation.worst.low if best else 0.0
    proven = [(view, view.certificates) for view in members if view.certificates]
    proof_cells = {view.anchor: _proof_cells(view.evaluation, found) for view, found in proven}
    certified = [(view.style, view.evaluation, found) for view, found in proven]
    tried = {method for cells in proof_cells.values() for method in cells}
    return Group(
        setting=members[0].evaluation,
        samples=sorted({view.evaluation.samples for view in members}),
        views=members,
        columns=list(dict.fromkeys(column for row in cells.values() for column in row)),
        cells=cells,
        best=best if len(members) > 1 else None,
        rivals=[view for view in trusted if view is not best and view.evaluation.worst.high >= floor],
        curves=Markup(plots.accuracy_curves(name, [(view.style, view.evaluation) for view in members])),
        proofs=[method for method in wording.BOUNDS if method in tried] + sorted(tried - wording.BOUNDS.keys()),
        proof_cells=proof_cells,
        certified=Markup(proof_plots.certified_curves(f"{name}-certified", certified)) if proven else Markup(),
        differences=[
            (named[one.first], named[one.second], one)
            for one in report.differences
            if one.first in named and one.second in named
        ],
        seeds=[one for one in report.seeds if one.runs[0] in named],
    )


def _cells(evaluation: Evaluation) -> dict[str, Cell]:
    """Return, by attack name, the lowest robust accuracy at the main radius."""
    cells: dict[str, Cell] = {}
    for row in evaluation.attacks:
        if row.kind == "clean" or not math.isclose(row.eps, evaluation.eps, rel_tol=1e-6):
            continue
        held = cells[row.name].rate if row.name in cells else None
        if held is None or row.robust.value < held.value:
            cells[row.name] = Cell(row.robust, _note(row, evaluation))
    return cells


def _proof_cells(evaluation: Evaluation, certificates: Certificates) -> dict[str, Cell]:
    """Return, by method, the certified accuracy at the main radius."""
    cells = {}
    for row in certificates.methods:
        count = row.certified.total if row.certified else evaluation.samples
        cells[row.method] = Cell(row.certified, f"n {count}" if count != evaluation.samples else "")
    return cells


def _note(row: AttackRow, evaluation: Evaluation) -> str:
    notes = [f"EOT {row.eot}"] if row.eot > 1 else []
    if row.robust.total != evaluation.samples:
        notes.append(f"n {row.robust.total}")
    return ", ".join(notes)


def _pair(picture: Picture, classes: list[str]) -> dict[str, Any]:
    def name(label: int) -> str:
        return classes[label] if 0 <= label < len(classes) else str(label)

    return {
        "label": name(picture.label),
        "sides": [
            {
                "title": title,
                "source": _data_uri(picture, which),
                "prediction": name(prediction),
                "right": prediction == picture.label,
            }
            for title, which, prediction in _sides(picture)
        ],
    }


def _sides(picture: Picture) -> list[tuple[str, Literal["clean", "adversarial"], int]]:
    return [
        ("clean", "clean", picture.clean_prediction),
        ("attacked", "adversarial", picture.adversarial_prediction),
    ]


def _data_uri(picture: Picture, which: Literal["clean", "adversarial"]) -> str:
    pixels = picture.unpack(which)
    # Anything but grey and RGB (event polarities, depth) is shown as the mean over its channels.
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(0).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
