"""Checks of what users hand in: a clear error beats a wrong number."""

import math

import torch
from torch import Tensor

from stalwart.core.errors import InputError

_TOLERANCE = 1e-5


def check_images(x: Tensor, low: float = 0.0, high: float = 1.0, what: str = "images") -> None:
    """Refuse inputs that are not finite floats in ``[low, high]`` (tolerance 1e-5, for rounding by other tools).

    Args:
        x: inputs [B, ...], in data units; normalisation belongs inside the model.

    Raises:
        InputError: not floating point, empty, NaN, infinite or out of range; the message names the first bad sample.
    """
    if not x.is_floating_point():
        raise InputError(f"{what} must be floats in [{low:g}, {high:g}], got {x.dtype}; for bytes use x.float() / 255.")
    if x.dim() < 2 or x.numel() == 0:
        raise InputError(f"{what} must have shape [B, ...] with B >= 1, got {list(x.shape)}.")
    flat = x.detach().flatten(1)
    smallest, largest = float(flat.min()), float(flat.max())  # NaN if any entry is
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        bad = int((~torch.isfinite(flat).all(1)).nonzero()[0])
        raise InputError(f"{what} hold NaN or infinity, first in sample {bad}; clean the data before use.")
    if smallest < low - _TOLERANCE or largest > high + _TOLERANCE:
        raise InputError(
            f"{what} must lie in [{low:g}, {high:g}] but span [{smallest:.4g}, {largest:.4g}]. "
            "Scale them (x / 255 for bytes) and put normalisation inside the model as its first layer."
        )


def check_labels(y: Tensor, batch: int, classes: int | None = None) -> None:
    """Refuse labels that are not ``batch`` integers in ``[0, classes)``.

    Raises:
        InputError: wrong dtype, shape or range; the message names the first bad sample.
    """
    if y.is_floating_point() or y.dtype == torch.bool or y.dim() != 1:
        raise InputError(f"labels must be integers of shape [B], got {y.dtype} of shape {list(y.shape)}.")
    if len(y) != batch:
        raise InputError(f"{len(y)} labels for {batch} inputs; there must be one label an input.")
    bad = (y < 0) if classes is None else (y < 0) | (y >= classes)
    if bad.any():
        first = int(bad.nonzero()[0])
        span = "non-negative" if classes is None else f"in [0, {classes})"
        raise InputError(f"labels must be {span}, but sample {first} has label {int(y[first])}.")


def check_logits(logits: object, batch: int) -> None:
    """Refuse model outputs that are not floating-point logits [B, K] with K >= 2.

    Raises:
        InputError: the message gives the type or shape the model returned.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the model must return one floating-point tensor of logits [B, K], but it returned {got}.")
    if logits.dim() != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        raise InputError(
            f"the model must map [B, ...] to logits [B, K] with K >= 2; for {batch} inputs it gave {list(logits.shape)}."
        )
