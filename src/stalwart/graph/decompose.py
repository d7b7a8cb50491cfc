"""Composite operators written out in simpler ones before the graph is read, in the form that bounds are tightest for."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """1 / Σ_j exp(x_j - x_i): differences keep correlations that exp(x) / Σ exp(x) loses, and the sum is at least 1."""
    return torch.reciprocal(_total(x, dim))


def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """-log Σ_j exp(x_j - x_i)."""
    return -torch.log(_total(x, dim))


def _total(x: Tensor, dim: int) -> Tensor:
    """Σ_j exp(x_j - x_i)."""
    axis = dim % x.dim()
    last = x.movedim(axis, -1) if axis != x.dim() - 1 else x
    others = 1 - torch.eye(last.shape[-1], dtype=x.dtype, device=x.device)
    out = torch.exp((last.unsqueeze(-2) - last.unsqueeze(-1)) * others).sum(-1)
    return out.movedim(-1, axis) if axis != x.dim() - 1 else out


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """(x - mean) / sqrt(var + eps), scaled and shifted."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    variance = torch.square(centred).mean(axes, keepdim=True)
    out = centred * torch.reciprocal(torch.sqrt(variance + eps))
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias_input: Tensor | None = None,
    bias_hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Four gates, then the cell's new state."""
    hidden, cell = state
    gates = F.linear(x, weight_input, bias_input) + F.linear(hidden, weight_hidden, bias_hidden)
    enter, keep, new, leave = gates.chunk(4, 1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q Kᵀ scale) V."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(softmax(scores, -1), value)


def addmm(bias: Tensor, x: Tensor, weight: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """Beta bias + alpha x weight."""
    return torch.matmul(x, weight) * alpha + bias * beta


_aten = torch.ops.aten
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.softmax.int: softmax,
    _aten._softmax.default: softmax,
    _aten.log_softmax.int: log_softmax,
    _aten._log_softmax.default: log_softmax,
    _aten.layer_norm.default: layer_norm,
    _aten.lstm_cell.default: lstm_cell,
    _aten.scaled_dot_product_attention.default: attention,
    _aten.addmm.default: addmm,
}
