"""Bounds over sets that are not an l-infinity ball: exact on linear networks, sound on all, no looser than their box."""

import pytest
import torch
from tests.bounds.nets import networks
from torch import nn

from stalwart.bounds import METHODS, bound, margin_bound
from stalwart.bounds.interval import Interval
from stalwart.bounds.region import Region
from stalwart.core.random import generator
from stalwart.sets import L1, L2, Box, Linf

NETWORKS = {name: net for name, net in networks().items() if name in {"relu", "sigmoid", "conv", "residual"}}
WIDE = {"low": -100.0, "high": 100.0}
RADII = [0.0, 0.2, 0.9]


def boxes(x, size=1.0, seed=0):
    """Return a box around each x that is not symmetric and holds some elements still; the first is the point x."""
    reach = size * torch.rand(2, *x.shape, generator=generator(seed), dtype=torch.float64)
    reach = torch.where(reach < 0.2 * size, 0.0, reach)
    reach[:, 0] = 0.0
    return Box(x - reach[0], x + reach[1])


def sets(x):
    return {"l1": L1(RADII), "l2": L2(RADII), "box": boxes(x, 0.3)}


def points(x, within, count, seed=0):
    """Return points of the set around each input [count, B, ...]: random ones, and far ones drawn back to its border."""
    source = generator(seed)
    inside = [within.sample(x, source) for _ in range(count // 2)]
    far = [x + 3 * torch.randn(x.shape, generator=source, dtype=x.dtype) for _ in range(count // 2)]
    # Sparse moves reach the vertices of the l1 ball.
    few = [torch.where(torch.rand(x.shape, generator=source) < 0.2, z, x) for z in far]
    return torch.stack(inside + [within.project(x, z) for z in far + few])


@pytest.mark.parametrize("kind", ["l1", "l2", "box"])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "lbp", "crown"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_contain_every_sampled_output(name, method, kind):
    model, shape = NETWORKS[name]
    x = torch.rand(3, *shape, generator=generator(1), dtype=torch.float64)
    within = sets(x)[kind]
    with torch.no_grad():
        found = bound(model, x, within=within, method=method)
        seen = torch.stack([model(z) for z in points(x, within, 60)])
        box = bound(model, x, within=Box(*within.bounds(x)), method=method)
    assert (found.lower <= seen.amin(0) + 1e-9).all()
    assert (found.upper >= seen.amax(0) - 1e-9).all()
    # The first radius is 0, where everything is known.
    assert torch.allclose(found.lower[0], model(x)[0], atol=1e-6)
    assert torch.allclose(found.upper[0], model(x)[0], atol=1e-6)
    if kind == "box":
        assert torch.allclose(found.lower, box.lower)
    elif method == "crown" and name in {"relu", "conv"}:
        assert (found.lower[1:] > box.lower[1:] + 1e-3).any(), "the ball must count, not only the box around it"


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ibp"])
def test_a_linear_network_is_bounded_by_the_dual_norm(method):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator(0, *parameter.shape), dtype=torch.float64))
    rows = model[1].weight @ model[0].weight
    x, eps = torch.rand(3, 6, generator=generator(1), dtype=torch.float64), torch.tensor(RADII, dtype=torch.float64)
    for kind, dual in ((L1, torch.inf), (L2, 2), (Linf, 1)):
        found = bound(model, x, within=kind(RADII, **WIDE), method=method)
        reach = eps[:, None] * torch.linalg.vector_norm(rows, dual, dim=1)
        torch.testing.assert_close(found.lower, model(x) - reach)
        torch.testing.assert_close(found.upper, model(x) + reach)
    within = boxes(x)
    found = bound(model, x, within=within, method=method)
    centre, reach = (within.lower + within.upper) / 2, (within.upper - within.lower) / 2
    torch.testing.assert_close(found.lower, model(centre) - reach @ rows.abs().T)
    torch.testing.assert_close(found.upper, model(centre) + reach @ rows.abs().T)


def test_where_the_valid_range_binds_linear_bounds_are_attained():
    model = nn.Linear(6, 3).double().requires_grad_(False)
    x = torch.rand(3, 6, generator=generator(1), dtype=torch.float64)
    within = L1([0.5, 1.5, 4.0])
    found = bound(model, x, within=within, method="crown")
    for k in range(3):
        for sign, end in ((1, found.upper), (-1, -found.lower)):
            c = (sign * model.weight[k]).repeat(3, 1).requires_grad_()
            (best,) = torch.autograd.grad(within.support(x, c).sum(), c)
            assert within.contains(x, best).all()
            torch.testing.assert_close(sign * model(best)[:, k], end[:, k])


def test_margins_hold_over_the_l1_ball():
    model, shape = NETWORKS["relu"]
    x = torch.rand(3, *shape, generator=generator(1), dtype=torch.float64)
    within, y = L1(RADII), model(x).argmax(1)
    low = margin_bound(model, x, y, within=within, method="crown")
    logits = torch.stack([model(z) for z in points(x, within, 200)]).detach()
    own = logits.gather(2, y[None, :, None].expand(len(logits), -1, 1)).squeeze(2)
    others = logits.scatter(2, y[None, :, None].expand(len(logits), -1, 1), -torch.inf).amax(2)
    assert (low <= (own - others).amin(0) + 1e-9).all()
    assert (low > 0).any()


def test_the_box_is_laid_out_once_for_all_walks():
    low = torch.rand(1, 3, dtype=torch.float64, generator=generator(0))
    region = Region(Interval(low, low + 1))
    a = torch.randn(4, 5, 3, dtype=torch.float64, generator=generator(1))
    first = region.minimum(a.clone())
    kept = region._made["_expanded"][0]
    assert torch.equal(region.minimum(a.clone()), first)
    assert region._made["_expanded"][0] is kept
    assert torch.allclose(first, torch.minimum(a * low, a * (low + 1)).sum(2))
    assert torch.allclose(region.minimum(a[:2].clone()), first[:2])
    # Ends with gradients get a layout of their own each time.
    low.requires_grad_(True)
    other = Region(Interval(low, low + 1))
    for _ in range(2):
        other.minimum(a.clone()).sum().backward()
    assert not other._made
