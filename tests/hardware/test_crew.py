"""Chips in threads: the same accuracies in the same order, and one thread where copies could differ."""

import contextlib
import contextvars
import threading

import pytest
import torch
from chip_networks import assert_same, cnn, images, snapshot
from torch import nn

from stalwart.core.crew import crew, in_order
from stalwart.hardware import Mismatch, OutputNoise, accuracies
from stalwart.stochastic import inject

X = images(40)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pooled(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        ).eval()


def alone(model, device, y, chips, batch):
    """Judge chips by the model itself: a hook on it keeps copies away."""
    handle = model.register_forward_hook(lambda *_: None)
    try:
        return accuracies(model, device, X, y, chips, 5, batch=batch)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("make", "device"),
    [
        (cnn, Mismatch(0.5)),
        (pooled, Mismatch(0.5)),
        (pooled, Mismatch(0.5, fresh=True) | OutputNoise(0.2)),
        (lambda: inject(pooled(), alpha=0.5), Mismatch(0.5)),
    ],
)
def test_accuracies_do_not_depend_on_threads(make, device, threads):
    model, y = make().train(), torch.arange(40) % 3
    before = snapshot(model)
    found = accuracies(model, device, X, y, 7, 5, batch=15)
    assert_same(before, snapshot(model))
    assert torch.equal(found, alone(model, device, y, 7, 15))
    assert len(found.unique()) > 1
    assert torch.get_num_threads() == threads


def test_results_come_in_order_and_context_goes_along(threads):
    where = contextvars.ContextVar("where", default="")
    where.set("here")
    seen = set()  # of threads, their models and what they know
    barrier = threading.Barrier(threads)

    def work(model, job):
        if job < threads:
            barrier.wait(20)  # nobody gets past it unless all threads work at once
        seen.add((threading.get_ident(), model, where.get()))
        return job * 10, torch.get_num_threads() if threads > 1 else 1

    found = list(in_order(work, [nn.Identity() for _ in range(threads)], range(20)))
    assert found == [(10 * job, 1) for job in range(20)]
    assert len({model for _, model, _ in seen}) == threads
    assert {place for *_, place in seen} == {"here"}


def test_errors_and_early_ends(threads):
    def work(model, job):
        if job == 4:
            raise ZeroDivisionError("four")
        done.append(job)
        return job

    done, models = [], [nn.Identity() for _ in range(threads)]
    found = []
    with pytest.raises(ZeroDivisionError, match="four"):
        found.extend(in_order(work, models, range(50)))
    with contextlib.closing(in_order(work, models, (job for job in range(5, 10**9)))) as results:
        assert next(results) == 5
    assert len(done) < 60
    assert torch.get_num_threads() == threads
    assert threading.active_count() <= 2


class Drawing(nn.Sequential):
    """A model that draws from torch's global generator."""

    def forward(self, x):
        return super().forward(x) + torch.randn(3)


class Attached(nn.Linear):
    """A model that cannot be copied."""

    def __deepcopy__(self, memo):
        raise NotImplementedError


def hooked():
    model = cnn()
    model[0].register_forward_pre_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "make",
    [hooked, lambda: Drawing(nn.Flatten(), nn.Linear(36, 3)), lambda: nn.Sequential(nn.Flatten(), Attached(36, 3))],
)
def test_some_models_work_alone(make, threads):
    model, state = make(), torch.get_rng_state()
    models = crew(model, X[:1], 100)
    assert len(models) == 1
    assert models[0] is model
    assert torch.equal(state, torch.get_rng_state())


def test_copies_are_as_many_as_threads_where_chips_are(threads):
    model = cnn()
    assert [len(crew(model, X[:1], jobs)) for jobs in (threads - 1, threads, 100)] == [1, threads, threads]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert crew(model, X[:1], 100) == [model]
