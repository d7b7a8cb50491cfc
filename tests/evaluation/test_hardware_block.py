"""The hardware block: every device of the sweep, the worst weights, sensitive layers, and the largest safe levels."""

import pytest
import torch
from torch import nn

from stalwart.core.random import generator
from stalwart.evaluation.hardware import ChipsRow, _area, _safe, measure, steps
from stalwart.evaluation.sweep import sweep

X = torch.rand(30, 1, 4, 4, generator=generator(0))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def test_every_device_is_measured_and_the_network_left_as_it_was(net, tmp_path):
    y = net(X).argmax(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = []
    found = measure(net, X, y, chips=3, advance=lambda done, note="": told.append(done), kept=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert told == list(range(1, steps() + 1))
    assert len(found.rows) == len(list(sweep()))
    assert found.baseline == 1.0
    rows = {(row.block, row.level): row for row in found.rows}
    # Of so few bits none may be flipped at the lowest rate, which is no chip with flips.
    assert all(
        not row.refused and row.chips in (1, 3)
        for row in found.rows
        if "flips" not in row.block and "largest" not in row.block and "smallest" not in row.block
    )
    assert sum(bool(row.refused) for row in found.rows) < 12
    assert all(len(row.accuracies) == row.chips for row in found.rows)
    assert [one.flips for one in found.bits] == [1, 5, 20]
    assert found.bits[0].attacked >= found.bits[2].attacked
    assert found.area == _area([row for row in found.rows if row.block == "mismatch"], 1.0)
    assert found.landscape.slope > 0
    assert len(found.certified) == 5
    assert found.certified[0].certified >= found.certified[-1].certified
    assert rows["mismatch", 0.05].mean >= rows["mismatch", 0.7].mean
    assert all(row.minimum <= min(row.fifth, row.mean) + 1e-9 and row.mean <= 1 for row in found.rows)
    assert [one.fraction for one in found.worst] == [0.01, 0.05, 0.1]
    # The attack climbs the loss; on a few inputs a corner may cost more of them, but nothing is won.
    assert all(0 <= one.attacked <= 1 and 0 <= one.corner <= 1 for one in found.worst)
    assert found.worst[0].attacked >= found.worst[2].attacked
    assert {layer.parameter for layer in found.layers} == {"1.weight", "3.weight"}
    assert found.layers[0].mean <= found.layers[1].mean
    again = measure(net, X, y, chips=3, kept=tmp_path)
    assert again == found


def row(block, level, minimum, refused=""):
    return ChipsRow(block=block, device="d", level=level, chips=2, minimum=minimum, refused=refused)


def test_the_area_is_the_mean_over_levels():
    rows = [row("mismatch", level, 0.0).model_copy(update={"mean": mean}) for level, mean in ((0.5, 0.8), (1.0, 0.4))]
    # Trapezoids (1 + .8) / 2 · .5 and (.8 + .4) / 2 · .5.
    assert _area(rows, 1.0) == pytest.approx(0.75)
    assert _area([*rows, row("mismatch", 2.0, 0.0, refused="why")], 1.0) is None


def test_a_level_is_safe_only_if_all_before_it_are():
    rows = [
        row("a", 0.1, 0.95),
        row("a", 0.2, 0.93),
        row("a", 0.3, 0.89),
        row("a", 0.4, 0.95),
        row("b", 1.0, 0.5),
        row("c", 1.0, 0.95),
        row("c", 2.0, 0.95, refused="why"),
    ]
    assert _safe(rows, 0.94) == {"a": 0.2, "b": None, "c": 1.0}


def test_a_device_that_does_not_fit_says_why():
    half = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(half[1].weight)
    nn.init.zeros_(half[1].bias)
    half[1].bias.data[0] = 1.0
    found = measure(half, X, torch.zeros(30, dtype=torch.long), chips=2)
    refused = {one.block: one.refused for one in found.rows if one.refused}
    assert "same parameters as the model" in refused["phase-change memory, raw"]
    assert found.safe["phase-change memory, raw"] is None
    assert "1.weight" not in {layer.parameter for layer in found.layers}
