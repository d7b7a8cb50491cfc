"""What a look at the model told, on the page and through JSON and back."""

from stalwart.evaluation.results import Probe, Trait
from stalwart.report import Report
from stalwart.report.html import render

SEEN = Probe(
    draws=20,
    traits=[
        Trait(
            code="spiking", title="Spikes", found=True, evidence="3 layers <of> neurons.", response="many surrogates.",
            numbers={"layers": 3.0},
        ),
        Trait(code="batch", title="Batches", found=False, evidence="change 1e-8.", response="none needed."),
    ],
)  # fmt: skip


def test_traits_and_the_answer_of_the_suite_are_on_the_page(make_run):
    page = render(Report(title="t", runs=[make_run(probe=SEEN, suite="adaptive")]))
    found, rest = page.split("What a look at the model told")[1].split("1 more looked for and not found")
    assert "3 layers &lt;of&gt; neurons." in found
    assert "Answer of the suite: many surrogates." in found
    assert "Batches" in rest
    assert "Batches" not in found


def test_other_suites_do_not_answer(make_run):
    page = render(Report(title="t", runs=[make_run(probe=SEEN)]))
    assert "3 layers" in page
    assert "Answer of the suite" not in page
    assert "What a look at the model told" not in render(Report(title="t", runs=[make_run()]))


def test_a_look_that_found_nothing_says_so(make_run):
    page = render(Report(title="t", runs=[make_run(probe=Probe(traits=SEEN.traits[1:]))]))
    assert "Nothing that gradient attacks would fail at." in page


def test_it_survives_being_saved(make_run, tmp_path):
    report = Report(title="t", runs=[make_run(probe=SEEN)])
    report.save(tmp_path)
    back = Report.load(tmp_path).runs[0].evaluation.probe
    assert back == SEEN
    assert back.has("spiking")
    assert not back.has("batch")
    assert back.trait("nothing") is None
