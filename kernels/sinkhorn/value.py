"""What a plan costs, and the derivative of that: by the envelope theorem, so that no iteration is unrolled."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from cae.kernels.exact import exact_products
from cae.kernels.operators import Operator
from cae.kernels.tiles import panels


def transport_value(
    x: Tensor,
    u: Tensor,
    potentials: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    *,
    epsilon: float,
    balance: float,
    group: ProcessGroup | None,
) -> Tensor:
    """The dual objective at g and the row update f, differentiable in x, u and the weights.

    <a, f> + <b, g> - epsilon <b, log b>; unbalanced, -rho log <b, exp(-g / rho)> stands for <b, g>. Its derivative in g
    is the marginal error, so at the optimum the potentials count as constants and f as a function of x and u alone.

    Args:
        x: (N, D).
        u: (M, D), of positive weight.
        potentials: f (N,) and g (M,), detached.
        weights: a (N,) and b (M,), float64.
        epsilon: as given to the op.
        balance: as given to the op.
        group: as given to the op. Each rank gets the whole value and the gradient of its own rows' share.

    Returns:
        A float64 scalar.
    """
    (f, g), (a, b) = potentials, weights
    f = _row_potentials(x, u, f, g, epsilon)
    rows = a @ f.double()
    if group is not None:
        everywhere = rows.detach().clone()
        all_reduce(everywhere, group=group)
        rows = rows + (everywhere - rows.detach())
    g = g.double()
    if balance < 1:
        rho = epsilon * balance / (1 - balance)
        columns = -rho * torch.logsumexp(b.log() - g / rho, dim=0)
    else:
        columns = b @ g
    return rows + columns - epsilon * (b @ b.log())


def row_gradient(grad: Tensor, x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradients in x and u of sum_i grad_i f_i, where f_i = 1 - epsilon logsumexp_j((x_i·u_j + g_j) / epsilon).

    With R_ij = grad_i t_ij they are -R u and -R^T x; a panel of t at a time, from the potentials that are known.

    Args:
        grad: (N,).
        x: (N, D).
        u: (M, D).
        f: (N,), the row update for g.
        g: (M,), finite.
        epsilon: as given to the op.

    Returns:
        (N, D) and (M, D) in the dtypes of x and u; summed in float32, in float64 for such inputs.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    texts, log_v = u.to(kind), g.to(kind) / epsilon
    grad_x, grad_u = torch.empty_like(x), torch.zeros_like(texts)
    log_u = (f.to(kind) - 1) / epsilon
    with exact_products(x.device):
        for rows in panels(x.shape[0], u.shape[0], x.device):
            images = x[rows].to(kind)
            t = torch.addmm(log_v, images, texts.T, alpha=1 / epsilon).add_(log_u[rows, None]).exp_()
            t.mul_(-grad[rows, None].to(kind))
            grad_x[rows] = t @ texts
            grad_u.addmm_(t.T, images)
    return grad_x, grad_u.to(u.dtype)


def _copy(x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """Row potentials as they are, but not the same tensor: an operator must not return its input."""
    return f.clone()


def _fake_gradient(grad: Tensor, x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), u.new_empty(u.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.epsilon = inputs[4]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """In x and u; g is at its optimum."""
    return *gradient(grad, *ctx.saved_tensors, ctx.epsilon), None, None, None


gradient = Operator("cosine_sinkhorn_gradient", row_gradient, fake=_fake_gradient)
# f with its derivative in x and u.
_row_potentials = Operator(
    "cosine_sinkhorn_rows",
    _copy,
    fake=lambda x, u, f, *_: f.new_empty(f.shape),
    setup_context=_setup_context,
    backward=_backward,
)
