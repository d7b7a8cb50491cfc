"""Bits of stored weights as pure functions: counting them, and which are worth flipping; attacks and losses share them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stalwart.hardware.codes import Codes

Stored = Mapping[str, Codes]
"""Codes of weights, by name."""


def decoded(stored: Stored, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of codes, in the dtypes of ``like``."""
    return {name: codes.decode(like[name]) for name, codes in stored.items()}


def count_bits(mask: Tensor, bits: int) -> int:
    """Return how many of the lowest ``bits`` bits of integers are 1, all together."""
    return sum(int(((mask >> bit) & 1).sum()) for bit in range(bits))


def spread(mask: Tensor, bits: int) -> Tensor:
    """Return the bits of integers of any shape, [N, bits], 0 or 1, the one of least weight first."""
    return (mask.flatten()[:, None] >> torch.arange(bits, device=mask.device)) & 1


def gathered(places: Tensor, bits: int, like: Tensor) -> Tensor:
    """Return integers of the shape of ``like`` whose bits at ``places``, indices into :func:`spread` laid flat, are 1."""
    mask = torch.zeros(like.numel() * bits, dtype=torch.int64, device=like.device)
    mask[places] = 1
    return (mask.reshape(-1, bits) << torch.arange(bits, device=like.device)).sum(1).reshape(like.shape)


def flip(stored: Stored, masks: Mapping[str, Tensor]) -> dict[str, Codes]:
    """Return codes whose bits are flipped where those of a mask are 1; tensors without a mask stay."""
    return {
        name: Codes(codes.code ^ masks[name], codes.low, codes.step) if name in masks else codes
        for name, codes in stored.items()
    }


def gains(codes: Codes, slope: Tensor, bits: int) -> Tensor:
    """Return slope · change for each bit of each weight alone, [N, bits] in float64: how the loss changes, to first order.

    A bit of weight 2^b changes its value by step·2^b, up where it is 0 and down where it is 1.
    """
    up = 1 - 2 * spread(codes.code, bits)
    weight = 2.0 ** torch.arange(bits, dtype=torch.float64, device=slope.device)
    return slope.flatten()[:, None].double() * (codes.step * (up * weight))


def promising(
    stored: Stored, clean: Stored, slopes: Mapping[str, Tensor], bits: int, count: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the bits of each tensor that promise most, as gains and places in descending order; at most ``count`` a tensor.

    Bits that are flipped already, and those that promise no harm, are left out, and so are tensors that have no others.

    Args:
        stored: the codes as they are.
        clean: the codes from which flips count.
        slopes: the gradient of the loss at the values of ``stored``.
        bits: of each code.
        count: how many are wanted.
    """
    found = {}
    for name, codes in stored.items():
        flipped = spread(codes.code ^ clean[name].code, bits) == 1
        gain = gains(codes, slopes[name], bits).masked_fill_(flipped, -torch.inf).flatten()
        best = gain.topk(min(count, gain.numel()))
        harmful = best.values > 0
        if harmful.any():
            found[name] = best.values[harmful], best.indices[harmful]
    return found


def best_of_all(found: Mapping[str, tuple[Tensor, Tensor]], stored: Stored, bits: int, count: int) -> dict[str, Tensor]:
    """Return masks of the ``count`` most promising bits over all tensors together.

    Args:
        found: what :func:`promising` returned.
        stored: the codes.
        bits: of each code.
        count: how many are wanted.
    """
    if not found:
        return {}
    every = torch.cat([gain for gain, _ in found.values()])
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen[every.topk(min(count, len(every))).indices] = True
    parts = chosen.split([len(gain) for gain, _ in found.values()])
    return {
        name: gathered(places[part], bits, stored[name].code)
        for (name, (_, places)), part in zip(found.items(), parts, strict=True)
        if part.any()
    }
