"""Objectives that move weights: steps and gradients by hand, the Jacobian of the attack, and nothing else moved."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.quick import lean_copy
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.objectives.weight_kl import attached
from stalwart.spiking import spiking_networks
from stalwart.stochastic import GaussianHead


def objective(name, **options):
    return build("objective", OBJECTIVES, name, options)


def kl(p, q):
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()


def gradient_at(model, moved, x, y):
    """Return the cross entropy at other weights and its gradient with respect to them, by plain autograd."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in moved.items()}
    loss = F.cross_entropy(functional_call(model, leaves, (x,)), y)
    loss.backward()
    return float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items()}


def params_of(model, suffix=""):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(suffix)}


def check_gradients(model, loss, expected):
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "adaptive"), [("amp", False), ("sam", False), ("sam", True)])
def test_one_step_by_hand(small, points, name, adaptive):
    x, y = points
    params = params_of(small)
    _, slopes = gradient_at(small, params, x, y)
    scale = {key: (p.abs() + 0.02 if adaptive else torch.ones_like(p)) for key, p in params.items()}
    norm = torch.cat([(scale[key] * slope).flatten() for key, slope in slopes.items()]).norm()
    moved = {key: p + 0.1 * scale[key] ** 2 * slopes[key] / norm for key, p in params.items()}
    options = {"eps": 0.1} if name == "amp" else {"rho": 0.1, "adaptive": adaptive, "floor": 0.02}
    loss, logits = objective(name, **options).loss(small, x, y, Moment(0))
    value, expected = gradient_at(small, moved, x, y)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    assert value > gradient_at(small, params, x, y)[0], "it must climb"
    torch.testing.assert_close(logits, functional_call(small, moved, (x,)))
    check_gradients(small, loss, expected)
    for key, p in small.named_parameters():
        assert torch.equal(p.detach(), params[key]), "weights are as they were, to the bit"


def test_amp_stays_in_its_ball_and_climbs_step_by_step(small, points):
    x, y = points
    params = params_of(small, "weight")
    values = []
    for steps in (1, 4):
        amp, seen = objective("amp", eps=0.5, steps=steps, only="*weight"), []

        def slopes(moved, seen=seen):
            seen.append(moved)
            return gradient_at(small, moved, x, y)[1]

        moved = amp.move(params, slopes, generator)
        assert len(seen) == steps
        shift = torch.cat([(moved[key] - p).flatten() for key, p in params.items()])
        assert float(shift.norm()) <= 0.5 * (1 + 1e-12)
        values.append(gradient_at(small, moved, x, y)[0])
    assert values[1] != values[0]


def test_forward_noise_is_relative_frozen_and_fresh(small, points):
    x, y = points
    noise = objective("forward-noise", eta=0.3)
    draws = []
    for seed in (0, 0, 1):
        source = Moment(seed).generator(x, "forward-noise")
        moved = {
            key: p + 0.3 * p.abs() * torch.randn(p.shape, generator=source, dtype=p.dtype)
            for key, p in params_of(small, "weight").items()
        }
        value, expected = gradient_at(small, moved, x, y)
        small.zero_grad()
        loss, _ = noise.loss(small, x, y, Moment(seed))
        assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
        check_gradients(small, loss, expected)
        draws.append(value)
    assert draws[0] == draws[1] != draws[2]
    assert float(objective("forward-noise", eta=0).loss(small, x, y, Moment(0))[0].detach()) == pytest.approx(
        float(F.cross_entropy(small(x), y).detach())
    )


def test_a_base_keeps_its_crafted_inputs(small, points):
    x, y = points
    inner = {"eps": 0.1, "steps": 2}
    loss, _ = objective("forward-noise", eta=0, base="pgd-at", options=inner).loss(small, x, y, Moment(3))
    alone, _ = objective("pgd-at", **inner).loss(small, x, y, Moment(3))
    assert float(loss.detach()) == pytest.approx(float(alone.detach()))


def attack_by_hand(model, x, zeta, steps, init_noise, seed):
    """Return R and the sum of signs S of the published attack, which does not project."""
    params = params_of(model, "weight")
    source = Moment(seed).generator(x, "weights")
    noise = {key: torch.randn(p.shape, generator=source, dtype=p.dtype) for key, p in params.items()}
    signs = {key: torch.zeros_like(p) for key, p in params.items()}
    clean = model(x).detach()
    for _ in range(steps):
        leaves = {
            key: (p + p.abs() * (init_noise * noise[key] + zeta / steps * signs[key])).requires_grad_()
            for key, p in params.items()
        }
        kl(clean, functional_call(model, leaves, (x,))).backward()
        signs = {key: signs[key] + leaf.grad.sign() for key, leaf in leaves.items()}
    model.zero_grad()
    return noise, signs


@pytest.mark.parametrize("steps", [1, 5])
def test_the_diagonal_jacobian(small, points, steps):
    x, y = points
    zeta, init_noise, beta = 0.2, 0.01, 0.7
    noise, signs = attack_by_hand(small, x, zeta, steps, init_noise, 4)
    params = params_of(small)
    share = {key: init_noise * noise[key] + zeta / steps * signs[key] for key in noise}
    twin = {key: p.clone().requires_grad_() for key, p in params.items()}
    star = {key: (params[key] + params[key].abs() * share[key]).requires_grad_() for key in share}
    # The biases of the perturbed branch are those of the model, and so have a gradient from there too.
    logits = functional_call(small, twin, (x,))
    biases = {key: tensor for key, tensor in twin.items() if key not in star}
    divergence = kl(logits, functional_call(small, star | biases, (x,)))
    value = F.cross_entropy(logits, y) + beta * divergence
    value.backward()
    expected = {key: tensor.grad for key, tensor in twin.items()}
    for key, leaf in star.items():
        expected[key] = expected[key] + (1 + params[key].sign() * share[key]) * leaf.grad
    options = {"beta": beta, "zeta": zeta, "steps": steps, "init_noise": init_noise, "project": False}
    loss, _ = objective("weight-kl", **options).loss(small, x, y, Moment(4))
    assert float(loss.detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    loss.backward()
    for key, parameter in small.named_parameters():
        assert (parameter.grad - expected[key]).abs().max() < 1e-10
    # The other Jacobian leaves the factor out.
    small.zero_grad()
    objective("weight-kl", jacobian="identity", **options).loss(small, x, y, Moment(4))[0].backward()
    for key, leaf in star.items():
        found = dict(small.named_parameters())[key].grad
        assert (found - (expected[key] - params[key].sign() * share[key] * leaf.grad)).abs().max() < 1e-10


def test_the_gradient_is_that_of_finite_differences(small, points):
    x, y = points
    zeta, init_noise, beta, steps = 0.2, 0.01, 0.7, 3
    noise, signs = attack_by_hand(small, x, zeta, steps, init_noise, 4)
    params = params_of(small)

    def value(params):
        star = {key: p + p.abs() * (init_noise * noise[key] + zeta / steps * signs[key]) if key in noise else p
                for key, p in params.items()}  # fmt: skip
        logits = functional_call(small, params, (x,))
        return float(F.cross_entropy(logits, y) + beta * kl(logits, functional_call(small, star, (x,))))

    options = {"beta": beta, "zeta": zeta, "steps": steps, "init_noise": init_noise, "project": False}
    objective("weight-kl", **options).loss(small, x, y, Moment(4))[0].backward()
    with torch.no_grad():
        for key, parameter in small.named_parameters():
            for index in (0, 2, -1):
                up, down = (dict(params) for _ in range(2))
                for side, sign in ((up, 1), (down, -1)):
                    side[key] = params[key].clone()
                    side[key].view(-1)[index] += sign * 1e-6
                slope = (value(up) - value(down)) / 2e-6
                assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, abs=1e-7)


def test_weights_of_zero_stay_and_have_a_finite_gradient(small, points):
    with torch.no_grad():
        small[0].weight[0] = 0.0
    weights, moved = {"w": small[0].weight}, {"w": small[0].weight.detach() * 1.1}
    for jacobian in ("diagonal", "identity"):
        found = attached(weights, moved, jacobian)["w"]
        torch.testing.assert_close(found.detach(), moved["w"])
    loss, _ = objective("weight-kl").loss(small, *points, Moment(0))
    loss.backward()
    assert torch.isfinite(small[0].weight.grad).all()


@pytest.mark.parametrize("project", [True, False])
def test_the_attack_stays_in_its_box_and_climbs(small, points, project):
    x, _ = points
    clean = small(x).detach()
    still = params_of(small, "weight")
    divergences = []
    for steps in (1, 10):
        regulariser = objective("weight-kl", zeta=0.1, steps=steps, project=project)
        moved = regulariser.climb(
            still,
            clean.log_softmax(1),
            lambda at: functional_call(small, dict(at), (x,)).log_softmax(1),
            generator(0),
        )
        for key, p in still.items():
            slack = 1e-6 if project else 0.06
            assert ((moved[key] - p).abs() <= 0.1 * p.abs() * (1 + slack)).all()
        divergences.append(float(kl(clean, functional_call(small, moved, (x,)).detach())))
    assert divergences[1] >= divergences[0] * 0.99 > 0


class Foreign(nn.Module):
    """A module of whose modes nothing is known."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_one_pass_fewer_where_layers_are_known_changes_nothing(small, points):
    results = []
    for model in (small, Foreign(copy.deepcopy(small))):
        calls = []
        model.register_forward_hook(lambda module, inputs, out, calls=calls: calls.append(len(out)))
        loss, _ = objective("weight-kl", steps=3).loss(model, *points, Moment(0))
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], len(calls)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for first, second in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(first, second)
    assert [count for _, _, count in results] == [3 + 2, 3 + 3]


def test_dropout_and_noise_do_not_count_as_divergence(batch):
    # In 32 bits rounding alone, times beta, is as large as what is looked for.
    x, y = batch[0].double(), batch[1]
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), GaussianHead(8, 3))
        .double()
        .train()
    )
    tiny = objective("weight-kl", beta=1, zeta=1e-6, init_noise=1e-7, steps=1)
    huge = objective("weight-kl", beta=1e6, zeta=1e-6, init_noise=1e-7, steps=1)
    values = [float(Trainee(copy.deepcopy(model), one)(x, y, Moment(0))[0].detach()) for one in (tiny, huge)]
    assert values[1] == pytest.approx(values[0], abs=1e-4)


def test_batch_norm_sees_one_pass_and_is_not_moved(net, batch):
    x, y = batch
    model = copy.deepcopy(net).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loss, _ = objective("weight-kl", steps=2).loss(model, x, y, Moment(0))
    loss.backward()
    once = copy.deepcopy(net).train()
    once(x)
    for (key, buffer), expected in zip(model.named_buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=key)
    assert all(torch.equal(parameter.detach(), before[key]) for key, parameter in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["forward-noise", "amp", "sam"])
def test_batch_norm_sees_the_moved_pass_alone(net, batch, name):
    model = copy.deepcopy(net).train()
    objective(name).loss(model, *batch, Moment(0))
    assert int(model[1].num_batches_tracked) == int(net[1].num_batches_tracked) + 1


def test_forward_noise_stays_out_of_the_divergence(small, points):
    x, y = points
    options = {"steps": 3, "beta": 0.5}
    quiet, _ = objective("weight-kl", **options).loss(small, x, y, Moment(1))
    loud, logits = objective("weight-kl", forward_noise=0.4, **options).loss(small, x, y, Moment(1))
    source = Moment(1).generator(x, "forward-noise")
    moved = {
        key: p + 0.4 * p.abs() * torch.randn(p.shape, generator=source, dtype=p.dtype)
        for key, p in params_of(small, "weight").items()
    }
    noisy = functional_call(small, moved, (x,))
    torch.testing.assert_close(logits, noisy)
    difference = F.cross_entropy(noisy, y) - F.cross_entropy(small(x), y)
    assert float((loud - quiet - difference).detach()) == pytest.approx(0, abs=1e-12)


def test_training_makes_a_network_harder_to_break_by_its_weights():
    import stalwart as sw

    x = torch.rand(200, 16, generator=generator(0))
    y = (x[:, :4].sum(1) > x[:, 4:8].sum(1)).long()
    harm = {}
    for name, options in (("natural", {}), ("weight-kl", {"beta": 1.0, "steps": 3, "zeta": 0.2})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        trainee, optimiser = Trainee(model, objective(name, **options)), torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(120):
            optimiser.zero_grad()
            trainee(x, y, Moment(step))[0].backward()
            optimiser.step()
        found = sw.attack("weight-pgd", loss="kl")(model, x, y, within=sw.RelativeBox(0.2))
        harm[name] = found.loss.after
    assert harm["weight-kl"] < 0.5 * harm["natural"]


def test_spiking_networks_train(batch):
    x, y = batch[0], batch[1]
    x = F.interpolate(x, (8, 8))
    for name in ("weight-kl", "forward-noise", "sam"):
        model = build_model("small-cnn", (1, 8, 8), 3, spiking=Spiking(steps=3), seed=2).train()
        loss, _ = Trainee(model, objective(name))(x, y, Moment(0))
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert max(float(p.grad.abs().max()) for p in model.parameters()) > 0


@pytest.mark.parametrize("name", ["weight-kl", "forward-noise", "sam", "awp"])
def test_activations_computed_anew_do_not_come_from_other_weights(batch, name):
    x, y = F.interpolate(batch[0], (8, 8)), batch[1]
    options = {"base": "natural", "gamma": 0.2} if name == "awp" else {}
    found = []
    for recompute in (False, True):
        model = build_model("small-cnn", (1, 8, 8), 3, spiking=Spiking(steps=3), seed=2).train()
        for network in spiking_networks(model):
            network.recompute = recompute
        objective(name, **options).loss(model, x, y, Moment(0))[0].backward()
        found.append([p.grad for p in model.parameters()])
        assert all(network.recompute is recompute for network in spiking_networks(model))
    assert all(torch.equal(kept, anew) for kept, anew in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weight-kl", {"beta": 0}, "beta"),
        ("weight-kl", {"zeta": 10}, "10 % as 0.1"),
        ("weight-kl", {"steps": 0}, "steps"),
        ("weight-kl", {"init_noise": 0}, "flat at w"),
        ("weight-kl", {"forward_noise": -0.1}, "forward_noise"),
        ("weight-kl", {"jacobian": "full"}, "jacobian"),
        ("forward-noise", {"eta": -1}, "eta"),
        ("amp", {"eps": 0}, "eps"),
        ("amp", {"steps": 0}, "steps"),
        ("sam", {"rho": 0}, "rho"),
        ("sam", {"floor": -1}, "floor"),
        ("sam", {"base": "weight-kl"}, "cannot stand inside another"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        objective(name, **options)


@pytest.mark.parametrize("name", ["weight-kl", "forward-noise", "amp", "sam"])
def test_patterns_that_match_nothing(small, points, name):
    with pytest.raises(UsageError, match="no parameter of Sequential matches 'head"):
        objective(name, only="head.*").loss(small, *points, Moment(0))


@pytest.mark.parametrize("forward_noise", [0.0, 0.2])
def test_networks_of_plain_layers_climb_in_a_copy_to_the_same_end(forward_noise, monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    x, y = torch.randn(6, 1, 6, 6, generator=generator(0, "x")), torch.arange(6) % 3
    copies = []

    def run(copier):
        monkeypatch.setattr("stalwart.objectives.weight_kl.lean_copy", copier)
        model.zero_grad()
        loss, _ = objective("weight-kl", steps=3, forward_noise=forward_noise).loss(model, x, y, Moment(2))
        loss.backward()
        return loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())

    expected = run(lambda net: net)
    found = run(lambda net: copies.append(lean_copy(net)) or copies[-1])
    assert copies
    assert copies[0][2].inplace
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(bool(gradient.any()) for gradient in found[1:])
    model[1].register_forward_hook(lambda *_: None)
    run(lambda net: pytest.fail("what a hook sees must be the model itself"))
