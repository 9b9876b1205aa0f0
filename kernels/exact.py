"""Products as exact as the ops promise them, whatever precision is set outside, by the library that is fastest."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.amp import is_autocast_available

# What `torch.set_float32_matmul_precision` and `allow_tf32` come down to, for each library that multiplies.
_LIBRARIES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # is there
# The precisions belong to the process, which may hold this package twice (`operators.NAMESPACE`): copies count as one.
_process = vars(torch.backends).setdefault(
    "_exact_products_of_cae", SimpleNamespace(lock=threading.Lock(), inside=0, before=[])
)
# In older ones oneDNN's sums depend on the height of the matrix, up to a hundred rows.
_ROWS_ARE_ALIKE = torch.__version__ >= "2.14"


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside, a product of float32 matrices is one of float32; no autocast, TF32 or bfloat16 in its place.

    On a CPU it is oneDNN's where that is faster than MKL. What was set before is set again at the end. Autocast belongs
    to a thread, the choice of library and precision to the process, so it is set back by the last thread to leave.

    Args:
        device: where the products are made.

    Examples:
        >>> import torch
        >>> with torch.autocast("cpu", torch.bfloat16), exact_products(torch.device("cpu")):
        ...     product = torch.full((64, 64), 1 + 2**-20) @ torch.eye(64)
        >>> bool((product == 1 + 2**-20).all())
        True
    """
    with _process.lock:
        if not _process.inside:
            _process.before = [library.fp32_precision for library in _LIBRARIES]
            _set(["ieee", "bf16" if onednn_is_faster() else "ieee"])
        _process.inside += 1
    try:
        # A device without autocast refuses even to have it switched off.
        with torch.autocast(device.type, enabled=False) if is_autocast_available(device.type) else nullcontext():
            yield
    finally:
        with _process.lock:
            _process.inside -= 1
            if not _process.inside:
                _set(_process.before)


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices of this processor at twice MKL's speed, and exactly.

    MKL runs AVX2 code on AMD's processors, oneDNN AVX-512 code wherever it can. torch has no switch for it but the
    precision "bf16", at which oneDNN rounds only where a processor multiplies bfloat16 as matrices (AMX). Elsewhere
    that precision means nothing but oneDNN.
    """
    able = torch.cpu.get_capabilities()
    return _ROWS_ARE_ALIKE and bool(able.get("avx512_f")) and not able.get("amx_bf16")


def _set(precisions: list[str]) -> None:
    for library, precision in zip(_LIBRARIES, precisions, strict=True):
        library.fp32_precision = precision
