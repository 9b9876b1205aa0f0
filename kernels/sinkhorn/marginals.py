"""The weights of rows and columns as the backends get them."""

from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from cae.kernels import checks


def marginal(
    name: str, weights: Tensor | None, points_name: str, points: Tensor, group: ProcessGroup | None = None
) -> Tensor:
    """Weights of the rows of `points`, (n,) float64, checked; uniform if None.

    They are summed to 1 again, so that no rounding of theirs is left over as a marginal error.

    Args:
        name: what the caller calls them.
        weights: (n,) floating, or None.
        points_name: what the caller calls the points.
        points: (n, D).
        group: over whose ranks the weights sum to 1; None is this process.
    """
    if weights is None:
        weights = points.new_ones(len(points)).double()
        return weights / _mass(weights, group)
    checks.vector(name, weights, len(points), points_name, points)
    checks.non_negative(name, weights)
    weights = weights.double()
    mass = _mass(weights, group)
    checks.sums_to_one(name, mass)
    return weights / mass


def _mass(weights: Tensor, group: ProcessGroup | None) -> float:
    total = weights.detach().sum()
    if group is not None:
        all_reduce(total, group=group)
    return float(total)
