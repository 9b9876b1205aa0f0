"""The derivative of `fuse`, streaming: one panel of rows at a time on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tiles import panels


def fuse_gradient(grad_z: Tensor, grad_beta: Tensor, parts: Sequence[Tensor], *, gamma: float) -> list[Tensor]:
    """Gradients of sum(grad_z · z) + sum(grad_beta · beta) in the parts.

    The cosine with a zero vector is 0 and taken as constant.

    Args:
        grad_z: (N, D).
        grad_beta: (N, m).
        parts: m tensors (N, D).
        gamma: as given to the op.

    Returns:
        m tensors (N, D) in the dtype of the parts; computed in float32, in float64 for such inputs.
    """
    (N, D), m = parts[0].shape, len(parts)
    kind = torch.promote_types(parts[0].dtype, torch.float32)
    grads = [torch.empty_like(part) for part in parts]
    for rows in panels(N, m * D, parts[0].device):
        x = torch.stack([part[rows] for part in parts], dim=1).to(kind)
        panel = _panel(grad_z[rows, None].to(kind), grad_beta[rows].to(kind), x, gamma)
        for grad, part in zip(grads, panel.unbind(dim=1), strict=True):
            grad[rows] = part
    return grads


def _panel(grad_z: Tensor, grad_beta: Tensor, x: Tensor, gamma: float) -> Tensor:
    """(R, m, D) for grad_z (R, 1, D), grad_beta (R, m) and x (R, m, D)."""
    prototype = x.mean(dim=1, keepdim=True)
    # (R, m, D) and (R, 1, D); a zero vector has no direction.
    x_length, p_length = (torch.linalg.vector_norm(v, dim=2, keepdim=True) for v in (x, prototype))
    x_inverse, p_inverse = (torch.where(v > 0, 1 / v, 0) for v in (x_length, p_length))
    x_unit, p_unit = x * x_inverse, prototype * p_inverse
    alpha = (x_unit * p_unit).sum(dim=2)
    beta = torch.softmax(alpha / gamma, dim=1)
    grad_beta = grad_beta + (grad_z * x).sum(dim=2)
    grad_alpha = (beta * (grad_beta - (beta * grad_beta).sum(dim=1, keepdim=True)) / gamma)[:, :, None]
    alpha = alpha[:, :, None]
    direct = grad_alpha * (p_unit - alpha * x_unit) * x_inverse
    shared = (grad_alpha * (x_unit - alpha * p_unit)).mean(dim=1, keepdim=True) * p_inverse
    return beta[:, :, None] * grad_z + direct + shared
