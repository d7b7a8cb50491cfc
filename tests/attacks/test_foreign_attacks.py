"""Attacks of other libraries under our checks, and ours in code written for them; with fakes and with the real ones."""

import importlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from traces import snapshot

import stalwart as sw
from stalwart.attacks.foreign import _global_seed
from stalwart.core.errors import InputError, UsageError
from stalwart.evaluation.suites import Entry


def peer(name):
    """Import a library that is no dependency, or skip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed; pip install stalwart[peers]")


class FakePGD:
    """One signed step, called as torchattacks' attacks are."""

    def __init__(self, model, eps):
        self.model, self.eps = model, eps

    def __call__(self, inputs, labels):
        z = inputs.requires_grad_()
        loss = nn.functional.cross_entropy(self.model(z), labels)
        (gradient,) = torch.autograd.grad(loss, z)
        return (z + self.eps * gradient.sign()).clamp(0, 1).detach()


class FakeModel:
    """What foolbox calls a model: a function with bounds."""

    def __init__(self, model, bounds=(0, 1)):
        self._model, self.bounds = model, bounds

    def __call__(self, x):
        return self._model(x)


class FakeTensor:
    """A tensor in a wrapper, as eagerpy has it."""

    def __init__(self, raw):
        self.raw = raw


def fake(model, within):
    return FakePGD(model, within.size)


def test_a_foreign_attack_is_judged_by_us(digits):
    model, x, y = digits
    before = snapshot(model)
    mine = sw.attack("fgsm")(model, x, y, within=sw.Linf(0.1))
    theirs = sw.attack("foreign", attack=fake)(model, x, y, within=sw.Linf(0.1))
    assert torch.allclose(theirs.x_adv, mine.x_adv, atol=1e-6)
    assert torch.equal(theirs.success, model(theirs.x_adv).argmax(1) != y)
    assert theirs.success.any()
    assert snapshot(model) == before
    # One pass each way by the attack, the probes and one judgement by us.
    assert (theirs.cost.backwards == 1).all()
    assert (theirs.cost.forwards[5:] == 2).all()
    held = FakePGD(model, 0.1)
    assert torch.equal(sw.attack("foreign", attack=held)(model, x, y, within=sw.Linf(0.1)).x_adv, theirs.x_adv)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda model, within: FakePGD(model, 0.2), r"left Linf eps=0.1 in \d+ of 60 samples.*same norm"),
        (lambda model, within: lambda x, y: x * float("nan"), "left Linf eps=0.1 in 60 of 60"),
        (lambda model, within: lambda x, y: x[:3], r"shape \[60, 1, 8, 8\], but it returned \[3, 1, 8, 8\]"),
        (lambda model, within: lambda x, y: None, "it returned NoneType"),
        (FakePGD(nn.Flatten(), 0.1), "holds another model"),
    ],
)
def test_what_breaks_the_rules_is_named(attack, message, digits):
    model, x, y = digits
    with pytest.raises(InputError, match=message):
        sw.attack("foreign", attack=attack)(model, x, y, within=sw.Linf(0.1))


def test_a_foreign_attack_that_is_none():
    with pytest.raises(UsageError, match="callable"):
        sw.attack("foreign", attack=3)
    with pytest.raises(UsageError, match="style"):
        sw.attack("foreign", attack=fake, style="art")


def test_global_randomness_is_seeded_and_restored(digits):
    model, x, y = digits

    def drawn(model, within):
        def attack(x, y):
            shift = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
            return (x + 0.03 * shift).clamp(0, 1)

        return attack

    attack = sw.attack("foreign", attack=drawn)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = attack(model, x, y, within=sw.Linf(0.1), seed=1).x_adv
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    # The run-time type checks draw from Python's generator, so that the whole call cannot be looked at.
    before = random.getstate()
    with _global_seed(5):
        random.random()
    assert random.getstate() == before
    torch.manual_seed(8)
    np.random.seed(4)  # noqa: NPY002
    random.seed(4)
    assert torch.equal(attack(model, x, y, within=sw.Linf(0.1), seed=1).x_adv, first)
    assert not torch.equal(attack(model, x, y, within=sw.Linf(0.1), seed=2).x_adv, first)


def test_arguments_that_are_written_into_stay_ours(digits):
    model, x, y = digits

    def writer(model, within):
        return lambda x, y: x.mul_(0).add_(0.5)

    copy = x.clone()
    sw.attack("foreign", attack=writer)(model, x, y, within=sw.Linf(1.0))
    assert torch.equal(x, copy)


def test_an_entry_of_a_suite_can_be_foreign(digits):
    model, x, y = digits
    attack = Entry("theirs", "foreign", {"attack": fake}).build()
    assert attack(model, x, y, within=sw.Linf(0.1)).success.any()


def test_ours_in_torchattacks_style(digits):
    model, x, y = digits
    atk = sw.attacks.as_torchattacks(model, "pgd", within=sw.Linf(0.1), seed=3, steps=4)
    direct = sw.attack("pgd", steps=4)(model, x, y, within=sw.Linf(0.1), seed=3)
    assert torch.equal(atk(x, y), direct.x_adv)
    assert torch.equal(atk.result.success, direct.success)
    with pytest.raises(UsageError, match="attacks weights"):
        sw.attacks.as_torchattacks(model, "weight-pgd", within=sw.Linf(0.1))
    with pytest.raises(UsageError, match="no option"):
        sw.attacks.as_torchattacks(model, "pgd", within=sw.Linf(0.1), eps=3)


def test_ours_in_foolbox_style(digits):
    model, x, y = digits
    x, y = x[:30], y[:30]  # a larger batch is cut in two for a model that is a plain stack, and draws otherwise
    before = snapshot(model)
    network, attack = FakeModel(model), sw.attacks.as_foolbox("pgd", steps=4, seed=2)
    raw, clipped, success = attack(network, x, y, epsilons=0.1)
    direct = sw.attack("pgd", steps=4)(model, x, y, within=sw.Linf(0.1), seed=2)
    assert torch.equal(raw, direct.x_adv)
    assert torch.equal(clipped, direct.x_adv)
    assert torch.equal(success, direct.success)
    raw, clipped, success = attack(network, x, y, epsilons=[0.05, 0.1])
    assert len(raw) == len(clipped) == 2
    assert success.shape == (2, 30)
    assert torch.equal(clipped[1], direct.x_adv)
    criterion = type("Misclassification", (), {"labels": FakeTensor(y)})()
    wrapped = attack(network, FakeTensor(x), criterion, epsilons=0.1)
    assert isinstance(wrapped[0], FakeTensor)
    assert torch.equal(wrapped[1].raw, direct.x_adv)
    assert snapshot(model) == before
    with pytest.raises(UsageError, match="minimal norm"):
        attack(network, x, y, epsilons=None)
    with pytest.raises(UsageError, match="targeted"):
        attack(network, x, type("Targeted", (), {"target_classes": y})(), epsilons=0.1)
    with pytest.raises(UsageError, match="unknown norm"):
        sw.attacks.as_foolbox("pgd", norm="l3")


@pytest.mark.parametrize(("norm", "kind"), [("linf", sw.Linf), ("l2", sw.L2), ("l1", sw.L1), ("l0", sw.L0)])
def test_no_radius_gives_the_nearest_point(norm, kind, digits):
    model, x, y = digits
    raw, _, success = sw.attacks.as_foolbox("fmn", norm=norm, steps=20)(FakeModel(model), x[:8], y[:8], epsilons=None)
    direct = sw.attack("fmn", steps=20)(model, x[:8], y[:8], within=kind(1))
    # The model behind their interface is called as it is, ours as a copy that flattens in another order.
    assert torch.allclose(kind(1).distance(x[:8], raw)[success], direct.distance[success], rtol=1e-4)
    assert torch.equal(success, direct.distance.isfinite())


def test_the_real_foolbox_both_ways(digits):
    foolbox = peer("foolbox")
    model, x, y = digits
    network = foolbox.PyTorchModel(model, bounds=(0, 1))
    raw, _, success = sw.attacks.as_foolbox("pgd", steps=4)(
        network, x, foolbox.criteria.Misclassification(y), epsilons=0.1
    )
    direct = sw.attack("pgd", steps=4)(model, x, y, within=sw.Linf(0.1))
    assert torch.allclose(raw, direct.x_adv, atol=1e-6)
    assert torch.equal(success, direct.success)
    theirs = sw.attack("foreign", attack=foolbox.attacks.LinfPGD(steps=10), style="foolbox")
    eps = torch.where(torch.arange(60) < 30, 0.05, 0.1)
    found = theirs(model, x, y, within=sw.Linf(eps))
    assert sw.Linf(eps).contains(x, found.x_adv).all()
    assert found.success.any()
    with pytest.raises(InputError, match="left L2"):
        theirs(model, x, y, within=sw.L2(0.1))


def test_the_real_torchattacks(digits):
    torchattacks = peer("torchattacks")
    model, x, y = digits
    attack = sw.attack("foreign", attack=lambda model, within: torchattacks.PGD(model, eps=within.size, alpha=0.03))
    found = attack(model, x, y, within=sw.Linf(0.1))
    assert (
        found.success.float().mean()
        >= sw.attack("fgsm")(model, x, y, within=sw.Linf(0.1)).success.float().mean() - 0.05
    )
    with pytest.raises(InputError, match="left Linf"):
        sw.attack("foreign", attack=torchattacks.PGD(model, eps=0.2))(model, x, y, within=sw.Linf(0.1))


PEERS = {
    ("deepfool", sw.L2): lambda them: them.L2DeepFoolAttack(steps=50),
    ("deepfool", sw.Linf): lambda them: them.LinfDeepFoolAttack(steps=50),
    ("ddn", sw.L2): lambda them: them.DDNAttack(steps=60),
    ("fmn", sw.L2): lambda them: them.L2FMNAttack(steps=60),
    ("fmn", sw.Linf): lambda them: them.LInfFMNAttack(steps=60),
    ("fmn", sw.L1): lambda them: them.L1FMNAttack(steps=60),
    ("cw", sw.L2): lambda them: them.L2CarliniWagnerAttack(steps=120, stepsize=0.01, binary_search_steps=5),
}
STEPS = {"deepfool": {"steps": 50}, "ddn": {"steps": 60}, "fmn": {"steps": 60}, "cw": {"steps": 120, "searches": 5}}


@pytest.mark.parametrize(("name", "kind"), PEERS)
def test_our_median_distance_is_no_larger_than_foolbox_has_at_equal_steps(name, kind, digits):
    foolbox = peer("foolbox")
    model, x, y = digits
    x, y = x[:24], y[:24]
    theirs, _, _ = PEERS[name, kind](foolbox.attacks)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    distance = kind(1).distance(x, theirs).masked_fill(model(theirs).argmax(1) == y, torch.inf)
    ours = sw.attack(name, **STEPS[name])(model, x, y, within=kind(1.0)).distance
    assert ours.median() <= 1.001 * distance.median()
    assert ours.isfinite().sum() >= distance.isfinite().sum()
