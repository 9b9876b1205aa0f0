"""Collective operations over processes that each hold a share of the images.

All of them take the process group as an argument and are the identity where it is None: code that runs alone inside a
larger distributed program (a callback on one rank, say) must not wait for the others. Every rank of the group has to
call them in the same order.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def is_first(group: ProcessGroup | None) -> bool:
    """Whether this is rank 0 of the group, which does what only one rank should do."""
    return group is None or dist.get_rank(group) == 0


def all_reduce_sum(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The elementwise sum of a tensor over all ranks, the same bits on each of them."""
    return _all_reduce(value, dist.ReduceOp.SUM, group)


def all_reduce_max(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The elementwise maximum of a tensor over all ranks."""
    return _all_reduce(value, dist.ReduceOp.MAX, group)


def all_reduce_min(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The elementwise minimum of a tensor over all ranks."""
    return _all_reduce(value, dist.ReduceOp.MIN, group)


def _all_reduce(value: Tensor, op: dist.ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    if group is None:
        return value
    reduced = value.detach().to(_device(group), copy=True)
    dist.all_reduce(reduced, op, group=group)
    return reduced.to(value.device)


def all_reduce_count(count: int, group: ProcessGroup | None) -> int:
    """The sum of a whole number over all ranks."""
    return int(all_reduce_sum(torch.tensor(count), group))


def all_gather_rows(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows (N_r, …) of all ranks, one after the other, on every rank; N_r may differ and be 0."""
    if group is None:
        return rows
    here = rows.detach().to(_device(group))
    sizes = [torch.zeros((), dtype=torch.int64, device=here.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor(len(here), device=here.device), group=group)
    longest = max(int(size) for size in sizes)
    padded = here.new_zeros(longest, *here.shape[1:])
    padded[: len(here)] = here
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded, group=group)
    return torch.cat([share[: int(size)] for share, size in zip(shares, sizes, strict=True)]).to(rows.device)


def broadcast_from_first(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The first rank's tensor on every rank; the others pass one of the same shape and dtype."""
    if group is None:
        return value
    sent = value.detach().to(_device(group)).contiguous()
    dist.broadcast(sent, dist.get_global_rank(group, 0), group=group)
    return sent.to(value.device)


def first_occurrence_mask(index: Tensor, group: ProcessGroup | None) -> Tensor:
    """A mask that keeps one row of each sample.

    `DistributedSampler` gives some samples to two ranks so that all have equally many. The rank `index % ranks` decides
    which row stays, so memory and traffic are O(N / ranks).

    Args:
        index: (N_r,) int64 ids of the samples, at least 0.
        group: the ranks.

    Returns:
        (N_r,) bool, True for one row of each index in the whole group.
    """
    if group is None:
        return _first_of_each(index)
    ranks = dist.get_world_size(group)
    owner = index % ranks
    order = owner.argsort(stable=True)
    sent = torch.bincount(owner, minlength=ranks)
    received = _exchanged(sent, [1] * ranks, [1] * ranks, group)
    asked = _exchanged(index[order], received.tolist(), sent.tolist(), group)
    answers = _exchanged(_first_of_each(asked).to(torch.uint8), sent.tolist(), received.tolist(), group)
    keep = torch.empty_like(index, dtype=torch.bool)
    keep[order] = answers.bool()
    return keep


def _exchanged(value: Tensor, received: list[int], sent: list[int], group: ProcessGroup) -> Tensor:
    """All-to-all: send consecutive slices of `value` to the ranks, and return what they sent, by rank."""
    here = value.to(_device(group))
    result = here.new_empty(sum(received))
    dist.all_to_all_single(result, here, received, sent, group=group)
    return result.to(value.device)


def _first_of_each(index: Tensor) -> Tensor:
    first = torch.zeros(len(index), dtype=torch.bool)
    first[torch.from_numpy(np.unique(index.cpu().numpy(), return_index=True)[1])] = True
    return first.to(index.device)


def _device(group: ProcessGroup) -> torch.device:
    """The device on which the group's backend takes tensors."""
    on_cuda = dist.get_backend(group) == dist.Backend.NCCL
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
