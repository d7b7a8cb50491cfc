"""Recurrent spiking classifiers against slow loops in numpy: what they see, their logits, their gradients."""

import math

import numpy as np
import pytest
import torch

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.models.recurrent import InPieces


def lsnn_twin(x, w_in, w_rec, w_out, b_out, p):
    """Return logits of one input [T, I] and d logits[0] / d w_in by the chain rule, forwards, as published.

    ∂o/∂V = d·max(0, 1 - |V - B| / B) / B, and with B also its derivative -V/B² for the barrier.
    """
    n = len(w_rec)
    rho_v, rho_b = math.exp(-p["dt"] / p["tau"]), math.exp(-p["dt"] / p["tau_a"])
    v, b, o, last = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, -100)
    dv, db, do = (np.zeros((n, *w_in.shape)) for _ in range(3))
    w = w_rec * (1 - np.eye(n))
    total, dtotal = np.zeros(n), np.zeros((n, *w_in.shape))
    for t, now in enumerate(x):
        b, db = rho_b * b + (1 - rho_b) * o / p["dt"], rho_b * db + (1 - rho_b) * do / p["dt"]
        barrier, dbarrier = p["b0"] + p["beta"] * b, p["beta"] * db
        current = w_in @ now + w @ o / p["dt"]
        dcurrent = np.einsum("nm,mij->nij", w, do) / p["dt"]
        for k in range(n):
            dcurrent[k, k] += now
        shape = (n, 1, 1)
        dv = rho_v * dv + (1 - rho_v) * dcurrent
        dv -= (do * barrier.reshape(shape) + o.reshape(shape) * dbarrier) * p["dt"]
        v = rho_v * v + (1 - rho_v) * current - o * barrier * p["dt"]
        ready = t - last >= p["refractory"]
        z = (v - barrier) / barrier
        slope = (ready * p["d"] * np.maximum(0, 1 - np.abs(z)) / barrier).reshape(shape)
        do = slope * (dv - (v / barrier).reshape(shape) * dbarrier)
        o = (ready & (v > barrier)).astype(float)
        last = np.where(o > 0, t, last)
        total, dtotal = total + o, dtotal + do
    rates = total / len(x)
    return w_out @ rates + b_out, np.einsum("n,nij->ij", w_out[0], dtotal / len(x)), rates


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_lsnn_is_the_published_network(beta):
    options = {"hidden": 7, "steps": 30, "beta": beta}
    model = build_model("lsnn", (2, 90), 3, options, seed=1).double()
    layer = model.backbone.neurons
    x = torch.rand(2, 2, 90, generator=generator(0), dtype=torch.float64)
    logits = model(x)
    logits[1, 0].backward()
    numbers = [w.detach().numpy() for w in (layer.input.weight, layer.recurrent.weight)]
    numbers += [model.head.weight.detach().numpy(), model.head.bias.detach().numpy()]
    p = {"dt": 1.0, "tau": 20.0, "tau_a": 98.0, "b0": 0.01, "beta": beta, "refractory": 2, "d": 0.3}
    for sample in range(2):
        # Each of thirty steps sees three values of both channels.
        series = x[sample].reshape(2, 30, 3).permute(1, 0, 2).reshape(30, 6).numpy()
        expected, gradient, rates = lsnn_twin(series, *numbers, p)
        np.testing.assert_allclose(logits[sample].detach().numpy(), expected, atol=1e-12)
        assert 0.02 < rates.mean() <= 0.5
    np.testing.assert_allclose(layer.input.weight.grad.numpy(), gradient, rtol=1e-9, atol=1e-12)
    assert np.abs(gradient).max() > 0
    assert not layer.recurrent.weight.grad.diagonal().any()


def rlif_twin(x, w_in, w_rec, leak):
    n = len(w_rec)
    v, s, total = np.zeros(n), np.zeros(n), np.zeros(n)
    dv, ds, dtotal = (np.zeros((n, *w_in.shape)) for _ in range(3))
    w = w_rec * (1 - np.eye(n))
    for now in x:
        du = leak * dv + np.einsum("nm,mij->nij", w, ds)
        for k in range(n):
            du[k, k] += now
        u = leak * v + w_in @ now + w @ s
        s = (u >= 1).astype(float)
        ds = (0.3 * np.maximum(0, 1 - np.abs(u - 1))).reshape(n, 1, 1) * du
        v, dv = u - s, du  # the reset is no part of the gradient
        total, dtotal = total + s, dtotal + ds
    return total / len(x), dtotal.sum(0) / len(x)


def test_rlif_is_the_slow_loop_with_its_gradient():
    model = build_model("rlif", (1, 12, 5), 3, {"hidden": 6}, seed=0).double()
    layer = model.backbone.neurons
    with torch.no_grad():
        layer.input.weight.mul_(6)
        layer.recurrent.weight.mul_(3)
    x = torch.rand(2, 1, 12, 5, generator=generator(2), dtype=torch.float64)
    rates = model.features(x) / 12  # of 12 steps
    rates[0].sum().backward()
    numbers = [w.detach().numpy() for w in (layer.input.weight, layer.recurrent.weight)]
    for sample in range(2):
        expected, gradient = rlif_twin(x[sample, 0].numpy(), *numbers, math.exp(-1 / 5))
        np.testing.assert_allclose(rates[sample].detach().numpy(), expected, atol=1e-12)
        if sample == 0:
            np.testing.assert_allclose(layer.input.weight.grad.numpy(), gradient, rtol=1e-9, atol=1e-12)
    assert 0.05 < float(rates.detach().mean()) < 0.95


def test_pieces_are_rows_chunks_and_values():
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    rows = InPieces((3, 4, 6))(image)
    assert rows.shape == (4, 2, 18)
    assert torch.equal(rows[1, 1], image[1, :, 1].flatten())
    channels_last = image.to(memory_format=torch.channels_last)
    assert torch.equal(InPieces((3, 4, 6))(channels_last), rows)
    assert torch.equal(InPieces((3, 4, 6), 8)(image)[3, 0], image[0, :, 1, 3:].flatten())
    series = torch.arange(20.0).reshape(2, 10)
    assert torch.equal(InPieces((10,))(series)[3], series[:, 3:4])
    assert torch.equal(InPieces((1, 10), 5)(series.unsqueeze(1))[2], series[:, 4:6])
    shown = InPieces((10,), 5, repeat=3)(series)
    assert shown.shape == (15, 2, 2)
    assert all(torch.equal(shown[t], series[:, 2 * (t // 3) : 2 * (t // 3) + 2]) for t in range(15))


@pytest.mark.parametrize("name", ["rlif", "lsnn"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 6), (1, 40), (2, 40), (40,)])
def test_shapes_and_a_fresh_state_on_each_call(name, shape):
    model = build_model(name, shape, 4, {"hidden": 9})
    x = torch.rand(3, *shape, generator=generator(0))
    logits = model(x)
    assert logits.shape == (3, 4)
    assert torch.equal(model(x), logits)
    torch.testing.assert_close(model(x[1:2]), logits[1:2])


def test_published_size_and_defaults():
    lsnn = build_model("lsnn", (40, 49), 6, {"steps": 49}).backbone.neurons
    assert sum(w.numel() for w in (lsnn.input.weight, lsnn.recurrent.weight)) == 256 * (40 + 256)
    assert (lsnn.threshold, lsnn.beta, lsnn.refractory, lsnn.surrogate.scale) == (0.01, 2.0, 2, 0.3)
    assert float(lsnn.recurrent.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    rlif = build_model("rlif", (1, 28, 28), 10).backbone.neurons
    assert (rlif.units, rlif.inputs, rlif.leak, rlif.reset) == (96, 28, math.exp(-0.2), "soft")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 27}, "27 steps cannot share the 784 values"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"repeat": 0}, "repeat must be at least 1"),
    ],
)
@pytest.mark.parametrize("name", ["rlif", "lsnn"])
def test_impossible_options_are_refused(name, options, what):
    with pytest.raises(UsageError, match=what):
        build_model(name, (1, 28, 28), 10, options)
    with pytest.raises(InputError, match=r"takes inputs \[B, 1, 28, 28\]"):
        build_model(name, (1, 28, 28), 10)(torch.zeros(2, 1, 28, 14))
    with pytest.raises(UsageError, match="leak of neurons"):
        build_model("rlif", (1, 8, 8), 10, {"leak": 2.0})
