"""The derivative of `counterparts`, one panel of rows at a time on any device: scores are made anew, never kept."""

import torch
from torch import Tensor

from ..products import inner_products
from ..tiles import panels


def counterparts_gradient(
    grad: Tensor, x: Tensor, u: Tensor, g: Tensor, *, epsilon: float, normalize: bool, similarity_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(grad · y) in x, u and g.

    With w_ij = t_ij s_ij, h_i the gradient of the sum before it is scaled and q_ij = h_i·u_j:

        grad e_ij = t_ij (s_ij q_ij - sum_l t_il s_il q_il) / epsilon    (the softmax)
        grad s_ij = grad e_ij + t_ij q_ij,    grad x = (grad s) u,    grad u = (grad s)^T x + w^T h

    Args:
        grad: (N, D), of y.
        x: (N, D).
        u: (M, D).
        g: (M,), -inf for a text that takes no part, whose gradient is 0.
        epsilon: as given to the op.
        normalize: as given to the op. A row that was zero gets the gradient of the unscaled sum over 1e-12.
        similarity_weight: as given to the op.

    Returns:
        (N, D), (M, D) and (M,) in the dtypes of x, u and g; summed in float32, in float64 for such inputs.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    texts, log_v = u.to(kind), g.to(kind) / epsilon
    # Row by row in memory, as a graph expects, also where x and u lie column by column.
    grad_x, grad_u, grad_g = x.new_empty(x.shape), texts.new_zeros(u.shape), torch.zeros_like(log_v)
    for rows in panels(x.shape[0], u.shape[0], x.device):
        images, h = x[rows].to(kind), grad[rows].to(kind)
        s = inner_products(images, texts)
        t = torch.softmax(torch.add(log_v, s, alpha=1 / epsilon), dim=1)
        w = t * s if similarity_weight else t
        if normalize:
            h = before_scaling(h, w @ texts)
        grad_u.addmm_(w.T, h)
        weighted = (h @ texts.T).mul_(t)  # t_ij q_ij
        inner = weighted * s if similarity_weight else weighted
        grad_e = torch.addcmul(inner, t, inner.sum(dim=1, keepdim=True), value=-1).div_(epsilon)
        grad_g += grad_e.sum(dim=0)
        grad_s = grad_e.add_(weighted) if similarity_weight else grad_e
        grad_x[rows] = grad_s @ texts
        grad_u.addmm_(grad_s.T, images)
    return grad_x, grad_u.to(u.dtype), grad_g.to(g.dtype)


def before_scaling(grad: Tensor, y: Tensor) -> Tensor:
    """Gradient in y of y / max(|y|, 1e-12)."""
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True).clamp_min(1e-12)
    y = y / length
    return (grad - y * (y * grad).sum(dim=1, keepdim=True)) / length
