"""Common corruptions from the command line."""

import pytest

from stalwart.data.corruptions import CORRUPTIONS
from stalwart.report import Report


def test_the_list_shows_every_kind(stalwart):
    said = stalwart("list", "corruptions")
    assert said.code == 0
    names = [line.split()[0] for line in said.out.splitlines() if line[2] != " "]
    assert names == sorted(CORRUPTIONS)
    assert "severity=3" in said.out


def test_evaluate_measures_what_is_asked_for(stalwart, copied, quick):
    said = stalwart("evaluate", copied, *quick, "--corruptions", "2,5", "--eps", 0.02, "--certify", "none")
    assert (said.code, said.err) == (0, "")
    (run,) = Report.load(copied).runs
    assert run.corruptions.severities == [2, 5]
    assert run.corruptions.samples == 12
    assert run.recipe["evaluation"]["corruptions"] == [2, 5]
    assert f"mean corruption accuracy {run.corruptions.mean.value:6.1%}" in said.out
    assert "Mean corruption accuracy" in (copied / "index.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "severities of corruptions are among 1 to 5, each once, got 0"),
        ("1,1", "each once, got 1, 1"),
        ("x", "'corruptions.0'"),
    ],
)
def test_severities_that_there_are_not(refused, copied, text, message):
    assert message in refused(2, "evaluate", copied, "--corruptions", text)
    assert not (copied / "report.json").exists()
