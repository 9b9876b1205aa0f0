"""`nearest` as PyTorch sees it: an operator with shapes for tracing."""

import torch
from torch import Tensor

from cae.kernels import checks
from cae.kernels.dispatch import Backend, implementation


def run_checked(x: Tensor, centroids: Tensor, k: int, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k); shapes and dtypes as checked in the public op."""
    kind: Backend = backend  # type: ignore[assignment]  # `implementation` checks the name; a schema knows str alone
    checks.finite("x", x)
    checks.finite("centroids", centroids)
    if bias is not None:
        checks.finite("bias", bias)
    run = implementation("nearest", "nearest", kind, x.device)
    if not len(x) and backend != "reference":
        return x.new_empty(0, k, dtype=torch.int64), x.new_empty(0, k, dtype=torch.float32)
    labels, similarity = run(x, centroids, k=k, bias=bias)
    # The reference's are parts of whole sorted rows.
    return labels.contiguous(), similarity.contiguous()


operator = torch.library.custom_op("cae::nearest", run_checked, mutates_args=())


@operator.register_fake
def _(x: Tensor, centroids: Tensor, k: int, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    similarity = torch.float64 if backend == "reference" else torch.float32
    return x.new_empty(x.shape[0], k, dtype=torch.int64), x.new_empty(x.shape[0], k, dtype=similarity)
