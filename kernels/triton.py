"""Device code that the Triton backends share: one tile of a product, and the softmax of a panel of rows.

Names: i_ a program's coordinate, o_ offsets, m_ masks, p_ pointers, b_ blocks in registers.
"""

import math
import os
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, architecture, ceil_div, panel_scratch_rows, precision, product_tile

LOG2_E = math.log2(math.e)
_LN_2: tl.constexpr = tl.constexpr(math.log(2))
# Tiles that share rows and run one after the other, so that what they read is still in the L2 cache.
_GROUP: tl.constexpr = tl.constexpr(8)

# The interpreter multiplies the bits of bfloat16 numbers as if they were integers; widened, they are exact.
_INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def grouped(i_program, tiles_i, tiles_j):
    """Tile coordinates of a program, walking down short columns of tiles instead of along whole rows."""
    return tl.swizzle2d(i_program // tiles_j, i_program % tiles_j, tiles_i, tiles_j, _GROUP)


@triton.jit
def dot(b_x, b_u, b_s, PRECISION: tl.constexpr):
    """b_s + b_x · b_u; factors of two dtypes meet in float32."""
    if b_x.dtype != b_u.dtype or (_INTERPRETED and b_x.dtype == tl.bfloat16):
        b_x, b_u = b_x.to(tl.float32), b_u.to(tl.float32)
    return tl.dot(b_x, b_u, b_s, input_precision=PRECISION)


@triton.jit
def product(p_x, p_u, o_i, o_j, D: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """b_s (BI, BJ) = x[o_i] · u[o_j]ᵀ with float32 accumulation; rows of x and u are D apart."""
    o_k = tl.arange(0, BLOCK_K)
    # N·D passes 2^31 at ImageNet's size: 64-bit offsets.
    p_x += o_i.to(tl.int64)[:, None] * D + o_k[None, :]
    p_u += o_j.to(tl.int64)[None, :] * D + o_k[:, None]
    b_s = tl.zeros((o_i.shape[0], o_j.shape[0]), dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            # (BI, BK), (BK, BJ)
            b_x, b_u = tl.load(p_x), tl.load(p_u)
        else:
            m_k = k + o_k < D
            b_x, b_u = tl.load(p_x, mask=m_k[None, :], other=0), tl.load(p_u, mask=m_k[:, None], other=0)
        b_s = dot(b_x, b_u, b_s, PRECISION)
        p_x += BLOCK_K
        p_u += BLOCK_K
    return b_s


# N, M and the like are not specialised: one binary for each width and dtype, whatever the number of rows.
@triton.jit(do_not_specialize=["N", "M"])
def softmax_panel_kernel(
    p_x,
    p_u,
    p_bias,
    p_p,
    p_max,
    p_sum,
    N,
    M,
    stride_p,
    stride_t,
    scale,
    D: tl.constexpr,
    LOG2_UNIT: tl.constexpr,
    KEEP: tl.constexpr,
    WEIGH: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of p_ij = 2^(e_ij - max_tile e_ij + LOG2_UNIT), e_ij = scale · s_ij + bias_j, its row maxima and sums.

    Each tile has its own maximum, so that no tile waits for another; `softmax_rows_kernel` reconciles them. Rows and
    columns past the end repeat the last one; such columns get bias -inf, and such rows are for the reader to ignore.
    """
    i_i, i_j = grouped(tl.program_id(0), tl.cdiv(N, BLOCK_I), tl.cdiv(M, BLOCK_J))
    o_i, o_j = i_i * BLOCK_I + tl.arange(0, BLOCK_I), i_j * BLOCK_J + tl.arange(0, BLOCK_J)
    # (BI, BJ)
    b_s = product(p_x, p_u, tl.minimum(o_i, N - 1), tl.minimum(o_j, M - 1), D, BLOCK_K, PRECISION)
    # (BJ,)
    b_bias = tl.load(p_bias + o_j, mask=o_j < M, other=-float("inf"))
    b_e = b_s * scale + b_bias[None, :]
    # (BI,) -inf where every text of the tile has weight 0
    b_max = tl.max(b_e, axis=1)
    b_p = tl.exp2(b_e - (tl.where(b_max == -float("inf"), 0.0, b_max) - LOG2_UNIT)[:, None])
    tl.store(p_max + i_j * stride_t + o_i, b_max)
    p_sum += i_j * stride_t + o_i
    if WEIGH:
        tl.store(p_sum, tl.sum(b_p, axis=1))
        b_p *= b_s
    if KEEP:
        b_kept = b_p.to(p_p.dtype.element_ty)
        # Read once by the next kernel and then dead: it should not displace x and u from the L2 cache.
        tl.store(p_p + o_i.to(tl.int64)[:, None] * stride_p + o_j[None, :], b_kept, eviction_policy="evict_first")
        b_p = b_kept.to(tl.float32)
    if not WEIGH:
        # The sum of what was kept, so that the rows of the plan are exact whatever the rounding.
        tl.store(p_sum, tl.sum(b_p, axis=1))


@triton.jit(do_not_specialize=["N", "tiles"])
def softmax_rows_kernel(
    p_max, p_sum, p_log_z, N, tiles, stride_t, LOG2_UNIT: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Row normalisers from the tiles' maxima and sums; each sum gives way to its tile's factor.

    log_z_i = logsumexp_j(...), and t_ij = p_ij · factor of (its tile, i).
    """
    o_i, o_t = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_T)
    o_part = o_t[:, None] * stride_t + o_i[None, :]
    b_top = tl.full((BLOCK_I,), -float("inf"), dtype=tl.float32)
    for t in range(0, tiles, BLOCK_T):
        m_t = (t + o_t < tiles)[:, None]
        # (BT, BI)
        b_max = tl.load(p_max + t * stride_t + o_part, mask=m_t, other=-float("inf"))
        b_top = tl.maximum(b_top, tl.max(b_max, axis=0))
    b_z = tl.zeros((BLOCK_I,), dtype=tl.float32)
    for t in range(0, tiles, BLOCK_T):
        m_t = (t + o_t < tiles)[:, None]
        b_max = tl.load(p_max + t * stride_t + o_part, mask=m_t, other=-float("inf"))
        b_sum = tl.load(p_sum + t * stride_t + o_part, mask=m_t, other=0.0)
        b_z += tl.sum(b_sum * tl.exp2(b_max - b_top[None, :]), axis=0)
    for t in range(0, tiles, BLOCK_T):
        m_t = (t + o_t < tiles)[:, None]
        b_max = tl.load(p_max + t * stride_t + o_part, mask=m_t, other=-float("inf"))
        tl.store(p_sum + t * stride_t + o_part, tl.exp2(b_max - b_top[None, :]) / b_z[None, :], mask=m_t)
    tl.store(p_log_z + o_i, (b_top + tl.log2(b_z) - LOG2_UNIT) * _LN_2, mask=o_i < N)


class SoftmaxPanel:
    """Bounded scratch that holds the softmax of one panel of rows over all M columns.

    After `fill`, t_ij = p[i, j] · factor[j // tile.BLOCK_J, i] with rows that sum to 1.

    Attributes:
        tile: tile of the product x·u.
        rows: the most rows that fit.
        p: (rows, M rounded up) unnormalised entries in [0, unit]; times s_ij if `weigh`.
        factor: (tiles, rows) float32.
        unit: the largest entry of each tile's rows, 2^log2_unit; 2^15 in float16, whose least number is 2^-39 of it.
    """

    def __init__(
        self, x: Tensor, u: Tensor, *, dtype: torch.dtype | None, weigh: bool = False, row_bytes: int = 0
    ) -> None:
        """Allocate for rows of `x` against all of `u`.

        Args:
            x: (N, D), contiguous.
            u: (M, D), contiguous.
            dtype: of the entries; None keeps none of them, only the normalisers.
            weigh: multiply the entries by s_ij.
            row_bytes: what the caller allocates for each row of the panel besides.
        """
        self.x, self.u, self.keep, self.weigh = x, u, dtype is not None, weigh
        (N, D), M, device = x.shape, u.shape[0], x.device
        product_dtype = torch.promote_types(x.dtype, u.dtype)
        self.tile, self.precision = product_tile(architecture(device), product_dtype, D), precision(product_dtype)
        self.tiles = ceil_div(M, self.tile.BLOCK_J)
        width = self.tiles * self.tile.BLOCK_J if dtype is not None else 0
        row_bytes += 2 * self.tiles * 4 + width * (dtype.itemsize if dtype is not None else 0)
        self.rows = panel_scratch_rows(N, row_bytes, self.tile, device)
        self.p = torch.empty(self.rows, width, dtype=dtype, device=device)
        self.maxima = torch.empty(self.tiles, self.rows, dtype=torch.float32, device=device)
        self.factor = torch.empty_like(self.maxima)
        self.log2_unit = 15 if dtype == torch.float16 else 0
        self.unit = 2.0**self.log2_unit

    def __iter__(self) -> Iterator[slice]:
        """The panels of x in order."""
        N = self.x.shape[0]
        return (slice(start, min(start + self.rows, N)) for start in range(0, N, self.rows))

    def fill(self, rows: slice, *, scale: float, bias: Tensor, log_z: Tensor) -> None:
        """Compute the panel of one slice of rows.

        Args:
            rows: a slice from the iteration.
            scale: 1 / epsilon.
            bias: (M,) float32 log v times log2(e).
            log_z: (N,) float32; gets logsumexp_j(scale · x_i·u_j + log v_j) of these rows.
        """
        x, tile = self.x[rows], self.tile
        n, M = len(x), self.u.shape[0]
        softmax_panel_kernel[(ceil_div(n, tile.BLOCK_I) * self.tiles,)](
            x,
            self.u,
            bias,
            self.p,
            self.maxima,
            self.factor,
            n,
            M,
            self.p.stride(0),
            self.rows,
            scale * LOG2_E,
            D=x.shape[1],
            LOG2_UNIT=self.log2_unit,
            KEEP=self.keep,
            WEIGH=self.weigh,
            PRECISION=self.precision,
            **tile._asdict(),
            **FUSED,
        )
        softmax_rows_kernel[(ceil_div(n, _ROWS["BLOCK_I"]),)](
            self.maxima, self.factor, log_z[rows], n, self.tiles, self.rows, LOG2_UNIT=self.log2_unit, **_ROWS, **FUSED
        )


# Rows and tiles that one program of `softmax_rows_kernel` reads at a time.
_ROWS = {"BLOCK_I": 32, "BLOCK_T": 64}
