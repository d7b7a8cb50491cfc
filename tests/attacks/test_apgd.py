"""Auto-PGD: its checkpoints, its iterates against a slow twin, linear models solved exactly, results inside the set."""

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.apgd import checkpoints, climb
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import derive, generator

RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
WIDE = {"low": -100.0, "high": 100.0}


class Recording(nn.Module):
    """Keeps the inputs whose gradient is wanted."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.inner(x)


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(1) == [1] * 8


def twin(model, x, y, start, eps, steps, norm, loss):
    """Return the iterates x_0 ... x_{steps-1} of algorithm 1 on one input [1, ...], and by step which conditions halved η."""

    def value_and_gradient(z):
        z = z.clone().requires_grad_()
        f = loss(model(z), y)
        (gradient,) = torch.autograd.grad(f, z)
        return f.item(), gradient

    def project(z):
        d = z - x
        d = d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / max(float(d.norm()), 1e-30))
        return (x + d).clamp(0, 1)

    def ahead(z, gradient, eta):
        return project(z + eta * (gradient.sign() if norm == "linf" else gradient / gradient.norm()))

    eta, marks, before = 2 * eps, [0, *checkpoints(steps)], start
    iterates, values, etas, records, fired = [start], [], {}, {}, {}
    f_max, x_max, g_max = -float("inf"), None, None
    for k in range(steps):
        f, gradient = value_and_gradient(iterates[k])
        values.append(f)
        if f > f_max:
            f_max, x_max, g_max = f, iterates[k], gradient
        here = iterates[k]
        if k in marks:
            records[k], etas[k] = f_max, eta
        if k in marks[1:]:
            last = marks[marks.index(k) - 1]
            # A restart replaced values[last] by the loss at the point it restarted from.
            rises = sum(values[i + 1] > values[i] for i in range(last, k))
            one = rises < 0.75 * (k - last)
            two = etas[last] == eta and records[k] == records[last]
            if one or two:
                eta, here, gradient, values[k] = eta / 2, x_max, g_max, f_max
                fired[k] = one, two
        if k == 0:
            iterates.append(ahead(here, gradient, eta))
        else:
            step = 0.75 * (ahead(here, gradient, eta) - here) + 0.25 * (here - before)
            iterates.append(project(here + step))
        before = here
    return iterates[:steps], fired


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_the_slow_twin_takes_the_same_steps(digits, norm, loss):
    model, x, y = digits
    model, x, y, steps = copy.deepcopy(model).double(), x[:6].double(), y[:6], 100
    eps = 0.05 if norm == "linf" else 0.3
    within = (sw.Linf if norm == "linf" else sw.L2)(torch.linspace(0.5, 1.5, 6) * eps)
    start = within.sample(x, generator(3))
    recorder = Recording(model)
    oracle = Oracle(recorder, x, is_target=False)  # nothing leaves the batch
    goal = Goal(loss, y)
    z, broken = climb(oracle, goal, x, start, within, steps, torch.arange(6))
    assert len(recorder.seen) == steps
    assert not broken.any()
    for i in range(6):
        own = slice(i, i + 1)
        by_hand, fired = twin(
            model, x[own], y[own], start[own], float(within.radius[i]), steps, norm, lambda z, y: Goal(loss, y)(z).sum()
        )
        assert any(one for one, _ in fired.values())
        for k in range(steps):
            assert torch.allclose(recorder.seen[k][own], by_hand[k], atol=1e-8), (i, k)
    values = torch.stack([goal(model(one)) for one in recorder.seen])
    assert (goal(model(z)) >= values.amax(0) - 1e-9).all()


class Scripted(nn.Module):
    """The margin loss is what a script says of the k-th gradient, whatever the input; its slope alternates."""

    script = (*range(23), *range(-1000, -981), 0, *range(1, 12), *range(0, -60, -1))

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        k = self.calls
        self.calls += x.requires_grad
        loss = self.script[k] + (-1) ** k * 1e-3 * x.sum(1)
        return torch.stack([torch.zeros_like(loss), loss], 1)


def test_either_condition_alone_halves_the_step():
    x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    start, within = x + 0.03, sw.Linf(0.1)
    recorder = Recording(Scripted())
    oracle = Oracle(recorder, x, is_target=False)
    climb(oracle, Goal("margin", y), x, start, within, 100, torch.arange(1))
    by_hand, fired = twin(Scripted(), x, y, start, 0.1, 100, "linf", lambda z, y: Goal("margin", y)(z).sum())
    # Up to step 41 the loss rises 18 times of 19, far below its record: condition 2 alone. Then it rises 11 times of 16;
    # a 12th would be the rise from the point before the restart, and too many for condition 1.
    assert 22 not in fired
    assert fired[41] == (False, True)
    assert fired[57] == (True, False)
    assert torch.allclose(torch.stack(recorder.seen), torch.stack(by_hand), atol=1e-12)


def test_the_start_is_the_seeds(digits):
    model, x, y = digits
    within = sw.Linf(torch.linspace(0.01, 0.2, 60))
    recorder = Recording(model)
    sw.attack("apgd", steps=1)(recorder, x, y, within=within, seed=11)
    assert torch.equal(recorder.seen[0], within.sample(x, generator(derive(11, "chunk", 0), "start", 0)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "scaled-ce", "targeted-ce", "targeted-margin", "targeted-dlr"])
@pytest.mark.parametrize("ball", [(sw.Linf, 1), (sw.L2, 2)])
def test_binary_linear_models_are_broken_exactly_where_the_closed_form_says(linear_case, seed, loss, ball):
    model, x, y, worst = linear_case(2, seed)
    kind, dual = ball
    result = sw.attack("apgd", loss=loss, steps=40)(model, x, y, within=kind(RADII, **WIDE))
    least = worst(RADII, dual)
    assert torch.equal(result.success, least <= 0)
    held = ~result.success
    assert 0 < held.sum() < len(x), "both outcomes must occur for this test to mean anything"
    assert torch.allclose(result.margin[held], least[held], atol=1e-5)


@pytest.mark.parametrize("loss", ["targeted-margin", "targeted-dlr"])
@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("ball", [(sw.Linf, 1), (sw.L2, 2)])
def test_all_targets_find_the_exact_answer_for_many_classes(linear_case, loss, classes, ball):
    kind, dual = ball
    for seed in range(3):
        model, x, y, worst = linear_case(classes, seed)
        result = sw.attack("apgd", loss=loss, steps=60)(model, x, y, within=kind(RADII, **WIDE))
        least = worst(RADII, dual)
        assert torch.equal(result.success, least <= 0)
        held = ~result.success
        assert (result.margin >= least - 1e-9).all()
        if loss == "targeted-margin":  # the worst point by the ratio is another than by the margin
            assert torch.allclose(result.margin[held], least[held], atol=1e-5)


def test_one_run_a_target_on_those_who_are_left(digits):
    model, x, y = digits
    within = sw.Linf(torch.linspace(0, 0.3, 60))
    for targets, restarts, runs in ((1, 1, 1), (2, 1, 2), (9, 1, 3), (2, 2, 4)):
        attack = sw.attack("apgd", loss="targeted-dlr", steps=4, targets=targets, restarts=restarts)
        result = attack(model, x, y, within=within)
        held = ~result.success
        assert held.any()
        assert (result.cost.backwards[held] == 4 * runs).all()
        assert (result.cost.backwards[result.success] <= 4 * runs).all()
    assert result.cost.backwards[result.success].double().mean() < 8


def test_it_is_at_least_as_strong_as_pgd(digits):
    model, x, y = digits
    within = sw.Linf(0.06)
    apgd, pgd = (sw.attack(name, steps=50)(model, x, y, within=within) for name in ("apgd", "pgd"))
    assert apgd.success.sum() >= pgd.success.sum() > 0
    held = ~(apgd.success | pgd.success)
    reached = [F.cross_entropy(model(found.x_adv[held]), y[held], reduction="none") for found in (apgd, pgd)]
    assert reached[0].mean() > reached[1].mean()
    assert (reached[0] >= reached[1] - 0.01).all()


def test_more_restarts_are_never_worse(digits):
    model, x, y = digits
    within = sw.Linf(0.06)
    one, three = (sw.attack("apgd", steps=3, restarts=r)(model, x, y, within=within) for r in (1, 3))
    assert not (one.success & ~three.success).any()
    held = ~three.success
    assert (three.margin[held] <= one.margin[held] + 1e-6).all()
    assert (three.margin[held] < one.margin[held] - 1e-6).any()


@pytest.mark.parametrize("eot", [1, 10])
def test_nothing_leaves_a_randomised_model_and_few_draws_choose_no_iterate(noisy, eot):
    model, x, y = noisy
    recorder = Recording(model)
    recorder.cheap_draws, recorder.draw = False, None
    result = sw.attack("apgd", steps=6, eot=eot)(recorder, x, y, within=sw.Linf(0.3))
    assert (result.cost.backwards == 6 * eot).all()
    looked = [bool(torch.equal(result.x_adv, one)) for one in recorder.seen]
    assert not any(looked) or eot == 10
    # With 10 draws the last iterate is looked at too, without a gradient.
    assert int(result.cost.forwards[5]) == 6 * eot + (10 if eot == 10 else 0) + 20


@st.composite
def settings(draw):
    shape = draw(st.sampled_from([(5,), (2, 3), (1, 4, 4), (3, 5, 2)]))
    batch = draw(st.integers(1, 5))
    eps = [draw(st.sampled_from([0.0, 1e-5, 0.03, 0.3, 5.0])) for _ in range(batch)]
    low, high = draw(st.sampled_from([(0.0, 1.0), (-2.0, 3.0), (0.0, 255.0)]))
    within = draw(st.sampled_from([sw.Linf, sw.L2]))(eps, low=low, high=high)
    loss = draw(st.sampled_from(["ce", "dlr", "margin", "targeted-dlr", "targeted-margin"]))
    return (
        shape,
        within,
        {"loss": loss, "restarts": draw(st.integers(1, 2)), "steps": draw(st.sampled_from([1, 2, 5, 12]))},
    )


@hypothesis.settings(max_examples=60)
@hypothesis.given(settings(), st.integers(0, 99), st.integers(2, 5), st.integers(1, 5))
def test_results_are_in_the_set(case, seed, classes, batch_size):
    shape, within, options = case
    torch.manual_seed(0)
    width, batch = int(torch.tensor(shape).prod()), len(within.radius)
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, classes))
    x = within.low + (within.high - within.low) * torch.rand(batch, *shape, generator=generator(seed))
    y = torch.arange(batch) % classes
    result = sw.attack("apgd", **options)(model, x, y, within=within, seed=seed, batch_size=batch_size)
    change = (result.x_adv.double() - x.double()).flatten(1)
    size = change.abs().amax(1) if isinstance(within, sw.Linf) else change.norm(dim=1)
    scale = max(abs(within.low), abs(within.high))
    assert (size <= within.radius + 1e-6 * scale).all()
    assert ((result.x_adv >= within.low) & (result.x_adv <= within.high)).all()
    assert torch.equal(result.success, result.margin <= 0)


def test_it_is_a_source_of_transfers(digits):
    model, x, y = digits
    result = sw.attack("transfer", source=model, attack="apgd", options={"steps": 10})(
        model, x, y, within=sw.Linf(0.08)
    )
    assert (result.cost.backwards == 10).all(), "nothing stops behind the source's border"
    ce = F.cross_entropy(model(result.x_adv), y, reduction="none")
    assert (ce > F.cross_entropy(model(x), y, reduction="none")).all()


@pytest.mark.parametrize("within", [sw.L0(1), sw.L0(2)])
def test_other_sets_are_refused(digits, within):
    model, x, y = digits
    with pytest.raises(InputError, match="linf, l2 and l1 balls, not in .*use pgd"):
        sw.attack("apgd")(model, x, y, within=within)
    assert not sw.attack("apgd").fits(model, within)
    assert sw.attack("apgd").fits(model, sw.L2(0.1))


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"targets": 0}, {"loss": "hinge"}, {"step": 0.1}])
def test_bad_options(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        sw.attack("apgd", **options)
