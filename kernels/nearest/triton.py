"""Triton backend: each program holds some rows and runs over the centroids with the k best so far in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import FUSED, architecture, ceil_div, column_splits, narrow_tile, precision
from ..ranking import largest
from ..triton import product
from . import torch as streaming

# The longest list that a program keeps in registers. At 256 a thread spills kilobytes, at 1,024 the compiler takes
# minutes, and from 8,193 on a list is larger than any block may be.
LONGEST_LIST = 64


def nearest(x: Tensor, centroids: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k); arguments as checked in the public op, but of any two dtypes."""
    if k > LONGEST_LIST:
        return streaming.nearest(x, centroids, k=k, bias=bias)
    x, centroids = x.contiguous(), centroids.contiguous()
    (N, D), C, device = x.shape, centroids.shape[0], x.device
    dtype = torch.promote_types(x.dtype, centroids.dtype)
    tile = narrow_tile(architecture(device), dtype, D)
    splits = column_splits(ceil_div(N, tile.BLOCK_I), ceil_div(C, tile.BLOCK_J))
    labels = torch.empty(N, splits, k, dtype=torch.int64, device=device)
    similarity = torch.empty(N, splits, k, dtype=torch.float32, device=device)
    with torch.cuda.device_of(x):
        nearest_kernel[(ceil_div(N, tile.BLOCK_I), splits)](
            x,
            centroids,
            # Without a bias the pointer is not read.
            x if bias is None else bias.float().contiguous(),
            labels,
            similarity,
            N,
            C,
            BIASED=bias is not None,
            K=k,
            LIST=triton.next_power_of_2(k),
            D=D,
            PRECISION=precision(dtype),
            **tile._asdict(),
            **FUSED,
        )
    labels, similarity = labels.flatten(1), similarity.flatten(1)
    if splits > 1:  # in order of the centroids, so that ties still go to the lowest
        similarity, columns = largest(similarity, k)
        labels = labels.gather(1, columns)
    return labels, similarity


@triton.jit(do_not_specialize=["N", "C"])
def nearest_kernel(
    p_x,
    p_c,
    p_bias,
    p_labels,
    p_similarity,
    N,
    C,
    BIASED: tl.constexpr,
    K: tl.constexpr,
    LIST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The K largest x_i·c_j + bias_j of a tile of rows over one of several stretches of the columns.

    A stretch with fewer than K columns is filled up with similarity -inf.
    """
    i_i, i_s, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    o_i, o_r = i_i * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, LIST)
    # (BI, LIST) the best so far, best first
    b_best = tl.full((BLOCK_I, LIST), -float("inf"), dtype=tl.float32)
    b_label = tl.full((BLOCK_I, LIST), _NONE, dtype=tl.int32)
    tiles = tl.cdiv(C, BLOCK_J)
    for j in range(i_s * tiles // splits * BLOCK_J, (i_s + 1) * tiles // splits * BLOCK_J, BLOCK_J):
        o_j = j + tl.arange(0, BLOCK_J)
        # (BI, BJ)
        b_s = product(p_x, p_c, tl.minimum(o_i, N - 1), tl.minimum(o_j, C - 1), D, BLOCK_K, PRECISION)
        if BIASED:
            b_s += tl.load(p_bias + o_j, mask=o_j < C, other=0.0)[None, :]
        b_s = tl.where((o_j < C)[None, :], b_s, -float("inf"))
        b_best, b_label = merged(b_best, b_label, b_s, o_j, K)
    o_out = (o_i.to(tl.int64) * splits + i_s)[:, None] * K + o_r[None, :]
    mask = (o_i < N)[:, None] & (o_r < K)[None, :]
    tl.store(p_labels + o_out, b_label.to(tl.int64), mask=mask)
    tl.store(p_similarity + o_out, b_best, mask=mask)


@triton.jit
def merged(b_best, b_label, b_s, o_j, K: tl.constexpr):
    """The K largest of a list (BI, LIST) and a tile (BI, BJ), best first, equal ones by label."""
    o_r = tl.arange(0, b_best.shape[1])
    b_new, b_new_label = b_best, b_label
    for r in range(K):
        b_top = tl.maximum(tl.max(b_best, axis=1), tl.max(b_s, axis=1))[:, None]
        b_listed = tl.min(tl.where(b_best == b_top, b_label, _NONE), axis=1)
        b_tiled = tl.min(tl.where(b_s == b_top, o_j[None, :], _NONE), axis=1)
        # (BI, 1)
        b_found = tl.minimum(b_listed, b_tiled)[:, None]
        b_new = tl.where(o_r[None, :] == r, b_top, b_new)
        b_new_label = tl.where(o_r[None, :] == r, b_found, b_new_label)
        b_best = tl.where(b_label == b_found, -float("inf"), b_best)
        b_s = tl.where(o_j[None, :] == b_found, -float("inf"), b_s)
    return b_new, b_new_label


# Above every label: what an empty place of a list holds.
_NONE: tl.constexpr = tl.constexpr(2**31 - 1)
