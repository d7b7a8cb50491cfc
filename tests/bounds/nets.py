"""Small networks that together use every operator bounds know: name -> (module, shape of one input)."""

import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.random import generator


class Call(nn.Module):
    """A module from a function of its input and of some layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x):
        return self.function(x, *self.layers)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.short, self.norm, self.head = nn.Conv2d(2, 4, 1, stride=2), nn.BatchNorm2d(4), nn.Linear(36, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.second(h) + self.short(x)).flatten(1))


class Vision(nn.Module):
    """A transformer block over four tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 18)
        self.out, self.up, self.down, self.head = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        h, c = self.cell(x[:, 0])
        for k in range(1, x.shape[1]):
            h, c = self.cell(x[:, k], (h, c))
        return self.head(h)


def function(apply, width=5):
    """Return a network with a function of a hidden layer."""
    return Call(lambda x, a, b: b(apply(a(x))), nn.Linear(4, width), nn.Linear(width, 3))


FUNCTIONS = {
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.1),
    "relu6": lambda z: F.relu6(z * 8),
    "hardtanh": F.hardtanh,
    "clamp": lambda z: z.clamp(-0.3, 0.2),
    "clamp_min": lambda z: z.clamp_min(-0.1),
    "abs": torch.abs,
    "sign": torch.sign,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu-tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "exp": torch.exp,
    "log": lambda z: torch.log(z.abs() + 0.5),
    "sqrt": lambda z: torch.sqrt(z**2 + 0.2),
    "reciprocal": lambda z: 1 / (z**2 + 0.5),
    "square": torch.square,
    "cube": lambda z: z**3,
    "power": lambda z: (z.abs() + 0.2) ** 1.5,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "elu": lambda z: F.elu(z, 0.7),
    "heaviside": lambda z: torch.heaviside(z, torch.ones((), dtype=z.dtype)),
    "softmax": lambda z: torch.softmax(z, -1),
    "log_softmax": lambda z: F.log_softmax(z, -1),
    "layer_norm": lambda z: F.layer_norm(z, (5,)),
    "product": lambda z: z * z.flip(1),
    "quotient": lambda z: z / (1 + z.flip(1) ** 2),
    "maximum": lambda z: torch.maximum(z, -0.5 * z.flip(1)),
    "minimum": lambda z: torch.minimum(z, z.roll(1, 1)),
    "slices": lambda z: torch.cat([z[:, 2:], -z[:, :2]], 1) - z[:, ::2].sum(1, keepdim=True),
    "pad": lambda z: F.pad(z[:, 1:4], (1, 1), value=0.7),
    "scale": lambda z: 2 - 3 * z / 4 + z.mean(1, keepdim=True),
    "stack": lambda z: torch.stack([z, 2 * z], 2).amax(2),
    "select": lambda z: z[:, [4, 3, 2, 1, 0]] + z[:, 0:1].expand(-1, 5),
}


def image(*layers):
    """Return layers over images with a linear head whose width is found out."""
    body = nn.Sequential(*layers, nn.Flatten())
    width = body.eval()(torch.zeros(1, 2, 6, 6)).shape[1]
    return nn.Sequential(body, nn.Linear(width, 3))


class Ramp(nn.Module):
    def __init__(self):
        super().__init__()
        from stalwart.models.param_ramp import ParamRamp

        self.a, self.b, self.ramp = nn.Linear(4, 5), nn.Linear(5, 3), ParamRamp((5,), eta=0.1)
        self.ramp.on.fill_(True)

    def forward(self, x):
        return self.b(self.ramp(self.a(x)))


def networks():
    """Return all networks, seeded, in evaluation mode and float64."""
    found = {name: (function(apply), (4,)) for name, apply in FUNCTIONS.items()}
    found |= {
        "prelu": (nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)), (4,)),
        "matmul": (Call(lambda x: (x @ x.transpose(1, 2)).flatten(1)[:, :3]), (3, 2)),
        "fixed-matmul": (Call(lambda x, a: torch.matmul(torch.relu(x), a.weight), nn.Linear(3, 4)), (4,)),
        "conv": (image(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU()), (2, 6, 6)),
        "conv-groups": (image(nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 3, 2)), (2, 6, 6)),
        "conv-dilated": (image(nn.Conv2d(2, 3, 2, dilation=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU()), (2, 6, 6)),
        "conv-wide": (image(nn.Conv2d(2, 3, (1, 3), (2, 1), (0, 2)), nn.ReLU(), nn.Conv2d(3, 2, (3, 2)), nn.ReLU()), (2, 6, 6)),
        "conv-same": (image(nn.Conv2d(2, 3, 3, padding="same", bias=False), nn.Tanh(), nn.Conv2d(3, 2, 3)), (2, 6, 6)),
        "conv-transpose": (image(nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2)), (2, 6, 6)),
        "conv1d": (Call(lambda x, a, b: b(torch.relu(a(x)).flatten(1)), nn.Conv1d(2, 3, 2), nn.Linear(15, 3)), (2, 6)),
        "conv3d": (Call(lambda x, a, b: b(torch.relu(a(x)).flatten(1)), nn.Conv3d(1, 2, 2), nn.Linear(16, 3)), (1, 3, 3, 3)),
        "batch-norm": (image(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2)), (2, 6, 6)),
        "avg-pool": (image(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)), (2, 6, 6)),
        "max-pool": (image(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), (2, 6, 6)),
        "max-pool-wide": (image(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.ReLU()), (2, 6, 6)),
        "residual": (Residual(), (2, 6, 6)),
        "vision": (Vision(), (4, 4)),
        "recurrent": (Recurrent(), (3, 2)),
        "param-ramp": (Ramp(), (4,)),
    }  # fmt: skip
    source = generator(5)
    for model, _ in found.values():
        for name, tensor in model.named_parameters():
            with torch.no_grad():
                tensor.copy_(
                    torch.rand(tensor.shape, generator=source)
                    if name.endswith("r")
                    else torch.randn(tensor.shape, generator=source) * 0.5
                )
        for name, tensor in model.named_buffers():
            if "running" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=source) + 0.2)
        model.eval().double()
    return found
