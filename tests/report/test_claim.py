"""Claims: the public form, the numbers of the report and no others, refusals, and the command."""

import json

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.cli.main import run as command_line
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.evaluation.results import AttackRow, Flag, Rate
from stalwart.report import Report, RunReport
from stalwart.report.claim import TOLD, claim

# Fields and kinds of values of public records, such as those of cifar10/Linf in RobustBench's model zoo.
PUBLIC = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
    "footnote": str,
    "unreliable": bool,
}


def flag(code, fired):
    return Flag(code=code, title="t", fired=fired, explanation="e", evidence="v")


def attacked(base, version="standard", members=("apgd-ce", "apgd-t", "fab-t", "square"), fired=(), **more):
    """Return a run whose rows look as those of the suite autoattack."""
    held = base.evaluation
    row = held.attacks[0]
    rows = [
        AttackRow(**(row.model_dump() | {"name": name, "eps": more.get("eps", held.eps), "options": options}))
        for name, options in [
            ("pgd-ce", {"attack": "pgd"}),
            *[(one, {"attack": "autoattack", "version": version, "only": [one]}) for one in members],
        ]
    ]
    flags = [flag(code, code in fired) for code in ("steps", "transfer")]
    new = held.model_copy(update={"attacks": rows, "suite": "autoattack", "flags": flags, "dataset": "cifar10"} | more)
    return base.model_copy(update={"evaluation": new})


@pytest.fixture
def run(make_run):
    recipe = {"name": "x", "data": {"name": "cifar10"}, "model": {"name": "resnet18"}}
    return make_run("mine").model_copy(update={"recipe": recipe, "environment": {"torch": "2.9"}})


def test_the_form_is_the_public_one(run):
    found = claim(attacked(run))
    assert list(found) == [*PUBLIC, "stalwart"]
    for key, kind in PUBLIC.items():
        assert type(found[key]) is kind, key
    assert json.loads(json.dumps(found)) == found


def test_numbers_are_those_of_the_report(run):
    made = attacked(run, eps=8 / 255, samples=1000, clean=Rate.of(8365, 10000), worst=Rate.of(4321, 10000), seed=5)
    found = claim(made)
    assert (found["clean_acc"], found["autoattack_acc"], found["eps"]) == ("83.65", "43.21", "8/255")
    assert (found["dataset"], found["architecture"], found["additional_data"]) == ("cifar10", "resnet18", False)
    assert (found["unreliable"], found["number_forward_passes"]) == (False, 1)
    assert all(found[key] == "" for key in ("link", "name", "authors", "venue", "reported"))
    own, worst = found["stalwart"], made.evaluation.worst
    assert own["autoattack_interval"] == [worst.low, worst.high]
    assert (own["seed"], own["samples"], own["autoattack_version"], own["flags"]) == (5, 1000, "standard", [])
    assert own["attacks"] == ["pgd-ce", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert own["checks"] == ["steps", "transfer"]
    assert f"95 % interval of the robust accuracy {100 * worst.low:.2f} to {100 * worst.high:.2f}" in found["footnote"]


def test_a_fired_check_makes_it_unreliable(run):
    found = claim(attacked(run, fired=("transfer",)))
    assert found["unreliable"] is True
    assert found["stalwart"]["flags"] == ["transfer"]
    assert "Masking checks fired: transfer." in found["footnote"]


def test_what_is_not_known_stays_empty(make_run, run):
    assert claim(attacked(make_run("foreign")))["additional_data"] == ""
    assert claim(attacked(make_run("foreign")))["architecture"] == ""
    assert claim(attacked(run, dataset="svhn"))["additional_data"] == "", "evaluated on another dataset than trained on"
    own = run.model_copy(update={"recipe": {"data": {"name": "npz"}}})
    assert claim(attacked(own, dataset="npz"))["additional_data"] == "", "nobody knows what a user's own file holds"


def test_versions_and_randomised_models(run):
    plus = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
    assert claim(attacked(run, "plus", plus))["stalwart"]["autoattack_version"] == "plus"
    rand = attacked(run, "rand", ("apgd-ce", "apgd-dlr"), randomised=True, rule="mean-softmax")
    found = claim(rand)
    assert found["stalwart"]["autoattack_version"] == "rand"
    assert found["number_forward_passes"] == 20
    assert "The model is randomised, decision rule mean-softmax." in found["footnote"]


def test_without_autoattack_there_is_no_claim(run):
    with pytest.raises(InputError, match="suite 'standard' does not run AutoAttack; evaluate the run with --suite"):
        claim(run)
    with pytest.raises(InputError, match="needs every member of AutoAttack"):
        claim(attacked(run, members=("apgd-ce", "square")))
    elsewhere = attacked(run)
    rows = [row.model_copy(update={"eps": 2 * row.eps}) for row in elsewhere.evaluation.attacks]
    other = elsewhere.evaluation.model_copy(update={"attacks": rows})
    with pytest.raises(InputError, match="does not run AutoAttack"):
        claim(elsewhere.model_copy(update={"evaluation": other}))


def test_what_the_authors_tell(run):
    told = {"link": "https://example.org", "venue": "X 2027", "additional_data": "true", "reported": "43.2"}
    found = claim(attacked(run), told)
    assert found["link"] == "https://example.org"
    assert found["additional_data"] is True
    assert found["reported"] == "43.20"
    with pytest.raises(UsageError, match="takes no field 'autoattack_acc' from its authors"):
        claim(attacked(run), {"autoattack_acc": "99"})
    with pytest.raises(UsageError, match="Did you mean 'venue'"):
        claim(attacked(run), {"venu": "X"})
    for value in ("many", "101", "nan"):
        with pytest.raises(UsageError, match="an accuracy in percent"):
            claim(attacked(run), {"reported": value})
    with pytest.raises(UsageError, match="true or false"):
        claim(attacked(run), {"additional_data": "some"})
    assert set(TOLD) < set(PUBLIC)


def said(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line(["--system-malloc", *map(str, words)])
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def test_the_command_on_a_real_evaluation(tmp_path, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(12, 1, 4, 4, generator=generator(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    # Every input falls to the first attack, so that the long searches have nothing left to do.
    report = sw.evaluate(model, (x, y), within=sw.Linf(0.9), suite="autoattack", name="linear")
    report.save(tmp_path)
    code, out, err = said(capsys, "claim", tmp_path, "authors=A. Nobody", "venue=none")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "claim.json").read_text())
    (run,) = report.runs
    assert found["autoattack_acc"] == f"{100 * run.evaluation.worst.value:.2f}"
    assert (found["eps"], found["authors"], found["clean_acc"]) == ("0.9", "A. Nobody", "100.00")
    assert found["unreliable"] == any(one.fired for one in run.evaluation.flags)
    assert f"AutoAttack {found['autoattack_acc']} % at" in out
    assert "for its authors to tell: link, name, additional_data, architecture" in out


def test_wrong_commands(run, tmp_path, capsys):
    code, _, err = said(capsys, "claim", tmp_path)
    assert (code, "has no report.json; run `stalwart evaluate" in err) == (1, True)
    Report(runs=[run]).save(tmp_path)
    code, _, err = said(capsys, "claim", tmp_path, "--out", tmp_path / "c.json")
    assert (code, "does not run AutoAttack" in err) == (1, True)
    code, _, err = said(capsys, "claim", tmp_path, "venue")
    assert (code, "'venue' is not a field of a claim" in err) == (2, True)
    Report(runs=[run, RunReport(name="b", evaluation=run.evaluation)]).save(tmp_path)
    code, _, err = said(capsys, "claim", tmp_path)
    assert (code, "holds a report of 2 runs" in err) == (2, True)
    assert not list(tmp_path.glob("c*.json"))
