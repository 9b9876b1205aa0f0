"""No op but the reference allocates N x M: what a call adds stays flat per row when N grows eightfold."""

import pytest
import torch
from kernel_cases import BACKENDS, CUDA, DEVICE, peak_bytes
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts, fuse, nearest, retrieve

# So many rows that every op's panel, half a gigabyte on CUDA, is full at N already.
N, M, D = 2**21 if CUDA else 4096, 3000, 16
SLACK = 48 * 2**20  # a panel and the allocator's own; N x M is 375 MiB at 8N, and 23 GiB at N on CUDA
ROW = {  # bytes a row that the ops' results and vectors of length N may take, twice over for temporaries
    "sinkhorn": 2 * 4 * 8,
    "counterparts": 2 * 4 * D,
    "retrieve all": 2 * 8,
    "retrieve assigned": 2 * 8 * 8,
    "fuse": 2 * 4 * (D + 3),
    "nearest": 2 * 12,
    "nearest 5": 2 * 12 * 5,
}


def calls(rows: int, backend: str):
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, u = (normalize(torch.randn(n, D, generator=generator, device=DEVICE), dim=1) for n in (rows, M))
    return {
        "sinkhorn": lambda: cosine_sinkhorn(x, u, epsilon=0.5, tol=0.1, backend=backend),
        "counterparts": lambda: counterparts(x, u, None, epsilon=0.1, backend=backend),
        "retrieve all": lambda: retrieve(x, u, top_k=5, mode="all", backend=backend),
        "retrieve assigned": lambda: retrieve(x, u, top_k=5, mode="assigned", backend=backend),
        "fuse": lambda: fuse([x, x, x], gamma=0.1, backend=backend),
        "nearest": lambda: nearest(x, u, backend=backend),
        "nearest 5": lambda: nearest(x, u, k=5, backend=backend),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ROW)
def test_peak_memory_is_flat_in_n(backend, op):
    calls(256, backend)[op]()  # what a first call sets up for good
    small = peak_bytes(calls(N, backend)[op])
    large = peak_bytes(calls(8 * N, backend)[op])
    assert large - small <= 7 * N * ROW[op] + SLACK


def test_the_measure_sees_a_dense_matrix():
    assert peak_bytes(lambda: torch.ones(8 * 4096, M, device=DEVICE)) > 300 * 2**20


def test_the_measure_sees_what_fits_into_freed_memory():
    if CUDA:
        pytest.skip("CUDA counts what is allocated, not what is resident")
    for _ in range(2):  # glibc takes blocks of this size from its heap once one of them was freed
        blocks = [torch.ones(30 * 2**18) for _ in range(15)]
        kept = torch.ones(1000)  # above them on the heap, so that nothing is given back
        del blocks
    assert peak_bytes(lambda: torch.ones(8 * 4096, M)) > 300 * 2**20
    assert len(kept)
