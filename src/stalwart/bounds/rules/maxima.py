"""The largest of several entries: max pooling and maxima over an axis."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.interval import Interval
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, apply, batched_arguments
from stalwart.graph import Node


class Largest(Rule):
    """y_i = max over k of x at window i's k-th place.

    Lower: the place with the largest lower end. Upper: that place too if its lower end is above all other upper ends, and
    the constant largest upper end otherwise.
    """

    relaxed = True
    options = frozenset({"dim", "keepdim"})

    def interval(self, node: Node, view: View) -> Interval:
        """Apply the operator to both ends."""
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        return Interval(apply(node, {parent: x.lower}, view), apply(node, {parent: x.upper}, view))

    def _choice(self, node: Node, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chosen place [B, n], whether it is certainly the largest, and the largest upper end, all flat."""
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        places = windows(node, parent, view, x.lower)
        lower, upper = (_gathered(end.flatten(1), places) for end in (x.lower, x.upper))
        best = lower.argmax(-1, keepdim=True)
        others = upper.scatter(-1, best, -torch.inf).amax(-1)
        certain = lower.gather(-1, best).squeeze(-1) >= others
        chosen = places.expand(len(lower), *places.shape).gather(-1, best).squeeze(-1)
        return chosen, certain, upper.amax(-1)

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Send coefficients to the chosen places."""
        (parent,) = batched_arguments(node)
        chosen, certain, top = self._choice(node, walk.view)
        flat = coefficients.flatten(2)
        moved = torch.where(certain.unsqueeze(1), flat, flat.clamp_min(0))
        zeros = flat.new_zeros(*flat.shape[:2], math.prod(parent.shape))
        sent = zeros.scatter_add(2, chosen.unsqueeze(1).expand_as(moved), moved)
        walk.send(parent, sent.reshape(*flat.shape[:2], *parent.shape))
        below = torch.where(certain.unsqueeze(1), torch.zeros_like(flat), flat.clamp_max(0))
        walk.add((below * top.unsqueeze(1)).sum(-1))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Take the chosen place's forms, or the constant."""
        (parent,) = batched_arguments(node)
        chosen, certain, top = self._choice(node, view)
        x = forms(parent)

        def slopes(side: Tensor) -> Tensor:
            flat = side.flatten(2)
            return flat.gather(2, chosen.unsqueeze(1).expand(-1, flat.shape[1], -1))

        low, high = x.lower.flatten(1).gather(1, chosen), x.upper.flatten(1).gather(1, chosen)
        steep = slopes(x.upper_slope) * certain.unsqueeze(1)
        return Forms(
            slopes(x.lower_slope).unflatten(2, node.shape),
            low.unflatten(1, node.shape),
            steep.unflatten(2, node.shape),
            torch.where(certain, high, top).unflatten(1, node.shape),
        )


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """Return x [B, m] at places [n, k]; -inf at places outside."""
    padded = torch.cat([x, x.new_full((len(x), 1), -torch.inf)], 1)
    return padded[:, places]


def windows(node: Node, parent: Node, view: View, like: Tensor) -> Tensor:
    """Return the flat places [n, k] of each window's entries; places outside the image are one past the last."""
    size = math.prod(parent.shape)
    index = torch.arange(size, device=like.device, dtype=torch.float64).reshape(1, *parent.shape)
    if not node.op.startswith("max_pool"):
        axis = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        axes = [axis] if isinstance(axis, int) else list(axis)
        rank = len(parent.shape) + 1
        order = [k for k in range(1, rank) if k not in {one % rank for one in axes}]
        moved = index.permute(0, *order, *[one % rank for one in axes])
        return moved.reshape(math.prod(node.shape), -1).long()
    arguments = [*node.args[1:], *[None] * 5]
    axes_count = len(parent.shape) - 1
    kernel = _sides(arguments[0], axes_count)
    stride = _sides(arguments[1] or arguments[0], axes_count)
    padding, dilation = _sides(arguments[2] or 0, axes_count), _sides(arguments[3] or 1, axes_count)
    # One-based, so that the zeros of padding can be told; ceil_mode reaches past the padding, which is outside as well.
    spread: list[int] = []
    for side, out, width, step, pad, gap in zip(
        reversed(parent.shape[1:]),
        reversed(node.shape[1:]),
        *(reversed(v) for v in (kernel, stride, padding, dilation)),
        strict=True,
    ):
        spread += [pad, max(0, (out - 1) * step + gap * (width - 1) + 1 - side - pad)]
    found = F.pad(index + 1, spread)
    for axis in range(axes_count):
        place = 2 + axis
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        # unfold appends the window as a last axis; dilation takes every gap-th entry of it.
        found = found.unfold(place, reach, stride[axis])[..., :: dilation[axis]]
        found = found.narrow(place, 0, node.shape[1 + axis])
    flat = found.reshape(math.prod(node.shape), -1).long() - 1
    return torch.where(flat < 0, torch.full_like(flat, size), flat)


def _sides(value: object, axes: int) -> list[int]:
    if isinstance(value, int):
        return [value] * axes
    whole = [int(one) for one in value]  # type: ignore[attr-defined]
    return whole * axes if len(whole) == 1 else whole
