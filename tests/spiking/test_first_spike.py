"""First spike times against a membrane followed in time, hand cases, finite differences, and a network that learns."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.spiking import FirstSpike, first_spike_times


def slow(times, weights, threshold):
    """Follow each membrane from input to input, in scalar arithmetic."""
    out = torch.full((len(times), len(weights)), math.inf, dtype=torch.float64)
    for b, sample in enumerate(times.tolist()):
        for m, row in enumerate(weights.tolist()):
            v = slope = 0.0
            events = sorted((t, w) for t, w in zip(sample, row, strict=True) if math.isfinite(t))
            for number, (t, w) in enumerate(events):
                slope += w
                until = events[number + 1][0] if number + 1 < len(events) else math.inf
                if slope > 0 and t + (threshold - v) / slope <= until:
                    out[b, m] = t + (threshold - v) / slope
                    break
                v += slope * (until - t)
    return out


def drawn(seed, silent=False):
    source = generator(seed)
    times = torch.rand(12, 9, generator=source, dtype=torch.float64)
    weights = torch.randn(20, 9, generator=source, dtype=torch.float64) + 0.2
    if silent:
        times[torch.rand(12, 9, generator=source) < 0.3] = math.inf
    return times, weights


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 3.0])
def test_spikes_are_when_the_membrane_arrives(threshold, silent):
    times, weights = drawn(3, silent)
    found, expected = first_spike_times(times, weights, threshold), slow(times, weights, threshold)
    assert torch.equal(found.isinf(), expected.isinf())
    assert 0 < int(found.isinf().sum()) < found.numel()
    at = ~found.isinf()
    assert torch.allclose(found[at], expected[at], atol=1e-9)


def test_by_hand():
    # V = t / 2 up to 1, then t - 1/2: arrives at 1.5; a third input at 1.2 of weight -1 holds it at .7 for ever.
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, -1.0], [2.0, 0.0, 0.0]])
    found = first_spike_times(torch.tensor([[0.0, 1.0, 1.2]]), weights)
    assert found[0].tolist() == pytest.approx([1.5, math.inf, 0.5])
    # Inputs at the same time count together, also where the one alone would not do.
    assert first_spike_times(torch.tensor([[0.0, 0.0]]), torch.tensor([[-0.5, 1.5]])).tolist() == [[1.0]]
    assert first_spike_times(torch.zeros(2, 0), torch.zeros(3, 0)).shape == (2, 3)


def test_gradients_are_those_of_the_formula_and_of_finite_differences():
    times, weights = drawn(5)
    times[0, 0] = math.inf
    t, w = times.clone().requires_grad_(), weights.clone().requires_grad_()
    out = first_spike_times(t, w, 0.5)
    fires = ~out.isinf()
    g = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    of_t, of_w = torch.autograd.grad(out[fires] @ g[fires], (t, w))
    causal = (times[:, None, :] < out.detach()[:, :, None]) & fires[:, :, None]
    total = (causal * weights).sum(2)
    finite = torch.where(times.isinf(), 0.0, times)
    scale = torch.where(fires, g / torch.where(fires, total, 1.0), 0.0)[:, :, None] * causal
    assert torch.allclose(of_t, (scale * weights).sum(1), atol=1e-9)
    delay = torch.where(fires[:, :, None], finite[:, None, :] - out.detach()[:, :, None], 0.0)
    assert torch.allclose(of_w, (scale * delay).sum(0), atol=1e-9)

    def value(times, weights):
        # A neuron of another set of causes is another function; a step this small changes none.
        return float(first_spike_times(times, weights, 0.5)[fires] @ g[fires])

    step = 1e-7
    for leaf, gradient in ((0, of_t), (1, of_w)):
        for where in [(1, 0), (3, 4), (7, 8), (11, 2)]:
            moved = [times.clone(), weights.clone()], [times.clone(), weights.clone()]
            moved[0][leaf][where] += step
            moved[1][leaf][where] -= step
            numeric = (value(*moved[0]) - value(*moved[1])) / (2 * step)
            assert float(gradient[where]) == pytest.approx(numeric, rel=1e-4, abs=1e-5)
    assert not of_t[0, 0]


def test_silent_neurons_have_no_gradient():
    w = torch.tensor([[-1.0, 0.2]], requires_grad=True)
    out = first_spike_times(torch.tensor([[0.0, 0.5]]), w)
    assert out.isinf().all()
    assert not torch.autograd.grad(out.clamp_max(5.0).sum(), w)[0].any()


def test_a_network_of_them_learns():
    torch.manual_seed(0)
    model = nn.Sequential(FirstSpike(8, 20, latest=4.0), FirstSpike(20, 2, latest=8.0))
    x = torch.rand(80, 8, generator=generator(2))
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        loss = nn.functional.cross_entropy(-model(1 - x), y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert float((model(1 - x).argmin(1) == y).float().mean()) > 0.9


def test_impossible_arguments_are_refused():
    with pytest.raises(UsageError, match="threshold of neurons must be positive"):
        first_spike_times(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)
    with pytest.raises(InputError, match=r"must agree in N, got \[1, 2\] and \[1, 3\]"):
        first_spike_times(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(InputError, match="must not be NaN"):
        first_spike_times(torch.tensor([[math.nan]]), torch.zeros(1, 1))
    with pytest.raises(UsageError, match="at least one input"):
        FirstSpike(0, 1)
