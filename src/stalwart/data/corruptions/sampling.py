"""Reading images between and beyond their pixels: edges, smoothing, enlarging, moving each image by its own way."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Edge = Literal["nearest", "symmetric", "reflect"]


def fold(index: Tensor, size: int, edge: Edge) -> Tensor:
    """Return integer positions folded into [0, size).

    Args:
        index: positions, any integers.
        size: pixels of the axis.
        edge: what lies beyond a b c d: "nearest" a a | a b c d | d d, "symmetric" b a | a b c d | d c, "reflect"
            c b | a b c d | c b.
    """
    if edge == "nearest":
        return index.clamp(0, size - 1)
    period = 2 * size if edge == "symmetric" else max(1, 2 * (size - 1))
    inside = index.remainder(period)
    last = 2 * size - 1 if edge == "symmetric" else 2 * (size - 1)
    return torch.where(inside < size, inside, last - inside)


def gaussian_weights(size: int, sigma: float, edge: Edge, truncate: float, like: Tensor) -> Tensor:
    """Return the matrix [size, size] that smooths an axis by a Gaussian cut off at ``truncate`` standard deviations."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2) if radius else torch.ones(1, dtype=torch.float64)
    kernel /= kernel.sum()
    positions = fold(torch.arange(size)[:, None] + offsets, size, edge)
    weights = torch.zeros(size, size, dtype=torch.float64)
    weights.scatter_add_(1, positions, kernel.expand(size, -1).contiguous())
    return weights.to(like)


def smooth(x: Tensor, sigma: float, edge: Edge = "nearest", truncate: float = 4.0) -> Tensor:
    """Return images [..., H, W] convolved with a Gaussian of standard deviation ``sigma`` pixels; 0 leaves them."""
    if sigma == 0:
        return x
    rows, columns = (gaussian_weights(size, sigma, edge, truncate, x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def correlate(x: Tensor, kernel: Tensor, edge: Edge) -> Tensor:
    """Return images [B, C, H, W] correlated with a kernel of odd sides [h, w], each channel by itself."""
    batch, channels, height, width = x.shape
    above, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows = fold(torch.arange(-above, height + above, device=x.device), height, edge)
    columns = fold(torch.arange(-left, width + left, device=x.device), width, edge)
    padded = x[:, :, rows][:, :, :, columns].flatten(0, 1)[:, None]
    return torch.nn.functional.conv2d(padded, kernel[None, None].to(x)).view(batch, channels, height, width)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Return the middle of images [B, C, H, W] enlarged by ``factor`` >= 1, at the same size, linear between pixels."""
    height, width = x.shape[-2:]
    crop = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    part = x[..., top : top + crop[0], left : left + crop[1]]
    sides = (round(crop[0] * factor), round(crop[1] * factor))
    large = interpolate(part, sides, mode="bilinear", align_corners=True)
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    return large[..., top : top + height, left : left + width]


def take(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return x[b, :, rows[b], columns[b]] as [B, C, H, W]; rows and columns are integers [B, H, W] inside the image."""
    index = (rows * x.shape[-1] + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view(len(x), x.shape[1], *rows.shape[1:])


def read_at(x: Tensor, rows: Tensor, columns: Tensor, edge: Edge) -> Tensor:
    """Return images [B, C, H, W] read at real positions [B, H, W], linear between the four pixels around each."""
    height, width = x.shape[-2:]
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    above, below = (fold(top.long() + step, height, edge) for step in (0, 1))
    before, after = (fold(left.long() + step, width, edge) for step in (0, 1))
    upper = take(x, above, before) * (1 - right) + take(x, above, after) * right
    lower = take(x, below, before) * (1 - right) + take(x, below, after) * right
    return upper * (1 - down) + lower * down


def along(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Return images [B, C, H, W] smeared along a line: the mean of pixels on one side, in falling weights.

        out(p) = Σ_i k_i x(p + round(i·(cos a, sin a))),  k_i ∝ exp(-i² / 2σ²),  i = 0 .. 2·ceil(radius)

    Args:
        x: images.
        radius: half the length of the line in pixels.
        sigma: of the weights, in pixels.
        degrees: the angle a of each image [B], from the columns' axis downwards.

    Source: the motion blur of ImageMagick, by which the published corruptions were made.
    """
    height, width = x.shape[-2:]
    steps = torch.arange(2 * math.ceil(radius) + 1, device=x.device, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(x.dtype)
    angle = torch.deg2rad(degrees.double())[:, None]
    across, down = (torch.ceil(steps * way - 0.5).long() for way in (angle.cos(), angle.sin()))
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        shifted = fold(rows + down[:, i, None, None], height, "nearest")
        aside = fold(columns + across[:, i, None, None], width, "nearest")
        out += weight * take(x, *torch.broadcast_tensors(shifted, aside))
    return out
