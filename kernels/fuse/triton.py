"""Triton backend: one pass; a row's modalities are read from memory once and again from the cache."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import FUSED, ceil_div, row_tile


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
    _, b_alpha = cosines(parts, o_x, mask, o_m)
    b_beta = softmax(b_alpha, inverse_gamma)
    # (BI, BD) Eq. 17
    b_z = tl.zeros((BLOCK_I, BLOCK_D), dtype=tl.float32)
    for m in tl.static_range(count):
        b_z += entry(b_beta, o_m, m)[:, None] * tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_fused + o_x, b_z.to(p_fused.dtype.element_ty), mask=mask)
    o_beta = o_i.to(tl.int64)[:, None] * count + o_m[None, :]
    tl.store(p_beta + o_beta, b_beta, mask=(o_i < N)[:, None] & (o_m < count)[None, :])


@triton.jit
def cosines(parts, o_x, mask, o_m):
    """The prototype (BI, BD) and each part's cosine with it (BI, PARTS), -inf beyond the last part (Eq. 14-15)."""
    count: tl.constexpr = len(parts)
    b_p = tl.zeros(o_x.shape, dtype=tl.float32)
    for m in tl.static_range(count):
        b_p += tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
    b_p /= count
    b_p_length = tl.sqrt(tl.sum(b_p * b_p, axis=1))
    # The cosine with a zero vector is 0.
    b_alpha = tl.full((o_x.shape[0], o_m.shape[0]), -float("inf"), dtype=tl.float32)
    for m in tl.static_range(count):
        b_x = tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
        b_lengths = tl.sqrt(tl.sum(b_x * b_x, axis=1)) * b_p_length
        b_cosine = tl.sum(b_x * b_p, axis=1) / tl.where(b_lengths > 0, b_lengths, 1.0)
        b_alpha = tl.where(o_m[None, :] == m, b_cosine[:, None], b_alpha)
    return b_p, b_alpha


@triton.jit
def softmax(b_alpha, inverse_gamma):
    """Over the parts, Eq. 16."""
    b_beta = tl.exp((b_alpha - tl.max(b_alpha, axis=1)[:, None]) * inverse_gamma)
    return b_beta / tl.sum(b_beta, axis=1)[:, None]


@triton.jit
def entry(b_values, o_m, m):
    """Column m of (BI, PARTS)."""
    return tl.sum(tl.where(o_m[None, :] == m, b_values, 0.0), axis=1)


@triton.jit
def inverse_length(b_x):
    """1 / |x| of each row, 0 for a zero vector."""
    b_length = tl.sqrt(tl.sum(b_x * b_x, axis=1))
    return tl.where(b_length > 0, 1 / tl.where(b_length > 0, b_length, 1.0), 0.0)


def fuse_gradient(grad_z: Tensor, grad_beta: Tensor, parts: Sequence[Tensor], *, gamma: float) -> list[Tensor]:
    """As `gradient.fuse_gradient`."""
    parts = tuple(part.contiguous() for part in parts)
    (N, D), m = parts[0].shape, len(parts)
    grads = tuple(torch.empty_like(part) for part in parts)
    rows, BLOCK_D = row_tile(D)
    BLOCK_I = min(rows, 64)  # more rows of a small width would spill what there is one of a part
    with torch.cuda.device_of(grad_z):
        fuse_gradient_kernel[(ceil_div(N, BLOCK_I),)](
            parts,
            grads,
            grad_z.contiguous(),
            grad_beta.contiguous(),
            N,
            1 / gamma,
            D=D,
            PARTS=triton.next_power_of_2(m),
            BLOCK_I=BLOCK_I,
            BLOCK_D=BLOCK_D,
            **FUSED,
        )
    return list(grads)


@triton.jit(do_not_specialize=["N"])
def fuse_gradient_kernel(
    parts,
    grads,
    p_grad_z,
    p_grad_beta,
    N,
    inverse_gamma,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of a block of whole rows in every part; cosines are made anew."""
    o_i, o_d, o_m = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D), tl.arange(0, PARTS)
    o_x = o_i.to(tl.int64)[:, None] * D + o_d[None, :]
    mask = (o_i < N)[:, None] & (o_d < D)[None, :]
    count: tl.constexpr = len(parts)
    b_p, b_alpha = cosines(parts, o_x, mask, o_m)
    b_beta = softmax(b_alpha, inverse_gamma)
    # (BI, BD)
    b_grad_z = tl.load(p_grad_z + o_x, mask=mask, other=0.0).to(tl.float32)
    b_p_inverse = inverse_length(b_p)
    b_p *= b_p_inverse[:, None]
    # (BI, PARTS) in beta, of which z is made too, and through the softmax in the cosines
    o_beta = o_i.to(tl.int64)[:, None] * count + o_m[None, :]
    b_in_beta = tl.load(p_grad_beta + o_beta, mask=(o_i < N)[:, None] & (o_m < count)[None, :], other=0.0)
    for m in tl.static_range(count):
        b_x = tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
        b_in_beta += tl.where(o_m[None, :] == m, tl.sum(b_grad_z * b_x, axis=1)[:, None], 0.0)
    b_in_alpha = b_beta * (b_in_beta - tl.sum(b_beta * b_in_beta, axis=1)[:, None]) * inverse_gamma
    # (BI, BD) what every part gets through the prototype
    b_alpha = tl.where(o_m[None, :] < count, b_alpha, 0.0)
    b_shared = -tl.sum(b_in_alpha * b_alpha, axis=1)[:, None] * b_p
    for m in tl.static_range(count):
        b_x = tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
        b_shared += (entry(b_in_alpha, o_m, m) * inverse_length(b_x))[:, None] * b_x
    b_shared *= b_p_inverse[:, None] / count
    for m in tl.static_range(count):
        b_x = tl.load(parts[m] + o_x, mask=mask, other=0.0).to(tl.float32)
        b_inverse = inverse_length(b_x)
        b_cosine = tl.where(b_inverse * b_p_inverse > 0, entry(b_alpha, o_m, m), 0.0)
        b_direct = b_p - (b_cosine * b_inverse)[:, None] * b_x
        b_grad = entry(b_beta, o_m, m)[:, None] * b_grad_z + b_shared
        b_grad += (entry(b_in_alpha, o_m, m) * b_inverse)[:, None] * b_direct
        tl.store(grads[m] + o_x, b_grad.to(grads[m].dtype.element_ty), mask=mask)
