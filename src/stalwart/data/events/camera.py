"""A simulated event camera that looks at an image while it moves in three saccades, as N-MNIST was recorded."""

import itertools

import numpy as np
import torch
from torch import Tensor

from stalwart.core.checks import check_images
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.data.events.stream import EventStream

_DARK = 0.05
"""Added to intensities before the logarithm, as the light that never goes."""
_SACCADE = 100_000
"""Microseconds of one saccade."""


def record(
    images: Tensor,
    threshold: Number = 0.3,
    reach: Number = 2.0,
    samples: int = 20,
    mismatch: Number = 0.0,
    generator: torch.Generator | None = None,
) -> list[EventStream]:
    """Return one recording for each image: three saccades along a triangle, 0.3 seconds in all.

    Each pixel remembers the log intensity at its last event, and sends an event of the matching polarity whenever the present
    one is a threshold away. Between two samples of the path intensities change linearly, and time stamps follow that.

    Args:
        images: [B, 1, H, W] in [0, 1]. Beyond their border lies their darkest value.
        threshold: of the change in log(intensity + 0.05), positive.
        reach: length of a saccade in pixels, positive.
        samples: points of the path in a saccade, at least 2.
        mismatch: relative standard deviation of the pixels' thresholds; it needs a generator.
        generator: where the thresholds' deviations come from.

    Raises:
        InputError: images that are not [B, 1, H, W] in [0, 1].
        UsageError: a number out of range.
    """
    check_images(images)
    if images.dim() != 4 or images.shape[1] != 1:
        raise InputError(f"an event camera looks at images [B, 1, H, W], got {list(images.shape)}.")
    require(threshold > 0 and reach > 0, f"threshold and reach must be positive, got {threshold} and {reach}.")
    require(samples >= 2, f"a saccade needs at least 2 samples, got {samples}.")
    require(mismatch >= 0 and (mismatch == 0 or generator is not None), "mismatch is at least 0 and needs a generator.")
    levels = torch.full(images.shape, float(threshold))
    if mismatch > 0:
        assert generator is not None
        deviation = normal(images.shape, generator, images, batch_axis=None)
        levels = (levels * (1 + mismatch * deviation)).clamp_min(0.1 * threshold)
    views = [(_moved(images, dx, dy) + _DARK).log() for dx, dy in _path(float(reach), samples)]
    memory, rows = views[0].clone(), []
    for k in range(1, len(views)):
        before, change = views[k - 1], views[k] - views[k - 1]
        counts = ((views[k] - memory) / levels).trunc()
        sign = counts.sign()
        for number in range(1, int(counts.abs().max()) + 1):
            fires = counts.abs() >= number
            reached = memory + sign * number * levels
            # Where within the step the linear change reaches that level.
            part = torch.where(change != 0, (reached - before) / change, torch.ones_like(change)).clamp(0, 1)
            b, _, y, x = fires.nonzero(as_tuple=True)
            t = (k - 1 + part[fires].double()) * (_SACCADE / samples)
            rows.append(torch.stack([b.double(), t, x.double(), y.double(), (sign[fires] > 0).double()]))
        memory = memory + counts * levels
    events = torch.cat(rows, 1).numpy() if rows else np.zeros((5, 0))
    order = np.lexsort((events[2], events[3], events[1], events[0]))
    b, t, x, y, polarity = np.floor(events[:, order]).astype(np.int64)
    ends = np.searchsorted(b, np.arange(len(images) + 1))
    height, width = images.shape[2:]
    return [
        EventStream(t[i:j], x[i:j], y[i:j], polarity[i:j], height, width, f"recording {n}")
        for n, (i, j) in enumerate(itertools.pairwise(ends))
    ]


def _path(reach: float, samples: int) -> list[tuple[float, float]]:
    corners = [(0.0, 0.0), (reach / 2, reach), (reach, 0.0), (0.0, 0.0)]
    found = [corners[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        found += [(x0 + (x1 - x0) * k / samples, y0 + (y1 - y0) * k / samples) for k in range(1, samples + 1)]
    return found


def _moved(images: Tensor, dx: float, dy: float) -> Tensor:
    """Return images moved right by dx and down by dy pixels, interpolated linearly."""
    dark = images.flatten(1).amin(1).reshape(-1, 1, 1, 1)
    reach = int(max(abs(dx), abs(dy))) + 2
    padded = torch.nn.functional.pad(images - dark, [reach] * 4)
    height, width = images.shape[2:]
    left, top = int(np.floor(-dx)), int(np.floor(-dy))
    fx, fy = -dx - left, -dy - top

    def part(row: int, column: int) -> Tensor:
        y, x = reach + top + row, reach + left + column
        return padded[:, :, y : y + height, x : x + width]

    across = [part(row, 0) * (1 - fx) + part(row, 1) * fx for row in (0, 1)]
    return across[0] * (1 - fy) + across[1] * fy + dark
