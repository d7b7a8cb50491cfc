"""ParamRamp: its values, its gradient, its noise, its start, and that bounds see one operator."""

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from stalwart.core import jit
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.core.tensors import load_weights, save_tensors
from stalwart.models import build_model, param_ramp
from stalwart.models.param_ramp import ParamRamp, initialise_ramps, jittered, lengthen, ramps, set_slope
from stalwart.objectives import Moment, Objective, Trainee


def switched_on(r, eta=0.0):
    ramp = ParamRamp(tuple(r.shape), eta)
    with torch.no_grad():
        ramp.r.copy_(r)
        ramp.on.fill_(True)
    return ramp.to(r.dtype)


def by_hand(z, r, eta):
    return eta * z if z < 0 else z if z <= r else eta * z + (1 - eta) * r


@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_three_pieces(eta, dtype):
    z = torch.tensor([[-3.0, -1e-3, 0.0, 0.3, 0.5, 0.5001, 4.0]], dtype=dtype).T
    ramp = switched_on(torch.tensor([0.5], dtype=dtype), eta)
    expected = [by_hand(float(one), 0.5, eta) for one in z]
    assert ramp(z).dtype == dtype
    assert ramp(z)[:, 0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert torch.equal(ramp(z)[2:5], z[2:5]), "on the ramp it is the identity, to the bit"


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    shape=st.sampled_from([(1,), (7,), (3, 1, 1), (2, 3, 5), (1, 4, 4)]),
    batch=st.integers(1, 5),
    eta=st.sampled_from([0.0, 0.01, 0.3]),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_compiled_loops_agree_with_plain_torch(shape, batch, eta, channels_last, seed):
    if not jit.available():
        pytest.skip("numba is not installed")
    source = generator(seed)
    z, gradient = (torch.randn(batch, *shape, generator=source) for _ in range(2))
    r, eta = torch.rand(1, *shape, generator=source) + 0.01, torch.tensor(eta)
    if channels_last and len(shape) == 3:
        z, r = z.to(memory_format=torch.channels_last), r.to(memory_format=torch.channels_last)
    found = []
    for available in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jit, "available", lambda value=available: value)
            a, b = z.clone().requires_grad_(), r.clone().requires_grad_()
            out = param_ramp.param_ramp(a, b, eta)
            out.backward(gradient)
            found.append((out, a.grad, b.grad))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 6), (3, 2, 4, 4)])
def test_the_gradient_and_its_gradient(shape, eta):
    z = torch.randn(shape, generator=generator(0), dtype=torch.float64)
    r = torch.rand(1, *shape[1:], generator=generator(1), dtype=torch.float64) + 0.2
    z[(z.abs() < 1e-3) | ((z - r).abs() < 1e-3)] = -1.0  # kinks have no derivative to compare with
    slope = torch.tensor(eta, dtype=torch.float64)
    call = lambda a, b: param_ramp.param_ramp(a, b, slope)  # noqa: E731
    assert torch.autograd.gradcheck(call, (z.requires_grad_(), r.requires_grad_()))
    assert torch.autograd.gradgradcheck(call, (z, r))


def test_the_slope_gets_no_gradient_and_rows_above_the_ramp_train_it():
    ramp = switched_on(torch.tensor([0.5, 0.5]), 0.25)
    z = torch.tensor([[2.0, 0.1], [0.7, -3.0]], requires_grad=True)
    ramp(z).sum().backward()
    assert ramp.r.grad.tolist() == [[1.5, 0.0]]
    assert z.grad.tolist() == [[0.25, 1.0], [0.25, 0.25]]
    assert ramp.eta.grad is None
    assert not ramp.eta.requires_grad


def exported(model, x):
    program = torch.export.export(model, (x,))
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_export_sees_one_operator_on_the_input():
    model = nn.Sequential(nn.Linear(4, 6), ParamRamp((6,)), nn.Linear(6, 2))
    called = exported(model, torch.rand(3, 4))
    assert called.count("stalwart.param_ramp.default") == 1
    assert called.count("aten.linear.default") == 2
    assert set(called) == {
        *("aten.linear.default", "aten.add.Tensor", "aten.clamp_min.default", "aten.where.ScalarOther"),
        "stalwart.param_ramp.default",
    }


def test_the_exported_program_follows_slope_and_switch():
    model = nn.Sequential(nn.Linear(4, 6), ParamRamp((6,), 0.01), nn.Linear(6, 2))
    x = torch.rand(3, 4, generator=generator(0)) * 20
    program = torch.export.export(model, (x,)).module()
    outputs = [model(x)]
    for change in (lambda: set_slope(model, 0.3), lambda: initialise_ramps(model, [x])):
        change()
        program.load_state_dict(model.state_dict())
        outputs.append(model(x))
        assert torch.equal(program(x), outputs[-1])
        assert not torch.equal(outputs[-2], outputs[-1])


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_before_the_switch_it_is_leaky_relu_and_r_has_a_zero_gradient(eta):
    ramp = ParamRamp((3,), eta)
    z = torch.randn(8, 3, generator=generator(0)) * 1e4
    assert torch.allclose(ramp(z), nn.functional.leaky_relu(z, eta), rtol=1e-6)
    ramp(z).sum().backward()
    assert torch.equal(ramp.r.grad, torch.zeros(1, 3)), "data-parallel training wants a gradient of every parameter"


def test_the_start_is_the_mean_activation():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    model = nn.Sequential(first, ParamRamp((5,), 0.1), nn.Dropout(0.5), second, ParamRamp((3,), 0.1)).train()
    with torch.no_grad():
        first.bias[0] = -50.0  # a neuron that is never active has a negative mean: the shortest ramp
    x = torch.rand(11, 4, generator=generator(0))
    one = nn.functional.leaky_relu(first(x), 0.1)
    two = nn.functional.leaky_relu(second(one), 0.1)
    initialise_ramps(model, x.split(4))
    torch.testing.assert_close(model[1].r[0], one.mean(0).clamp_min(1e-4))
    torch.testing.assert_close(model[4].r[0], two.mean(0).clamp_min(1e-4))
    assert float(model[1].r.detach()[0, 0]) == pytest.approx(1e-4)
    assert all(bool(ramp.on) for ramp in ramps(model).values())
    assert all(module.training for module in model.modules())
    with pytest.raises(UsageError, match="no inputs"):
        initialise_ramps(model, [])


def test_lengths_stay_positive_and_trainable():
    ramp = switched_on(torch.tensor([0.5, 0.5]))
    with torch.no_grad():
        ramp.r.fill_(-1.0)
    assert torch.equal(ramp.length, torch.full((1, 2), 1e-4))
    lengthen(ramp)
    ramp(torch.ones(1, 2)).sum().backward()
    assert torch.equal(ramp.r.grad, torch.ones(1, 2))


def test_noise_is_drawn_once_for_all_passes_and_leaves_nothing():
    model = nn.Sequential(nn.Linear(4, 2000), switched_on(torch.full((2000,), 2.0)))
    x, r = 100 * torch.rand(3, 4, generator=generator(0)), model[1].r.detach().clone()
    plain = model(x)
    with jittered(model, generator(5)):
        first = model(x)
        assert torch.equal(first, model(x)), "the clean pass and both ends of a box"
        with torch.no_grad():
            assert torch.equal(first, model.eval()(x)), "attacks, which run in evaluation mode, too"
        drawn = model[1].length.detach() - r
    assert torch.equal(model(x), plain)
    assert torch.equal(model[1].r, r)
    assert float(drawn.std()) == pytest.approx(0.01 * 2.0, rel=0.1)
    assert abs(float(drawn.mean())) < 0.002
    with jittered(model, generator(6)):
        assert not torch.equal(model[1].length.detach() - r, drawn)
    with pytest.raises(RuntimeError, match="stop"), jittered(model, generator(6)):
        raise RuntimeError("stop")
    assert torch.equal(model(x), plain)


def test_training_draws_the_noise_from_the_moment():
    seen = []

    class Look(Objective):
        def loss(self, model, x, y, moment):
            seen.append([model[1].length.detach().clone() for _ in range(2)])
            return super().loss(model, x, y, moment)

    model = nn.Sequential(nn.Linear(4, 6), switched_on(torch.ones(6)), nn.Linear(6, 2))
    trainee = Trainee(model, Look())
    for seed in (0, 0, 1):
        trainee(torch.rand(3, 4), torch.tensor([0, 1, 0]), Moment(seed))
    assert all(torch.equal(*both) for both in seen)
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][0], seen[2][0])
    assert torch.equal(model[1].length, torch.ones(1, 6)), "none in evaluation"


def test_the_state_survives_a_file(tmp_path):
    model = build_model("dm-small", (1, 12, 12), 3, {"activation": "param-ramp", "eta": 0.01})
    x = torch.rand(4, 1, 12, 12, generator=generator(0))
    initialise_ramps(model, [x])
    set_slope(model, 0.005)
    with jittered(model, generator(0)):
        save_tensors(tmp_path / "m.safetensors", model.state_dict())
    other = build_model("dm-small", (1, 12, 12), 3, {"activation": "param-ramp"}, seed=1)
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(other(x), model(x))
    assert not any("jitter" in name for name in model.state_dict())
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("mlp", (1, 8, 8), 2), ("dm-small", (1, 8, 8), 3), ("cnn7-bn", (1, 8, 8), 6), ("small-mnist", (1, 8, 8), 5)],
)
def test_architectures_take_activations(name, shape, count):
    kinds = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "param-ramp": ParamRamp}
    x = torch.rand(2, *shape, generator=generator(0))
    for activation, kind in kinds.items():
        model = build_model(name, shape, 10, {"activation": activation})
        assert sum(isinstance(module, kind) for module in model.modules()) == count
        assert model(x).shape == (2, 10)
    assert build_model(name, shape, 10, {"activation": "leaky-relu"}).backbone[-1].negative_slope == 0.01
    assert float(model.backbone[-1].eta) == 0.0
    sloped = build_model(name, shape, 10, {"activation": "param-ramp", "eta": 0.02})
    assert all(float(ramp.eta) == pytest.approx(0.02) for ramp in ramps(sloped).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.1}, "'relu' has none"),
        ({"activation": "param-ramp", "eta": 1.0}, "eta"),
        ({"activation": "leaky-relu", "eta": -0.1}, "eta"),
        ({"activation": "ramp"}, "activation"),
    ],
)
def test_impossible_activations_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build_model("mlp", (8,), 10, options)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (2, 4, 1), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="cannot take pre-activations of shape"):
        ParamRamp((4,))(torch.rand(shape))


def test_impossible_slopes_are_refused():
    for eta in (-0.1, 1.0):
        with pytest.raises(UsageError, match="eta"):
            ParamRamp((3,), eta)
        with pytest.raises(UsageError, match="eta"):
            set_slope(ParamRamp((3,)), eta)
    with pytest.raises(UsageError, match="noise"):
        ParamRamp((3,), noise=-0.1)
