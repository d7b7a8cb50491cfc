"""What a watched walk remembers is what reached the nodes, in windows or not."""

import pytest
import torch
from torch import nn

from stalwart.bounds.backward import at_entries, lower_bound
from stalwart.bounds.methods import propagate
from stalwart.certify.watch import Watch
from stalwart.sets import Linf


@pytest.mark.parametrize("side", [3, 12])
def test_coefficients_at_the_input_are_those_of_a_linear_network(side):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten()).double().eval()
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    known = propagate(model, x, Linf(0.1), "ibp")
    conv = next(node for node in known.graph.nodes if node.op == "batch_norm")
    rows = torch.tensor([[0, side * side + side + 1]])
    walk = Watch(known, [known.graph.input])
    with torch.no_grad():
        lower_bound(known, at_entries(known, conv, rows), walk=walk)
    wanted = torch.autograd.functional.jacobian(lambda z: model(z)[0, rows[0]], x)[:, 0]
    assert torch.allclose(walk.seen[known.graph.input], torch.cat([wanted, -wanted])[None], atol=1e-12)
