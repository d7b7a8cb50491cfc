"""Domains in which every neuron is decided: the network is linear there, and a linear program says what is true.

The program's answer is not believed as such. Its multipliers go into the same bound as everywhere else, which is then
computed in float64; its point is replayed in the network by whoever asked.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from stalwart.bounds.backward import at_entries
from stalwart.bounds.rules.elementwise import Function
from stalwart.bounds.rules.table import rule_of
from stalwart.certify.domains import Bounder, Domains
from stalwart.graph import Node


def settle(bounder: Bounder, domain: Domains) -> tuple[float, Tensor | None]:
    """Solve min over x of max over rows of C y - d in one domain without open neurons.

    Returns:
        A lower bound in float64, and the point [1, n] where the program has its minimum if that is not above 0.
    """
    if not all(_exact(bounder, node) for node in bounder.known.relaxed):
        return float(domain.bound), None
    box = bounder.known.region.box
    low, high = box.lower.flatten().numpy(), box.upper.flatten().numpy()
    rows, constants = _linear(bounder, domain, None)
    rows, constants = rows.numpy(), (constants - domain.d[0]).numpy()  # type: ignore[assignment]
    used = domain.sign[0] != 0
    parts = [_linear(bounder, domain, at) for at in domain.place[0][used].tolist()]
    sign = domain.sign[0][used].numpy()
    kinks = bounder.kink[domain.place[0][used]].numpy()
    planes = np.concatenate([part[0].numpy() for part in parts]) if parts else np.zeros((0, len(low)))
    offsets = np.concatenate([part[1].numpy() for part in parts]) - kinks if parts else np.zeros(0)
    # sign * (planes x + offsets) >= 0, and rows x + constants <= t.
    left = np.concatenate([-sign[:, None] * planes, rows])
    right = np.concatenate([sign * offsets, -constants])
    if not (np.isfinite(left).all() and np.isfinite(right).all()):  # weights that are no numbers prove nothing
        return -torch.inf, None
    slack = np.concatenate([np.zeros(len(sign)), -np.ones(len(rows))])
    answer = _solve(left, right, slack, low, high)
    if answer is None:
        # No point meets the splits: by how much at least one must be missed.
        slack = np.concatenate([-np.ones(len(sign)), np.zeros(len(rows))])
        answer = _solve(left[: len(sign)], right[: len(sign)], slack[: len(sign)], low, high)
        if answer is None or answer[0] <= 0:
            return float(domain.bound), None
        value, _, weights = answer
        one = np.eye(len(rows))[0]
        # The splits' weighted sum is at least ``value`` everywhere: enough of it lifts any row above 0.
        missing = 1 + abs(_checked(bounder, domain, used, 0 * weights, one))
        return _checked(bounder, domain, used, weights * 2 * missing / value, one), None
    value, point, weights = answer
    if value <= 0:
        return min(value, 0.0), torch.from_numpy(point)[None]
    return _checked(bounder, domain, used, weights[: len(sign)], weights[len(sign) :]), None


def _exact(bounder: Bounder, node: Node) -> bool:
    """Tell whether a node is linear once its open neurons are decided."""
    if any(one.free.node is node for one in bounder.layers):
        return True
    if not isinstance(rule_of(node), Function):
        return False
    lines = bounder.known.lines(node)
    same = (lines.lower_slope == lines.upper_slope) & (lines.lower_intercept == lines.upper_intercept)
    return bool(same.all())


def _linear(bounder: Bounder, domain: Domains, neuron: int | None) -> tuple[Tensor, Tensor]:
    """Return the linear functions [S, n] and constants [S] that the output's rows, or a neuron's operand, are in the domain."""
    if neuron is None:
        return bounder.linear(domain, lambda walk: walk.send(bounder.known.graph.output, domain.C.clone()))
    layer = next(one for one in bounder.layers if one.begin <= neuron < one.end)
    place = layer.index[neuron - layer.begin].reshape(1, 1)
    slopes, constants = bounder.linear(domain, at_entries(bounder.known, layer.operand, place))
    return slopes[:1], constants[:1]


def _solve(
    left: np.ndarray, right: np.ndarray, slack: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Minimise t over low <= x <= high with left x + slack t <= right; return t, x and the multipliers, or None."""
    goal = np.zeros(len(low) + 1)
    goal[-1] = 1
    found = linprog(
        goal,
        A_ub=np.concatenate([left, slack[:, None]], 1),
        b_ub=right,
        bounds=[*zip(low, high, strict=True), (None, None)],
        method="highs",
    )
    if found.status != 0:
        return None
    return float(found.fun), found.x[:-1], np.maximum(-found.ineqlin.marginals, 0)


def _checked(bounder: Bounder, domain: Domains, used: Tensor, beta: np.ndarray, weights: np.ndarray) -> float:
    """Return the bound of the rows' weighted sum with these multipliers, computed like any other."""
    mix = torch.from_numpy(weights)
    mix = mix / mix.sum().clamp_min(1e-300)
    full = torch.zeros(1, 1, domain.place.shape[1], dtype=torch.float64)
    full[0, 0, used] = torch.from_numpy(beta)
    single = replace(
        domain,
        C=(mix @ domain.C[0])[None, None],
        d=(mix @ domain.d[0]).reshape(1, 1),
        slopes=domain.slopes[:, :1],
        beta=full,
    )
    found = float(bounder.bound(single))
    return found if np.isfinite(found) else -np.inf
