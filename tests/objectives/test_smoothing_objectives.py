"""Objectives for randomised smoothing against slow twins: one noisy copy, one sample, one step at a time."""

import copy
import math
from statistics import NormalDist

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.random import generator, shard
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.objectives.smoothed import noisy_logits

SETTINGS = [
    ("smooth-gaussian", {"draws": 2}),
    ("smooth-adv", {"draws": 2, "eps": 0.5, "steps": 2}),
    ("macer", {"draws": 3, "beta": 2.0}),
    ("smooth-mix", {"draws": 2, "steps": 2, "step": 0.5}),
    ("smooth-mix", {"draws": 2, "steps": 2, "step": 0.5, "one_step": True}),
]
SIGMA, K = 0.25, 3


def make(name, **options):
    return build("objective", OBJECTIVES, name, options)


class Centred(nn.Module):
    def forward(self, x):
        return x - 0.5


@pytest.fixture
def steady():
    """Return a net in float64 without batch norm and dropout, which treat copies one by one differently."""
    torch.manual_seed(1)
    model = nn.Sequential(Centred(), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, K))
    with torch.no_grad():
        model[4].weight.mul_(4)  # decisions that differ from sample to sample
    return model.double().train()


@pytest.fixture
def pair(batch):
    return batch[0].double(), batch[1]


def noises(x, draws, seed):
    """Return the noise of each copy, as the moment of this seed fixes it."""
    return SIGMA * torch.randn(draws, *x.shape, generator=generator(seed, "smoothing"), dtype=x.dtype)


def mean_softmax(net, x, noise, scale=1.0):
    """Return (1/m) sum_k softmax(scale * f(x + n_k)) for one input x [...] and noise [m, ...]."""
    return sum((scale * net((x + n)[None])[0]).softmax(0) for n in noise) / len(noise)


def twin_attack(net, x, y, noise, eps, steps, step):
    """Return every iterate of normalised-gradient ascent on -log of the mean softmax, for one input."""
    z, path = x.clone(), [x.clone()]
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(-mean_softmax(net, z, noise)[y].log(), z)
        z = z.detach() + step * g / g.norm()
        if eps is not None and (z - x).norm() > eps:
            z = x + (z - x) * eps / (z - x).norm()
        z = z.clamp(0, 1)
        path.append(z)
    return path


def twin(name, net, x, y, seed=0, epoch=100, **o):
    """Return the loss by the papers' formulas, one sample and one copy at a time."""
    noise = noises(x, o["draws"], seed)
    total = 0.0
    mixing = torch.rand(len(x), generator=generator(seed, "mix"), dtype=x.dtype)
    for i, (xi, yi) in enumerate(zip(x, y.tolist(), strict=True)):
        own = noise[:, i]
        if name == "smooth-adv":
            eps = o["eps"] * min(1.0, (epoch + 1) / o.get("warmup", 10))
            xi = twin_attack(net, xi, yi, own, eps, o["steps"], 2 * eps / o["steps"])[-1]
        if name == "smooth-mix":
            warm = min(1.0, (epoch + 1) / o.get("warmup", 10))
            path = twin_attack(net, xi, yi, own, None, o["steps"], o["step"])
            far = path[-1]
            if o.get("one_step"):
                move = path[1] - xi
                xi = xi + move * min(1.0, warm * o["step"] / float(move.norm()))
        p = mean_softmax(net, xi, own)
        if name == "macer":
            total = total - p[yi].log()
            soft = mean_softmax(net, xi, own, o["beta"])
            second, first = soft.detach().sort().values[-2:].tolist()
            gap = NormalDist().inv_cdf(first) - NormalDist().inv_cdf(second)
            if int(soft.argmax()) == yi and gap <= o.get("gamma", 8.0) and epoch >= o.get("delay", 0):
                total = total + o.get("weight", 12.0) * SIGMA / 2 * (o.get("gamma", 8.0) - gap)
            continue
        total = total + sum(F.cross_entropy(net((xi + n)[None]), torch.tensor([yi])) for n in own) / len(own)
        if name == "smooth-mix" and int(p.argmax()) == yi:
            t = (1 - float(mixing[i])) / 2
            target = (1 - t) * p + t / K
            middle = (1 - t) * xi + t * far
            for n in own:
                q = net((middle + n)[None])[0].softmax(0)
                total = total + o.get("eta", 5.0) * warm * (target * (target / q).log()).sum() / len(own)
    return total / len(x)


@pytest.mark.parametrize("epoch", [0, 100])
@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_the_loss_is_that_of_the_slow_twin(steady, pair, name, options, epoch):
    x, y = pair
    loss, logits = make(name, sigma=SIGMA, **options).loss(steady, x, y, Moment(3, epoch))
    expected = twin(name, steady, x, y, 3, epoch, **options)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(logits.exp().sum(1), torch.ones(len(x), dtype=x.dtype))
    if name in ("smooth-gaussian", "macer"):
        noise = noises(x, options["draws"], 3)
        p = torch.stack([mean_softmax(steady, one, noise[:, i]) for i, one in enumerate(x)])
        assert torch.allclose(logits.exp(), p), "accuracy is counted on the mean softmax of the copies"


@pytest.mark.parametrize(("name", "options"), [one for one in SETTINGS if one[0] != "macer"])
def test_the_gradient_is_that_of_the_slow_twin(steady, pair, name, options):
    x, y = pair
    weights = list(steady.parameters())
    loss, _ = make(name, sigma=SIGMA, **options).loss(steady, x, y, Moment(3, 100))
    found = torch.autograd.grad(loss, weights)
    expected = torch.autograd.grad(twin(name, steady, x, y, 3, **options), weights)
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-8)


def test_the_settings_exercise_every_term(steady, pair):
    x, y = pair
    noise = noises(x, 2, 3)
    right = [int(mean_softmax(steady, one, noise[:, i]).argmax()) == int(y[i]) for i, one in enumerate(x)]
    assert any(right)
    assert not all(right)
    macer = make("macer", sigma=SIGMA, draws=3, beta=2.0)
    assert float(macer.hinge(noisy_logits(steady, x, noises(x, 3, 3)), y).detach()) > 0


def test_the_attack_is_where_it_should_be(steady, pair):
    x, y = pair
    objective = make("smooth-adv", sigma=SIGMA, draws=2, eps=0.8, steps=3, warmup=4)
    for epoch, eps in ((0, 0.2), (1, 0.4), (3, 0.8), (9, 0.8)):
        copies = objective.craft(steady, x, y, Moment(3, epoch)).unflatten(0, (2, len(x)))
        noise = noises(x, 2, 3)
        x_adv = (copies - noise)[0]
        assert torch.allclose(x_adv, (copies - noise)[1], atol=1e-12), "all copies share one attacked input"
        assert (x_adv - x).flatten(1).norm(dim=1).max() <= eps + 1e-9
        assert (x_adv - x).flatten(1).norm(dim=1).max() >= 0.5 * eps
        assert x_adv.min() >= -1e-12
        assert x_adv.max() <= 1 + 1e-12
        for i in range(len(x)):
            path = twin_attack(steady, x[i], int(y[i]), noise[:, i], eps, 3, 2 * eps / 3)
            assert torch.allclose(x_adv[i], path[-1], atol=1e-9)


def test_warmups(steady, pair):
    assert [make("smooth-adv", eps=1.0, warmup=4).radius(e) for e in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]
    assert make("smooth-adv", eps=1.0, warmup=0).radius(0) == 1.0
    assert [make("smooth-mix", warmup=10).warm(e) for e in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert make("smooth-mix", warmup=0).warm(0) == 1.0
    x, y = pair
    plain = make("macer", sigma=SIGMA, draws=3, beta=2.0, weight=0.0)
    late = make("macer", sigma=SIGMA, draws=3, beta=2.0, delay=2)
    early, before, after = (one.loss(steady, x, y, Moment(3, e))[0] for one, e in ((plain, 0), (late, 1), (late, 2)))
    assert torch.equal(early, before)
    assert after > before


def test_only_right_and_near_samples_are_pushed():
    objective = make("macer", draws=2, beta=1.0, gamma=2.0)
    rows = [
        [0.4, 0.0, -1.0],  # right, gap below gamma
        [0.4, 0.0, -1.0],  # wrong
        [9.0, 0.0, 0.0],  # right, gap beyond gamma
        [800.0, 0.0, 0.0],  # so sure that the second probability is 0
    ]
    logits = torch.tensor([rows, rows], dtype=torch.float64, requires_grad=True)
    hinge = objective.hinge(logits, torch.tensor([0, 1, 0, 0]))
    (slope,) = torch.autograd.grad(hinge, logits)
    p = torch.tensor(rows[0], dtype=torch.float64).softmax(0).tolist()
    gap = NormalDist().inv_cdf(p[0]) - NormalDist().inv_cdf(p[1])
    assert float(hinge.detach()) == pytest.approx((2.0 - gap) / 4)
    assert (slope[:, 0, 0] < 0).all(), "descent raises the logit of the label"
    assert (slope[:, 0, 1] > 0).all()
    assert not slope[:, 1:].any()


def test_the_slope_of_the_radius():
    objective = make("macer", draws=3, beta=1.5, gamma=8.0)
    y = torch.tensor([0, 1, 2, 2])
    logits = torch.randn(3, 4, 3, generator=generator(1), dtype=torch.float64) + 2 * F.one_hot(y, 3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective.hinge(z, y), logits)
    assert objective.hinge(logits, (y + 1) % 3).item() == 0.0


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_sure_and_dead_networks_give_finite_gradients(batch, name, options):
    x, y = batch
    for scale in (1e4, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, K))
        with torch.no_grad():
            model[1].weight.mul_(scale)
        loss, _ = make(name, **options).loss(model, x, y, Moment(0, 100))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_the_moment_fixes_everything_and_nothing_is_disturbed(net, batch, name, options):
    x, y = batch
    kept, found = x.clone(), []
    for world, seed in ((1, 0), (2, 0), (3, 1)):
        model = copy.deepcopy(net).train()
        model[1].eval()
        torch.manual_seed(world)
        state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
        loss, correct = Trainee(model, make(name, **options))(x, y, Moment(seed, 3))
        loss.backward()
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in model.modules()] == modes
        assert 0 <= int(correct) <= len(x)
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model[5].parameters())
        found.append(loss.detach())
    assert torch.equal(x, kept)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["smooth-adv", "smooth-mix"])
def test_the_inner_attack_runs_in_evaluation_mode(net, batch, name):
    net.train()
    seen = []
    net.register_forward_hook(lambda *_: seen.append(any(m.training for m in net.modules())))
    make(name, draws=2, steps=3).loss(net, *batch, Moment(0))
    assert seen == [False] * 3 + [True] * (1 if name == "smooth-adv" else 2)


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_two_ranks_average_to_one_process(steady, pair, name, options):
    x, y = pair
    objective, weights = make(name, **options), list(steady.parameters())

    def gradients(rows):
        return torch.autograd.grad(objective.loss(steady, x[rows], y[rows], Moment(0, 100))[0], weights)

    whole, parts = gradients(slice(None)), []
    for rank in range(2):
        with shard(rank, 2):
            parts.append(gradients(slice(4 * rank, 4 * rank + 4)))
    for one, left, right in zip(whole, *parts, strict=True):
        assert torch.allclose(one, (left + right) / 2, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_a_few_steps_lower_the_loss(name, options):
    x = torch.rand(24, 1, 6, 6, generator=generator(0))
    x[:12, :, :3] *= 0.2
    x[12:, :, 3:] *= 0.2
    y = (torch.arange(24) >= 12).long()
    torch.manual_seed(0)
    trainee = Trainee(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), make(name, **options))
    optimiser = torch.optim.Adam(trainee.parameters(), lr=0.02)
    losses = []
    for k in range(30):
        optimiser.zero_grad()
        loss, correct = trainee(x, y, Moment(k, 20))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert int(correct) >= 20


def test_which_of_them_can_be_wrapped(net, batch):
    for name, options in (("smooth-gaussian", {}), ("smooth-adv", {"draws": 2, "steps": 2})):
        loss, _ = make("awp", base=name, options=options).loss(net, *batch, Moment(0))
        assert loss.isfinite()
    for name in ("macer", "smooth-mix"):
        with pytest.raises(UsageError, match="cannot stand inside another one"):
            make("awp", base=name)


@pytest.mark.parametrize("name", ["smooth-gaussian", "smooth-adv", "macer", "smooth-mix"])
@pytest.mark.parametrize(("option", "value"), [("sigma", 0), ("sigma", -1), ("draws", 0)])
def test_shared_options_are_checked(name, option, value):
    with pytest.raises(UsageError, match=option):
        make(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("smooth-adv", "eps", 0),
        ("smooth-adv", "steps", 0),
        ("smooth-adv", "warmup", -1),
        ("macer", "weight", -1),
        ("macer", "gamma", 0),
        ("macer", "beta", 0),
        ("macer", "delay", -1),
        ("smooth-mix", "eta", -1),
        ("smooth-mix", "steps", 0),
        ("smooth-mix", "step", 0),
        ("smooth-mix", "warmup", -1),
    ],
)
def test_own_options_are_checked(name, option, value):
    with pytest.raises(UsageError, match=option):
        make(name, **{option: value})


def test_the_one_step_variant_needs_a_second_step():
    with pytest.raises(UsageError, match="steps must be at least 2"):
        make("smooth-mix", steps=1, one_step=True)


def test_the_papers_defaults():
    macer, mix = make("macer"), make("smooth-mix")
    assert (macer.draws, macer.beta, macer.gamma, macer.weight) == (16, 16, 8, 12)
    assert (mix.draws, mix.eta, mix.step, mix.warmup) == (4, 5, 1, 10)
    assert make("smooth-gaussian").draws == 1
    assert math.isclose(make("smooth-adv", eps="255/256").eps, 255 / 256)
