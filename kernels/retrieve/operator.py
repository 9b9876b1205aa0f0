"""`retrieve` as PyTorch knows it: an operator that returns as many indices as the values ask for."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backends
from ..operators import Operator
from . import reference
from . import torch as streaming


def _load_triton() -> Callable[..., Tensor]:
    from . import triton

    return triton.retrieve


BACKENDS = Backends(reference.retrieve, streaming.retrieve, _load_triton)


def run_checked(texts: Tensor, centers: Tensor, top_k: int, mode: str, backend: str) -> Tensor:
    """The public op; shapes and dtypes as checked there."""
    checks.finite("texts", texts)
    checks.finite("centers", centers)
    run = BACKENDS.choose(backend, texts.device)
    return run(texts, centers, top_k=min(top_k, texts.shape[0]), mode=mode)


def _fake(texts: Tensor, centers: Tensor, top_k: int, mode: str, backend: str) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return texts.new_empty(size, dtype=torch.int64)


operator = Operator("retrieve", run_checked, fake=_fake)
