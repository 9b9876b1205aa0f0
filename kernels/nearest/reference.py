"""Dense float64 oracle: the (N, C) matrix of scores under a stable sort."""

from torch import Tensor


def nearest(x: Tensor, centroids: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k)."""
    scores = x.double() @ centroids.double().T
    if bias is not None:
        scores = scores + bias.double()
    similarity, labels = scores.sort(dim=1, descending=True, stable=True)
    return labels[:, :k], similarity[:, :k]
