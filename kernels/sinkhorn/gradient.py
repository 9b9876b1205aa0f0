"""Derivatives of the potentials, one panel of the plan at a time: in no pass does an (N, M) array exist."""

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exact import exact_products
from ..products import inner_products
from ..tiles import kept_rows, panel_rows, panels
from .solver import ConvergenceWarning


class RowSoftmax:
    """t_ij = exp((f_i + g_j - 1 + x_i·u_j) / epsilon), whose rows sum to 1, in panels of rows.

    Attributes:
        x: (N, D).
        u: (M, D) float32, float64 for such inputs: the dtype of products with x and u.
    """

    def __init__(self, x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float, *, exact: bool = False) -> None:
        """Take the potentials, f the row update for g.

        Args:
            x: (N, D).
            u: (M, D).
            f: (N,).
            g: (M,), -inf for a column of weight 0.
            epsilon: as given to the op.
            exact: t in float64 with rows that sum to 1 to its last digits, for a linear system, whose matrix is the
                difference of nearly equal numbers. The first panels, a bounded number of them, are then held on to for
                the next pass.
        """
        kind = torch.promote_types(x.dtype, torch.float32)
        self.x, self.u, self.exact = x, u.to(kind), exact
        # Base 2, as in the sweeps.
        self.scale = 1 / (epsilon * math.log(2))
        self.log_u, self.log_v = (f.to(kind) - 1) * self.scale, g.to(kind) * self.scale
        (N, M), device = (x.shape[0], u.shape[0]), x.device
        # Of a row, in the float32 numbers that sizes of panels are counted in.
        self.width = M * (2 if exact else 1)
        self.scores = torch.empty(min(N, panel_rows(self.width, device)), M, dtype=kind, device=device)
        self.t = self.scores.double() if exact else self.scores
        # As many rows as the solver keeps scores of, in one block: small ones that stay would cut up the heap.
        rows = min(N, 2 * kept_rows(self.width, device)) if exact else 0
        self.kept = torch.empty(rows, M, dtype=self.t.dtype, device=device)
        for part in panels(rows, self.width, device):
            self.kept[part] = self._panel(part)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their t (R, M), which is not to be written to and gone at the next step."""
        for rows in panels(self.x.shape[0], self.width, self.x.device):
            yield rows, self.kept[rows] if rows.stop <= len(self.kept) else self._panel(rows)

    def _panel(self, rows: slice) -> Tensor:
        scores, t = self.scores[: rows.stop - rows.start], self.t[: rows.stop - rows.start]
        inner_products(self.x[rows].to(scores.dtype), self.u, out=scores)
        torch.add(self.log_v, scores, alpha=self.scale, out=scores)
        scores.add_(self.log_u[rows, None]).exp2_()
        if self.exact:
            t.copy_(scores).div_(t.sum(dim=1, keepdim=True))
        return t

    def times(self, v: Tensor) -> Tensor:
        """T v, (N,) for v (M,)."""
        return torch.cat([t @ v.to(t.dtype) for _, t in self])

    def transposed_times(self, v: Tensor) -> Tensor:
        """T^T v, (M,) float64 for v (N,)."""
        return self._sum(lambda rows, t: v[rows].to(t.dtype) @ t)

    def gram_times(self, a: Tensor, v: Tensor) -> Tensor:
        """T^T (a ∘ T v), (M,) float64 for v (M,) in one pass."""
        return self._sum(lambda rows, t: (a[rows].to(t.dtype) * (t @ v.to(t.dtype))) @ t)

    def _sum(self, part: Callable[[slice, Tensor], Tensor]) -> Tensor:
        total = torch.zeros(self.u.shape[0], dtype=torch.float64, device=self.u.device)
        for rows, t in self:
            total += part(rows, t)
        return total

    def score_gradients(self, weigh: Callable[[slice, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Gradients in x and u where those in the scores x·u are R = weigh(rows, t): R u and R^T x."""
        # Row by row in memory, as a graph expects, also where x and u lie column by column.
        grad_x, grad_u = self.x.new_empty(self.x.shape), self.u.new_zeros(self.u.shape)
        for rows, t in self:
            weighted = weigh(rows, t).to(self.u.dtype)
            grad_x[rows] = weighted @ self.u
            grad_u.addmm_(weighted.T, self.x[rows].to(self.u.dtype))
        return grad_x, grad_u


def row_gradient(grad: Tensor, x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradients in x and u of sum_i grad_i f_i, where f_i = 1 - epsilon logsumexp_j((x_i·u_j + g_j) / epsilon).

    With R_ij = grad_i t_ij they are -R u and -R^T x.

    Args:
        grad: (N,).
        x: (N, D).
        u: (M, D).
        f: (N,), the row update for g.
        g: (M,), -inf for a column of weight 0.
        epsilon: as given to the op.

    Returns:
        (N, D) and (M, D) in the dtypes of x and u; summed in float32, in float64 for such inputs.
    """
    with exact_products(x.device):
        plan = RowSoftmax(x, u, f, g, epsilon)
        grad_x, grad_u = plan.score_gradients(lambda rows, t: t * -grad[rows, None].to(t.dtype))
    return grad_x, grad_u.to(u.dtype)


def potentials_gradient(
    grad_f: Tensor,
    grad_g: Tensor,
    x: Tensor,
    u: Tensor,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    epsilon: float,
    balance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum(grad_f · f) + sum(grad_g · g) in x, u, a and b, by the implicit function theorem.

    g is where the column sums c_j = sum_i a_i t_ij are the target b'_j, which is proportional to b_j exp(-kappa g_j /
    epsilon) with kappa = (1 - balance) / balance; f is the row update for g. The derivative of c - b' in g is A over
    epsilon with

        A = diag(c) - T^T diag(a) T + kappa (diag(b') - b' b'^T),

    symmetric, positive semidefinite and 0 on constants, in which g is free. So one linear system in M numbers remains,
    A w = epsilon (grad_g - T^T grad_f), whose right side is made to sum to 0 by the gauge sum_j b_j g_j = 0.

    Args:
        grad_f: (N,).
        grad_g: (M,).
        x: (N, D).
        u: (M, D).
        a: (N,) row weights, float64.
        b: (M,) column weights, float64. A column of weight 0 takes no part.
        f: (N,).
        g: (M,), -inf where b is 0.
        epsilon: as given to the op.
        balance: as given to the op.

    Returns:
        (N, D), (M, D), (N,) and (M,) in the dtypes of the arguments; those of a and b up to a constant.

    Warns:
        ConvergenceWarning: the linear system is not solved to 1e-5: gradients are those of the best solution found.
    """
    with exact_products(x.device):
        T = RowSoftmax(x, u, f, g, epsilon, exact=True)
        active = b > 0
        g64, kappa = g.double().where(active, 0), (1 - balance) / balance
        c = T.transposed_times(a)
        # b itself in balanced transport
        target = torch.softmax((b.log() - kappa * g64 / epsilon).where(active, -torch.inf), dim=0)
        in_g = (grad_g.double() - T.transposed_times(grad_f)).where(active, 0)
        free = in_g.sum()

        def A(w: Tensor) -> Tensor:  # noqa: N802  the matrix above
            return c * w - T.gram_times(a, w) + kappa * target * (w - target @ w)

        w = conjugate_gradients(A, epsilon * (in_g - b * free), diagonal=c + kappa * target)
        Tw = T.times(w)

        def in_scores(rows: slice, t: Tensor) -> Tensor:
            in_row, per_row = grad_f[rows, None].to(t.dtype), (a[rows, None] / epsilon).to(t.dtype)
            return (Tw[rows, None] - w).mul_(per_row).sub_(in_row).mul_(t)

        grad_x, grad_u = T.score_gradients(in_scores)
    grad_b = (target / b).where(active, 0) * (w - target @ w) - g64 * free
    return grad_x, grad_u.to(u.dtype), -Tw.to(a.dtype), grad_b


def conjugate_gradients(A: Callable[[Tensor], Tensor], r: Tensor, *, diagonal: Tensor) -> Tensor:
    """W with A w = r, for A symmetric and positive semidefinite and r in its range.

    Where the range is known no better than rounding allows the residual can grow without bound: what is returned is the
    iterate with the least.

    Args:
        A: the product with a vector.
        r: (M,) float64.
        diagonal: (M,) non-negative, of about the size of A's; where it is 0 w is 0. It is the preconditioner.

    Warns:
        ConvergenceWarning: the residual stays above 1e-5 of r, in the norm of the inverse diagonal, for 1000 products
            or until rounding alone is left.
    """
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
    # Of a NaN or an Inf in r comes a NaN: a gradient scaler looks for it, to skip a step.
    best, z = 0 * r, inverse * r
    w, p, rz = best, z, r @ z
    least, goal = rz, _RESIDUAL**2 * rz
    products = 0
    while not rz <= goal and products < _MOST_PRODUCTS:
        Ap, products = A(p), products + 1
        curvature = p @ Ap
        if not curvature > 0:
            break
        step = rz / curvature
        w, r = w + step * p, r - step * Ap
        z = inverse * r
        rz, before = r @ z, rz
        p = z + rz / before * p
        if rz < least:
            best, least = w, rz
    if not least <= goal:
        warnings.warn(
            f"cosine_sinkhorn: the gradient of the potentials is not solved for after {products} products, residual "
            f"{float((least / goal).sqrt()) * _RESIDUAL:.3g}; raise epsilon, or lower balance",
            ConvergenceWarning,
            stacklevel=2,
        )
    return best


# Relative residual, well below the marginal error that the potentials themselves are solved to.
_RESIDUAL = 1e-5
_MOST_PRODUCTS = 1000
