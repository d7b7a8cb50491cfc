"""Every objective's loss against its formula, written out in plain float64 arithmetic."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.stochastic import WCAHead

CLEAN = [[1.0, -0.5, 0.2], [0.3, 2.0, -1.0]]
ADVERSARIAL = [[0.1, 0.4, 0.2], [-0.3, 1.0, 1.5]]
Y = [0, 1]
X, X_ADV = torch.zeros(2, 4), torch.ones(2, 4)


def net(z):
    """Return fixed logits for the clean and for the adversarial batch."""
    return torch.tensor(CLEAN if float(z.sum()) == 0 else ADVERSARIAL, dtype=torch.float64)


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def cross_entropy(rows):
    return sum(-math.log(softmax(row)[y]) for row, y in zip(rows, Y, strict=True)) / 2


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def combined(name, **options):
    loss, logits = build("objective", OBJECTIVES, name, options).combine(net, X, X_ADV, torch.tensor(Y))
    return float(loss), logits.tolist()


def test_natural():
    loss, logits = combined("natural")
    assert loss == pytest.approx(cross_entropy(CLEAN), abs=1e-6)
    assert logits == CLEAN


@pytest.mark.parametrize("clean_weight", [0.0, 0.25])
def test_pgd_at(clean_weight):
    loss, logits = combined("pgd-at", clean_weight=clean_weight)
    expected = (1 - clean_weight) * cross_entropy(ADVERSARIAL) + clean_weight * cross_entropy(CLEAN)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert logits == ADVERSARIAL


def test_fgsm_rs():
    loss, logits = combined("fgsm-rs")
    assert loss == pytest.approx(cross_entropy(ADVERSARIAL), abs=1e-6)
    assert logits == ADVERSARIAL


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades(beta):
    loss, logits = combined("trades", beta=beta)
    divergence = sum(kl(softmax(a), softmax(b)) for a, b in zip(CLEAN, ADVERSARIAL, strict=True)) / 2
    assert loss == pytest.approx(cross_entropy(CLEAN) + beta * divergence, abs=1e-6)
    assert logits == CLEAN


@pytest.mark.parametrize("weight", [0.0, 4.0, 5.0])
def test_mart(weight):
    loss, logits = combined("mart", weight=weight)
    expected = cross_entropy(ADVERSARIAL)
    for clean, adversarial, y in zip(CLEAN, ADVERSARIAL, Y, strict=True):
        p, q = softmax(clean), softmax(adversarial)
        expected += -math.log(1.0001 - max(value for k, value in enumerate(q) if k != y)) / 2
        expected += weight * (1 - p[y]) * kl(p, q) / 2
    assert loss == pytest.approx(expected, abs=1e-6)
    assert logits == ADVERSARIAL


@pytest.mark.parametrize(("form", "weight"), [("sumlog", 1.0), ("logsum", 0.3)])
@pytest.mark.parametrize("base", ["natural", "pgd-at"])
def test_wca_subtracts_the_weighted_alignment(form, weight, base):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), WCAHead(4, 3, regulariser=form)).double()
    model[1].mode = "off"
    options = {} if base == "natural" else {"eps": 0.1, "steps": 2}
    objective = build("objective", OBJECTIVES, "wca", {"weight": weight, "base": base, "options": options})
    plain = build("objective", OBJECTIVES, base, options)
    x = torch.rand(2, 4, dtype=torch.float64)
    moment, y = Moment(0), torch.tensor(Y)
    factor = model[1].factor().detach()
    variances = [float(row @ factor @ factor.T @ row) for row in model[1].linear.weight.detach()]
    alignment = sum(math.log(v) for v in variances) if form == "sumlog" else math.log(sum(variances))
    expected = float(plain.loss(model, x, y, moment)[0].detach()) - weight * alignment
    loss, logits = objective.loss(model, x, y, moment)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(logits, plain.loss(model, x, y, moment)[1])
    loss.backward()
    assert model[1].raw_diagonal.grad.abs().max() > 0


def test_wca_needs_a_wca_head():
    objective = build("objective", OBJECTIVES, "wca", {})
    with pytest.raises(UsageError, match="WCA head"):
        objective.loss(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor(Y), Moment(0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trade", {}, "Did you mean 'trades'"),
        ("trades", {"betta": 1}, "Did you mean 'beta'"),
        ("trades", {"beta": -1}, "beta"),
        ("trades", {"eps": -0.1}, "eps"),
        ("trades", {"eps": "8/0"}, "eps"),
        ("mart", {"weight": -1}, "weight"),
        ("pgd-at", {"steps": 0}, "steps"),
        ("pgd-at", {"step": 0}, "step"),
        ("pgd-at", {"eot": 0}, "eot"),
        ("pgd-at", {"norm": "l7"}, "norm"),
        ("pgd-at", {"clean_weight": 1.0}, "clean_weight"),
        ("fgsm-rs", {"steps": 3}, "one step"),
        ("fgsm-rs", {"step": 0.1}, "one step"),
        ("fgsm-rs", {"fall": 0}, "fall"),
        ("fgsm-rs", {"relative_step": 0}, "relative_step"),
        ("awp", {"gamma": 0}, "gamma"),
        ("awp", {"warmup": -1}, "warmup"),
        ("awp", {"base": "pgd-an"}, "pgd-at"),
        ("wca", {"base": "trades", "options": {"betta": 1}}, "betta"),
        ("wca", {"weight": -1}, "weight"),
    ],
)
def test_impossible_options_are_refused_when_the_objective_is_built(name, options, message):
    with pytest.raises(UsageError, match=message):
        build("objective", OBJECTIVES, name, options)
