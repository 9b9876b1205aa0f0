"""The neighbours that the trained methods draw from: the nearest others, in memory that they fit into."""

import pytest
import torch
from torch.nn.functional import normalize

from cae.models.trained.neighbours import draw_neighbours, nearest_neighbours


@pytest.mark.parametrize("n", [2, 5, 700])
def test_neighbours_are_the_nearest_others(n):
    x = normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    found = nearest_neighbours(x, 50)
    similarity = (x.double() @ x.double().T).fill_diagonal_(-2)
    assert torch.equal(found, similarity.topk(min(50, n - 1), dim=1).indices)


def test_duplicates_are_neighbours_and_an_image_is_not_its_own():
    x = normalize(torch.ones(9, 4), dim=1)
    found = nearest_neighbours(x, 3)
    assert found.shape == (9, 3)
    assert not (found == torch.arange(9)[:, None]).any()
    drawn = draw_neighbours(found, torch.arange(9), torch.Generator().manual_seed(0))
    assert (found == drawn[:, None]).any(dim=1).all()
