"""Attacks that look for the nearest adversarial point: it is known on linear models, with and without faces of the box."""

import pytest
import torch
from exact import BALLS, distances, linear, radii_around
from torch import nn
from traces import snapshot

import stalwart as sw
from stalwart.attacks.minimal import MinimalAttack
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator

QUICK = {
    "deepfool": {},
    "ddn": {"steps": 20},
    "fmn": {"steps": 20},
    "cw": {"steps": 20, "searches": 3},
    "hopskipjump": {"queries": 300},
    "sparsefool": {},
    "fab": {"steps": 10},
}
KNOWN = {
    "deepfool": (sw.Linf, sw.L2),
    "ddn": (sw.L2,),
    "fmn": (sw.Linf, sw.L2, sw.L1, sw.L0),
    "cw": (sw.L2,),
    "hopskipjump": (sw.Linf, sw.L2),
    "sparsefool": (sw.L1, sw.L0),
    "fab": (sw.Linf, sw.L2, sw.L1),
}
PAIRS = [(name, kind) for name, kinds in KNOWN.items() for kind in kinds]


STRONG = {
    "deepfool": {},
    "ddn": {"steps": 100},
    "fmn": {"steps": 120},
    "cw": {"steps": 450, "searches": 6, "start": 0.3},
    "hopskipjump": {"queries": 6000},
    "sparsefool": {},
    "fab": {"steps": 20},
    "fab-t": {"steps": 20, "targeted": True},
}
LINEAR = [
    *[("deepfool", norm, classes) for norm in ("linf", "l2") for classes in (2, 5)],
    *[(name, norm, classes) for name in ("fmn", "fab", "fab-t") for norm in BALLS for classes in (2, 5)],
    ("ddn", "l2", 2),
    ("ddn", "l2", 5),
    ("cw", "l2", 5),
    # Decisions alone do not tell which of several boundaries is nearest, nor does the nearest in l2 tell the nearest in l1.
    ("hopskipjump", "linf", 2),
    ("hopskipjump", "l2", 2),
    ("sparsefool", "l1", 2),
]


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(("name", "norm", "classes"), LINEAR)
def test_the_nearest_point_of_a_linear_model_is_found(name, norm, classes, boxed):
    model, x, y, box = linear(classes, boxed)
    exact, binds = distances(model, x, y, box, norm)
    assert binds.any() == boxed, "the box must bind for some samples, and only where it is meant to"
    radius = radii_around(exact)
    result = sw.attack(name.removesuffix("-t"), **STRONG[name])(model, x, y, within=BALLS[norm](radius, **box))
    reachable = exact.isfinite()
    assert torch.equal(result.distance.isfinite(), reachable)
    ratio = (result.distance / exact)[reachable]
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 1.02).all()
    # At a fixed radius it succeeds exactly where it must.
    assert torch.equal(result.success, reachable & (radius >= exact))
    assert 0 < result.success.sum() < len(x)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_multi_targeted_succeeds_exactly_where_it_must(norm, classes, boxed):
    model, x, y, box = linear(classes, boxed)
    exact, _ = distances(model, x, y, box, norm)
    result = sw.attack("multi-targeted", steps=120)(model, x, y, within=BALLS[norm](radii_around(exact), **box))
    assert torch.equal(result.success, exact.isfinite() & (radii_around(exact) >= exact))


def test_multi_targeted_aims_at_every_class_and_stops_when_broken(counting):
    model, x, y, box = linear(5, False)
    watched = counting(model)
    held = sw.attack("multi-targeted", steps=3)(watched, x, y, within=sw.Linf(1e-6, **box))
    assert held.cost.backwards.tolist() == [4 * 3] * len(x)
    assert sum(watched.backwards) == 4 * 3 * len(x)
    few = sw.attack("multi-targeted", steps=3, targets=2)(model, x, y, within=sw.Linf(1e-6, **box))
    assert few.cost.backwards.tolist() == [2 * 3] * len(x)
    broken = sw.attack("multi-targeted", steps=3)(model, x, y, within=sw.Linf(8.0, **box))
    assert broken.success.all()
    assert (broken.cost.backwards < 12).all()
    with pytest.raises(UsageError, match="targeted loss"):
        sw.attack("multi-targeted", loss="ce")


def test_sparse_attacks_change_as_few_pixels_as_a_linear_model_needs():
    model, x, y, box = linear(2, True)
    slope = (model.weight[1 - y] - model.weight[y]).detach()
    gap = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None])).detach()[:, 0]
    gains = (slope * (torch.where(slope > 0, 1.0, 0.0) - x)).sort(1, descending=True).values.cumsum(1)
    least = (gains < gap[:, None]).sum(1) + 1
    reachable = gains[:, -1] >= gap
    assert reachable.any()
    for name in ("fmn", "sparsefool"):
        result = sw.attack(name)(model, x, y, within=sw.L0(2, **box))
        assert torch.equal(result.distance[reachable], least[reachable].double()), name
        assert torch.equal(result.success, reachable & (least <= 2)), name
    evolved = sw.attack("few-pixel", generations=30, population=100)(model, x, y, within=sw.L0(2, **box))
    assert torch.equal(evolved.success, reachable & (least <= 2))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_results_are_in_the_set_and_the_distance_is_true(name, kind, digits):
    model, x, y = digits
    x, y = x[:12], y[:12].clone()
    y[3] = (y[3] + 1) % 4
    radius = torch.tensor([0, 1, 2, 3] * 3) if kind is sw.L0 else torch.linspace(0, 1.5, 12)
    within = kind(radius)
    attack = sw.attack(name, **QUICK[name])
    result = attack(model, x, y, within=within, seed=1)
    assert within.contains(x, result.x_adv).all()
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
    wrong = model(x).argmax(1) != y
    assert wrong[3]
    assert torch.equal(result.distance == 0, wrong)
    near = result.distance <= within.radius
    assert near.any()
    assert (~near).any()
    assert result.success[near].all()
    assert torch.allclose(within.distance(x, result.x_adv)[near], result.distance[near])
    far = attack(model, x, y, within=kind(64 if kind is sw.L0 else 64.0), seed=1)
    found = far.distance.isfinite()
    assert torch.allclose(far.distance[found], within.distance(x, far.x_adv)[found])
    if name != "hopskipjump":
        assert torch.equal(far.distance, result.distance), "the search must not depend on the radius"
    again = attack(model, x, y, within=within, seed=1)
    assert torch.equal(again.x_adv, result.x_adv)
    assert torch.equal(again.distance, result.distance)


@pytest.mark.parametrize("name", [*QUICK, "multi-targeted", "few-pixel"])
def test_the_model_is_left_alone(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
    )
    model.train()
    model[3].eval()
    before = snapshot(model)
    x, y = torch.rand(3, 1, 8, 8, generator=generator(0)), torch.tensor([0, 1, 0])
    options = {"multi-targeted": {"steps": 2}, "few-pixel": {"generations": 1, "population": 8}} | QUICK
    kind = KNOWN.get(name, (sw.L0,) if name == "few-pixel" else (sw.Linf,))[0]
    random = torch.get_rng_state()
    result = sw.attack(name, **options[name])(model, x, y, within=kind(1))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert (result.distance is None) == (name in ("multi-targeted", "few-pixel"))


@pytest.mark.parametrize("name", [*QUICK, "few-pixel"])
def test_sets_in_other_norms_are_refused(name, digits):
    model, x, y = digits
    kinds = KNOWN.get(name, (sw.L0,))
    attack = sw.attack(name)
    sets = [kind(1) for kind in (sw.Linf, sw.L2, sw.L1, sw.L0)] + [sw.Box(x[:2], x[:2])]
    refused = [within for within in sets if not isinstance(within, kinds)]
    assert len(refused) == 5 - len(kinds)
    for within in refused:
        assert not attack.fits(model, within)
        with pytest.raises(InputError, match="not in"):
            attack(model, x[:2], y[:2], within=within)
    assert all(attack.fits(model, within) for within in sets if isinstance(within, kinds))


def test_misclassified_samples_cost_next_to_nothing(digits):
    model, x, _ = digits
    wrong = (model(x[:8]).argmax(1) + 1) % 4
    mixed = torch.where(torch.arange(8) < 4, wrong, model(x[:8]).argmax(1))
    for name, (kind, *_) in KNOWN.items():
        result = sw.attack(name, **QUICK[name])(model, x[:8], mixed, within=kind(1))
        assert torch.equal(result.distance[:4], torch.zeros(4, dtype=torch.float64)), name
        assert torch.equal(result.x_adv[:4], x[:4]), name
        # The probes of the first two samples, a look at each input, and two judgements.
        assert (result.cost.forwards[:4] <= 3 + 4).all(), name
        assert (result.cost.backwards[:4] == 0).all(), name


def test_hopskipjump_sees_decisions_only(counting):
    model, x, y, box = linear(2, True)

    class Signs(nn.Module):
        def forward(self, x):
            z = model(x)
            return nn.functional.one_hot(z.argmax(1), 2).double()

    within = sw.L2(1.0, **box)
    watched = counting(Signs())
    result = sw.attack("hopskipjump", queries=500)(watched, x, y, within=within)
    assert torch.equal(result.distance, sw.attack("hopskipjump", queries=500)(model, x, y, within=within).distance)
    assert (result.cost.backwards == 0).all()
    assert watched.backwards == []
    probes = 4  # passes on few samples, whose rows are counted for these alone
    assert abs(int(result.cost.forwards.sum()) - sum(watched.forwards)) <= probes


def test_few_pixels_respect_one_radius_a_sample_and_all_shapes(digits):
    model, x, y = digits
    attack = sw.attack("few-pixel", generations=3, population=20)
    pixels = torch.tensor([0, 1, 2, 5])
    result = attack(model, x[:4], y[:4], within=sw.L0(pixels), seed=3)
    assert sw.L0(pixels).contains(x[:4], result.x_adv).all()
    assert torch.equal(result.x_adv[0], x[0])
    assert torch.equal(attack(model, x[:4], y[:4], within=sw.L0(pixels), seed=3).x_adv, result.x_adv)
    torch.manual_seed(0)
    for shape in [(7,), (3, 4), (3, 4, 5)]:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), 3))
        z = torch.rand(2, *shape, generator=generator(0))
        found = attack(flat, z, torch.tensor([0, 1]), within=sw.L0(2))
        assert sw.L0(2).contains(z, found.x_adv).all()
        assert (found.cost.forwards > 0).all()


def test_a_model_without_gradient_is_refused_by_all_but_decision_attacks():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(x).detach()

    torch.manual_seed(0)
    model, x = Detached(), torch.rand(3, 4, generator=generator(0))
    y = model(x).argmax(1)
    for name, (kind, *_) in KNOWN.items():
        if name == "hopskipjump":
            assert (sw.attack(name, queries=200)(model, x, y, within=kind(0.1)).cost.forwards > 50).all()
        else:
            with pytest.raises(InputError, match="no gradient"):
                sw.attack(name)(model, x, y, within=kind(1))


def test_distances_of_a_randomised_model_are_those_of_its_mean():
    class Noisy(nn.Module):
        def forward(self, x):
            return model(x) + 0.05 * torch.randn(len(x), 2, dtype=x.dtype)

    model, x, y, box = linear(2, False)
    exact, _ = distances(model, x, y, box, "l2")
    clear = exact > 0.4
    result = sw.attack("fmn", steps=30, eot=10)(Noisy(), x[clear], y[clear], within=sw.L2(5.0, **box), seed=2)
    assert clear.sum() >= 5
    assert result.distance.isfinite().all(), "points on the blurred boundary go out until fresh draws agree"
    ratio = result.distance / exact[clear]
    assert (ratio > 0.8).all()
    assert (ratio < 2.2).all()
    assert ratio.median() < 1.3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deepfool", {"steps": 0}, "steps"),
        ("deepfool", {"overshoot": -0.1}, "overshoot"),
        ("ddn", {"gamma": 1.0}, "gamma"),
        ("ddn", {"start": 0}, "start"),
        ("fmn", {"step": 0}, "step"),
        ("fmn", {"polish": -1}, "polish"),
        ("cw", {"rate": 0}, "rate"),
        ("hopskipjump", {"directions": 1}, "directions"),
        ("sparsefool", {"control": 0}, "control"),
        ("few-pixel", {"population": 4}, "population"),
        ("multi-targeted", {"targets": 0}, "targets"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        sw.attack(name, **options)


def test_a_box_has_no_distance():
    x = torch.zeros(1, 3)
    with pytest.raises(UsageError, match="no distances"):
        sw.Box(x, x + 1).distance(x, x)


def test_all_minimal_attacks_are_in_these_tests():
    from stalwart.attacks.table import ATTACKS
    from stalwart.core.registry import lookup

    minimal = {name: lookup("attack", ATTACKS, name) for name in ATTACKS}
    kinds = {name: set(found.kinds) for name, found in minimal.items() if issubclass(found, MinimalAttack)}
    assert kinds == {name: set(found) for name, found in KNOWN.items()}
    pairs = {(name, kind.name) for name, found in kinds.items() for kind in found if kind is not sw.L0}
    assert pairs == {(name.removesuffix("-t"), norm) for name, norm, _ in LINEAR}
