"""Windows followed through a stack: the logits of whole passes, whatever the layers, and the same search by squares."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import stalwart as sw
from stalwart.attacks.layout import prefers_channels_last
from stalwart.attacks.patches import Known
from stalwart.core import jit
from stalwart.core.layout import channels_last
from stalwart.core.quick import flatten_as_stored, lean_copy
from stalwart.core.random import generator

pytestmark = pytest.mark.skipif(not jit.available(), reason="patches are laid by compiled loops (numba)")


def stack(layers, x):
    """Return what an oracle would follow windows through, and the model it is a copy of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*layers(), nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.Linear(9, 4)).eval()
        model(x[:1])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator(1))
            module.running_var.uniform_(0.5, 2, generator=generator(2))
    twin = lean_copy(model)
    flatten_as_stored(twin, channels_last(x[:1]) if prefers_channels_last(model, x[:1]) else x[:1])
    return Known.of(twin), model


@st.composite
def stacks(draw):
    sizes = draw(st.tuples(st.integers(9, 13), st.integers(9, 13)))
    channels, small = draw(st.integers(1, 3)), st.integers(1, 3)
    settings = [draw(st.tuples(small, st.integers(1, 4), st.integers(1, 2), st.integers(0, 2))) for _ in range(2)]
    between = draw(
        st.sampled_from([None, nn.MaxPool2d(2), nn.AvgPool2d((2, 1), 1), nn.MaxPool2d(3, 2), nn.BatchNorm2d(4)])
    )
    across, dilation, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2]))

    def layers():
        (tall, wide, stride, padding), (second, other, step, rim) = settings
        yield nn.Conv2d(channels, 4, (tall, wide), (stride, across), padding)
        yield nn.ReLU()
        if between is not None:
            yield between
        yield nn.Conv2d(4, 6, (second, other), step, (rim, 1), dilation, groups)
        yield nn.Tanh()

    window = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    corners = st.tuples(st.integers(0, sizes[0] - window[0]), st.integers(0, sizes[1] - window[1]))
    return (5, channels, *sizes), layers, window, draw(st.lists(corners, min_size=1, max_size=12))


def painted(x, who, corner, window):
    z = x[who].clone()
    for row, (y, c) in enumerate(corner.tolist()):
        z[row, :, y : y + window.shape[2], c : c + window.shape[3]] = window[row]
    return z


@hypothesis.settings(max_examples=60)
@hypothesis.given(case=stacks())
def test_logits_are_those_of_whole_passes(case):
    shape, layers, size, corners = case
    x = torch.randn(shape, generator=generator(3))
    try:
        record, model = stack(layers, x)
    except RuntimeError:  # a kernel larger than its input
        hypothesis.reject()
    hypothesis.assume(record is not None)  # one pixel is left, or one channel
    record.look(x)
    who, corner = torch.arange(len(corners)) % 5, torch.tensor(corners)
    window = torch.randn(len(who), shape[1], *size, generator=generator(4))
    z = painted(x, who, corner, window)
    with torch.no_grad():
        torch.testing.assert_close(record.logits(window, corner, who), model(z), rtol=1e-4, atol=1e-5)
        rows = torch.arange(len(who))[: min(len(who), 3)].flip(0)  # of different images
        record.settle(rows)
        x[who[rows]] = z[rows]
        torch.testing.assert_close(record.logits(window, corner, who), model(painted(x, who, corner, window)))
        record.select(torch.tensor([4, 1]))
        pair = torch.tensor([1, 0])
        found = record.logits(window[:1].expand(2, -1, -1, -1), corner[:1].expand(2, -1).contiguous(), pair)
        torch.testing.assert_close(
            found, model(painted(x[[1, 4]], [0, 1], corner[:1].expand(2, -1), window[:1].expand(2, -1, -1, -1)))
        )
    assert 0 < record.share(size) <= 1


def test_the_share_of_the_work_by_hand():
    record, _ = stack(lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)], x := images())
    record.look(x)
    some = 9 * 9 * 36 + 11 * 11 * 72 + 11 * 11 * 2 * 9
    assert record.share((7, 7)) == pytest.approx(some / (12 * 12 * (36 + 72 + 2 * 9)))
    assert record.share((12, 12)) == 1


def images():
    return torch.rand(40, 1, 12, 12, generator=generator(5))


@pytest.mark.parametrize(
    "layers",
    [
        list,
        lambda: [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2)],
        lambda: [nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, padding=1)],
        lambda: [nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True)],
        lambda: [nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")],
        lambda: [nn.Conv2d(1, 4, 3, padding="same")],
        lambda: [nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2)],
        lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(1, 4, 3)],
        lambda: [nn.Conv2d(1, 1, 3)],
    ],
)
def test_other_stacks_are_run_whole(layers):
    assert stack(layers, images())[0] is None


def test_square_searches_as_by_whole_passes(monkeypatch):
    def layers():
        return nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()

    torch.manual_seed(1)
    x, y = images(), torch.arange(40) % 4
    model = nn.Sequential(*layers(), nn.Flatten(), nn.Linear(288, 4)).eval()
    y = model(x).argmax(1)
    square = sw.attack("square", queries=300)
    followed = []
    monkeypatch.setattr(
        Known,
        "settle",
        lambda self, rows, old=Known.settle: followed.append(len(rows)) or old(self, rows),
    )
    found = square(model, x, y, within=sw.Linf(0.05), seed=0)
    assert sum(followed) > 100
    monkeypatch.setattr(Known, "of", lambda stack: None)
    whole = square(model, x, y, within=sw.Linf(0.05), seed=0)
    # Rounding may decide otherwise where two losses are equal to six digits, rarely.
    same = (found.x_adv == whole.x_adv).flatten(1).all(1)
    assert same.float().mean() > 0.8
    assert torch.equal(found.success, whole.success)
    assert 0 < found.success.float().mean() < 1
