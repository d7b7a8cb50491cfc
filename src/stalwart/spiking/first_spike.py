"""When non-leaky neurons with linear postsynaptic potentials first fire, as an exactly differentiable function."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require


def first_spike_times(times: Tensor, weights: Tensor, threshold: Number = 1.0) -> Tensor:
    """Return when each neuron's membrane V(t) = Σ_i w_i max(t - t_i, 0) first reaches the threshold; infinity if it never does.

        t_j = (θ + Σ_C w_i t_i) / Σ_C w_i,    C = {i: t_i < t_j}

    Inputs are sorted by time; the spike is the first such t_j that lies behind the last input of C and not behind the next one.
    Gradients are exact: ∂t_j/∂w_i = (t_i - t_j) / Σ_C w and ∂t_j/∂t_i = w_i / Σ_C w on C, 0 elsewhere and for neurons that
    do not fire. They explode as Σ_C w goes to 0: clip them. Memory is B M N numbers.
    Source: Zhang et al., "Rectified linear postsynaptic potential function for backpropagation in deep spiking neural
    networks", TNNLS 2022 (arXiv 2003.11837), equations 7 to 13.

    Args:
        times: t, when inputs fire, [B, N]; infinity for those that do not.
        weights: w, [M, N].
        threshold: θ, positive.

    Returns:
        [B, M], in the units of times.

    Raises:
        InputError: shapes that do not fit, or NaN.
        UsageError: a threshold that is not positive.

    Example:
        >>> first_spike_times(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([[1.5000]])
    """
    require(threshold > 0, f"the threshold of neurons must be positive, got {threshold}.")
    if times.dim() != 2 or weights.dim() != 2 or times.shape[1] != weights.shape[1]:
        raise InputError(
            f"spike times [B, N] and weights [M, N] must agree in N, got {list(times.shape)} and {list(weights.shape)}."
        )
    if bool(times.isnan().any()):
        raise InputError("spike times must not be NaN; an input that does not fire has time infinity.")
    if not times.shape[1]:
        return times.new_full((len(times), len(weights)), torch.inf)
    silent = times.isinf()
    with torch.no_grad():
        ordered, order = times.sort(1)
        # An input that never fires adds nothing; its place is behind all others.
        finite = torch.where(ordered.isinf(), 0.0, ordered)
        w = weights[:, order].movedim(1, 0) * (~ordered.isinf()).to(weights).unsqueeze(1)
        total, moment = w.cumsum(2), (w * finite.unsqueeze(1)).cumsum(2)
        when = (threshold + moment) / torch.where(total > 0, total, 1.0)
        following = F.pad(ordered[:, 1:], (0, 1), value=torch.inf).unsqueeze(1)
        valid = (total > 0) & (when >= ordered.unsqueeze(1)) & (when <= following) & ~ordered.isinf().unsqueeze(1)
        fires, first = valid.any(2), valid.to(torch.uint8).argmax(2)
        last = ordered.gather(1, first.flatten(1))
        # Inputs as late as the last of C are in C too: they add nothing at their own time.
        causal = (times.unsqueeze(1) <= last.unsqueeze(2)) & fires.unsqueeze(2) & ~silent.unsqueeze(1)
    taken = causal.to(weights)
    sums = torch.einsum("bmn,mn->bm", taken, weights)
    moments = torch.einsum("bmn,mn,bn->bm", taken, weights, torch.where(silent, 0.0, times))
    spikes = (threshold + moments) / torch.where(fires, sums, 1.0)
    return torch.where(fires, spikes, torch.inf)


class FirstSpike(nn.Module):
    """A layer of :func:`first_spike_times`, times [B, N] to times [B, M].

    Args:
        inputs: N, at least 1.
        units: M, at least 1.
        threshold: θ, positive.
        latest: what silent neurons are said to fire at, so that losses stay finite; None leaves infinity.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(self, inputs: int, units: int, threshold: Number = 1.0, latest: Number | None = None) -> None:
        super().__init__()
        require(inputs >= 1 and units >= 1, f"a layer needs at least one input and one unit, got {inputs} and {units}.")
        require(threshold > 0, f"the threshold of neurons must be positive, got {threshold}.")
        self.threshold, self.latest = float(threshold), latest
        # Positive on average, or else most neurons stay silent: all inputs together reach θ within one unit of time.
        self.weight = nn.Parameter((torch.rand(units, inputs) * 6 - 1) * (self.threshold / inputs))

    def forward(self, times: Tensor) -> Tensor:
        """Map spike times [B, N] to spike times [B, M]."""
        found = first_spike_times(times, self.weight, self.threshold)
        return found if self.latest is None else found.clamp_max(self.latest)
