"""A batch shared among threads: the numbers of the whole batch, whatever the number of threads, and who works alone."""

import threading

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.team import at_work, even_parts, team
from stalwart.core.crew import go_on, is_one_of_many, one_thread_each, side_by_side
from stalwart.core.random import generator

X = torch.rand(70, 1, 8, 8, generator=generator(0))
Y = torch.arange(70) % 4


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 4, stride=2), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_give_what_the_whole_gives(two_threads):
    model, goals = network(), [Goal("ce", Y), Goal("margin", Y)]
    oracle = Oracle(model, X)
    assert oracle.team is not None
    with at_work(model, X):
        assert torch.get_num_threads() == 1
        values, logits, gradients = oracle.gradients(X, goals, torch.arange(70))
        scores = oracle.logits(X, torch.arange(70))[0]
    assert torch.get_num_threads() == 2
    z = X.clone().requires_grad_()
    out = model(z)
    for value, gradient, goal in zip(values, gradients, goals, strict=True):
        assert torch.allclose(value, goal(out), atol=1e-5)
        (slope,) = torch.autograd.grad(goal(out).sum(), z, retain_graph=True)
        assert slope.abs().max() > 0.01
        assert torch.allclose(gradient, slope, atol=1e-6)
    assert torch.allclose(logits, out, atol=1e-5)
    assert torch.allclose(scores, out, atol=1e-5)
    assert (oracle.forwards[2:] == 2).all()
    assert (oracle.backwards == 2).all()


@pytest.mark.parametrize("name", ["apgd", "fab", "square", "pgd", "deepfool"])
def test_the_number_of_threads_changes_no_bit(two_threads, name):
    model, steps = network(), {"queries" if name == "square" else "steps": 25}
    found = [sw.attack(name, **steps)(model, X, Y, within=sw.Linf(0.01), seed=3)]
    torch.set_num_threads(1)
    found.append(sw.attack(name, **steps)(model, X, Y, within=sw.Linf(0.01), seed=3))
    assert torch.equal(found[0].x_adv, found[1].x_adv)
    assert torch.equal(found[0].margin, found[1].margin)
    assert not torch.equal(found[0].x_adv, X)


def test_jobs_run_at_once_and_keep_their_order(two_threads):
    meet = threading.Barrier(2, timeout=20)
    with one_thread_each():
        assert side_by_side(lambda job: (meet.wait() >= 0, job), [5, 3]) == [(True, 5), (True, 3)]
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda job: 1 / job, [1, 0])
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda job: 1 / job, [0, 1])


def test_what_is_one_of_many_works_alone_and_ends_with_the_others(two_threads):
    """Nested work stays in its thread; when one job fails, another that asks whether to go on ends soon."""
    ended = threading.Event()

    def endless(job):
        if job:
            ended.wait(20)
            raise ZeroDivisionError
        assert is_one_of_many()
        here = threading.current_thread()
        assert side_by_side(lambda _: threading.current_thread() is here, [1, 2]) == [True, True]
        ended.set()
        while True:
            go_on()

    assert not is_one_of_many()
    for jobs in ([1, 0], [0, 1]):
        ended.clear()
        with one_thread_each(), pytest.raises(ZeroDivisionError):
            side_by_side(endless, jobs)
    assert not is_one_of_many()
    go_on()


def test_even_parts():
    assert even_parts(31) == [31]
    assert even_parts(33) == [16, 17]
    assert even_parts(400) == [100, 100, 100, 100]
    assert even_parts(100, 10) == [10] * 10
    assert all(sum(even_parts(n, 24)) == n and max(even_parts(n, 24)) <= 31 for n in range(1, 300))


class Own(nn.Module):
    """A module whose forward pass is anybody's guess."""

    def forward(self, x):
        return x


def hooked():
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("build", [lambda: nn.Sequential(Own(), network()), lambda: Own(), hooked])
def test_other_models_work_alone(build, two_threads):
    model = build()
    assert team(model, X[:2]) is None
    with at_work(model, X[:2]):
        assert torch.get_num_threads() == 2


def test_a_model_that_draws_from_the_global_generator_works_alone():
    model = nn.Sequential(network(), nn.RReLU())
    assert team(model.eval(), X[:2]) is not None
    assert team(model.train(), X[:2]) is None
