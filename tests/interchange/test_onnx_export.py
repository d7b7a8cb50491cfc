"""Writing modules as ONNX: read back they compute the same, and what does not is never written."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.interchange import read_onnx, write_onnx
from stalwart.models.build import build_model


def images(seed=0, rows=5, shape=(1, 12, 12)):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


def seeded(module, seed=0):
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=source))
    return module


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat([x, x + self.body(x)], 1).mean((2, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 3)
    )


@pytest.mark.parametrize(
    "make",
    [convolutional, Residual, lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.GELU(), nn.Linear(8, 2))],
)
def test_a_module_reads_back_as_itself(make, tmp_path):
    module, path = seeded(make()), tmp_path / "net.onnx"
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert write_onnx(module, images(), path) < 1e-5
    assert all(part.training for part in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    x = images(seed=1, rows=7)
    torch.testing.assert_close(read_onnx(path)(x), module.eval()(x), rtol=1e-4, atol=1e-5)


# The tests' run-time checks of shapes look like control flow to the tracer.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["pooled-cnn", "resnet20"])
def test_the_librarys_models_read_back_as_themselves(name, tmp_path):
    model = build_model(name, (3, 32, 32), 10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    assert write_onnx(model, images(shape=(3, 32, 32)), tmp_path / "net.onnx") < 1e-5
    x = images(seed=1, rows=3, shape=(3, 32, 32))
    torch.testing.assert_close(read_onnx(tmp_path / "net.onnx")(x), model.eval()(x), rtol=1e-4, atol=1e-5)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1)[:, :2] + self.calls


class DependsOnBatch(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] - x.mean()


@pytest.mark.parametrize("model", [Noisy(), DependsOnBatch()])
def test_what_computes_something_else_is_not_written(model, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="computes something else than the model"):
        write_onnx(model, images(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x.flatten(1))


def test_what_onnx_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match="bessel_j0"):
        write_onnx(Unknown(), images(), tmp_path / "net.onnx")


def test_options_are_checked(tmp_path):
    with pytest.raises(UsageError, match="opset must be in 7 to 26, got 5"):
        write_onnx(convolutional(), images(), tmp_path / "net.onnx", opset=5)
    with pytest.raises(UsageError, match="at least one"):
        write_onnx(convolutional(), images(rows=0), tmp_path / "net.onnx")
