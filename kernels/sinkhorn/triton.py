"""Triton backend: one product x·u per iteration, its softmax kept in a bounded panel between two kernels."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import FUSED, ceil_div
from ..triton import LOG2_E, SoftmaxPanel
from .solver import SinkhornResult, solve


def cosine_sinkhorn(x: Tensor, u: Tensor, *, epsilon: float, row_weights: Tensor, **options: Any) -> SinkhornResult:
    """The public op; arguments as checked there, `options` those of `solve`."""
    with torch.cuda.device_of(x):
        return solve(TritonSweep(x, u, row_weights, epsilon), epsilon=epsilon, **options)


@triton.jit(do_not_specialize=["N"])
def column_sums_kernel(
    p_p,
    p_factor,
    p_a,
    p_sums,
    N,
    stride_p,
    stride_t,
    TILE_J: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Σ_i a_i t_ij over ROWS rows of a panel, in a fixed order: every program writes sums of its own, no atomics."""
    i_j, i_s = tl.program_id(0), tl.program_id(1)
    o_j = i_j * BLOCK_J + tl.arange(0, BLOCK_J)
    # All of the block's columns lie in one tile of the panel.
    p_factor += i_j * BLOCK_J // TILE_J * stride_t
    # (BI, BJ) kept apart by row until the end: one reduction across threads instead of one per step
    b_sums = tl.zeros((BLOCK_I, BLOCK_J), dtype=tl.float32)
    for i in range(i_s * ROWS, tl.minimum(i_s * ROWS + ROWS, N), BLOCK_I):
        o_i = i + tl.arange(0, BLOCK_I)
        # (BI,)
        b_w = tl.load(p_a + o_i, mask=o_i < N, other=0.0) * tl.load(p_factor + o_i)
        # (BI, BJ)
        b_p = tl.load(p_p + o_i.to(tl.int64)[:, None] * stride_p + o_j[None, :], eviction_policy="evict_first")
        b_sums += b_p.to(tl.float32) * b_w[:, None]
    tl.store(p_sums + i_s * stride_p + o_j, tl.sum(b_sums, axis=0))


class TritonSweep:
    """The sweep of `solver.Sweep`; the scratch lives as long as the solve."""

    def __init__(self, x: Tensor, u: Tensor, row_weights: Tensor, epsilon: float) -> None:
        self.a = row_weights.float().contiguous()
        self.scale = 1 / epsilon
        # float16 also for bfloat16 inputs: entries within [0, 1] need its precision and not their range.
        dtype = torch.float32 if x.dtype == torch.float32 else torch.float16
        self.panel = SoftmaxPanel(x.contiguous(), u.contiguous(), dtype=dtype)
        splits, width = ceil_div(self.panel.rows, _ROWS), self.panel.p.shape[1]
        self.sums = torch.empty(splits, width, dtype=torch.float32, device=x.device)
        self.log_z = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)

    def __call__(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """See `solver.Sweep`."""
        panel, M = self.panel, len(log_v)
        bias = (log_v * LOG2_E).to(self.log_z.device, torch.float32)
        # Float64 across panels, so that the sums do not drift with N.
        columns = torch.zeros(M, dtype=torch.float64, device=bias.device)
        for rows in panel:
            panel.fill(rows, scale=self.scale, bias=bias, log_z=self.log_z)
            n = rows.stop - rows.start
            splits = ceil_div(n, _ROWS)
            column_sums_kernel[(self.sums.shape[1] // _BLOCK_J, splits)](
                panel.p,
                panel.factor,
                self.a[rows],
                self.sums,
                n,
                panel.p.stride(0),
                panel.rows,
                TILE_J=panel.tile.BLOCK_J,
                ROWS=_ROWS,
                BLOCK_I=_BLOCK_I,
                BLOCK_J=_BLOCK_J,
                **FUSED,
            )
            columns += self.sums[:splits, :M].sum(dim=0, dtype=torch.float64)
        return -self.log_z, columns


# Rows that one program of `column_sums_kernel` adds up, and the block it holds: 32 divides every tile's sides.
_ROWS, _BLOCK_I, _BLOCK_J = 1024, 32, 32
