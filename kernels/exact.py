"""Products as exact as the ops promise them, whatever precision is set outside."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.amp import is_autocast_available

# What `torch.set_float32_matmul_precision` and `allow_tf32` come down to, for each library that multiplies.
_LIBRARIES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # is there
_lock = threading.Lock()
_inside = 0
_before: list[str] = []


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Inside, a product of float32 matrices is one of float32; no autocast, TF32 or bfloat16 in its place.

    What was set before is set again at the end. Autocast belongs to a thread, the precision of products to the process,
    so it is set back by the last thread to leave.

    Args:
        device: where the products are made.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [library.fp32_precision for library in _LIBRARIES]
            _set(["ieee"] * len(_LIBRARIES))
        _inside += 1
    try:
        # A device without autocast refuses even to have it switched off.
        with torch.autocast(device.type, enabled=False) if is_autocast_available(device.type) else nullcontext():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_before)


def _set(precisions: list[str]) -> None:
    for library, precision in zip(_LIBRARIES, precisions, strict=True):
        library.fp32_precision = precision
