"""Every architecture: shapes, sizes, determinism, refusals."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.models import MODELS, build_model
from stalwart.spiking import Neurons

SMALL = ["lenet++", "small-cnn", "pooled-cnn", "buchel-cnn", "mlp", "dm-small", "resnet20"]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 2), ((3, 32, 32), 10), ((3, 33, 40), 100)])
def test_shapes_of_every_model(name, shape, classes):
    # On the meta device shapes are computed but no numbers, so that the large models cost nothing.
    with torch.device("meta"):
        model = build_model(name, shape, classes)
        x = torch.zeros(2, *shape)
    assert model(x).shape == (2, classes)
    assert model.features(x).shape == (2, model.head.in_features)


@pytest.mark.parametrize("name", [*SMALL, "vgg5", "dm-medium"])
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 2), ((3, 32, 32), 10)])
def test_forward_and_backward_with_numbers(name, shape, classes):
    model = build_model(name, shape, classes).eval()
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert x.grad.abs().amax() > 0
    assert all(p.grad is not None for p in model.parameters())
    if name != "mlp":
        in_memory_of = model.to(memory_format=torch.channels_last)
        again = in_memory_of(x.detach().to(memory_format=torch.channels_last))
        torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("dm-large", (1, 28, 28), 13.26),
        ("dm-large", (3, 32, 32), 17.19),
        ("cnn7-bn", (3, 32, 32), 17.19),
        ("resnet18", (3, 32, 32), 11.17),
        ("buchel-cnn", (1, 28, 28), 0.494),
        ("resnet20", (3, 32, 32), 0.27),
        ("resnet32", (3, 32, 32), 0.47),
        ("wrn-16-4", (3, 32, 32), 2.75),
        ("wrn-28-10", (3, 32, 32), 36.48),
        ("wrn-34-10", (3, 32, 32), 46.16),
    ],
)
def test_published_numbers_of_parameters(name, shape, millions):
    with torch.device("meta"):
        assert parameters(build_model(name, shape, 10)) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "shape", "inside", "width"),
    [
        ("lenet++", (1, 28, 28), 2048, 32),
        ("small-cnn", (1, 28, 28), 1568, 32),
        ("pooled-cnn", (1, 28, 28), 3136, 128),
        ("dm-small", (1, 28, 28), 8192, 100),
        ("dm-medium", (1, 28, 28), 4096, 512),
        ("dm-large", (1, 28, 28), 25088, 512),
        ("cnn7-bn", (3, 32, 32), 32768, 512),
        ("small-cifar", (3, 32, 32), 16384, 512),
        ("small-mnist", (1, 28, 28), 1568, 512),
        ("vgg5", (3, 32, 32), 8192, 1024),
        ("vgg11", (3, 32, 32), 8192, 4096),
        ("mlp", (64,), 64, 64),
    ],
)
def test_first_dense_layer_and_width(name, shape, inside, width):
    with torch.device("meta"):
        model = build_model(name, shape, 10)
    dense = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert dense[0].in_features == inside
    assert model.head.in_features == width


def test_details_that_papers_fix():
    with torch.device("meta"):
        lenet, vgg5, vgg11 = (build_model(name, (3, 32, 32), 10).backbone for name in ("lenet++", "vgg5", "vgg11"))
    count = lambda model, kind: sum(isinstance(layer, kind) for layer in model.modules())  # noqa: E731
    assert (count(lenet, nn.Conv2d), count(lenet, nn.PReLU), count(lenet, nn.ReLU)) == (6, 6, 0)
    assert isinstance(lenet[-1], nn.Linear)
    assert (count(vgg5, nn.Conv2d), count(vgg5, nn.AvgPool2d), count(vgg5, nn.Dropout)) == (3, 2, 1)
    assert (count(vgg11, nn.Conv2d), count(vgg11, nn.AvgPool2d), count(vgg11, nn.Dropout)) == (8, 3, 2)
    assert (count(vgg5, nn.BatchNorm2d), count(vgg11, nn.BatchNorm2d)) == (0, 8)
    for model in (vgg5, vgg11):
        assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    assert [layer.out_channels for layer in vgg11.modules() if isinstance(layer, nn.Conv2d)] == [
        *(64, 128, 256, 512, 512, 512, 512, 512)
    ]


def test_batch_norm_lies_before_every_activation_of_cnn7():
    with torch.device("meta"):
        layers = list(build_model("cnn7-bn", (3, 32, 32), 10).backbone)
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 5 + ["Flatten", "Linear", "BatchNorm1d", "ReLU"]
    assert [layer.stride[0] for layer in layers if isinstance(layer, nn.Conv2d)] == [1, 1, 2, 1, 1]
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [64, 64, 128, 128, 128]


@pytest.mark.parametrize("name", MODELS)
def test_no_activation_works_in_place_or_twice(name):
    with torch.device("meta"):
        model = build_model(name, (3, 32, 32), 10)
        seen = []
        for layer in model.modules():
            if isinstance(layer, nn.ReLU | nn.PReLU | Neurons):
                assert not getattr(layer, "inplace", False)
                layer.register_forward_hook(lambda layer, *_: seen.append(layer))
        model(torch.zeros(2, 3, 32, 32))
    assert len(seen) == len(set(seen)) > 0


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(name):
    before = torch.get_rng_state()
    one, same, other = (build_model(name, (1, 28, 28), 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    assert not torch.equal(one.head.weight, other.head.weight)
    torch.rand(7)
    assert torch.equal(build_model(name, (1, 28, 28), 4, seed=3).head.weight, one.head.weight)


def test_options():
    assert build_model("mlp", (1, 8, 8), 10, {"widths": [7, 5]}).head.in_features == 5
    linear = build_model("mlp", (2, 3), 4, {"widths": ()})
    assert [type(layer) for layer in linear.backbone] == [nn.Flatten]
    assert build_model("lenet++", (1, 28, 28), 10, {"features": 256}).head.in_features == 256
    wide = build_model("resnet18", (3, 8, 8), 10, {"features": 32})
    assert wide.head.in_features == 32
    assert isinstance(wide.backbone[-1], nn.ReLU)
    assert build_model("wrn-16-4", (3, 8, 8), 10, {"depth": 10, "widen": "1"}).head.in_features == 64


def test_a_residual_block_adds_its_input():
    model = build_model("resnet20", (3, 8, 8), 2).eval()
    block = model.backbone[3]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x)
    wide = build_model("wrn-16-4", (3, 8, 8), 2, {"depth": 16, "widen": 1}).eval().backbone[2]
    nn.init.zeros_(wide.conv2.weight)
    torch.testing.assert_close(wide(x), x)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "message"),
    [
        ("lenet++", (1, 24, 24), 10, {}, "larger images"),
        ("pooled-cnn", (1, 3, 3), 10, {}, "larger images"),
        ("vgg11", (3, 7, 7), 10, {}, "larger images"),
        ("resnet18", (64,), 10, {}, "takes images"),
        ("wrn-16-4", (64,), 10, {}, "takes images"),
        ("small-cnn", (28, 28), 10, {}, "takes images"),
        ("mlp", (), 10, {}, "positive integers"),
        ("mlp", (0, 3), 10, {}, "positive integers"),
        ("mlp", (8,), 1, {}, "at least 2 classes"),
        ("mlp", (8,), 10, {"widths": (0,)}, "at least 1"),
        ("mlp", (8,), 10, {"width": 3}, "Did you mean 'widths'"),
        ("lenet++", (1, 28, 28), 10, {"features": 0}, "at least 1"),
        ("vgg5", (3, 32, 32), 10, {"dropout": 1.0}, "dropout"),
        ("wrn-16-4", (3, 32, 32), 10, {"depth": 17}, "depth"),
        ("wrn-16-4", (3, 32, 32), 10, {"widen": 0}, "widen"),
        ("resnet20", (3, 32, 32), 10, {"features": -1}, "features"),
        ("resnet19", (3, 32, 32), 10, {}, "Did you mean 'resnet"),
    ],
)
def test_impossible_models_are_refused(name, shape, classes, options, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        build_model(name, shape, classes, options)


def test_the_cnn_of_weight_robustness_starts_from_glorot_and_keeps_the_image():
    model = build_model("buchel-cnn", (1, 28, 28), 10)
    assert model.backbone[:2](torch.rand(1, 1, 28, 28)).shape == (1, 64, 28, 28)
    for layer in model.backbone:
        if hasattr(layer, "weight"):
            fan = layer.weight[0].numel() + layer.weight.numel() / layer.weight.shape[1]
            limit = (6 / fan) ** 0.5
            assert 0.99 * limit < layer.weight.abs().max() <= limit * (1 + 1e-6)
            assert (layer.bias == 0).all()
    with pytest.raises(UsageError, match="buchel-cnn cannot take images"):
        build_model("buchel-cnn", (1, 9, 9), 10)
