"""`nearest` as PyTorch knows it: an operator with shapes for tracing."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backends
from ..operators import Operator
from . import reference
from . import torch as streaming


def _load_triton() -> Callable[..., tuple[Tensor, Tensor]]:
    from . import triton

    return triton.nearest


BACKENDS = Backends(reference.nearest, streaming.nearest, _load_triton)


def run_checked(x: Tensor, centroids: Tensor, k: int, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k); shapes and dtypes as checked in the public op."""
    checks.finite("x", x)
    checks.finite("centroids", centroids)
    if bias is not None:
        checks.finite("bias", bias)
    run = BACKENDS.choose(backend, x.device)
    if not len(x) and backend != "reference":
        return x.new_empty(0, k, dtype=torch.int64), x.new_empty(0, k, dtype=torch.float32)
    labels, similarity = run(x, centroids, k=k, bias=bias)
    # The reference's are parts of whole sorted rows.
    return labels.contiguous(), similarity.contiguous()


def _fake(x: Tensor, centroids: Tensor, k: int, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    similarity = torch.float64 if backend == "reference" else torch.float32
    return x.new_empty(x.shape[0], k, dtype=torch.int64), x.new_empty(x.shape[0], k, dtype=similarity)


operator = Operator("nearest", run_checked, fake=_fake)
