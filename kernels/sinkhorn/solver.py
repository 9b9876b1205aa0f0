"""The iteration on the M numbers log v, shared by the streaming backends: each gives it one sweep over its rows."""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce


class SinkhornResult(NamedTuple):
    """Potentials of the plan P_ij = a_i exp((f_i + g_j - c_ij) / epsilon), and how good it is."""

    f: Tensor
    """(N,) row potentials: the row update for g."""
    g: Tensor
    """(M,) column potentials, -inf where the column weight is 0; sum_j b_j g_j = 0."""
    marginal_error: float
    """L1 distance of the column sums of P from what they should be, the column weights if balanced; rows are exact."""
    n_iter: int
    """Iterations: sweeps over the rows, each of one product x·u or less."""
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


def total(value: Tensor, group: ProcessGroup | None) -> float:
    """A float64 scalar summed over the group."""
    if group is not None:
        all_reduce(value, group=group)
    return float(value)


def solve(
    sweep: Sweep,
    *,
    epsilon: float,
    col_weights: Tensor,
    init: Tensor | None,
    max_iter: int,
    tol: float,
    balance: float,
    acceleration: bool,
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
        acceleration: whether Anderson's step replaces the plain one.
        group: ranks to sum the column sums over.
        callback: hears of each iteration and its error.
    """
    b = col_weights.double().cpu()
    # Without its mean, so that the first target sums to about 1 below balance 1; at 1 a constant makes no difference.
    log_v = b.log() - b.log().mean() if init is None else init.double().cpu() / epsilon
    anderson = Anderson(b)
    lowest = math.inf
    trial = 0  # steps since Anderson's first from the best potentials; 0 while plain steps alone lead on from them
    plain, penalty = 0, 1  # plain steps to take now, and at the next rejection
    for n_iter in range(1, max_iter + 1):
        log_u, columns = sweep(log_v)
        if group is not None:
            all_reduce(columns, group=group)
        columns = columns.cpu()
        target = b * torch.exp((balance - 1) / balance * log_v)
        error = float((columns - target).abs().sum())
        if callback:
            callback(n_iter, error)
        residual = balance * (target.log() - columns.clamp_min(_TINY).log())
        # A plain step from the best potentials never raises the error, but may leave it where it was for long (a
        # cluster's mass cannot get out): it is progress all the same.
        if error < lowest or not trial:
            lowest, best, best_residual, trial = error, log_v, residual, 0
        if error <= tol or n_iter == max_iter:
            break
        plain = max(plain - 1, 0)
        if trial and (error > min(_SLACK * lowest, _START) or trial > _PATIENCE):
            # Judged before anything else: no step, plain or not, goes on from potentials that led astray. Back to the
            # best ones, and on from there with more plain steps each time.
            anderson.forget()
            log_v, trial = best + best_residual, 0
            plain, penalty = penalty, 4 * penalty
        elif plain or not acceleration or lowest > _START or columns.min() <= _TINY:
            log_v = log_v + residual
            trial += bool(trial)
        else:
            trial += bool(trial or anderson.history)  # its first step is a plain one
            log_v = anderson.step(log_v, residual)
    if best is not log_v:
        log_u, _ = sweep(best)
    shift = b @ best
    g = (epsilon * (best - shift)).to(log_u.device, torch.float32)
    # c = 1 - x·u: the constant 1 goes into f.
    f = 1 + epsilon * (log_u + float(shift))
    return SinkhornResult(f, g, lowest, n_iter, lowest <= tol)


class Anderson:
    """Anderson acceleration (type II) of a fixed point h = h + r(h) in M numbers (Walker & Ni 2011).

    The next h is the plain step from that combination of the last few h whose residual, taken as linear, is least. For
    Sinkhorn r = log b - log(column sums), so the norm weighted by b is the one that the marginal error lives in.
    """

    def __init__(self, weights: Tensor) -> None:
        self.scale = weights.sqrt()[:, None]
        self.forget()

    def forget(self) -> None:
        """Start anew, with a plain step."""
        self.history: deque[tuple[Tensor, Tensor]] = deque(maxlen=_MEMORY + 1)

    def step(self, h: Tensor, residual: Tensor) -> Tensor:
        """The next h, given the residual at this one."""
        self.history.append((h, residual))
        if len(self.history) == 1:
            return h + residual
        # (M, m) differences of consecutive iterates and of their residuals.
        dh, dr = (torch.stack(column, dim=1).diff(dim=1) for column in zip(*self.history, strict=True))
        # gelsd copes with differences that are linearly dependent, as they are once rounding is all that is left.
        gamma = torch.linalg.lstsq(self.scale * dr, self.scale * residual[:, None], driver="gelsd").solution
        return h + residual - ((dh + dr) @ gamma)[:, 0]


# Steps that Anderson's combination reaches back, and how far above the lowest error so far it may go before it is
# rejected. A strict safeguard (1) rejects steps that pay off later, none (inf) can diverge. Figures: kernels/README.md.
_MEMORY = 5
_SLACK = 2.0
# Steps of a trial without a new lowest error before the same happens.
_PATIENCE = 10
# The marginal error, 2 at most, from which on steps are accelerated: while most of the mass is in the wrong place the
# residual is nothing like linear. Nor is it where a column sum was clamped.
_START = 1.0
# The least column sum taken at its word. A text far from every image can get less than float32 holds: it then climbs
# by at most log(b / tiny), about 80, a step, which is less than the exact update and so never overshoots.
_TINY = torch.finfo(torch.float32).tiny
