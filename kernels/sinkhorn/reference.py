"""Dense float64 oracle: textbook Sinkhorn in the log domain, two half steps on an (N, M) cost matrix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .acceleration import AndersonAcceleration
from .solver import SinkhornResult


def cosine_sinkhorn(
    x: Tensor,
    u: Tensor,
    *,
    epsilon: float,
    row_weights: Tensor,
    col_weights: Tensor,
    init: Tensor | None,
    max_iter: int,
    tol: float,
    balance: float,
    acceleration: AndersonAcceleration | None,
    group: ProcessGroup | None,
    callback: Callable[[int, float], None] | None,
) -> SinkhornResult:
    """The public op without acceleration (`acceleration` is ignored) and for one process."""
    if group is not None:
        raise ValueError("group: the reference backend runs in one process; pass group=None or another backend")
    a, b = row_weights.double(), col_weights.double()
    cost = 1 - x.double() @ u.double().T
    log_a, log_b = a.log(), b.log()
    g = epsilon * (log_b - log_b.mean()) if init is None else init.double()
    for n_iter in range(1, max_iter + 1):
        f = -epsilon * torch.logsumexp((g - cost) / epsilon, dim=1)
        log_columns = torch.logsumexp((f[:, None] + g - cost) / epsilon + log_a[:, None], dim=0)
        log_target = log_b - (1 - balance) / balance * g / epsilon
        error = float((log_columns.exp() - log_target.exp()).detach().abs().sum())
        if callback:
            callback(n_iter, error)
        if error <= tol or n_iter == max_iter:
            break
        g = g + epsilon * balance * (log_target - log_columns)
    shift = b @ g
    return SinkhornResult(f + shift, g - shift, error, n_iter, error <= tol)
