"""What the tests of the kernels share: backends, vectors in several geometries, poisoned memory, peak memory."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# On the CPU the Triton backend runs in the interpreter, on the small shapes of test_kernels_triton.py.
BACKENDS = ["torch", "triton"] if CUDA else ["torch"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# N and M of 1, 2, 15, 127, 129 and the widths of encoders in use, without their product.
SHAPES = [
    (1, 1, 64),
    (1, 129, 3),
    (2, 15, 384),
    (15, 2, 64),
    (127, 1, 512),
    (127, 129, 768),
    (129, 127, 3),
    (15, 129, 1280),
]
GEOMETRIES = ["random", "clustered", "duplicated", "collinear", "clip"]
CLIP = Path(__file__).parents[2] / "shared/data/clip_text/vit_b32_noun_text_vectors.npy"


def unit(rows: int, width: int, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Tensor:
    """Random directions, rounded to a dtype."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator), dim=1).to(DEVICE, dtype)


def real_text_vectors() -> Tensor:
    """CLIP's, (T, 512). NumPy is imported here, since a machine with a GPU may have torch, Triton and pytest alone."""
    import numpy

    return torch.from_numpy(numpy.load(CLIP)).to(DEVICE)


def pair(geometry: str, N: int, M: int) -> tuple[Tensor, Tensor]:
    """Images (N, D) and texts (M, D) of a geometry that has troubled an optimal transport or a ranking."""
    x, u = unit(N, 64, seed=1), unit(M, 64, seed=2)
    if geometry == "clustered":
        centers = unit(8, 64, seed=3)
        x = normalize(centers[torch.arange(N) ** 2 % 8] + 0.4 * x, dim=1)
        u = normalize(centers[torch.arange(M) % 8] + 0.4 * u, dim=1)
    elif geometry == "duplicated":
        x, u = x[torch.arange(N) // 3], u[torch.arange(M) // 3]
    elif geometry == "collinear":
        x, u = normalize(x[:1] + 1e-3 * x, dim=1), normalize(x[:1] + 1e-3 * u, dim=1)
    elif geometry == "clip":
        if not CLIP.exists():
            pytest.skip(f"real CLIP text vectors are not at {CLIP}")
        vectors = real_text_vectors()[: N + M].float()
        u, x = normalize(vectors[:M], dim=1), normalize(vectors[M:] + 0.2 * unit(N, vectors.shape[1]), dim=1)
    return x, u


def relative_error(result: Tensor, expected: Tensor) -> float:
    """||y - y'|| / ||y'||."""
    expected = expected.double()
    return float((result.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody wrote reads as NaN, or as a label far outside."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def empty(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(torch.nan if out.is_floating_point() else -(2**40))

        return empty

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that a call adds to what there is before it, its results included."""
    gc.collect()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        # What earlier calls freed stays resident in malloc's heap, where a large tensor would fit unseen: give it back.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except (OSError, AttributeError):  # another system, or another C library
        pytest.skip("peak memory is read from Linux's /proc, and from glibc's heap")
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
