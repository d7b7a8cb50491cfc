"""Compiled loops behind patches (see ``patches.py``); images are channels last, [B, H, W, C]."""

from typing import Any

from stalwart.core.jit import compiled, helper, summing
from stalwart.core.jit_arguments import float32, int64, my_share


@helper
def _first(place: Any, kernel: Any, stride: Any, padding: Any, reached: Any, outputs: Any) -> Any:
    """Return the first of ``reached`` outputs among which are all those that an input at ``place`` or behind it reaches."""
    return max(0, min(-((kernel - 1 - place - padding) // stride), outputs - reached))


@helper
def _lay(patch: Any, above: Any, left: Any, out: Any) -> None:
    """Copy a patch over ``out`` at (above, left), as far as it lies inside."""
    for i in range(max(0, -above), min(patch.shape[0], out.shape[0] - above)):
        for j in range(max(0, -left), min(patch.shape[1], out.shape[1] - left)):
            for c in range(patch.shape[2]):
                out[above + i, left + j, c] = patch[i, j, c]


@helper
def _cut(seen: Any, top: Any, left: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for c in range(out.shape[2]):
                out[i, j, c] = seen[top + i, left + j, c]


@compiled
def cut(words: Any) -> None:
    """Cut out what the outputs that a patch reaches see of an image with the patch laid over it.

    Arguments: (B, H, W, C of the padded images, h, w of the patch, rows and columns to cut, rows and columns of outputs
    reached, and of all; kernel, stride and padding, down and across; who, place, moved, seen, patch, out), with ``place``
    [R, 2] where the patches lie in images without padding, and ``moved`` [R, 2] where the outputs lie among all of them.
    """
    begin, end = my_share(words)
    rows, batch, height, width, channels = words[2], words[3], words[4], words[5], words[6]
    tall, wide, down, across = words[7], words[8], words[9], words[10]
    reached_y, reached_x, all_y, all_x = words[11], words[12], words[13], words[14]
    kernel_y, kernel_x, stride_y, stride_x = words[15], words[16], words[17], words[18]
    pad_y, pad_x = words[19], words[20]
    who, place, moved = int64(words[21], (rows,)), int64(words[22], (rows, 2)), int64(words[23], (rows, 2))
    seen = float32(words[24], (batch, height, width, channels))
    patch, out = float32(words[25], (rows, tall, wide, channels)), float32(words[26], (rows, down, across, channels))
    for r in range(begin, end):
        y = _first(place[r, 0], kernel_y, stride_y, pad_y, reached_y, all_y)
        x = _first(place[r, 1], kernel_x, stride_x, pad_x, reached_x, all_x)
        moved[r, 0], moved[r, 1] = y, x
        _cut(seen[who[r]], y * stride_y, x * stride_x, out[r])
        _lay(patch[r], place[r, 0] + pad_y - y * stride_y, place[r, 1] + pad_x - x * stride_x, out[r])


@compiled
def paste(words: Any) -> None:
    """Lay some patches over images, each over one of its own.

    Arguments: (R, h, w, C of all patches, B, H, W of the images, padding down and across; which, who, place, patch, seen).
    """
    begin, end = my_share(words)
    rows, tall, wide, channels = words[3], words[4], words[5], words[6]
    batch, height, width, pad_y, pad_x = words[7], words[8], words[9], words[10], words[11]
    which, who, place = int64(words[12], (words[2],)), int64(words[13], (rows,)), int64(words[14], (rows, 2))
    patch = float32(words[15], (rows, tall, wide, channels))
    seen = float32(words[16], (batch, height, width, channels))
    for number in range(begin, end):
        r = which[number]
        _lay(patch[r], place[r, 0] + pad_y, place[r, 1] + pad_x, seen[who[r]])


@helper
def _changes(patch: Any, last: Any, top: Any, left: Any, at: Any, by: Any) -> Any:
    """Write which entries of an image change and by how much, and return how many do."""
    count = 0
    for i in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            first = ((top + i) * last.shape[1] + left + j) * last.shape[2]
            for c in range(patch.shape[2]):
                change = patch[i, j, c] - last[top + i, left + j, c]
                at[count], by[count] = first + c, change
                count += change != 0
    return count


@summing
def _add(out: Any, at: Any, by: Any, columns: Any) -> None:
    for n in range(len(out)):
        out[n] += by[0] * columns[at[0], n]


@summing
def _add_eight(out: Any, at: Any, by: Any, columns: Any) -> None:
    first, second, third, fourth = columns[at[0]], columns[at[1]], columns[at[2]], columns[at[3]]
    fifth, sixth, seventh, eighth = columns[at[4]], columns[at[5]], columns[at[6]], columns[at[7]]
    a, b, c, d, e, f, g, h = by[0], by[1], by[2], by[3], by[4], by[5], by[6], by[7]
    for n in range(len(out)):
        early = a * first[n] + b * second[n] + c * third[n] + d * fourth[n]
        out[n] += early + (e * fifth[n] + f * sixth[n] + g * seventh[n] + h * eighth[n])


@compiled
def fold(words: Any) -> None:
    """Change a linear layer's outputs by what patches change in its inputs.

    Arguments: (B, H, W, C of the images, h, w of the patch, n; who, place, last, patch, columns, hidden, out, at, by), with
    images ``last``, the layer's transposed weight ``columns`` [H * W * C, n], its outputs ``hidden`` [B, n], and room for the
    changes of each image, ``at`` and ``by`` [R, h * w * C + 1].
    """
    begin, end = my_share(words)
    rows, batch, height, width, channels = words[2], words[3], words[4], words[5], words[6]
    tall, wide, outputs = words[7], words[8], words[9]
    who, place = int64(words[10], (rows,)), int64(words[11], (rows, 2))
    last, patch = float32(words[12], (batch, height, width, channels)), float32(words[13], (rows, tall, wide, channels))
    columns = float32(words[14], (height * width * channels, outputs))
    hidden, out = float32(words[15], (batch, outputs)), float32(words[16], (rows, outputs))
    most = tall * wide * channels + 1
    at, by = int64(words[17], (rows, most)), float32(words[18], (rows, most))
    for r in range(begin, end):
        out[r] = hidden[who[r]]
        count = _changes(patch[r], last[who[r]], place[r, 0], place[r, 1], at[r], by[r])
        whole = count // 8 * 8
        for k in range(0, whole, 8):
            _add_eight(out[r], at[r, k:], by[r, k:], columns)
        for k in range(whole, count):
            _add(out[r], at[r, k:], by[r, k:], columns)
