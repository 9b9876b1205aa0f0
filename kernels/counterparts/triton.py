"""Triton backend: the softmax of a panel of rows, then its product with u; two plain matrix products. And its gradient.

One kernel in the manner of flash attention would hold D = 512 or more float32 accumulators for each row: at 64 rows the
whole register file, and both products at half the tensor cores' rate. Two kernels with a panel in between keep both at
the rate of a matrix product, for N·M entries written and read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import (
    FUSED,
    architecture,
    ceil_div,
    column_splits,
    column_sum_tile,
    narrow_tile,
    row_tile,
    weighted_sum_tile,
)
from ..triton import LOG2_E, SoftmaxPanel, dot, grouped, product
from .gradient import before_scaling


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
            _weighted_sums(panel, rows.stop - rows.start, panel.p, panel.factor, panel.unit, sums)
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


def _weighted_sums(panel: SoftmaxPanel, n: int, p: Tensor, factor: Tensor, unit: float, sums: Tensor) -> None:
    """Launch `weighted_sums_kernel` on the first n rows of entries p with a factor for each tile and row."""
    M, D = panel.u.shape
    tile = weighted_sum_tile(architecture(panel.u.device), panel.u.dtype, D)
    weighted_sums_kernel[(ceil_div(n, tile.BLOCK_I) * ceil_div(D, tile.BLOCK_J),)](
        p,
        factor,
        panel.u,
        sums,
        n,
        M,
        p.stride(0),
        factor.stride(0),
        D=D,
        TILE_J=panel.tile.BLOCK_J,
        UNIT=unit,
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


def counterparts_gradient(
    grad: Tensor, x: Tensor, u: Tensor, g: Tensor, *, epsilon: float, normalize: bool, similarity_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `gradient.counterparts_gradient`, whose names these are: seven matrix products, two of them as forward.

    Factors of half types must be of a known size. So each h_i is scaled to length 1, and of the scores is kept

        kept_ij = unit (grad s)_ij / |h_i|,    unit = panel.unit · epsilon / (2 + epsilon),
        so that |kept_ij| <= panel.unit t_ij.

    The sum over l of t_il s_il q_il is h_i·y_i, with h_i as it was rounded and y_i the sum before it is scaled, of the
    rounded t s. These are the numbers that it is taken from, so a row of grad e adds up to 0 whatever the rounding.
    """
    x, u = x.contiguous(), u.contiguous()
    (N, D), M, device, size = x.shape, u.shape[0], x.device, u.element_size()
    with torch.cuda.device_of(x):
        # Beside p: what is kept, h in the dtype of u, and some six rows of float32 on the way to it.
        row_bytes = size * (M + D) + 24 * D
        panel = SoftmaxPanel(x, u, dtype=u.dtype, weigh=similarity_weight, row_bytes=row_bytes)
        kept = torch.empty_like(panel.p)
        ones = torch.ones(1, panel.rows, dtype=torch.float32, device=device).expand(panel.tiles, -1)
        unit = panel.unit * epsilon / (2 + epsilon)
        sums = torch.empty(panel.rows, D, dtype=torch.float32, device=device)
        bias = (g.double() * (LOG2_E / epsilon)).float()
        log_z = torch.empty(N, dtype=torch.float32, device=device)
        grad_x, grad_g = torch.empty_like(x), torch.zeros(M, dtype=torch.float64, device=device)
        grad_u = _ColumnSums(panel)
        for rows in panel:
            n = rows.stop - rows.start
            panel.fill(rows, scale=1 / epsilon, bias=bias, log_z=log_z)
            _weighted_sums(panel, n, panel.p, panel.factor, panel.unit, sums)
            y, h = sums[:n] / panel.unit, grad[rows].float()
            h = before_scaling(h, y) if normalize else h
            length = torch.linalg.vector_norm(h, dim=1)
            h = (h / torch.where(length > 0, length, 1)[:, None]).to(u.dtype)
            center = (h.float() * y).sum(dim=1)
            grad_g += _score_gradient(panel, x[rows], h, length, center, bias, kept, unit, epsilon)
            _weighted_sums(panel, n, kept, ones, 1.0, sums)
            grad_x[rows] = sums[:n] * (length / unit)[:, None]
            grad_u.add(x[rows], h, length, kept, unit)
    return grad_x, grad_u.total().to(u.dtype), (grad_g / epsilon).to(g.dtype)


@triton.jit(do_not_specialize=["N", "M"])
def score_gradient_kernel(
    p_x,
    p_u,
    p_h,
    p_length,
    p_center,
    p_bias,
    p_p,
    p_max,
    p_factor,
    p_kept,
    p_columns,
    N,
    M,
    stride_p,
    stride_t,
    scale,
    unit_e,
    unit,
    D: tl.constexpr,
    TILE_J: tl.constexpr,
    LOG2_UNIT: tl.constexpr,
    WEIGH: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of what is kept, and its column sums of epsilon (grad e)_ij; `unit_e` is unit / epsilon."""
    i_i, i_j = grouped(tl.program_id(0), tl.cdiv(N, BLOCK_I), tl.cdiv(M, BLOCK_J))
    o_i, o_j = i_i * BLOCK_I + tl.arange(0, BLOCK_I), i_j * BLOCK_J + tl.arange(0, BLOCK_J)
    o_row, o_text = tl.minimum(o_i, N - 1), tl.minimum(o_j, M - 1)
    o_p = o_i.to(tl.int64)[:, None] * stride_p + o_j[None, :]
    # (BI, BJ)
    b_q = product(p_h, p_u, o_row, o_text, D, BLOCK_K, PRECISION)
    # (BI,)
    o_part = i_j * BLOCK_J // TILE_J * stride_t + o_i
    b_factor = tl.load(p_factor + o_part)
    b_center = tl.load(p_center + o_row)
    if WEIGH:
        b_s = product(p_x, p_u, o_row, o_text, D, BLOCK_K, PRECISION)
        b_bias = tl.load(p_bias + o_j, mask=o_j < M, other=-float("inf"))
        # From the tile's maximum, as the panel is: not by a row's normaliser, which is as coarse as an exponent.
        b_max = tl.load(p_max + o_part)
        b_max = tl.where(b_max == -float("inf"), 0.0, b_max) - LOG2_UNIT
        b_t = tl.exp2(b_s * scale + b_bias[None, :] - b_max[:, None]) * b_factor[:, None]
        b_e = tl.load(p_p + o_p).to(tl.float32) * b_factor[:, None] * b_q - b_t * b_center[:, None]
        b_kept = b_e * unit_e + b_t * b_q * unit
    else:
        b_e = tl.load(p_p + o_p).to(tl.float32) * b_factor[:, None] * (b_q - b_center[:, None])
        b_kept = b_e * unit_e
    tl.store(p_kept + o_p, b_kept.to(p_kept.dtype.element_ty))
    b_length = tl.load(p_length + o_i, mask=o_i < N, other=0.0)
    tl.store(p_columns + i_i * M + o_j, tl.sum(b_e * b_length[:, None], axis=0), mask=o_j < M)


@triton.jit(do_not_specialize=["N", "M"])
def column_gradient_kernel(
    p_x,
    p_h,
    p_kept,
    p_p,
    p_weight,
    p_factor,
    p_scale,
    p_sums,
    N,
    M,
    rows,
    stride_p,
    stride_t,
    D: tl.constexpr,
    TILE_J: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds a tile of (grad s)ᵀ x + wᵀ h, texts j and components d, from one stretch of the rows of a panel."""
    i_j, i_d = grouped(tl.program_id(0), tl.cdiv(M, BLOCK_J), tl.cdiv(D, BLOCK_D))
    i_split = tl.program_id(1)
    first, last = i_split * rows, tl.minimum((i_split + 1) * rows, N)
    o_j, o_d = i_j * BLOCK_J + tl.arange(0, BLOCK_J), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    p_factor += i_j * BLOCK_J // TILE_J * stride_t
    # (BJ, BD)
    b_u = tl.zeros((BLOCK_J, BLOCK_D), dtype=tl.float32)
    b_u = transposed_product(p_kept, p_weight, p_x, b_u, o_j, o_d, first, last, stride_p, D, BLOCK_I, PRECISION)
    b_u = transposed_product(p_p, p_factor, p_h, b_u, o_j, o_d, first, last, stride_p, D, BLOCK_I, PRECISION)
    p_sums += (i_split * M + o_j).to(tl.int64)[:, None] * D + o_d[None, :]
    mask = (o_j < M)[:, None] & (o_d < D)[None, :]
    tl.store(p_sums, tl.load(p_sums, mask=mask, other=0.0) + b_u * tl.load(p_scale), mask=mask)


@triton.jit
def transposed_product(
    p_p,
    p_weight,
    p_x,
    b_sum,
    o_j,
    o_d,
    first,
    last,
    stride_p,
    D: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """b_sum (BJ, BD) + Σ_i weight_i p_ij x_id over the rows i from first to last."""
    o_step = tl.arange(0, BLOCK_I)
    for i in range(first, last, BLOCK_I):
        o_i = i + o_step
        m_i = o_i < last
        # (BJ, BI)
        p_block = p_p + o_i.to(tl.int64)[None, :] * stride_p + o_j[:, None]
        b_weight = tl.load(p_weight + o_i, mask=m_i, other=0.0)
        b_p = (tl.load(p_block, mask=m_i[None, :], other=0).to(tl.float32) * b_weight[None, :]).to(p_x.dtype.element_ty)
        # (BI, BD)
        m_x = m_i[:, None] & (o_d < D)[None, :]
        b_x = tl.load(p_x + o_i.to(tl.int64)[:, None] * D + o_d[None, :], mask=m_x, other=0)
        b_sum = dot(b_p, b_x, b_sum, PRECISION)
    return b_sum


def _score_gradient(
    panel: SoftmaxPanel,
    x: Tensor,
    h: Tensor,
    length: Tensor,
    center: Tensor,
    bias: Tensor,
    kept: Tensor,
    unit: float,
    epsilon: float,
) -> Tensor:
    """Launch `score_gradient_kernel`; fills `kept`. Returns the column sums (M,) of epsilon grad e in float64."""
    (n, D), M = x.shape, panel.u.shape[0]
    tile = narrow_tile(architecture(x.device), x.dtype, D)
    tiles = ceil_div(n, tile.BLOCK_I)
    columns = torch.empty(tiles, M, dtype=torch.float32, device=x.device)
    score_gradient_kernel[(tiles * ceil_div(M, tile.BLOCK_J),)](
        x,
        panel.u,
        h,
        length,
        center,
        bias,
        panel.p,
        panel.maxima,
        panel.factor,
        kept,
        columns,
        n,
        M,
        kept.stride(0),
        panel.factor.stride(0),
        LOG2_E / epsilon,
        unit / epsilon,
        unit,
        D=D,
        TILE_J=panel.tile.BLOCK_J,
        LOG2_UNIT=panel.log2_unit,
        WEIGH=panel.weigh,
        PRECISION=panel.precision,
        **tile._asdict(),
        **FUSED,
    )
    return columns.sum(dim=0, dtype=torch.float64)


class _ColumnSums:
    """(grad s)ᵀ x + wᵀ h, one panel after another; where texts are few, the rows are split among programs, too."""

    def __init__(self, panel: SoftmaxPanel) -> None:
        self.panel, (M, D) = panel, panel.u.shape
        self.tile = column_sum_tile(architecture(panel.u.device), panel.u.dtype, D)
        self.tiles = ceil_div(M, self.tile.BLOCK_I) * ceil_div(D, self.tile.BLOCK_J)
        self.splits = column_splits(self.tiles, ceil_div(panel.rows, self.tile.BLOCK_K))
        self.sums = torch.zeros(self.splits, M, D, dtype=torch.float32, device=panel.u.device)

    def add(self, x: Tensor, h: Tensor, length: Tensor, kept: Tensor, unit: float) -> None:
        """Launch `column_gradient_kernel` on a panel."""
        # The longest row of the panel is the unit of the others, again for factors of a known size.
        longest = length.max()
        weight = length / torch.where(longest > 0, longest, 1)
        factor = self.panel.factor[:, : len(x)] * (unit * weight)
        (n, D), M, tile = x.shape, self.panel.u.shape[0], self.tile
        column_gradient_kernel[(self.tiles, self.splits)](
            x,
            h,
            kept,
            self.panel.p,
            weight,
            factor,
            longest / unit,
            self.sums,
            n,
            M,
            ceil_div(ceil_div(n, self.splits), tile.BLOCK_K) * tile.BLOCK_K,
            kept.stride(0),
            factor.stride(0),
            D=D,
            TILE_J=self.panel.tile.BLOCK_J,
            BLOCK_J=tile.BLOCK_I,
            BLOCK_D=tile.BLOCK_J,
            BLOCK_I=tile.BLOCK_K,
            PRECISION=self.panel.precision,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **FUSED,
        )

    def total(self) -> Tensor:
        """(M, D) float32."""
        return self.sums.sum(dim=0)
