"""The public op: its contract, its checks and its dispatch."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backend
from .operator import operator


class Nearest(NamedTuple):
    """The most similar centroids of each row, most similar first."""

    labels: Tensor
    """(N,) int64 indices of centroids; (N, k) for k > 1."""
    similarity: Tensor
    """x·c + bias of these, float32, of the same shape."""


@torch.no_grad()
def nearest(
    x: Tensor, centroids: Tensor, *, k: int = 1, bias: Tensor | None = None, backend: Backend = "auto"
) -> Nearest:
    """The k largest x_i·c_j + bias_j of each row; equal ones by ascending index.

    With unit centroids this is the cosine's nearest; with bias_j = -|c_j|^2 / 2 the Euclidean nearest. A row depends on
    no other row. The results are detached. It can be compiled and exported: an error that only values show then
    comes when the graph runs.

    Args:
        x: (N, D), rows of any length; float32, float16 or bfloat16.
        centroids: (C, D), rows of any length, dtype and device of x.
        k: centroids for each row, 1 to C.
        bias: (C,) finite, added to the products; None is zeros.
        backend: "reference" (dense float64), "torch", "triton", or "auto" by device.

    Returns:
        Nearest(labels, similarity), each (N,) for k = 1 and (N, k) for k > 1; similarity float32, float64 from the
        reference.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> x = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> u = torch.eye(2)
        >>> nearest(x, u).labels
        tensor([0, 0, 1])
    """
    checks.matrix("x", x, may_be_empty=True)
    checks.matrix("centroids", centroids)
    checks.alike("x", x, "centroids", centroids)
    k = checks.count("k", k)
    C = centroids.shape[0]
    if k > C:
        raise ValueError(f"k: expected at most the number of centroids, {C}, got {k}")
    if bias is not None:
        checks.vector("bias", bias, C, "centroids", centroids)
    labels, similarity = operator(x, centroids, k, bias, backend)
    return Nearest(labels[:, 0], similarity[:, 0]) if k == 1 else Nearest(labels, similarity)
