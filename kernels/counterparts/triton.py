"""Triton backend: the softmax of a panel of rows, then its product with u; two plain matrix products.

One kernel in the manner of flash attention would hold D = 512 or more float32 accumulators for each row: at 64 rows the
whole register file, and both products at half the tensor cores' rate. Two kernels with a panel in between keep both at
the rate of a matrix product, for N·M entries written and read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import FUSED, architecture, ceil_div, row_tile, weighted_sum_tile
from ..triton import LOG2_E, SoftmaxPanel, dot, grouped


def counterparts(
    x: Tensor, u: Tensor, g: Tensor, *, epsilon: float, normalize: bool, similarity_weight: bool
) -> Tensor:
    """The public op; arguments as checked there."""
    x, u = x.contiguous(), u.contiguous()
    (N, D), device = x.shape, x.device
    with torch.cuda.device_of(x):
        panel = SoftmaxPanel(x, u, dtype=u.dtype, weigh=similarity_weight, row_bytes=4 * D)
        sums = torch.empty(panel.rows, D, dtype=torch.float32, device=device)
        bias = (g.double() * (LOG2_E / epsilon)).float()
        log_z = torch.empty(N, dtype=torch.float32, device=device)
        y = torch.empty_like(x)
        for rows in panel:
            panel.fill(rows, scale=1 / epsilon, bias=bias, log_z=log_z)
            _weighted_sums(panel, rows.stop - rows.start, sums)
            _scale_rows(sums, y[rows], unit=panel.unit, normalize=normalize)
    return y


@triton.jit(do_not_specialize=["N", "M"])
def weighted_sums_kernel(
    p_p,
    p_factor,
    p_u,
    p_y,
    N,
    M,
    stride_p,
    stride_t,
    D: tl.constexpr,
    TILE_J: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """UNIT · Σ_j t_ij s_ij u_j (Eq. 7-8) for a tile of rows i and components d, from a panel of entries."""
    i_i, i_d = grouped(tl.program_id(0), tl.cdiv(N, BLOCK_I), tl.cdiv(D, BLOCK_D))
    o_i, o_d = i_i * BLOCK_I + tl.arange(0, BLOCK_I), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_j = tl.arange(0, BLOCK_J)
    p_p += o_i.to(tl.int64)[:, None] * stride_p + o_j[None, :]
    b_y = tl.zeros((BLOCK_I, BLOCK_D), dtype=tl.float32)
    for j in range(0, M, BLOCK_J):
        # (BI,) UNIT keeps small entries of t above the least float16.
        b_factor = tl.load(p_factor + j // TILE_J * stride_t + o_i) * UNIT
        # (BI, BJ) zero past the last column
        b_t = (tl.load(p_p + j).to(tl.float32) * b_factor[:, None]).to(p_u.dtype.element_ty)
        # (BJ, BD)
        p_block = p_u + tl.minimum(j + o_j, M - 1).to(tl.int64)[:, None] * D + o_d[None, :]
        b_u = tl.load(p_block) if D % BLOCK_D == 0 else tl.load(p_block, mask=(o_d < D)[None, :], other=0.0)
        b_y = dot(b_t, b_u, b_y, PRECISION)
    tl.store(p_y + o_i.to(tl.int64)[:, None] * D + o_d[None, :], b_y, mask=(o_d < D)[None, :])


@triton.jit(do_not_specialize=["N"])
def scale_rows_kernel(
    p_sums,
    p_y,
    N,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows of float32 sums to unit length, or only back from UNIT; rounded once, on the way out."""
    o_i, o_d = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    o_y = o_i.to(tl.int64)[:, None] * D + o_d[None, :]
    mask = (o_i < N)[:, None] & (o_d < D)[None, :]
    # (BI, BD)
    b_y = tl.load(p_sums + o_y, mask=mask, other=0.0) * (1 / UNIT)
    if NORMALIZE:
        b_y /= tl.maximum(tl.sqrt(tl.sum(b_y * b_y, axis=1)), 1e-12)[:, None]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=mask)


def _weighted_sums(panel: SoftmaxPanel, n: int, sums: Tensor) -> None:
    """Launch `weighted_sums_kernel` on the first n rows of the panel."""
    M, D = panel.u.shape
    tile = weighted_sum_tile(architecture(panel.u.device), panel.u.dtype, D)
    weighted_sums_kernel[(ceil_div(n, tile.BLOCK_I) * ceil_div(D, tile.BLOCK_J),)](
        panel.p,
        panel.factor,
        panel.u,
        sums,
        n,
        M,
        panel.p.stride(0),
        panel.rows,
        D=D,
        TILE_J=panel.tile.BLOCK_J,
        UNIT=panel.unit,
        BLOCK_I=tile.BLOCK_I,
        BLOCK_D=tile.BLOCK_J,
        BLOCK_J=tile.BLOCK_K,
        PRECISION=panel.precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **FUSED,
    )


def _scale_rows(sums: Tensor, y: Tensor, *, unit: float, normalize: bool) -> None:
    """Launch `scale_rows_kernel` on as many rows as y has."""
    n, D = y.shape
    BLOCK_I, BLOCK_D = row_tile(D)
    scale_rows_kernel[(ceil_div(n, BLOCK_I),)](
        sums, y, n, D=D, UNIT=unit, NORMALIZE=normalize, BLOCK_I=BLOCK_I, BLOCK_D=BLOCK_D, **FUSED
    )
