"""Recurrent layers against explicit loops over neurons and hand-made spike trains, their gradients, and readouts."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.spiking import AdaptiveLIF, Readout, RecurrentLIF, gradients, rate_penalty
from stalwart.spiking.surrogates import Linear, Triangle


def slow_recurrent(layer, x):
    """Return spikes by scalar arithmetic."""
    w_in, w_rec = layer.input.weight.tolist(), layer.recurrent.weight.tolist()
    steps, batch, _ = x.shape
    out = torch.zeros(steps, batch, layer.units)
    for sample in range(batch):
        v, s = [0.0] * layer.units, [0.0] * layer.units
        for t in range(steps):
            now = []
            for n in range(layer.units):
                u = layer.leak * v[n] + sum(w * float(a) for w, a in zip(w_in[n], x[t, sample], strict=True))
                u += sum(w_rec[n][m] * s[m] for m in range(layer.units) if m != n)
                fires = u >= layer.threshold
                now.append(float(fires))
                v[n] = {"soft": u - layer.threshold * fires, "hard": 0.0 if fires else u, "none": u}[layer.reset]
            s = now
            out[t, sample] = torch.tensor(s)
    return out


def slow_adaptive(layer, x):
    w_in, w_rec = layer.input.weight.tolist(), layer.recurrent.weight.tolist()
    rho_v, rho_b = layer.decay, layer.decay_adaptation
    steps, batch, _ = x.shape
    out = torch.zeros(steps, batch, layer.units)
    for sample in range(batch):
        v, b, o, last = ([0.0] * layer.units for _ in range(4))
        last = [-100] * layer.units
        for t in range(steps):
            before = list(o)
            for n in range(layer.units):
                b[n] = rho_b * b[n] + (1 - rho_b) * before[n] / layer.dt
                barrier = layer.threshold + layer.beta * b[n]
                current = sum(w * float(a) for w, a in zip(w_in[n], x[t, sample], strict=True))
                current += sum(w_rec[n][m] * before[m] / layer.dt for m in range(layer.units) if m != n)
                v[n] = rho_v * v[n] + (1 - rho_v) * current - before[n] * barrier * layer.dt
                o[n] = float(v[n] > barrier and t - last[n] >= layer.refractory)
                last[n] = t if o[n] else last[n]
            out[t, sample] = torch.tensor(o)
    return out


def made(kind, **options):
    torch.manual_seed(2)
    layer = kind(4, 6, **options)
    with torch.no_grad():
        layer.input.weight.mul_(3)
        layer.recurrent.weight.mul_(3)
    return layer.double()


X = torch.rand(25, 3, 4, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
def test_recurrent_spikes_are_those_of_the_slow_loop(reset):
    layer = made(RecurrentLIF, reset=reset)
    spikes = layer(X)
    assert torch.equal(spikes.float(), slow_recurrent(layer, X))
    assert 0.02 < float(spikes.detach().mean()) < 0.98


@pytest.mark.parametrize("refractory", [1, 2, 4])
@pytest.mark.parametrize("dt", [1.0, 0.5])
def test_adaptive_spikes_are_those_of_the_slow_loop(refractory, dt):
    layer = made(AdaptiveLIF, refractory=refractory, dt=dt, beta=1.0)
    spikes = layer(X)
    assert torch.equal(spikes.float(), slow_adaptive(layer, X))
    assert 0.02 < float(spikes.detach().mean()) < 0.98
    times = spikes.detach()[:, 0, :].T
    gaps = [int(gap) for train in times for gap in train.nonzero().flatten().diff()]
    assert min(gaps) >= refractory


def one(kind, weight, **options):
    layer = kind(1, 1, **options).double()
    nn.init.constant_(layer.input.weight, weight)
    nn.init.constant_(layer.recurrent.weight, 100.0)  # on the diagonal, so it must not count
    return layer


def test_one_neuron_by_hand():
    x = torch.ones(4, 1, 1, dtype=torch.float64)
    assert one(RecurrentLIF, 0.75, leak=1.0)(x).flatten().tolist() == [0, 1, 1, 1]
    # Decay 1/2: V = .3, .45 at B = .4, which fires; then b = .5 · 1, B = .4 + .5, V = .225 + .3 - .9 = -.375.
    layer = one(
        AdaptiveLIF, 0.6, threshold=0.4, beta=1.0, refractory=1, tau=1 / math.log(2), tau_adaptation=1 / math.log(2)
    )
    assert layer(x).flatten().tolist() == [0, 1, 0, 0]
    # Without adaptation and reset to below: V = .3, .45 fires, .225 + .3 - .4 = .125, .3625.
    layer = one(AdaptiveLIF, 0.6, threshold=0.4, beta=0.0, refractory=1, tau=1 / math.log(2))
    assert layer(torch.ones(6, 1, 1, dtype=torch.float64)).flatten().tolist() == [0, 1, 0, 0, 1, 0]


def test_two_neurons_excite_each_other():
    layer = RecurrentLIF(1, 2, leak=0.0)
    with torch.no_grad():
        layer.input.weight.copy_(torch.tensor([[1.0], [0.0]]))
        layer.recurrent.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    x = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    assert layer(x)[:, 0].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_gradients_by_hand():
    # Membranes .6 and 1.2 of a soft neuron: slopes of the triangle .6 and .8; dL/dw = .6 x + .8 (x + x).
    layer = one(RecurrentLIF, 0.6, leak=1.0, surrogate="triangle")
    x = torch.ones(2, 1, 1, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert float(layer.input.weight.grad) == pytest.approx(0.6 + 0.8 * 2)
    assert x.grad.flatten().tolist() == pytest.approx([0.6 * (0.6 + 0.8), 0.6 * 0.8])
    assert float(layer.recurrent.weight.grad) == 0
    # One step of the adaptive neuron: V = w/2, z = (V - B) / B, ∂o/∂w = 0.3 (1 - |z|) / B / 2.
    layer = one(AdaptiveLIF, 0.6, threshold=0.4, tau=1 / math.log(2))
    layer(x[:1].detach()).sum().backward()
    assert float(layer.input.weight.grad) == pytest.approx(0.3 * 0.75 / 0.4 / 2)


def test_gradients_are_those_of_finite_differences_where_spikes_are_smooth(monkeypatch):
    # With a smooth step in the place of the spike, autograd's gradient must be the true one, resets and thresholds included.
    from stalwart.spiking import recurrent

    monkeypatch.setattr(recurrent, "spike", lambda z, surrogate, strict=False: torch.sigmoid(3 * z))
    torch.manual_seed(0)
    layer = AdaptiveLIF(3, 4, threshold=0.5, refractory=1).double()
    x = torch.rand(6, 2, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: layer(inputs[0]), (x, *layer.parameters()))


def test_surrogates_are_swapped_and_modes_refused():
    layer = made(RecurrentLIF)
    x = X.clone().requires_grad_()

    def gradient():
        return torch.autograd.grad(layer(x).square().sum(), x)[0]

    usual = gradient()
    with gradients(layer, "straight-through"):
        assert not torch.allclose(gradient(), usual)
    assert torch.equal(gradient(), usual)
    assert layer.surrogate == Triangle()
    assert AdaptiveLIF(1, 1).surrogate == Linear()
    with (
        pytest.raises(InputError, match=r"RecurrentLIF.*no backward mode 'rga', only bptt"),
        gradients(layer, backward="rga"),
    ):
        pass


def test_the_rate_penalty_by_hand():
    spikes = torch.zeros(100, 2, 3)
    spikes[:2, :, 0] = 1  # 20 Hz at 1 ms
    spikes[:1, :, 1] = 1  # 10 Hz
    assert float(rate_penalty(spikes)) == pytest.approx(100 + 0 + 100, rel=1e-5)
    assert float(rate_penalty(spikes, target=5.0, dt=2.0)) == pytest.approx(25 + 0 + 25, rel=1e-5)


def test_readouts_by_hand():
    spikes = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1)
    expected = {"rate": 2 * 2 / 3 + 1, "count": 2 * 2 + 1, "membrane": (3 + 2.5 + 4.25) / 3, "last": 4.25}
    for kind, value in expected.items():
        readout = Readout(1, 2, kind, leak=0.5)
        nn.init.constant_(readout.linear.weight, 2.0)
        nn.init.constant_(readout.linear.bias, 1.0)
        assert readout(spikes)[0].tolist() == pytest.approx([value] * 2)


def test_a_recurrent_network_learns():
    torch.manual_seed(0)
    model = nn.Sequential(AdaptiveLIF(4, 20, threshold=0.1), Readout(20, 2))
    x = (torch.rand(20, 40, 4, generator=generator(5)) < 0.3).float()
    y = (x[..., 0].sum(0) > x[..., 1].sum(0)).long()
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: RecurrentLIF(0, 2), "at least one input"),
        (lambda: RecurrentLIF(2, 2, leak=1.5), "leak of neurons"),
        (lambda: RecurrentLIF(2, 2, reset="never"), "unknown reset 'never'"),
        (lambda: AdaptiveLIF(2, 2, tau=0.0), "tau must be positive"),
        (lambda: AdaptiveLIF(2, 2, beta=-1.0), "beta must be at least 0"),
        (lambda: AdaptiveLIF(2, 2, refractory=0), "refractory must be at least 1"),
        (lambda: Readout(2, 2, "first"), "unknown readout 'first'"),
        (lambda: Readout(2, 1), "at least 2 classes"),
    ],
)
def test_impossible_options_are_refused(build, what):
    with pytest.raises(UsageError, match=what):
        build()
    with pytest.raises(InputError, match=r"takes inputs \[T, B, 4\]"):
        RecurrentLIF(4, 2)(torch.zeros(3, 2, 5))
