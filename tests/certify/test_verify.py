"""Verdicts: planted counterexamples are never "verified", witnesses hold, time is kept, published truth is met."""

import csv
import itertools
import json
import time

import pytest
import torch
from torch import nn

from stalwart.certify import verify as verify_module
from stalwart.certify.boxes import varying
from stalwart.certify.branch import Branching
from stalwart.certify.dataset import SAMPLES, SUMMARY, certify_dataset
from stalwart.certify.domains import Bounder
from stalwart.certify.exact import settle
from stalwart.certify.problem import Network, Problem, optimised
from stalwart.certify.verify import robustness_property, verify
from stalwart.certify.violate import Descent, inside
from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.random import generator
from stalwart.interchange import Case, Conjunction, Property, read_onnx, write_onnx
from stalwart.sets import L2, Linf


def prop(low, high, *unsafe):
    sets = tuple(
        Conjunction(torch.tensor(C, dtype=torch.float64), torch.tensor(d, dtype=torch.float64)) for C, d in unsafe
    )
    low, high = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    return Property(len(low), len(sets[0].C[0]), (Case(low, high, sets),))


def net(seed, *sizes):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def spike(point, width):
    """Return x -> (1/2 - max(0, 1 - |x - p|_1 / width), 0): below 0 only near the point, and flat far from it."""
    size = len(point)
    model = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        eye = torch.eye(size)
        model[0].weight[:] = torch.cat([eye, -eye])
        model[0].bias[:] = torch.cat([-point, point])
        model[2].weight.fill_(-1 / width)
        model[2].bias.fill_(1.0)
        model[4].weight[:] = torch.tensor([[-1.0], [0.0]])
        model[4].bias[:] = torch.tensor([0.5, 0.0])
    return model


@pytest.mark.parametrize(("inputs", "seconds"), [(2, 20.0), (3, 20.0), (24, 4.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_hidden_counterexample_is_never_verified_away(inputs, seconds, seed):
    point = 0.1 + 0.8 * torch.rand(inputs, generator=generator(seed, "planted"))
    model = spike(point, 0.01)
    question = prop([0.0] * inputs, [1.0] * inputs, ([[1.0, -1.0]], [0.0]))
    assert bool(question.violated_by(point[None], model(point[None]).detach()))
    found = verify(model, question, seconds, descent=Descent(steps=5, restarts=2), seed=seed)
    assert found.status != "verified"
    if inputs <= 3:
        assert found.status == "falsified"
    # Without the spike's tip the same question is true.
    safe = prop([0.0] * inputs, [1.0] * inputs, ([[1.0, -1.0]], [-0.6]))
    assert verify(model, safe, seconds).status == "verified"


def test_a_witness_is_inside_and_violates():
    model, x = net(0, 6, 16, 3), torch.full((6,), 0.5)
    y = int(model(x).argmax())
    question = robustness_property(x, y, Linf(0.5), 3)
    found = verify(model, question, 20)
    assert found.status == "falsified"
    assert found.witness is not None
    assert found.witness.shape == (6,)
    assert found.witness.dtype == torch.float32
    assert ((found.witness - x).abs() <= 0.5).all()
    assert torch.equal(found.output, model.double()(found.witness.double()).detach())
    assert int(found.output.argmax()) != y


@pytest.mark.parametrize("inputs", [8, 24])
def test_the_verdict_flips_at_one_radius(inputs):
    model, x = net(3, inputs, 20, 20, 3), torch.full((inputs,), 0.5)
    y, last = int(model(x).argmax()), "verified"
    seen = []
    for eps in (0.001, 0.01, 0.03, 0.1, 0.3):
        found = verify(model, robustness_property(x, y, Linf(eps), 3), 20)
        seen.append(found.status)
        if found.status == "verified":
            assert last == "verified", "smaller sets are safe too"
            samples = Linf(eps).sample(x.expand(2000, -1), generator(0))
            assert (model(samples).argmax(1) == y).all()
        last = found.status
    assert seen[0] == "verified"
    assert seen[-1] == "falsified"


def test_every_box_and_every_set_must_be_refuted():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    low, high = ([[1.0]], [0.5]), ([[-1.0]], [-2.0])
    safe = Case(*torch.tensor([[1.0], [1.5]], dtype=torch.float64), prop([0], [1], low, high).cases[0].unsafe)
    for ends, status in (([0.6, 1.0], "verified"), ([0.4, 1.0], "falsified"), ([1.0, 2.5], "falsified")):
        other = Case(*torch.tensor(ends, dtype=torch.float64)[:, None], safe.unsafe)
        assert verify(model, Property(1, 1, (safe, other)), 10).status == status
        assert verify(model, Property(1, 1, (other, safe)), 10).status == status


def test_touching_is_unsafe():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    assert verify(model, prop([0.5], [1.0], ([[1.0]], [0.5])), 10).status == "falsified"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_prove_nothing(value):
    model = net(0, 30, 8, 2)
    with torch.no_grad():
        model[0].weight[3, 3] = value
    question = prop([0.0] * 30, [1.0] * 30, ([[1.0, 0.0]], [-1e6]))
    assert verify(model, question, 3).status in ("unknown", "timeout")


@pytest.mark.parametrize("inputs", [10, 30])
def test_time_is_kept(inputs):
    model = net(1, inputs, 100, 100, 100, 2)
    question = prop([-2.0] * inputs, [2.0] * inputs, ([[1.0, 0.0]], [-3.0]))
    verify(model, question, 0.5)
    begun = time.monotonic()
    found = verify(model, question, 2.0)
    assert found.status == "timeout"
    assert found.reason
    assert time.monotonic() - begun < 4.0


def test_smooth_networks_are_bounded_but_not_guessed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 10), nn.Tanh(), nn.Linear(10, 2))
    x = torch.full((30,), 0.5)
    y = int(model(x).argmax())
    assert verify(model, robustness_property(x, y, Linf(1e-4), 2), 10).status == "verified"
    worst = float(model(Linf(0.5).sample(x.expand(1000, -1), generator(0)))[:, y].min().detach())
    hard = prop([0.0] * 30, [1.0] * 30, ([[float(y == 0), float(y == 1)]], [worst - 0.3]))
    assert verify(model, hard, 5).status in ("unknown", "timeout", "falsified")


def test_points_move_inward_when_rounded():
    case = Case(torch.tensor([0.1, 0.3], dtype=torch.float64), torch.tensor([0.7, 0.3001], dtype=torch.float64), ())
    x = inside(torch.tensor([[-1.0, 9.0], [9.0, -1.0]]), case)
    assert case.contains(x).all()


@pytest.mark.parametrize(
    ("unsafe", "status"),
    [
        ("(>= Y_0 0.05)", "falsified"),
        ("(>= Y_0 0.1000000001)", "falsified"),
        ("(>= Y_0 0.2)", "verified"),
        # The float32 next to 0.1 is safe, 0.1 itself is not.
        ("(<= Y_0 0.1)", "timeout"),
    ],
)
def test_inputs_fixed_at_numbers_that_are_no_float32(tmp_path, unsafe, status):
    path = tmp_path / "prop.vnnlib"
    path.write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
        f"(assert (= X_0 0.1))(assert (>= X_1 0.0))(assert (<= X_1 1.0))(assert {unsafe})"
    )
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight[:] = torch.tensor([1.0, 0.0])
    found = verify(model, path, 3)
    assert found.status == status
    assert "no float32" in " ".join(found.notes)
    if status == "falsified":
        assert float(found.witness[0]) == float(torch.tensor(0.1))


def test_fixed_inputs_do_not_count_as_varying():
    x = torch.full((30,), 0.1, dtype=torch.float64)
    question = prop(x, torch.cat([x[:28], x[28:] + 0.5]), ([[1.0]], [0.0]))
    network = Network.of(nn.Linear(30, 1), (30,))
    problem = Problem.of(network, question.cases[0].readable(), lambda points: None, time.monotonic() + 9)
    assert varying(problem) == 2
    assert (problem.case.lower <= x).all()
    assert problem.case.contains(inside(torch.zeros(1, 30), problem.case)).all()


def test_a_file_that_is_imported_wrongly_gets_no_verdict(tmp_path, monkeypatch):
    model, path = net(0, 4, 8, 2).eval(), tmp_path / "net.onnx"
    write_onnx(model, torch.rand(2, 4), path)
    question = prop([0.0] * 4, [1.0] * 4, ([[1.0, 0.0]], [-1e6]))
    assert verify(path, question, 10).status == "verified"
    assert verify(path, question, 10).notes == ()

    def wrong(where):
        found = read_onnx(where)
        with torch.no_grad():
            next(found.parameters()).mul_(1.001)
        return found

    monkeypatch.setattr(verify_module, "read_onnx", wrong)
    with pytest.raises(InputError, match="else here than in onnxruntime"):
        verify(path, question, 10)
    monkeypatch.setattr(verify_module, "has_extra", lambda name: False)
    found = verify(path, question, 10)
    assert found.status == "verified"
    assert "onnxruntime is not installed" in found.notes[0]


def test_bad_calls():
    model = net(0, 4, 8, 2)
    question = prop([0.0] * 4, [1.0] * 4, ([[1.0, 0.0]], [0.0]))
    with pytest.raises(UsageError, match="timeout"):
        verify(model, question, 0)
    with pytest.raises(InputError, match="inputs"):
        verify(model, question, 1, input_shape=(5,))
    with pytest.raises(InputError, match="outputs"):
        verify(net(0, 4, 8, 3), question, 1)
    with pytest.raises(FileError):
        verify("nowhere.onnx", question, 1)
    with pytest.raises(UsageError, match="batch"):
        Branching(batch=0)


INSTANCES = {
    "2021_test": [""],
    "2021_acasxu": ["1_9_batch_2000.onnx,vnnlib/prop_4.", "2_1_batch_2000.onnx,vnnlib/prop_3."],
    "2022_mnist_fc": [f"{net}.onnx,vnnlib/prop_{at}_0.03." for net, at in (("256x2", 6), ("256x2", 12), ("256x4", 0))],
}


@pytest.mark.parametrize("name", INSTANCES)
def test_competition_instances(shared, name):
    folder, done = shared / "data" / "vnncomp" / name, 0
    for row in csv.DictReader((folder / "ground_truth.csv").read_text().splitlines()):
        label = row["onnx"] + "," + row["vnnlib"]
        if any(one in label for one in INSTANCES[name]):
            found = verify(folder / row["onnx"], folder / row["vnnlib"], 60)
            assert found.status == {"sat": "falsified", "unsat": "verified"}[row["verdict"]], label
            done += 1
    assert done == (5 if name == "2021_test" else len(INSTANCES[name]))


@pytest.fixture(scope="module")
def data():
    return torch.rand(12, 1, 5, 5, generator=generator(1)), torch.arange(12) % 3


def trained(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(data[0][:10]), data[1][:10])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


class Killed(Exception):
    pass


def test_a_data_set_resumes_after_a_kill(data, tmp_path):
    model, within = trained(data), Linf(0.05)
    whole = certify_dataset(model, *data, within, 20, tmp_path / "whole")

    def advance(done, note=""):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        certify_dataset(model, *data, within, 20, tmp_path / "cut", advance=advance)
    with (tmp_path / "cut" / SAMPLES).open("ab") as stream:
        stream.write(b'{"index": 5, "la')
    again = certify_dataset(model, *data, within, 20, tmp_path / "cut")
    assert {**vars(again), "seconds": 0} == {**vars(whole), "seconds": 0}
    rows = [json.loads(line) for line in (tmp_path / "cut" / SAMPLES).read_text().splitlines()][1:]
    assert [row["index"] for row in rows] == list(range(12))
    assert json.loads((tmp_path / "cut" / SUMMARY).read_text())["samples"] == 12
    assert whole.verified + whole.falsified + whole.wrong + whole.unknown + whole.timeout == 12
    assert whole.certified <= whole.attacked <= whole.clean
    assert len(whole.methods) >= 2, "cheap methods settle some, complete ones others"
    assert torch.equal(model[1].weight, trained(data)[1].weight)
    with pytest.raises(UsageError, match="another"):
        certify_dataset(model, *data, Linf(0.06), 20, tmp_path / "cut")


def test_methods_agree_on_what_is_true(data, tmp_path):
    model, within = trained(data), Linf(0.05)
    cheap = certify_dataset(model, *data, within, 20, tmp_path / "cheap", methods=("ibp", "crown"))
    full = certify_dataset(model, *data, within, 20, tmp_path / "full", methods=("branch-and-bound",))
    rows = [
        [json.loads(line) for line in (tmp_path / name / SAMPLES).read_text().splitlines()][1:]
        for name in ("cheap", "full")
    ]
    for few, all_ in zip(*rows, strict=True):
        assert few["status"] in (all_["status"], "unknown")
    assert cheap.certified <= full.certified
    with pytest.raises(UsageError):
        certify_dataset(model, *data, within, 20, tmp_path / "bad", methods=("crwn",))
    with pytest.raises(UsageError):
        certify_dataset(model, *data, L2(0.1), 20, tmp_path / "bad")


def test_an_unsafe_set_without_rows_is_the_whole_box():
    model = nn.Linear(1, 1)
    nothing = Conjunction(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    case = Case(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), (nothing,))
    found = verify(model, Property(1, 1, (case,)), 5)
    assert found.status == "falsified"
    assert 0 <= float(found.witness) <= 1


def test_domains_of_convolutions_without_open_neurons_are_settled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double().eval()
    network = Network.of(model, (1, 10, 10))
    x = torch.full((100,), 0.5, dtype=torch.float64)
    case = Case(x - 0.3, x + 0.3, prop([0.0], [1.0], ([[1.0, -1.0]], [0.0])).cases[0].unsafe)
    problem = Problem.of(network, case, lambda points: None, time.monotonic() + 60)
    bounder = Bounder(problem.known(optimised(1)))
    domain = bounder.root(problem.C, problem.d)
    for place in range(bounder.count):
        domain = domain.split(torch.tensor([place])).take(torch.tensor([0]))
    bound, point = settle(bounder, domain)
    assert bounder.count > 0
    assert (point is None) == (bound > 0)


def test_verdicts_of_a_model_with_other_options_are_not_resumed(data, tmp_path):
    lin, last = nn.Linear(25, 4), nn.Linear(4, 3)
    x, y = data
    first, other = (nn.Sequential(nn.Flatten(), lin, nn.LeakyReLU(slope), last) for slope in (0.01, 5.0))
    certify_dataset(first, x, y, Linf(0.01), 20, tmp_path, methods=("ibp",))
    certify_dataset(first, x, y, Linf(0.01), 20, tmp_path, methods=("ibp",))
    with pytest.raises(UsageError, match="another model"):
        certify_dataset(other, x, y, Linf(0.01), 20, tmp_path, methods=("ibp",))
