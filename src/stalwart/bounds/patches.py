"""Coefficients of convolutional layers that are zero outside a small window, kept as that window.

The rows of an early layer's neurons see a few pixels each. As dense tensors they would be thousands of times larger; auto_LiRPA
(Xu et al., 2020, arXiv 2002.12920) calls the same idea patches. Here they serve bounds on the CPU without gradients to weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.lines import Lines
from stalwart.core import jit


@dataclass(frozen=True, eq=False)
class Patches:
    """Coefficients [B, S, h, w, C] of windows whose first entries lie at ``places`` [B, S, 2] of an image [C, H, W].

    Windows may reach over the image's border; entries there are zero.
    """

    coefficients: Tensor
    places: Tensor
    image: tuple[int, ...]

    def dense(self) -> Tensor:
        """Return the same rows as [B, S, C, H, W]."""
        batch, rows, tall, wide, channels = self.coefficients.shape
        _, height, width = self.image
        out = self.coefficients.new_zeros(batch, rows, (height + 2 * tall) * (width + 2 * wide), channels)
        top, left = self.places[..., 0] + tall, self.places[..., 1] + wide
        y = torch.arange(tall, device=top.device)[:, None]
        x = torch.arange(wide, device=top.device)[None, :]
        where = (top[..., None, None] + y) * (width + 2 * wide) + left[..., None, None] + x
        index = where.flatten(2).unsqueeze(-1).expand(-1, -1, -1, channels)
        out.scatter_(2, index, self.coefficients.flatten(2, 3))
        padded = out.unflatten(2, (height + 2 * tall, width + 2 * wide))
        return padded[:, :, tall : tall + height, wide : wide + width].permute(0, 1, 4, 2, 3).contiguous()

    def __add__(self, other: "Patches") -> "Patches":
        """Add windows of the same rows, which lie at the same distance from each other in every row."""
        shift = (other.places - self.places).reshape(-1, 2)[0].tolist()
        ends = [
            (0, mine, move, move + theirs)
            for mine, theirs, move in zip(
                self.coefficients.shape[2:4], other.coefficients.shape[2:4], shift, strict=True
            )
        ]
        low = [min(one[0], one[2]) for one in ends]
        high = [max(one[1], one[3]) for one in ends]
        mine = [(one[0] - a, b - one[1]) for one, a, b in zip(ends, low, high, strict=True)]
        theirs = [(one[2] - a, b - one[3]) for one, a, b in zip(ends, low, high, strict=True)]
        total = _padded(self.coefficients, mine) + _padded(other.coefficients, theirs)
        return Patches(total, self.places + torch.tensor(low, device=self.places.device), self.image)

    def seen(self, image: Tensor) -> Tensor:
        """Return what each window sees of images [B, H, W, C], zero outside: [B, S, h, w, C]."""
        tall, wide = self.coefficients.shape[2:4]
        return _windows(image, self.places, tall, wide)

    def clipped(self) -> "Patches":
        """Return the same with zeros outside the image, written in place."""
        found: Tensor = _Clip.apply(self.coefficients, self.places, self.image)
        return Patches(found, self.places, self.image)

    @property
    def is_small(self) -> bool:
        """Whether windows still are smaller than the image."""
        return self.coefficients.shape[2] * self.coefficients.shape[3] < self.image[1] * self.image[2]

    def relax(self, lines: Lines, constant: Tensor) -> "Patches":
        """Pass a function's lines, [B, H, W, C] each; ``constant`` [B, S] grows by the intercepts' part."""
        from stalwart.bounds import kernels

        a = self.coefficients
        batch, rows, tall, wide, channels = a.shape
        sizes = (is_wide(a), rows, batch, tall, wide, channels, *self.image[1:])
        jit.run(kernels.relax_patches, batch * rows, *sizes, a, self.places, *lines.parts, constant)
        return self

    def minimum(self, centre: Tensor, reach: Tensor, constant: Tensor) -> None:
        """Add the smallest value over a box of images, its middle and half its sides [B, H, W, C], to ``constant`` [B, S]."""
        from stalwart.bounds import kernels

        a = self.coefficients
        batch, rows, tall, wide, channels = a.shape
        sizes = (is_wide(a), rows, batch, tall, wide, channels, *self.image[1:])
        jit.run(kernels.minimum_patches, batch * rows, *sizes, a, self.places, centre, reach, constant)


class _Clip(torch.autograd.Function):
    """Zeros outside the image, written in place."""

    @staticmethod
    def forward(context: Any, coefficients: Tensor, places: Tensor, image: tuple[int, ...]) -> Tensor:
        context.places, context.image = places, image
        context.mark_dirty(coefficients)
        return _clip(coefficients, places, image)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (
            _clip(gradients[0].clone(memory_format=torch.contiguous_format), context.places, context.image),
            None,
            None,
        )


def _clip(coefficients: Tensor, places: Tensor, image: tuple[int, ...]) -> Tensor:
    from stalwart.bounds import kernels

    batch, rows, *patch = coefficients.shape
    jit.run(kernels.clip, batch * rows, is_wide(coefficients), batch * rows, *patch, *image[1:], coefficients, places)
    return coefficients


def _windows(image: Tensor, places: Tensor, tall: int, wide: int) -> Tensor:
    """Return what windows at ``places`` [B, S, 2] hold of images [B, H, W, C], zero outside: [B, S, tall, wide, C]."""
    batch, height, width, channels = image.shape
    y = places[..., 0, None] + torch.arange(tall, device=places.device)
    x = places[..., 1, None] + torch.arange(wide, device=places.device)
    inside = ((y >= 0) & (y < height)).unsqueeze(-1) & ((x >= 0) & (x < width)).unsqueeze(-2)
    index = torch.where(inside, y.unsqueeze(-1) * width + x.unsqueeze(-2), height * width)
    index += torch.arange(batch, device=places.device).reshape(-1, 1, 1, 1) * (height * width + 1)
    padded = torch.cat([image.flatten(1, 2), image.new_zeros(batch, 1, channels)], 1)
    return padded.flatten(0, 1)[index]


def fast(*tensors: Tensor) -> bool:
    """Tell whether compiled loops can take these tensors: on the CPU, floats of one type, and no gradient wanted."""
    kind = tensors[0].dtype
    plain = kind in (torch.float32, torch.float64) and all(t.device.type == "cpu" and t.dtype == kind for t in tensors)
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return plain and not tracked and jit.available()


def is_wide(x: Tensor) -> bool:
    """Tell whether floats have 64 bits."""
    return x.dtype == torch.float64


def _padded(x: Tensor, sides: list[tuple[int, int]]) -> Tensor:
    (top, bottom), (left, right) = sides
    return F.pad(x, (0, 0, left, right, top, bottom)) if any((top, bottom, left, right)) else x
