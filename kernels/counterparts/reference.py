"""Dense float64 oracle: the equation as it is written."""

import torch
from torch import Tensor


def counterparts(
    x: Tensor, u: Tensor, g: Tensor, *, epsilon: float, normalize: bool, similarity_weight: bool
) -> Tensor:
    """The public op on an (N, M) matrix."""
    x, u, g = x.double(), u.double(), g.double()
    s = x @ u.T
    t = torch.softmax((s + g) / epsilon, dim=1)
    y = (t * s if similarity_weight else t) @ u
    return torch.nn.functional.normalize(y, dim=1) if normalize else y
