"""Products of float32 matrices by oneDNN, where they take MKL twice as long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()


@contextmanager
def products_by_onednn() -> Iterator[None]:
    """Inside, torch leaves the CPU's products of float32 matrices to oneDNN in place of MKL, where that is faster.

    MKL runs AVX2 code on AMD's processors; oneDNN runs AVX-512 code where it can, at twice the speed. Both sum in
    float32. torch has no switch for it but the precision "bf16", by which oneDNN rounds only where a processor
    multiplies bfloat16 as matrices (AMX), so there all stays as it is. The switch belongs to the process: one thread at
    a time is inside.

    Examples:
        >>> with products_by_onednn():
        ...     product = torch.ones(64, 64) @ torch.ones(64, 64)
        >>> product.unique()
        tensor([64.])
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # is there
    able = torch.cpu.get_capabilities()
    with _lock:
        before = matmul.fp32_precision
        if able.get("avx512_f") and not able.get("amx_bf16"):
            matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before
