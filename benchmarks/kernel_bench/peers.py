"""What the kernels are compared with: the plain iteration and the counterparts as others compute them.

flash-sinkhorn 0.4 takes squared Euclidean distances. With `cost_scale` 1/2 its cost is c'_ij = (|x_i|² + |u_j|²) / 2 -
x_i·u_j: ours but for the rounding of unit rows, which its potentials take up.

- `sinkhorn_flashstyle_alternating` updates f, then g, with a product x·u for each, in float32 inputs and TF32 products.
  float16 vectors are exact in TF32, so both see the same numbers. From g = 0 and uniform weights its k iterations end
  at the g that k plain steps of ours end at. It tests how far potentials move, not marginals, and by default not at
  all: it has to be told a number of iterations. What it returns has exact columns; the error is in the rows.
- `mat5_sqeuclid` gives -1 / epsilon Σ_j P_ij (A_i·u_j) u_j with P_ij = exp((f_i + g_j - c'_ij) / epsilon), which for
  A = x is the counterpart. It multiplies by u three times, since A·u is a product of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def dense_loop(scores: Tensor, steps: int, tol: float = 0) -> tuple[Tensor, int]:
    """Log-domain Sinkhorn on the (N, M) matrix of x·u / epsilon, with the stopping test that ours has."""
    N, M = scores.shape
    log_v = torch.full((M,), -math.log(M), device=scores.device)
    for step in range(1, steps + 1):  # noqa: B007 it is returned
        log_u = -torch.logsumexp(scores + log_v, dim=1)
        log_columns = torch.logsumexp(scores + (log_u - math.log(N))[:, None], dim=0) + log_v
        if float((log_columns.exp() - 1 / M).abs().sum()) <= tol:
            break
        log_v = log_v - math.log(M) - log_columns
    return log_v, step


def softmax_counterpart(x: Tensor, u: Tensor, epsilon: float) -> Tensor:
    """TAC's: the texts' mean under a softmax of the similarities, through an (N, M) matrix."""
    return torch.softmax(x @ u.T / epsilon, dim=1) @ u


def keops_iteration(lazy: Any, x: Tensor, u: Tensor, epsilon: float) -> Tensor:
    """The two reductions of one iteration, without an (N, M) matrix."""
    scores = (lazy(x[:, None]) | lazy(u[None])) / epsilon
    log_u = -scores.logsumexp(dim=1)
    return (scores + lazy(log_u[:, None])).logsumexp(dim=0)


def flash_sinkhorn(x: Tensor, u: Tensor, epsilon: float, steps: int) -> Tensor:
    """flash-sinkhorn's g after so many iterations, (M,) float32 in our convention up to a constant."""
    from flash_sinkhorn.kernels import sinkhorn_flashstyle_alternating

    a, b = (torch.full((len(points),), 1 / len(points), device=x.device) for points in (x, u))
    _, g = sinkhorn_flashstyle_alternating(x, u, a, b, eps=epsilon, n_iters=steps, cost_scale=0.5)
    return from_half_squared(g, u)


def from_half_squared(potentials: Tensor, points: Tensor) -> Tensor:
    """Potentials at the cost |x - u|² / 2, in ours at 1 - x·u, up to a constant."""
    return potentials - points.float().square().sum(dim=1) / 2


def flash_counterparts(x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """flash-sinkhorn's counterparts (N, D) float32 for our potentials, not yet of unit length."""
    from flash_sinkhorn.kernels.apply_ott import mat5_sqeuclid

    # It multiplies A in float32 by x and u in theirs, which have to agree. Squared norms of 1 make its cost ours.
    x, u = x.float(), u.float()
    ones = {"x2": torch.ones_like(f), "y2": torch.ones_like(g)}
    return mat5_sqeuclid(x, u, f, g, x, eps=epsilon, cost_scale=0.5, allow_tf32=True, **ones).mul_(-epsilon)
