"""Triton backend: one pass; a row's modalities are read from memory once and again from the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cae.kernels.launch import FUSED, ceil_div, row_tile


def fuse(parts: tuple[Tensor, ...], *, gamma: float) -> tuple[Tensor, Tensor]:
    """The public op; arguments as checked there."""
    parts = tuple(part.contiguous() for part in parts)
    (N, D), m = parts[0].shape, len(parts)
    fused = torch.empty_like(parts[0])
    beta = torch.empty(N, m, dtype=torch.float32, device=fused.device)
    BLOCK_I, BLOCK_D = row_tile(D)
    with torch.cuda.device_of(fused):
        fuse_kernel[(ceil_div(N, BLOCK_I),)](
            parts,
            fused,
            beta,
            N,
            1 / gamma,
            D=D,
            PARTS=triton.next_power_of_2(m),
            BLOCK_I=BLOCK_I,
            BLOCK_D=BLOCK_D,
            **FUSED,
        )
    return fused, beta


@triton.jit(do_not_specialize=["N"])
def fuse_kernel(
    parts,
    p_fused,
    p_beta,
    N,
    inverse_gamma,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z_i and beta_i of a block of whole rows (Eq. 14-17)."""
    o_i, o_d, o_m = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D), tl.arange(0, PARTS)
    o_x = o_i.to(tl.int64)[:, None] * D + o_d[None, :]
    mask = (o_i < N)[:, None] & (o_d < D)[None, :]
    count: tl.constexpr = len(parts)
    # (BI, BD) the prototype, Eq. 14
    b_p = tl.zeros((BLOCK_I, BLOCK_D), dtype=tl.float32)
    for m in tl.static_range(count):
        b_p += tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
    b_p /= count
    b_p_length = tl.sqrt(tl.sum(b_p * b_p, axis=1))
    # (BI, PARTS) Eq. 15; the cosine with a zero vector is 0
    b_alpha = tl.full((BLOCK_I, PARTS), -float("inf"), dtype=tl.float32)
    for m in tl.static_range(count):
        b_x = tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
        b_lengths = tl.sqrt(tl.sum(b_x * b_x, axis=1)) * b_p_length
        b_cosine = tl.sum(b_x * b_p, axis=1) / tl.where(b_lengths > 0, b_lengths, 1.0)
        b_alpha = tl.where(o_m[None, :] == m, b_cosine[:, None], b_alpha)
    # (BI, PARTS) Eq. 16
    b_beta = tl.exp((b_alpha - tl.max(b_alpha, axis=1)[:, None]) * inverse_gamma)
    b_beta /= tl.sum(b_beta, axis=1)[:, None]
    # (BI, BD) Eq. 17
    b_z = tl.zeros((BLOCK_I, BLOCK_D), dtype=tl.float32)
    for m in tl.static_range(count):
        b_weight = tl.sum(tl.where(o_m[None, :] == m, b_beta, 0.0), axis=1)
        b_z += b_weight[:, None] * tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_fused + o_x, b_z.to(p_fused.dtype.element_ty), mask=mask)
    o_beta = o_i.to(tl.int64)[:, None] * count + o_m[None, :]
    tl.store(p_beta + o_beta, b_beta, mask=(o_i < N)[:, None] & (o_m < count)[None, :])
