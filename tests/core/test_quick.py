"""Copies of models that predict faster: the same values, the model's own weights, the model itself untouched."""

import pytest
import torch
from torch import nn

from stalwart.core.layout import channels_last
from stalwart.core.quick import FlattenAsStored, flatten_as_stored, lean_copy
from stalwart.core.random import generator


def network(*, pool=None, middle=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            middle or nn.ReLU(),
            pool or nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()),
            nn.Flatten(),
            nn.LazyLinear(5),
            nn.ReLU(),
            nn.Linear(5, 3),
        )


def images(height=9, width=11):
    return torch.randn(6, 2, height, width, generator=generator(0, "images"))


@pytest.mark.parametrize("arrange", [channels_last, torch.Tensor.contiguous])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (2, 3)])
def test_values_are_the_same(arrange, size):
    model, x = network(), arrange(images(*size))
    with torch.no_grad():
        expected = model(x)
        x_before = x.clone()
        twin = lean_copy(model)
        assert torch.equal(twin(x), expected)
        assert torch.equal(x, x_before)
        x[0, 0, 1, 1] = torch.nan
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0, equal_nan=True)


def test_the_copy_is_rearranged_and_the_model_is_not():
    model = network()
    model(images())
    layers, twin = list(model), lean_copy(model)
    assert list(model) == layers
    assert not any(layer.inplace for layer in model.modules() if isinstance(layer, nn.ReLU))
    assert all(layer.inplace for layer in twin.modules() if isinstance(layer, nn.ReLU))
    assert isinstance(twin[2], nn.ReLU)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "changed",
    [
        {"pool": nn.MaxPool2d(3, 2)},
        {"pool": nn.MaxPool2d(2, 1)},
        {"pool": nn.MaxPool2d(2, padding=1)},
        {"pool": nn.MaxPool2d(2, ceil_mode=True)},
        {"pool": nn.MaxPool2d(2, dilation=2)},
        {"pool": nn.AvgPool2d(2)},
        {"middle": nn.Tanh()},
    ],
)
def test_other_layers_stay(changed):
    model, x = network(**changed), channels_last(images())
    with torch.no_grad():
        expected = model(x)
        twin = lean_copy(model)
        assert torch.equal(twin(x), expected)
    assert type(twin[1]) is type(model[1])
    assert type(twin[2]) is type(model[2])


def test_buffers_are_its_own():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    twin = lean_copy(model).train()
    twin(images())
    assert int(twin[1].num_batches_tracked) == 1
    assert int(model[1].num_batches_tracked) == 0


class Skipping(nn.Module):
    """A module that sees what its stack's first layer gives."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        first = self.parts[0](x)
        return self.parts[1](first) + first


def test_stacks_that_others_use_stay():
    model = nn.Sequential(Skipping(), nn.ReLU())
    with torch.no_grad():
        assert torch.equal(lean_copy(model)(images()), model(images()))


def test_images_are_flattened_as_they_lie_in_memory():
    model, x = network(), channels_last(images(8, 8))
    expected = model(x)
    twin = lean_copy(model)
    flatten_as_stored(twin, x[:2])
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(twin(x.contiguous()), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(twin[4], FlattenAsStored)
    assert type(model[4]) is nn.Flatten
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("case", ["channels first", "one pixel", "a part", "something between"])
def test_other_flattening_stays(case):
    x, middle = images(8, 8), [nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3)]
    if case == "one pixel":
        middle[0] = nn.Conv2d(2, 4, 8)
    elif case == "a part":
        middle[1] = nn.Flatten(1, 2)
    elif case == "something between":
        middle.insert(2, nn.Sigmoid())
    stack = nn.Sequential(*middle)
    x = x if case == "channels first" else channels_last(x)
    expected = stack(x)
    flatten_as_stored(stack, x)
    assert type(stack[1]) is nn.Flatten
    assert torch.equal(stack(x), expected)
