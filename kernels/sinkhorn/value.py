"""What a plan costs, differentiable by the envelope theorem: no iteration is unrolled and no linear system solved."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from .operator import row_potentials


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
        u: (M, D).
        potentials: f (N,) and g (M,), detached; g is -inf where b is 0.
        weights: a (N,) and b (M,), float64. A column of weight 0 takes no part.
        epsilon: as given to the op.
        balance: as given to the op.
        group: as given to the op. Each rank gets the whole value and the gradient of its own rows' share.

    Returns:
        A float64 scalar.
    """
    (f, g), (a, b) = potentials, weights
    f = row_potentials(x, u, f, g, epsilon)
    rows = a @ f.double()
    if group is not None:
        everywhere = rows.detach().clone()
        all_reduce(everywhere, group=group)
        rows = rows + (everywhere - rows.detach())
    active = b > 0
    g, log_b = g.double().where(active, 0), b.where(active, 1).log()
    if balance < 1:
        rho = epsilon * balance / (1 - balance)
        columns = -rho * torch.logsumexp((log_b - g / rho).where(active, -torch.inf), dim=0)
    else:
        columns = b @ g
    return rows + columns - epsilon * (b @ log_b)
