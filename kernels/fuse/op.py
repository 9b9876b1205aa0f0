"""The public op: its contract, its checks and its dispatch."""

from collections.abc import Sequence

from torch import Tensor

from .. import checks
from ..dispatch import Backend
from .operator import BACKENDS, check_values, operator


def fuse(parts: Sequence[Tensor], *, gamma: float, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Weight each modality by how close it is to the mean of all, and add them up.

        x^p = mean_m x^(m),    alpha^(m) = cos(x^(m), x^p),    beta = softmax(alpha / gamma)    (Eq. 14-16)
        z = sum_m beta^(m) x^(m)    (Eq. 17)

    The cosine with a zero vector is 0. z is not scaled to unit length.

    Differentiable once in the parts, backward mode only. It can be compiled and exported: an error that only values
    show then comes when the graph runs.

    Args:
        parts: m >= 1 modalities (N, D) of one shape, dtype and device; float32, float16 or bfloat16.
        gamma: temperature, above 0.
        backend: "reference" (dense float64), "torch", "triton", or "auto" by device.

    Returns:
        z (N, D) in the dtype of the parts and beta (N, m) float32; both float64 from the reference.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Examples:
        >>> import torch
        >>> images, nouns = torch.eye(2), torch.eye(2)
        >>> z, beta = fuse([images, nouns], gamma=0.1)
        >>> z, beta
        (tensor([[1., 0.],
                [0., 1.]]), tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]]))
    """
    parts = tuple(parts)
    if not parts:
        raise ValueError("parts: expected at least one (N, D) matrix, got none")
    for i, part in enumerate(parts):
        checks.matrix(f"parts[{i}]", part, may_be_empty=True)
        checks.alike("parts[0]", parts[0], f"parts[{i}]", part)
        if part.shape != parts[0].shape:
            raise ValueError(
                f"parts[{i}]: expected the shape of parts[0], {tuple(parts[0].shape)}, got {tuple(part.shape)}; "
                "row i of every part must be of the same image"
            )
    gamma = checks.positive("gamma", gamma)
    if backend != "reference":
        return operator(list(parts), gamma, backend)
    check_values(parts)
    return BACKENDS.choose(backend, parts[0].device)(parts, gamma=gamma)
