"""A budget of bits: the set of all weights of which few stored bits are wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.weight_bits import count_bits, decoded, flip, gathered, spread
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.hardware.codes import Codes, check_bits, unsigned
from stalwart.hardware.names import chosen_parameters
from stalwart.sets.relative import Parameters


@dataclass(frozen=True)
class BitBudget:
    """The weights whose stored codes differ in at most ``flips`` bits, all tensors together, from those of the clean weights.

    Codes are those of :class:`stalwart.hardware.BitFlips`: unsigned, from the smallest to the largest value of each tensor,
    properly rounded. All members are quantised therefore, and the clean weights are one only up to rounding; a budget of no
    flips is the quantised network alone. The range of a tensor is stored elsewhere and safe.
    Source: Stutz et al., "Random and adversarial bit error robustness", 2021 (arXiv 2104.08323), section 3.

    Args:
        flips: k, at least 0.
        bits: of each code, 2 to 16.
        only: glob patterns of parameters; without one, weight matrices and their biases.

    Raises:
        UsageError: a number out of range.
    """

    flips: int
    bits: int = 8
    only: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = isinstance(self.flips, int) and not isinstance(self.flips, bool)
        require(whole and self.flips >= 0, f"a budget is a whole number of flips, at least 0, got {self.flips}.")
        check_bits(self.bits, 2, "a stored weight")

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's own parameters that the set is about, by name.

        Raises:
            UsageError: a pattern matches nothing, or there is no weight matrix.
            InputError: a chosen parameter is not float32 or float64.
        """
        return chosen_parameters(model, self.only, biases=True)

    def codes(self, params: Parameters) -> dict[str, Codes]:
        """Return the codes of the clean weights, by name."""
        return {name: unsigned(tensor, self.bits) for name, tensor in params.items()}

    def distance(self, params: Parameters, moved: Parameters) -> int:
        """Return how many bits of the codes nearest to ``moved`` are not as in those of ``params``.

        Raises:
            InputError: other names or shapes than those of ``params``.
        """
        return sum(count_bits(mask, self.bits) for mask in self._masks(params, moved).values())

    def project(self, params: Parameters, moved: Parameters) -> dict[str, Tensor]:
        """Return ``moved`` rounded to codes, and, where more bits differ than may, with those of least change put back.

        Raises:
            InputError: other names or shapes than those of ``params``.
        """
        clean, masks = self.codes(params), self._masks(params, moved)
        if sum(count_bits(mask, self.bits) for mask in masks.values()) > self.flips:
            sizes = [
                (
                    spread(mask, self.bits) * clean[name].step * 2.0 ** torch.arange(self.bits, device=mask.device)
                ).flatten()
                for name, mask in masks.items()
            ]
            kept = torch.zeros(sum(map(len, sizes)), dtype=torch.bool, device=sizes[0].device)
            kept[torch.cat(sizes).topk(self.flips).indices] = True
            masks = {
                name: gathered(part.nonzero().flatten(), self.bits, mask)
                for (name, mask), part in zip(masks.items(), kept.split([len(size) for size in sizes]), strict=True)
            }
        return decoded(flip(clean, masks), params)

    def contains(self, params: Parameters, moved: Parameters, tolerance: float = 1e-6) -> bool:
        """Return whether ``moved`` is in the set around ``params``; NaN never is.

        Args:
            params: the clean weights, by name.
            moved: the point to judge.
            tolerance: slack for rounding to the dtype, as a share of each tensor's largest |theta|.

        Raises:
            InputError: other names or shapes than those of ``params``.
        """
        masks, clean = self._masks(params, moved), self.codes(params)
        stored = flip(clean, masks)
        for name, tensor in moved.items():
            if not tensor.numel():
                continue
            exact = stored[name].low + stored[name].step * stored[name].code
            if not ((tensor.double() - exact).abs() <= tolerance * params[name].double().abs().max()).all():
                return False
        return sum(count_bits(mask, self.bits) for mask in masks.values()) <= self.flips

    def describe(self) -> str:
        """Return one readable line such as ``"BitBudget flips=8 of the bits of 8-bit codes"``."""
        patterns = (self.only,) if isinstance(self.only, str) else self.only
        where = f" of {' or '.join(map(repr, patterns))}" if patterns else ""
        return f"BitBudget flips={self.flips} of the bits of {self.bits}-bit codes{where}"

    def _masks(self, params: Parameters, moved: Parameters) -> dict[str, Tensor]:
        if {name: p.shape for name, p in params.items()} != {name: p.shape for name, p in moved.items()}:
            raise InputError("the moved weights must have the names and shapes of the clean ones.")
        masks = {}
        for name, codes in self.codes(params).items():
            offset = torch.where(codes.step > 0, (moved[name].double() - codes.low) / codes.step, 0.0)
            # What is not finite is no code; whether it is a member is decided by its value.
            nearest = offset.nan_to_num(0.0).round_().clamp_(0, 2**self.bits - 1).long()
            masks[name] = nearest ^ codes.code
        return masks
