"""Compiled loops behind the fast gradients (see ``fast_gradients.py``); images are channels last, [B, H, W, C]."""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import float32, my_share, uint8

NOBODY = np.uint8(4)  # the winner of a window that rectification made zero: no gradient passes


@helper
def _largest(floor: Any, first: Any, second: Any, third: Any, fourth: Any, out: Any, winner: Any) -> None:
    for c in range(len(out)):
        best, at = floor, NOBODY
        if first[c] > best or first[c] != first[c]:
            best, at = first[c], np.uint8(0)
        if second[c] > best or second[c] != second[c]:
            best, at = second[c], np.uint8(1)
        if third[c] > best or third[c] != third[c]:
            best, at = third[c], np.uint8(2)
        if fourth[c] > best or fourth[c] != fourth[c]:
            best, at = fourth[c], np.uint8(3)
        out[c], winner[c] = best, at


@compiled
def largest(words: Any) -> None:
    """Max pooling of x [B, 2H, 2W, C], rectified or not: (H, W, C, rectified, x, out, winner), out and winner [B, H, W, C].

    ``winner`` is the place 0 to 3 of the largest value in its 2 x 2 window, the first of equals; NaN is the largest, as in
    torch.
    """
    begin, end = my_share(words)
    height, width, channels = words[3], words[4], words[5]
    floor = np.float32(0.0) if words[6] else np.float32(-np.inf)
    x = float32(words[7], (words[2], 2 * height, 2 * width, channels))
    out = float32(words[8], (words[2], height, width, channels))
    winner = uint8(words[9], (words[2], height, width, channels))
    for b in range(begin, end):
        for i in range(height):
            for j in range(width):
                top, bottom = x[b, 2 * i], x[b, 2 * i + 1]
                _largest(
                    floor, top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1], out[b, i, j], winner[b, i, j]
                )


@helper
def _keep(gradient: Any, winner: Any, mark: Any, out: Any) -> None:
    for c in range(len(gradient)):
        out[c] = gradient[c] if winner[c] == mark else np.float32(0.0)


@compiled
def spread(words: Any) -> None:
    """Backward pass of ``largest``: (H, W, C, gradient, winner, out), out [B, 2H, 2W, C]."""
    begin, end = my_share(words)
    height, width, channels = words[3], words[4], words[5]
    gradient = float32(words[6], (words[2], height, width, channels))
    winner = uint8(words[7], (words[2], height, width, channels))
    out = float32(words[8], (words[2], 2 * height, 2 * width, channels))
    for b in range(begin, end):
        for i in range(height):
            for j in range(width):
                given, place, top, bottom = gradient[b, i, j], winner[b, i, j], out[b, 2 * i], out[b, 2 * i + 1]
                _keep(given, place, np.uint8(0), top[2 * j])
                _keep(given, place, np.uint8(1), top[2 * j + 1])
                _keep(given, place, np.uint8(2), bottom[2 * j])
                _keep(given, place, np.uint8(3), bottom[2 * j + 1])


@helper
def _add(row: Any, tap: Any) -> None:
    for x in range(len(row)):
        row[x] += tap[x]


@helper
def _add_apart(row: Any, tap: Any, first: Any, stride: Any) -> None:
    for at in range(len(tap)):
        row[first + at * stride] += tap[at]


@compiled
def gather(words: Any) -> None:
    """Sum what the taps of a convolution send to its input's gradient, out [B, C, Y, X].

    Arguments: (C, Y, X, taps down, taps across, padding down, padding across, stride down, stride across, H, W, products, out),
    with products [C * taps, B, H, W].
    """
    begin, end = my_share(words)
    channels, rows, columns = words[3], words[4], words[5]
    tall, wide, pad_y, pad_x, down, across = words[6], words[7], words[8], words[9], words[10], words[11]
    height, width = words[12], words[13]
    products = float32(words[14], (channels * tall * wide, words[2], height, width))
    out = float32(words[15], (words[2], channels, rows, columns))
    for b in range(begin, end):
        for c in range(channels):
            for y in range(rows):
                row = out[b, c, y]
                row[:] = np.float32(0.0)
                for i in range(max(0, y + pad_y - down * (height - 1)), min(tall, y + pad_y + 1)):
                    if (y + pad_y - i) % down:
                        continue
                    for j in range(wide):
                        # The tap's value at column k reaches the input's column k * across + j - pad_x.
                        first = max(0, -((j - pad_x) // across))
                        last = min(width, (columns - 1 + pad_x - j) // across + 1)
                        if first < last:
                            tap = products[(c * tall + i) * wide + j, b, (y + pad_y - i) // down]
                            start = first * across + j - pad_x
                            if across == 1:
                                _add(row[start : start + last - first], tap[first:last])
                            else:
                                _add_apart(row, tap[first:last], start, across)
