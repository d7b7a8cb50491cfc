"""From events to frames."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.data.events.stream import EventStream


def frames(
    stream: EventStream, steps: int, by: Literal["time", "count"] = "time", limit: int = 1, shrink: int = 1
) -> Tensor:
    """Return frames [T, 2, H, W], bytes: channel 0 counts darker events, channel 1 brighter ones.

    A bin's value is round(255 min(count, limit) / limit), so that images in [0, 1] are binary rasters where ``limit`` is 1.

    Args:
        stream: the events; none at all gives black frames.
        steps: T, at least 1.
        by: "time" cuts the recording into equally long frames, "count" into frames with equally many events.
        limit: how many events make a bin white.
        shrink: an integer by which height and width are divided; events of one square share a bin.

    Raises:
        UsageError: a number below 1, or an unknown ``by``.
        InputError: a sensor smaller than ``shrink``.
    """
    check_framing(steps, by, limit, shrink)
    height, width = stream.height // shrink, stream.width // shrink
    if not height or not width:
        raise InputError(f"{stream.what}: {stream.height} x {stream.width} pixels cannot be divided by {shrink}.")
    if by == "time" and len(stream):
        start, length = stream.t[0], stream.t[-1] - stream.t[0] + 1
        step = (stream.t - start) * steps // length
    else:
        step = np.arange(len(stream)) * steps // max(1, len(stream))
    x, y = stream.x // shrink, stream.y // shrink
    inside = (x < width) & (y < height)
    place = ((step * 2 + stream.polarity) * height + y) * width + x
    counts = np.bincount(place[inside], minlength=steps * 2 * height * width)
    levels = np.rint(np.minimum(counts, limit) * (255 / limit)).astype(np.uint8)
    return torch.from_numpy(levels.reshape(steps, 2, height, width))


def check_framing(steps: int, by: str, limit: int, shrink: int) -> None:
    """Refuse options that :func:`frames` cannot have.

    Raises:
        UsageError: a number below 1, or an unknown ``by``.
    """
    for name, value in (("steps", steps), ("limit", limit), ("shrink", shrink)):
        require(isinstance(value, int) and value >= 1, f"{name} must be a whole number of at least 1, got {value!r}.")
    require(by in ("time", "count"), f"frames are cut by 'time' or 'count', got '{by}'.")
