"""The public op: its contract, its checks and its dispatch."""

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backend
from .operator import BACKENDS, check_values, operator


def counterparts(
    x: Tensor,
    u: Tensor,
    g: Tensor | None,
    *,
    epsilon: float,
    normalize: bool = True,
    similarity_weight: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """For each image the texts' mean under its row of the transport plan, weighted by similarity.

        y_i = sum_j t_ij s_ij u_j,    s_ij = x_i·u_j,    t_ij = softmax_j((s_ij + g_j) / epsilon)    (Eq. 7-8)

    The rows of t sum to 1: the plan's rows times N. A row depends on no other row.

    Differentiable once in x, u and g, in bounded scratch (backward mode only). Gradients in x and u are of free rows,
    not held to unit length: apply `torch.nn.functional.normalize` before the op. It can be compiled and exported: an
    error that only values show then comes when the graph runs.

    Args:
        x: (N, D) image embeddings with unit rows; float32, float16 or bfloat16.
        u: (M, D) text embeddings with unit rows, dtype and device of x.
        g: (M,) column potentials of `cosine_sinkhorn`, -inf for a text of weight 0; None is zeros, a plain softmax.
        epsilon: the regularisation that g was solved for, above 0.
        normalize: scale each row to unit length (a zero row stays zero); False keeps the sum as it is.
        similarity_weight: False drops s_ij from the sum: with g=None and epsilon=1 Eq. 9, TAC's softmax counterpart.
        backend: "reference" (dense float64), "torch", "triton", or "auto" by device.

    Returns:
        (N, D) in the dtype of x, accumulated in float32; float64 from the reference.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> x = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> u = torch.eye(2)
        >>> counterparts(x, u, g=None, epsilon=0.1).round(decimals=2)
        tensor([[1.0000, 0.0000],
                [0.9900, 0.1000],
                [0.0000, 1.0000]])
        >>> counterparts(x.requires_grad_(), u, g=None, epsilon=0.5)[:, 0].sum().backward()
        >>> x.grad.shape
        torch.Size([3, 2])
    """
    checks.matrix("x", x, may_be_empty=True)
    checks.matrix("u", u)
    checks.alike("x", x, "u", u)
    epsilon = checks.positive("epsilon", epsilon)
    if g is None:
        g = u.new_zeros(u.shape[0], dtype=torch.float32)
    checks.vector("g", g, u.shape[0], "u", u)
    if backend != "reference":
        return operator(x, u, g, epsilon, normalize, similarity_weight, backend)
    check_values(x, u, g)
    run = BACKENDS.choose(backend, x.device)
    return run(x, u, g, epsilon=epsilon, normalize=normalize, similarity_weight=similarity_weight)
