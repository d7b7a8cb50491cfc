import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from stalwart.evaluation.hardware import ChipsRow, HardwareResult, Layer
from stalwart.evaluation.landscape import Landscape
from stalwart.evaluation.results import Picture
from stalwart.evaluation.weight_boxes import CertifiedWeights
from stalwart.report import Report, RunReport, plots
from stalwart.report.html import render
from stalwart.report.wording import duration, percent, quantity, radius

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The page as a list of elements, checked for balance, with its text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def source(full) -> str:
    return render(full)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_ids_are_unique_and_every_inner_link_arrives(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [link for name in ("href", "xlink:href") for link in page.values(name)]
    assert targets
    assert {link[0] for link in targets} == {"#"}
    assert {link[1:] for link in targets} <= set(ids)
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(page.values("clip-path")))
    assert clips
    assert set(clips) <= set(ids)


def test_nothing_comes_from_outside(source, page):
    addresses = set(re.findall(r"https?://[^\s\"'<]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    assert "@import" not in source
    assert all(image.startswith("data:image/png;base64,") for image in page.values("src"))


def test_every_run_attack_and_number_is_on_the_page(full, page):
    for run in full.runs:
        evaluation = run.evaluation
        assert run.name in page.text
        assert evaluation.rule in page.text
        for rate in (evaluation.clean, evaluation.worst, *(row.robust for row in evaluation.attacks)):
            assert f"{percent(rate.value)} {percent(rate.low)}–{percent(rate.high)}" in page.text
    assert "Empirical upper bounds, not certificates." in page.text


def test_every_fired_flag_is_shown_and_distrusted_and_no_other_run_is(full, page):
    fired = [(run, flag) for run in full.runs for flag in run.evaluation.flags if flag.fired]
    assert len(fired) == 2
    for _, flag in fired:
        assert f"⚠ {flag.title} {flag.code} {flag.explanation} {flag.evidence}" in page.text
    assert page.text.count("⚠ do not trust") == 2  # once in the comparison, once in the run's own section
    assert "Masking checks fired for fixed-noise : its robust accuracy must not be trusted" in page.text


def test_the_best_cell_is_the_highest_run_without_a_warning(full, source):
    digits = [run for run in full.runs if run.evaluation.dataset == "digits"]
    highest = max(digits, key=lambda run: run.evaluation.worst.value)
    assert highest.name == "fixed-noise"  # the fixture is built so that the distrusted run would win
    best = re.findall(r'<td class="worst([^"]*)">\s*<span class="value">([\d.]+)', source)
    assert [value for kind, value in best if "best" in kind] == [percent(digits[3].evaluation.worst.value)]
    assert [value for kind, value in best if "doubt" in kind] == [percent(highest.evaluation.worst.value)]


def test_runs_that_were_evaluated_otherwise_get_their_own_table(page):
    assert "Comparison: digits, Linf, ε = 0.1" in page.text
    assert "Result: colour-shapes, Linf, ε = 8/255" in page.text
    assert "do not compare across them" in page.text


def test_names_from_outside_are_escaped_everywhere(make_run):
    evil = "<script>alert(1)</script>\"'&"
    run = make_run(evil, dataset=evil, split=evil, suite=evil, rule=evil, threat=evil, classes=[evil, evil])
    pair = Picture(
        label=0, clean_prediction=0, adversarial_prediction=1, shape=(1, 1, 1), clean="AA==", adversarial="AA=="
    )
    flag = run.evaluation.flags[0].model_copy(
        update={"code": evil, "title": evil, "fired": True, "explanation": evil, "evidence": evil}
    )
    attack = run.evaluation.attacks[0].model_copy(update={"name": evil, "options": {evil: evil}, "rule": evil + "2"})
    evaluation = run.evaluation.model_copy(update={"pictures": [pair], "flags": [flag], "attacks": [attack]})
    training = [{"epoch": 1, "train_loss": 1.0, evil: evil}]
    run = RunReport(name=evil, evaluation=evaluation, training=training, recipe={evil: evil}, environment={evil: evil})
    text = render(Report(title=evil, runs=[run, run]))
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) > 20


def test_a_run_with_nothing_but_an_evaluation(bare):
    page = Page(render(bare))
    assert "Training" not in page.text
    assert "Randomness" not in page.text
    assert "Clean and attacked images" not in page.text
    assert "To repeat it" not in page.text
    assert "bare classifies 90.0 % (86.5–92.7) of 360 samples of digits (test) correctly" in page.text


def test_a_run_with_no_attacks_curve_flags_or_classes(make_run):
    report = Report(title="x", runs=[make_run(attacks=[], curve=[], flags=[], classes=[])])
    assert "No masking check was run" in Page(render(report)).text


def test_when_every_run_is_distrusted_none_is_best(full):
    doubtful = next(run for run in full.runs if run.name == "fixed-noise")
    text = render(Report(title="x", runs=[doubtful, doubtful.model_copy(update={"name": "again"})]))
    assert "none is called the best" in text
    assert ' best"' not in text


def test_training_entries_may_lack_any_key(make_run):
    training = [{"epoch": 1}, {"train_loss": 0.5}, {"epoch": 3, "validation_accuracy": None, "noise_r": 2.5}]
    run = RunReport(name="odd", evaluation=make_run().evaluation, training=training)
    page = Page(render(Report(title="x", runs=[run, run])))
    assert "All 3 epochs as a table" in page.text
    assert "noise_r" in page.text


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L")])
def test_pictures_show_the_very_pixels(channels, mode, make_run):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 4, 6), dtype=np.uint8)
    packed = Picture.pack(pixels)
    pair = Picture(
        label=3, clean_prediction=3, adversarial_prediction=99, shape=pixels.shape, clean=packed, adversarial=packed
    )
    page = Page(render(Report(title="x", runs=[make_run(pictures=[pair])])))
    image = Image.open(io.BytesIO(base64.b64decode(page.values("src")[0].partition(",")[2])))
    assert image.mode == mode
    expected = pixels.transpose(1, 2, 0) if channels == 3 else pixels.mean(0).round()
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert "true class: 3 clean ✓ 3 attacked ✗ 99" in page.text


def test_figures_take_the_colours_of_the_page_and_carry_no_outside_text(full):
    runs = list(enumerate(run.evaluation for run in full.runs))
    text = plots.accuracy_curves("c", runs)
    used = set(re.findall(r"#[0-9a-f]{6}", text))
    assert used == set(re.findall(r"var\(--\w+, (#[0-9a-f]{6})\)", text))
    assert text.count("stroke-dasharray") >= 1
    assert "font-family" not in text
    assert not [run.name for run in full.runs if run.name in text]


def test_signs_of_sixty_four_runs_differ():
    assert len({plots.swatch(style) for style in range(64)}) == 64


def test_figures_are_the_same_each_time(full):
    assert render(full) == render(full)


@pytest.mark.parametrize(
    ("eps", "text"),
    [(0.0, "0"), (0.1, "0.1"), (0.2, "0.2"), (8 / 255, "8/255"), (0.5 / 255, "0.5/255"), (0.123456, "0.1235"),
     (0.025, "0.025"), (16 / 255, "16/255"), (1.0, "1"), (1e-7, "1e-07")],
)  # fmt: skip
def test_radius(eps, text):
    assert radius(eps) == text


def test_durations_and_quantities():
    assert [duration(s) for s in (0.04, 9.96, 59.7, 200.0, 7500.0)] == [
        "0.0 s",
        "10 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [quantity(v) for v in (None, 3, 0.12345, 1600.0, True, "pgd")] == [
        "–",
        "3",
        "0.1235",
        "1\N{NARROW NO-BREAK SPACE}600",
        "True",
        "pgd",
    ]


def hardware() -> HardwareResult:
    def chips(block, level, *values, refused=""):
        return ChipsRow(
            block=block, device="a <b> device", level=level, chips=len(values), mean=sum(values) / max(1, len(values)),
            minimum=min(values, default=0), accuracies=list(values), refused=refused,
            unit="seconds" if "memory" in block else "share",
        )  # fmt: skip

    return HardwareResult(
        samples=100,
        baseline=0.9,
        rows=[
            chips("mismatch", 0.1, 0.89, 0.9, 0.87),
            chips("mismatch", 0.3, 0.7, 0.7, 0.7),
            chips("phase-change memory, compensated", 25.0, 0.9, 0.88),
            chips("phase-change memory, compensated", 86400.0, 0.8, 0.82),
            chips("phase-change memory, raw", 25.0, refused="cells of <i>one</i> kind"),
        ],
        worst=[],
        layers=[Layer(parameter="0.weight", mean=0.66)],
        safe={"mismatch": 0.1, "phase-change memory, compensated": 25.0, "phase-change memory, raw": None},
        certified=[
            CertifiedWeights(fraction=1e-4, certified=0.75),
            CertifiedWeights(fraction=1e-2, refused="no rule for 'x'"),
        ],
        landscape=Landscape(level=0.2, distances=[-1.0, 0.0, 1.0], losses=[[0.5, 0.3, 0.6]], slope=0.25),
    )


def test_hardware_is_shown_with_its_figures(full):
    run = full.runs[0].model_copy(update={"hardware": hardware()})
    page = Page(render(Report(runs=[run], title="chips")))
    for words in (
        "cells of <i>one</i> kind",
        "proven for all weights within 0.01 % of each 75.0 %",
        "refused: no rule for 'x'",
        "accuracy where 0.weight alone has mismatch of 30 %",
        "slope of the loss around the weights",
        "worst chip within 2 points up to 10 %",
        "worst chip within 2 points at no level",
        "25 s refused",
        "Chips with mismatch: spread",
        "Phase-change memory: mean and extremes",
        "a random direction",
    ):
        assert words in page.text, words
    figures = page.values("aria-label")
    assert sum("hips" in label or "random directions" in label for label in figures) >= 3


def test_chips_without_mismatch_or_memory_leave_their_figures_out(full):
    empty = hardware().model_copy(update={"rows": [], "landscape": None})
    run = full.runs[0].model_copy(update={"hardware": empty})
    assert "Chips with mismatch: spread" not in Page(render(Report(runs=[run], title="chips"))).text
