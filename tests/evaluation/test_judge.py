"""Judging on fresh draws, and which candidate counts as the worst."""

import copy

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.evaluation import evaluate
from stalwart.evaluation.judge import Candidates, Judge
from stalwart.stochastic import NoisyHead


class Noise(NoisyHead):
    """A head with noise of a known size on both of two logits."""

    def __init__(self, std):
        super().__init__(1, 2)
        self.std = std
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.linear.bias.zero_()

    def factor(self):
        return torch.full((1, 1), self.std)


def test_candidates_keep_the_highest_error_probability_not_the_luckiest():
    # Margin 2x + 2 std e: wrong with probability Phi(-x / std).
    model, y = Noise(1.0), torch.zeros(50, dtype=torch.long)
    judge = Judge(model, y, True, 0)
    points = [torch.full((50, 1), value) for value in (1.0, -0.5, 0.8, -2.5, -1.0, 2.0)]
    held = Candidates(judge, points[0])
    for x in points[1:]:
        held.offer(x)
    assert (held.best["single"] == -2.5).float().mean() > 0.95
    assert (held.best["mean-network"] == -2.5).all()
    assert held.correct("single").float().mean() < 0.1


def test_rounds_without_effect_do_not_lower_the_accuracy():
    # Every candidate is equally good, so picking among ever more of them must leave single-draw accuracy where it was.
    model, n = Noise(1.0), 2000
    x, y = torch.full((n, 1), 0.5), torch.zeros(n, dtype=torch.long)
    expected = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5)))
    found = {}
    for rounds in (0, 1, 10, 40):
        held = Candidates(Judge(model, y, True, 3), x)
        for _ in range(rounds):
            held.offer(x)
        found[rounds] = float(held.correct("single").float().mean())
    error = (expected * (1 - expected) / n) ** 0.5
    assert all(abs(value - expected) < 4 * error for value in found.values()), (expected, found)


def test_a_lucky_draw_is_not_held_against_the_model(made):
    q, n = 0.2, 384
    x, y = torch.rand(n, 1, 2, 2), torch.arange(n) % 4
    x[:, 0, 0, 0] = y / 3
    within = sw.Linf(0.01)
    found, table = evaluate(made["lucky"](q), x, y, within, "quick", seed=1)
    assert found.randomised
    error = (q * (1 - q) / n) ** 0.5
    for row in found.attacks:
        assert abs(row.robust.value - (1 - q)) < 4 * error, row.name
    assert abs(found.worst.value - (1 - q)) < 4 * error
    # What and-ing the draws of all attacks would have said:
    columns = [table.columns[row.name] for row in found.attacks]
    naive = sum(all(row) for row in zip(*columns, strict=True)) / n
    assert naive < (1 - q) ** 3
    # An attacker with k retries, by contrast, succeeds with 1 - (1 - q)^k.
    survivors = {point.draws: point.robust.value for point in found.stochastic.all_of_k}
    assert survivors[1] == pytest.approx(1 - q, abs=4 * error)
    assert survivors[10] == pytest.approx((1 - q) ** 10, abs=4 * error)
    assert survivors[100] < 0.01


def test_the_draws_that_choose_are_not_the_draws_that_score(noisy, images, monkeypatch):
    x, y = images
    judge = Judge(noisy, y, True, 0)
    streams = []
    original = Judge.logits

    def logits(self, z, draws, *path):
        streams.append(path[0])
        return original(self, z, draws, *path)

    monkeypatch.setattr(Judge, "logits", logits)
    held = Candidates(judge, x)
    held.offer(x)
    chosen = set(streams)
    streams.clear()
    held.correct("single")
    assert streams
    assert not chosen & set(streams)
    a, b = judge.logits(x, 1, "standing"), judge.logits(x, 1, "final")
    assert not torch.equal(a, b)
    assert torch.equal(a, judge.logits(x, 1, "standing")), "the same stream repeats itself"


def test_draws_differ_within_a_batch_and_noise_off_does_not(noisy, images):
    x, y = images
    judge = Judge(noisy, y, True, 0)
    twins = x[:1].expand(6, 1, 8, 8)
    logits = judge.logits(twins, 3, "a")
    assert len({tuple(row.tolist()) for row in logits.flatten(0, 1)}) == 18
    with sw.stochastic.noise(noisy, "off"):
        one, two = noisy(x), noisy(x)
        quiet = judge.logits(x, 2, "a")
    assert torch.equal(one, two)
    assert torch.equal(quiet[0], quiet[1])


def test_rules_by_hand(noisy, images):
    x, y = images
    judge = Judge(noisy, y, True, 0)
    margins = judge.margins(x, "m")
    draws = judge.logits(x, 20, "m")

    def margin(scores):
        own = scores.gather(1, y[:, None])[:, 0]
        return own - scores.scatter(1, y[:, None], -torch.inf).amax(1)

    assert torch.allclose(margins["single"], margin(draws[0]))
    soft = draws.softmax(-1).mean(0)
    assert torch.equal(margins["mean-softmax"] > 0, margin(soft) > 0)
    with sw.stochastic.noise(noisy, "off"):
        assert torch.allclose(margins["mean-network"], margin(noisy(x)))


def test_any_of_k_is_non_increasing(noisy, images):
    x, y = images
    survived = Judge(noisy, y, True, 0).survived(x, 40)
    rates = [float(survived[:k].all(0).float().mean()) for k in range(1, 41)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


def test_evaluate_leaves_the_model_untouched(noisy, images):
    x, y = images[0][:24], images[1][:24]
    noisy.train()
    noisy.head.mode = "on"
    noisy.register_buffer("seen", torch.zeros(1))
    noisy.register_forward_hook(lambda module, *_: module.seen.add_(1) and None)
    noisy.backbone[1].weight.grad = torch.ones_like(noisy.backbone[1].weight)
    before = copy.deepcopy(noisy.state_dict())
    x_before, state = x.clone(), torch.get_rng_state()
    evaluate(noisy, x, y, sw.Linf(0.05), "quick")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, x_before)
    assert all(torch.equal(before[name], tensor) for name, tensor in noisy.state_dict().items())
    assert all(module.training for module in noisy.modules())
    assert all(parameter.requires_grad for parameter in noisy.parameters())
    assert (noisy.backbone[1].weight.grad == 1).all()
    assert [p.grad is None for p in noisy.parameters()].count(False) == 1
    assert noisy.head.mode == "on"


def test_the_same_seed_gives_the_same_evaluation(noisy, images):
    x, y = images[0][:24], images[1][:24]
    runs = [evaluate(noisy, x, y, sw.Linf(0.05), "quick", seed=seed) for seed in (0, 0, 1)]
    plain = [
        found.model_dump(exclude={"seconds": True, "seed": True, "attacks": {"__all__": {"seconds"}}})
        for found, _ in runs
    ]
    assert plain[0] == plain[1]
    assert runs[0][1].csv() == runs[1][1].csv()
    assert runs[0][1].csv() != runs[2][1].csv()


def test_a_model_without_the_right_classes_is_refused(plain, images):
    x, y = images
    with pytest.raises(sw.StalwartError, match=r"labels must be in \[0, 4\), but sample 3 has label 9"):
        evaluate(plain, x, y.clone().index_fill(0, torch.tensor([3]), 9), sw.Linf(0.1), "quick")
    with pytest.raises(sw.StalwartError, match=r"does not run on inputs of shape \[80, 1, 8, 8\]"):
        evaluate(nn.Linear(5, 4), x, y, sw.Linf(0.1), "quick")
    with pytest.raises(sw.StalwartError, match=r"must map \[B, ...\] to logits"):
        evaluate(nn.Identity(), x, y, sw.Linf(0.1), "quick")
    with pytest.raises(sw.StalwartError, match="one radius for all samples"):
        evaluate(plain, x, y, sw.Linf(torch.full((80,), 0.1)), "quick")
