"""Every method, activation and operator encloses what sampling finds; the methods keep their order; twins agree."""

import itertools

import pytest
import torch
from tests.bounds.nets import networks
from torch import nn

import stalwart as sw
from stalwart.bounds import METHODS, bound, margin_bound, margin_bounds
from stalwart.bounds.methods import find_method, finish, margin_rows, propagate
from stalwart.core import jit
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator

NETWORKS = networks()
TOLERANCE = 1e-9
COMPILED = (
    "relu",
    "conv",
    "conv-wide",
    "conv-dilated",
    "conv-same",
    "batch-norm",
    "residual",
    "max-pool",
    "avg-pool",
    "vision",
)


def points(x, within, count, seed=0):
    """Return points of the set around each input, corners among them: [count, B, ...]."""
    source = generator(seed)
    lower, upper = within.bounds(x)
    inside = [within.sample(x, source) for _ in range(count // 2)]
    corners = [
        within.project(x, torch.where(torch.rand(x.shape, generator=source) < 0.5, lower, upper))
        for _ in range(count // 2)
    ]
    return torch.stack(inside + corners)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "lbp", "crown-lbp", "crown", "relaxed-crown-2", "alpha-crown"])
def test_bounds_contain_every_sampled_output(name, method):
    model, shape = NETWORKS[name]
    x = torch.rand(3, *shape, generator=generator(1), dtype=torch.float64)
    # Chains of products and quotients have no finite bounds on wide boxes.
    radii = [0.0, 0.001, 0.004] if name in {"vision", "layer_norm", "recurrent"} else [0.0, 0.03, 0.3]
    for strategy in ("tight", "adaptive"):
        within = sw.Linf(radii)
        with torch.no_grad():
            found = bound(model, x, within, method, strategy=strategy)
            seen = torch.stack([model(z) for z in points(x, within, 60)])
        room = TOLERANCE * (1 + seen.abs().amax(0))
        assert (found.lower <= seen.amin(0) + room).all()
        assert (found.upper >= seen.amax(0) - room).all()
        assert torch.isfinite(found.lower).all()
        # With a radius of 0 everything is known exactly.
        assert torch.allclose(found.lower[0], model(x)[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["tight", "adaptive", "one", "same-slope", "constant"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "conv", "param-ramp", "abs"])
def test_every_strategy_contains_the_samples(name, method, strategy):
    model, shape = NETWORKS[name]
    x = torch.rand(4, *shape, generator=generator(2), dtype=torch.float64)
    within = sw.Linf(0.2)
    with torch.no_grad():
        found = bound(model, x, within, method, strategy=strategy)
        seen = torch.stack([model(z) for z in points(x, within, 60)])
    assert (found.lower <= seen.amin(0) + TOLERANCE).all()
    assert (found.upper >= seen.amax(0) - TOLERANCE).all()


ORDER = (
    ("ibp", "lbp"),
    ("ibp", "crown-ibp"),
    ("lbp", "crown-lbp"),
    ("crown-ibp", "crown-lbp"),
    ("crown-lbp", "crown"),
)


def test_the_methods_keep_the_order_of_theorem_2():
    """Lyu et al. 2021, theorem 2: IBP <= LBP, CROWN-IBP <= CROWN-LBP <= CROWN with tight lines."""
    source = generator(3)
    for _ in range(40):
        widths = [
            3,
            *torch.randint(2, 7, (int(torch.randint(1, 4, (1,), generator=source)),), generator=source).tolist(),
            3,
        ]
        activation = [nn.ReLU(), nn.LeakyReLU(0.1)][int(torch.randint(0, 2, (1,), generator=source))]
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation)][:-1]
        model = nn.Sequential(*layers).double().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        x = torch.rand(5, 3, generator=source, dtype=torch.float64)
        low = {m: bound(model, x, sw.Linf(0.2), m, strategy="tight").lower for m in {*itertools.chain(*ORDER)}}
        for loose, sharp in ORDER:
            assert (low[loose] <= low[sharp] + TOLERANCE).all(), (loose, sharp)
        constant = {m: bound(model, x, sw.Linf(0.2), m, strategy="constant").lower for m in ("ibp", "lbp", "crown")}
        assert torch.allclose(constant["ibp"], constant["lbp"])
        assert torch.allclose(constant["ibp"], constant["crown"])


def golden(activation):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), activation, nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    return model.eval()


@pytest.mark.parametrize(
    ("method", "strategy", "low", "high"),
    [
        ("ibp", "tight", 0, 4),
        ("crown", "tight", 0, 3),
        ("lbp", "tight", 0, 3),
        ("crown", "adaptive", -2, 3),
        ("lbp", "adaptive", -2, 3),
    ],
)
def test_the_golden_case(method, strategy, low, high):
    x = torch.zeros(1, 2, dtype=torch.float64)
    found = bound(golden(nn.ReLU()), x, sw.Linf(1.0, low=-1.0), method, strategy=strategy)
    assert found.lower[0, 0].item() == pytest.approx(low)
    assert found.upper[0, 0].item() == pytest.approx(high)


def test_a_linear_network_is_bounded_exactly():
    model = nn.Linear(4, 3).double()
    x = torch.rand(2, 4, generator=generator(0), dtype=torch.float64)
    for method in METHODS:
        found = bound(model, x, sw.Linf(0.05, low=-1.0, high=2.0), method)
        reach = 0.05 * model.weight.abs().sum(1)
        assert torch.allclose(found.lower, model(x) - reach)
        assert torch.allclose(found.upper, model(x) + reach)
        norm = 0.05 * model.weight.norm(dim=1)
        ball = bound(model, x, sw.L2(0.05, low=-1.0, high=2.0), "crown")
        assert torch.allclose(ball.lower, model(x) - norm)


def test_margins_are_rows_of_differences():
    rows = margin_rows(torch.tensor([0, 2]), 3)
    assert rows.tolist() == [[[1, -1, 0], [1, 0, -1]], [[-1, 0, 1], [0, -1, 1]]]
    model, shape = NETWORKS["relu"]
    x = torch.rand(2, *shape, generator=generator(4), dtype=torch.float64)
    y = torch.tensor([0, 2])
    each = margin_bounds(model, x, y, sw.Linf(0.1), "crown")
    assert torch.equal(margin_bound(model, x, y, sw.Linf(0.1), "crown"), each.amin(1))
    outputs = bound(model, x, sw.Linf(0.1), "crown")
    apart = torch.stack([outputs.lower[0, 0] - outputs.upper[0, 1:], outputs.lower[1, 2] - outputs.upper[1, :2]])
    assert (each >= apart - TOLERANCE).all(), "folding the rows into the last layer keeps correlations"
    assert (each > apart + 1e-6).any()


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "relu",
        "conv",
        "conv-wide",
        "conv-dilated",
        "conv-same",
        "batch-norm",
        "residual",
        "max-pool",
        "avg-pool",
        "vision",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_loops_and_plain_operators_agree(name, dtype, monkeypatch):
    model, shape = NETWORKS[name]
    x = torch.rand(3, *shape, generator=generator(6), dtype=dtype)
    with torch.no_grad():
        fast = bound(model.to(dtype), x, sw.Linf(0.15), "crown")
        monkeypatch.setattr(jit, "available", lambda: False)
        plain = bound(model, x, sw.Linf(0.15), "crown")
    model.double()
    close = {"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 1e-10}
    assert torch.allclose(fast.lower, plain.lower, **close)
    assert torch.allclose(fast.upper, plain.upper, **close)


def test_bounds_are_differentiable_in_parameters():
    model = (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    )
    x, y = torch.rand(2, 1, 4, 4, generator=generator(0), dtype=torch.float64), torch.tensor([0, 1])
    for method in set(METHODS) - {"alpha-crown"}:  # whose slopes are found by gradients of their own
        loss = margin_bounds(model, x, y, sw.Linf(0.1), method).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            before = model[0].weight[0, 0, 1, 1].item()
            model[0].weight[0, 0, 1, 1] = before + 1e-6
            moved = margin_bounds(model, x, y, sw.Linf(0.1), method).sum()
            model[0].weight[0, 0, 1, 1] = before
        assert (moved - loss).item() / 1e-6 == pytest.approx(gradients[0][0, 0, 1, 1].item(), rel=1e-3, abs=1e-6)


def test_a_chunk_that_does_not_fit_is_halved(monkeypatch):
    from stalwart.bounds import backward

    model, shape = NETWORKS["conv"]
    x = torch.rand(2, *shape, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        whole = bound(model, x, sw.Linf(0.1), "crown")
    original, sizes = backward._entries, []

    def tight(known, node, rows, *others):
        sizes.append(rows.shape[1])
        if rows.shape[1] > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte.")
        return original(known, node, rows, *others)

    monkeypatch.setattr(backward, "_entries", tight)
    with torch.no_grad():
        found = bound(model, x, sw.Linf(0.1), "crown")
    assert max(sizes) > 3
    assert torch.allclose(found.lower, whole.lower)


class BeforeAndAfter(nn.Module):
    """A network that uses a layer's value before its ReLU too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        z = self.first(x.flatten(1))
        return self.last(self.second(z.relu()).relu() + z)


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize("chunk", [1, 1 << 30])
@pytest.mark.parametrize("name", ["plain", "convolutions", "before and after"])
def test_walks_of_few_and_many_rows_and_plain_operators_agree(name, chunk, monkeypatch):
    from stalwart.bounds import backward

    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2, padding=1), nn.ReLU()]
    model = {
        "plain": nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)),
        "convolutions": nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 3)),
        "before and after": BeforeAndAfter(),
    }[name].double().eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    x = torch.rand(3, 1, 3, 4, generator=generator(0), dtype=torch.float64)
    with torch.no_grad():
        monkeypatch.setattr(backward, "_CHUNK_BYTES", chunk)
        fast = bound(model, x, sw.Linf(0.1), "crown")
        monkeypatch.setattr(jit, "available", lambda: False)
        plain = bound(model, x, sw.Linf(0.1), "crown")
    assert torch.allclose(fast.lower, plain.lower, rtol=1e-10, atol=1e-10)
    assert torch.allclose(fast.upper, plain.upper, rtol=1e-10, atol=1e-10)


def test_only_unstable_neurons_get_rows(monkeypatch):
    from stalwart.bounds import backward

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator(0)))
        model[2].bias.copy_(torch.tensor([100.0, -100.0, 0.0, 100.0, 0.0]))
    counted = []
    original = backward._entries
    monkeypatch.setattr(
        backward,
        "_entries",
        lambda known, node, rows, *rest: (counted.append(rows), original(known, node, rows, *rest))[1],
    )
    with torch.no_grad():
        bound(model, torch.full((1, 3), 0.5, dtype=torch.float64), sw.Linf(0.3), "crown")
    assert set(counted[-1].flatten().tolist()) == {2, 4}


def rows_walked(model, shape, within, monkeypatch, **options):
    """Return how many entries crown walks from for each layer that is walked."""
    from stalwart.bounds import methods

    counted = []
    original = methods.entries
    monkeypatch.setattr(
        methods,
        "entries",
        lambda known, node, wanted, *rest: (
            counted.append(int(wanted.sum())),
            original(known, node, wanted, *rest),
        )[1],
    )
    x = torch.rand(1, *shape, generator=generator(2), dtype=torch.float64)
    with torch.no_grad():
        bound(model, x, within, "crown", **options)
    return counted


@pytest.mark.parametrize(
    ("first", "within", "options", "walks"),
    [
        ([nn.Flatten(), nn.Linear(9, 20)], sw.Linf(0.4), {}, False),
        ([nn.BatchNorm2d(1), nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.Flatten()], sw.Linf(0.4), {}, False),
        # A second product sees entries that vary together.
        ([nn.Flatten(), nn.Linear(9, 9), nn.Linear(9, 20)], sw.Linf(0.4), {}, True),
        # The interval is of the box around the ball.
        ([nn.Flatten(), nn.Linear(9, 20)], sw.L2(0.4), {}, True),
        ([nn.Flatten(), nn.Linear(9, 20)], sw.Linf(0.4), {"rigor": "rigorous"}, True),
    ],
)
def test_no_walk_begins_where_intervals_are_exact(first, within, options, walks, monkeypatch):
    torch.manual_seed(3)
    model = nn.Sequential(*first, nn.ReLU(), nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    counted = rows_walked(model, (1, 3, 3), within, monkeypatch, **options)
    assert len(counted) == 2
    assert (counted[0] > 0) == walks
    assert counted[1] > 0


def test_an_operand_that_is_taken_from_itself_is_walked():
    class Vanishing(nn.Module):
        def forward(self, x):
            return torch.relu(x - x)

    with torch.no_grad():
        found = bound(Vanishing(), torch.full((1, 2), 0.5, dtype=torch.float64), sw.Linf(0.1), "crown")
    assert torch.equal(found.upper, torch.zeros(1, 2, dtype=torch.float64)), "intervals alone say 0.2"


@pytest.mark.skipif(not jit.available(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["crown", "relaxed-crown-1"])
def test_rows_that_pass_lines_while_they_are_copied_have_the_same_bounds(dtype, method, monkeypatch):
    from stalwart.bounds.rules.elementwise import Function

    torch.manual_seed(0)
    # Wider than what is summed in one go.
    model = nn.Sequential(nn.Linear(5, 1100), nn.ReLU(), nn.Linear(1100, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    x = torch.rand(3, 5, generator=generator(4), dtype=dtype)
    original, taken = Function.taken, []
    monkeypatch.setattr(Function, "taken", lambda *all_: taken.append(original(*all_)) or taken[-1])
    with torch.no_grad():
        found = bound(model, x, sw.Linf(0.1), method)
        assert any(taken) == (method == "crown")
        monkeypatch.setattr(Function, "taken", lambda *all_: False)
        copied = bound(model, x, sw.Linf(0.1), method)
    room = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(found.lower, copied.lower, atol=room, rtol=room)
    assert torch.allclose(found.upper, copied.upper, atol=room, rtol=room)


@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 1), 0), *((kernel, pad) for kernel in [(3, 5), (4, 4), (5, 3)] for pad in (0, 1))]
)
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 3)])
def test_transposes_of_thin_convolutions_are_those_of_autograd(kernel, padding, stride):
    model = nn.Sequential(nn.Conv2d(2, 5, kernel, stride, padding), nn.Flatten(), nn.LazyLinear(3)).double()
    x = 0.2 + 0.6 * torch.rand(2, 2, 11, 10, generator=generator(5), dtype=torch.float64)
    model(x)
    (slope,) = torch.autograd.functional.jacobian(lambda z: model(z).sum(0), (x,))
    spread = 0.1 * slope.abs().flatten(2).sum(2).T
    with torch.no_grad():
        found = bound(model, x, sw.Linf(0.1), "crown")
        assert torch.allclose(found.upper - model(x), spread)
        assert torch.allclose(model(x) - found.lower, spread)


def test_intervals_on_weights():
    source = generator(9)
    models = {
        "linear": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        "conv": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)),
    }
    for name, model in models.items():
        model.double().eval()
        x = torch.rand(3, *((3,) if name == "linear" else (1, 4, 4)), generator=source, dtype=torch.float64)
        ends = {key: (p - 0.05 * p.abs(), p + 0.05 * p.abs()) for key, p in model.named_parameters()}
        for method, within in itertools.product(("ibp", "crown-ibp"), (None, sw.Linf(0.05))):
            with torch.no_grad():
                found = bound(model, x, within, method, weights=ends)
            for _ in range(60):
                drawn = {
                    key: low + (high - low) * torch.randint(0, 2, low.shape, generator=source)
                    for key, (low, high) in ends.items()
                }
                z = x if within is None else within.sample(x, source)
                out = torch.func.functional_call(model, drawn, (z,))
                assert (out >= found.lower - TOLERANCE).all()
                assert (out <= found.upper + TOLERANCE).all()
            nothing = {key: (p, p) for key, p in model.named_parameters()}
            exact = bound(model, x, within, method, weights=nothing)
            plain = bound(model, x, within or sw.Linf(0.0), method)
            assert torch.allclose(exact.lower, plain.lower)


def test_every_sample_has_its_own_radius():
    model, shape = NETWORKS["relu"]
    x = torch.rand(3, *shape, generator=generator(1), dtype=torch.float64)
    together = bound(model, x, sw.Linf([0.0, 0.1, 0.2]), "crown")
    alone = [bound(model, x[k : k + 1], sw.Linf(eps), "crown").lower[0] for k, eps in enumerate((0.0, 0.1, 0.2))]
    assert torch.allclose(together.lower, torch.stack(alone))


def test_float64_is_asked_for_by_rigor():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.rand(2, 4)
    assert bound(model, x, sw.Linf(0.1), "crown").lower.dtype == torch.float32
    assert bound(model, x, sw.Linf(0.1), "crown", rigor="float64").lower.dtype == torch.float64


def test_bad_input_is_refused_with_a_reason():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2))
    x = torch.rand(2, 4)
    with pytest.raises(InputError, match=r"module '2' \(Dropout\) is in training mode"):
        bound(model.train(), x, sw.Linf(0.1))
    model.eval()
    with pytest.raises(UsageError, match="Did you mean 'crown'"):
        bound(model, x, sw.Linf(0.1), "crwn")
    with pytest.raises(UsageError, match="strategy"):
        bound(model, x, sw.Linf(0.1), "crown", strategy="tigth")
    with pytest.raises(InputError, match="NaN"):
        bound(model, torch.full((2, 4), torch.nan), sw.Linf(0.1))
    with pytest.raises(UsageError, match="no parameter"):
        bound(model, x, weights={"nothing": (x, x)})

    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values

    with pytest.raises(InputError, match="no rule for 'sort' in module '0'"):
        bound(nn.Sequential(Sorted(), nn.Linear(4, 2)), x, sw.Linf(0.1))


def test_a_nan_parameter_proves_nothing():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        for method in METHODS:
            assert not (margin_bound(model, torch.rand(2, 4), torch.tensor([0, 1]), sw.Linf(0.1), method) > 0).any()


def test_finish_takes_rows_of_its_own():
    model, shape = NETWORKS["relu"]
    x = torch.rand(2, *shape, generator=generator(1), dtype=torch.float64)
    known = propagate(model, x, sw.Linf(0.1), "crown-ibp")
    rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    kept = rows.clone()
    assert torch.allclose(
        finish(known, rows, find_method("crown-ibp")), bound(model, x, sw.Linf(0.1), "crown-ibp").lower
    )
    assert torch.equal(rows, kept)
