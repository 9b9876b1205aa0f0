"""The weights of rows and columns as the backends get them."""

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


def check_given_alike(group: ProcessGroup | None, device: torch.device, **options: Tensor | None) -> None:
    """Each option on all ranks or on none: they would wait for each other's sums for ever."""
    if group is None:
        return
    given = torch.tensor([float(value is not None) for value in options.values()], device=device)
    all_reduce(given, group=group)
    for name, ranks in zip(options, given.tolist(), strict=True):
        if ranks not in (0, group.size()):
            raise ValueError(f"{name} is given on {ranks:.0f} of {group.size()} ranks: give it on all or on none")


def check_weights(name: str, weights: Tensor | None, group: ProcessGroup | None = None) -> None:
    """Non-negative and, over the whole group, of sum 1."""
    if weights is not None:
        checks.non_negative(name, weights)
        checks.sums_to_one(name, float(_mass(weights, group)))


def _mass(weights: Tensor, group: ProcessGroup | None) -> Tensor:
    total = weights.detach().double().sum()
    if group is not None:
        all_reduce(total, group=group)
    return total
