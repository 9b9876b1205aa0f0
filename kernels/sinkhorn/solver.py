"""The iteration on the M numbers log v, shared by the streaming backends: each gives it one sweep over its rows."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from .acceleration import AndersonAcceleration, FixedPoint


class SinkhornResult(NamedTuple):
    """Potentials of the plan P_ij = a_i exp((f_i + g_j - c_ij) / epsilon), and how good it is.

    In a graph (`torch.compile`, `torch.export`, fake tensors) the three scalars are 0-d tensors.
    """

    f: Tensor
    """(N,) row potentials: the row update for g."""
    g: Tensor
    """(M,) column potentials, -inf where the column weight is 0; sum_j b_j g_j = 0."""
    marginal_error: float
    """L1 distance of the column sums of P from what they should be, the column weights if balanced; rows are exact."""
    n_iter: int
    """Iterations: sweeps over all rows, each of one product x·u or less; those over a sample are not counted."""
    converged: bool
    """Whether marginal_error <= tol."""
    value: Tensor = None  # type: ignore[assignment]  # backends leave it out, the op puts it in
    """<P, C> + epsilon KL(P | a x b), a float64 scalar: what the plan costs, differentiable."""


class ConvergenceWarning(UserWarning):
    """The marginal error was still above the tolerance when the iterations ran out."""


class Sweep(Protocol):
    """One pass over the rows: what a streaming backend has to provide."""

    def __call__(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """Row update and column sums of the plan for given columns.

        Args:
            log_v: (M,) float64 on the CPU, g / epsilon; finite.

        Returns:
            log_u (N,) float32 on the rows' device, -logsumexp_j(x_i·u_j / epsilon + log_v_j), which may be a buffer
            that the next call overwrites; and the column sums (M,) float64 on the rows' device, sum_i a_i
            exp(log_u_i + x_i·u_j / epsilon + log_v_j).
        """


def solve(
    sweep: Sweep,
    *,
    epsilon: float,
    col_weights: Tensor,
    init: Tensor | None,
    max_iter: int,
    tol: float,
    balance: float,
    acceleration: AndersonAcceleration | None,
    group: ProcessGroup | None,
    callback: Callable[[int, float], None] | None,
) -> SinkhornResult:
    """Sinkhorn's fixed point log v = log v + log b - log(column sums), from sweeps alone.

    Args:
        sweep: the backend's pass over this process's rows.
        epsilon: entropic regularisation.
        col_weights: (M,) all positive, sum 1.
        init: (M,) start for g, or None.
        max_iter: the most sweeps.
        tol: L1 error to stop at.
        balance: lambda in (0, 1]; below 1 the columns are held to `target`, which gives way as g grows.
        acceleration: Anderson's options; None gives the plain iteration.
        group: ranks to sum the column sums over.
        callback: hears of each iteration and its error.
    """
    b = col_weights.double().cpu()
    # Without its mean, so that the first target sums to about 1 below balance 1; at 1 a constant makes no difference.
    log_b = b.log()
    log_v = log_b - log_b.mean() if init is None else init.double().cpu() / epsilon
    if init is not None and balance < 1:
        # As potentials are returned they lack the constant at which the target sums to 1.
        log_v = log_v + balance / (1 - balance) * torch.logsumexp(log_b + (balance - 1) / balance * log_v, dim=0)
    iteration = FixedPoint(log_v, b, acceleration)
    for n_iter in range(1, max_iter + 1):
        log_u, columns = sweep(iteration.h)
        if group is not None:
            all_reduce(columns, group=group)
        columns = columns.cpu()
        # As a logarithm too: at a small balance a far start has a target that no float64 holds, and its step is finite.
        log_target = log_b + (balance - 1) / balance * iteration.h
        error = float((columns - log_target.exp()).abs().sum())
        if callback:
            callback(n_iter, error)
        iteration.evaluate(error, balance * (log_target - columns.clamp_min(_TINY).log()))
        if error <= tol or n_iter == max_iter:
            break
        # The residual of a clamped column is a constant.
        iteration.step(linear=bool(columns.min() > _TINY))
    best, lowest = iteration.best, iteration.lowest
    if best is not iteration.h:
        log_u, _ = sweep(best)
    shift = b @ best
    g = (epsilon * (best - shift)).to(log_u.device, torch.float32)
    # c = 1 - x·u: the constant 1 goes into f.
    f = 1 + epsilon * (log_u + float(shift))
    return SinkhornResult(f, g, lowest, n_iter, lowest <= tol)


# The least column sum taken at its word. A text far from every image can get less than float32 holds: it then climbs
# by at most log(b / tiny), about 80, a step, which is less than the exact update and so never overshoots.
_TINY = torch.finfo(torch.float32).tiny
