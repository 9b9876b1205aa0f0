"""nearest: against the float64 reference, ties, bias."""

import pytest
import torch
from kernel_cases import BACKENDS, DEVICE, DTYPES, GEOMETRIES, SHAPES, pair, poison, unit  # noqa: F401

from cae.kernels import nearest, tiles

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "C", "D"), SHAPES)
def test_shapes_and_dtypes(backend, dtype, N, C, D):
    x, centroids = unit(N, D, dtype, seed=1), 3 * unit(C, D, dtype, seed=2)
    bias = torch.randn(C, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for k in {1, min(3, C), C}:
        labels, similarity = nearest(x, centroids, k=k, bias=bias, backend=backend)
        expected, expected_similarity = nearest(x, centroids, k=k, bias=bias, backend="reference")
        assert labels.shape == ((N,) if k == 1 else (N, k))
        assert labels.dtype == torch.int64
        assert labels.tolist() == expected.tolist()
        torch.testing.assert_close(similarity.double(), expected_similarity, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometries(backend, geometry):
    """Where scores are within rounding of each other the label may be either's; the similarity says which are."""
    x, centroids = pair(geometry, 301, 130)
    similarity = nearest(x, centroids, k=5, backend=backend).similarity
    expected = nearest(x, centroids, k=5, backend="reference").similarity
    torch.testing.assert_close(similarity.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "tied"])
def test_blocks_of_columns_in_any_order(monkeypatch, order, k):
    """Blocks of 16 columns: more, fewer and as many as k; none, some or all of a block among the largest."""
    monkeypatch.setitem(tiles._PANEL_ENTRIES, DEVICE.type, 2**14)
    x, centroids = unit(70, 32, seed=1), unit(131, 32, seed=2)
    if order == "tied":
        x, centroids = (10 * x).round(), (2 * centroids[torch.arange(131) % 7]).round()
    elif order != "random":
        x = x[:1].expand(70, 32) + 1e-3 * x
        centroids = centroids[(centroids @ x[0]).argsort(descending=order == "falling")]
    found = nearest(x, centroids, k=k, bias=centroids[:, 0], backend="torch")
    expected = nearest(x, centroids, k=k, bias=centroids[:, 0], backend="reference")
    assert tiles.block_columns(DEVICE) == 16
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.similarity.double(), expected.similarity, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("k", [1, 5])
def test_ties_go_to_the_lowest_index(backend, k):
    labels, _ = nearest(unit(40, 8), unit(1, 8).expand(70, 8).contiguous(), k=k, backend=backend)
    assert labels.view(40, k).tolist() == [list(range(k))] * 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_makes_it_euclidean(backend):
    x, centroids = pair("random", 100, 30)
    centroids = centroids * torch.linspace(0.2, 2, 30, device=DEVICE)[:, None]
    labels, _ = nearest(x, centroids, bias=-centroids.square().sum(dim=1) / 2, backend=backend)
    assert labels.tolist() == torch.cdist(x.double(), centroids.double()).argmin(dim=1).tolist()
