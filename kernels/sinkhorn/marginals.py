"""The weights of rows and columns as the backends get them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from .. import checks


def marginal(weights: Tensor | None, points: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Weights of the rows of `points`, (n,) float64, differentiable; uniform if None.

    They are summed to 1 again, so that no rounding of theirs is left over as a marginal error.

    Args:
        weights: (n,) floating, or None.
        points: (n, D).
        group: over whose ranks the weights sum to 1; None is this process.
    """
    if weights is None:
        weights = torch.ones(points.shape[0], dtype=torch.float64, device=points.device)
    return weights.double() / _mass(weights, group)


def agree(check: Callable[[], None], group: ProcessGroup | None, points: Tensor) -> None:
    """What one rank alone cannot use is an error on all: the others would wait for its sums for ever.

    Args:
        check: raises ValueError for what this rank cannot use; calls nothing collective.
        group: the ranks; None is this process.
        points: anything on the device that the group works on.

    Raises:
        ValueError: that of `check`, or that it raised on other ranks.
    """
    if group is None:
        check()
        return
    error = None
    try:
        check()
    except ValueError as found:
        error = found
    refusing = torch.tensor(float(error is not None), device=getattr(points, "device", None))
    all_reduce(refusing, group=group)
    if error is not None:
        raise error
    if refusing:
        raise ValueError(f"{refusing:.0f} of {group.size()} ranks cannot use what they were given: see their errors")


def check_given_alike(group: ProcessGroup | None, device: torch.device, **options: Tensor | None) -> None:
    """Each option on all ranks or on none: they would wait for each other's sums for ever."""
    if group is None:
        return
    given = torch.tensor([float(value is not None) for value in options.values()], device=device)
    all_reduce(given, group=group)
    for name, ranks in zip(options, given.tolist(), strict=True):
        if ranks not in (0, group.size()):
            raise ValueError(f"{name} is given on {ranks:.0f} of {group.size()} ranks: give it on all or on none")


def check_sum(name: str, weights: Tensor | None, group: ProcessGroup | None = None) -> None:
    """Weights are of sum 1 over the whole group."""
    if weights is not None:
        checks.sums_to_one(name, float(_mass(weights, group)))


def _mass(weights: Tensor, group: ProcessGroup | None) -> Tensor:
    total = weights.detach().double().sum()
    if group is not None:
        all_reduce(total, group=group)
    return total
