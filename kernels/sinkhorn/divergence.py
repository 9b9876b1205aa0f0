"""The Sinkhorn divergence, a loss between two sets of unit vectors."""

from torch import Tensor

from ..dispatch import Backend
from .op import cosine_sinkhorn


def sinkhorn_divergence(
    x: Tensor,
    u: Tensor,
    *,
    epsilon: float,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
    max_iter: int = 1000,
    tol: float = 1e-3,
    backend: Backend = "auto",
) -> Tensor:
    r"""Sinkhorn divergence between two weighted sets of unit vectors at cost 1 - x_i·u_j.

        S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2,    OT(a, b) = min_P <P, C> + epsilon KL(P | a x b)

    The terms of each set with itself take away the entropic bias of OT, which alone is least where u has shrunk towards
    the mean of x. So S is 0 for equal sets and positive for others, exactly so for exact plans (Feydy et al. 2019).

    Differentiable as the `value` of `cosine_sinkhorn` is, which this is made of: once, in bounded scratch, with an
    error of the order of `tol`. An iteration costs products of N x M, N x N and M x M.

    Args:
        x: (N, D) with unit rows; float32, float16 or bfloat16.
        u: (M, D) with unit rows, dtype and device of x.
        epsilon: entropic regularisation, above 0.
        row_weights: (N,) non-negative, sum 1; uniform if None.
        col_weights: (M,) non-negative, sum 1; uniform if None.
        max_iter: the most iterations of each of the three problems.
        tol: L1 marginal error at which each of them stops.
        backend: "reference" (dense float64), "torch", "triton", or "auto" by device.

    Returns:
        A float64 scalar, on the device of x.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Warns:
        ConvergenceWarning: one of the problems is not solved to `tol` after `max_iter` iterations.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> x = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> u = torch.eye(2).requires_grad_()
        >>> loss = sinkhorn_divergence(x, u, epsilon=0.1, tol=1e-6)
        >>> round(loss.item(), 3)
        0.061
        >>> loss.backward()
        >>> u.grad.shape
        torch.Size([2, 2])
    """

    def value(rows: Tensor, a: Tensor | None, columns: Tensor, b: Tensor | None) -> Tensor:
        plan = cosine_sinkhorn(
            rows, columns, epsilon=epsilon, row_weights=a, col_weights=b, max_iter=max_iter, tol=tol, backend=backend
        )
        return plan.value

    a, b = row_weights, col_weights
    return value(x, a, u, b) - (value(x, a, x, a) + value(u, b, u, b)) / 2
