"""Which method proves which sample, what is refused and why, and what neurons can still do."""

import pytest
import torch
from torch import nn

from stalwart.bounds import margin_bound
from stalwart.bounds.methods import propagate
from stalwart.certify import proofs
from stalwart.certify.dataset import COMPLETE
from stalwart.certify.neurons import neuron_status
from stalwart.certify.proofs import prove
from stalwart.core.errors import UsageError
from stalwart.models.param_ramp import ParamRamp
from stalwart.sets import L2, Linf
from stalwart.stochastic import NoiseLayer

METHODS = ("ibp", "crown-ibp", "lbp", "crown-lbp", "crown", "alpha-crown", COMPLETE)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    net = nn.Sequential(nn.Flatten(), *layers).eval()
    with torch.no_grad():
        net[5].bias -= net(torch.full((1, 1, 2, 3), 0.5))[0]  # so that all classes occur
    return net


@pytest.fixture(scope="module")
def data(net):
    torch.manual_seed(1)
    x = torch.rand(40, 1, 2, 3)
    y = net(x).argmax(1)
    y[-3:] = (y[-3:] + 1) % 3
    return x, y


@pytest.fixture(scope="module")
def found(net, data):
    return prove(net, *data, Linf(0.05), METHODS, radii=(0.02, 0.1), timeout=5)


def test_each_method_proves_what_its_bound_proves(net, data, found):
    x, y = data
    assert [row.method for row in found.methods] == list(METHODS)
    for row in found.methods[:-1]:
        bound = margin_bound(net, x, y, Linf(0.05), row.method, strategy="tight", rigor="float64").detach()
        assert torch.equal(row.certified, bound > 0), row.method
        assert row.note == ""
    counts = [int(row.certified.sum()) for row in found.methods]
    assert 0 < counts[1] < counts[3] < counts[5] < counts[6], "the fixture must tell methods apart"


def test_tight_lines_and_complete_verification_keep_the_known_order(found):
    by = {row.method: row.certified for row in found.methods}
    for weak, strong in (("ibp", "lbp"), ("crown-ibp", "crown-lbp"), ("crown-lbp", "crown"), ("crown", COMPLETE)):
        assert bool((by[weak] <= by[strong]).all()), (weak, strong)


def test_the_curve_is_the_best_of_all_methods_and_falls(found):
    assert list(found.curve) == [0.02, 0.05, 0.1]
    assert torch.equal(found.curve[0.05], torch.stack([row.certified for row in found.methods]).any(0))
    assert bool((found.curve[0.1] <= found.curve[0.05]).all())
    assert bool((found.curve[0.05] <= found.curve[0.02]).all())


def test_no_proof_is_contradicted_by_any_of_many_points(net, data, found):
    x, y = data
    source = torch.Generator().manual_seed(0)
    for eps, certified in found.curve.items():
        for _ in range(200):
            right = net(Linf(eps).sample(x, source)).argmax(1) == y
            assert bool(right[certified].all())
    assert not bool(found.curve[0.02][-3:].any()), "wrongly classified"


def test_known_counterexamples_are_not_searched_again(net, data):
    x, y = data
    calls = []
    settled = prove(
        net,
        x,
        y,
        Linf(0.05),
        [COMPLETE],
        broken=torch.ones(40, dtype=torch.bool),
        advance=lambda n, note: calls.append(note),
    )
    assert int(settled.methods[0].certified.sum()) == 0
    assert calls == [COMPLETE]


@pytest.mark.parametrize(
    ("limit", "method", "why"),
    [
        ("_FORMS_BYTES", "lbp", "linear forms"),
        ("_FORMS_BYTES", "crown-lbp", "linear forms"),
        ("_WALK_BYTES", "crown", "walks from"),
        ("_WALK_BYTES", "alpha-crown", "walks from"),
    ],
)
def test_what_is_too_large_says_so_and_the_rest_goes_on(net, data, monkeypatch, limit, method, why):
    monkeypatch.setattr(proofs, limit, 100)
    refused, kept = prove(net, *data, Linf(0.05), [method, "crown-ibp"], radii=(0.02,)).methods
    assert refused.certified is None
    assert refused.note.startswith(f"refused: {why}")
    assert int(kept.certified.sum()) > 0


def test_a_method_that_runs_out_of_memory_says_so(net, data, monkeypatch):
    def starve(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(proofs, "margin_bound", starve)
    (row,) = prove(net, *data, Linf(0.05), ["ibp"]).methods
    assert (row.certified, row.note) == (None, "refused: it ran out of memory")


def test_what_bounds_do_not_take_is_a_note_too(net, data):
    class Shaken(NoiseLayer):
        def forward(self, x):
            return x

    (row, complete) = prove(nn.Sequential(Shaken(), net), *data, Linf(0.05), ["ibp", COMPLETE], timeout=1).methods
    assert row.certified is None
    assert "randomised" in row.note
    assert complete.certified is None
    (row,) = prove(net, *data, L2(0.05), [COMPLETE]).methods
    assert row.note == "refused: it takes Linf boxes only, not L2"


@pytest.mark.parametrize(("methods", "message"), [([], "at least one"), (["ipb"], "unknown bounding method 'ipb'")])
def test_impossible_methods(net, data, methods, message):
    with pytest.raises(UsageError, match=message):
        prove(net, *data, Linf(0.05), methods)


def test_neurons_by_hand():
    ramp = ParamRamp((5,))
    with torch.no_grad():
        ramp.on.fill_(True)
        ramp.r.fill_(1.0)
    shift = nn.Linear(5, 5)
    with torch.no_grad():
        shift.weight.copy_(torch.eye(5))
        shift.bias.copy_(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    x = torch.full((2, 5), 0.5)  # centres of the operand: -0.5, 0, 0.5, 1, 1.5

    def shares(activation, eps):
        (layer,) = neuron_status(propagate(nn.Sequential(shift, activation), x, Linf(eps)))
        assert (layer.layer, layer.neurons) == ("1", 5)
        assert sum(layer.counts.values()) == 10
        return {state: int(count / 2) for state, count in layer.counts.items() if count}

    assert shares(nn.ReLU(), 0.1) == {"dead": 1, "unstable": 1, "alive": 3}
    assert shares(ramp, 0.1) == {"dead": 1, "unstable": 1, "alive": 1, "right-unstable": 1, "right-dead": 1}
    assert shares(nn.ReLU(), 0.5) == {"dead": 1, "unstable": 1, "alive": 3}
    layers = prove(nn.Sequential(shift, ramp), x, torch.tensor([4, 4]), Linf(0.1), ["ibp"]).layers
    assert layers[0].counts == {"dead": 2, "unstable": 2, "alive": 2, "right-unstable": 2, "right-dead": 2}
