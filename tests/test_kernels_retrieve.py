"""retrieve: against the float64 reference, ties, and the running top-k over panels."""

import pytest
import torch
from kernel_cases import BACKENDS, DEVICE, DTYPES, GEOMETRIES, SHAPES, pair, poison, unit  # noqa: F401

from cae.kernels import retrieve, tiles

pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture
def small_panels(monkeypatch):
    monkeypatch.setattr(tiles, "_PANEL_ENTRIES", {"cpu": 1, "cuda": 1})  # 16 rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["all", "assigned"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "T", "D"), SHAPES)
def test_shapes_and_dtypes(small_panels, backend, mode, dtype, n, T, D):
    """Half-precision texts with float32 centers, as banks are stored and centers are computed.

    With these seeds no two texts compete within 2e-5, which the rounding of a logarithm could turn round.
    """
    texts, centers = unit(T, D, dtype, seed=49), 0.8 * unit(n, D, seed=50)
    for top_k in (1, 5, 1000):
        expected = retrieve(texts, centers, top_k=top_k, mode=mode, backend="reference")
        assert retrieve(texts, centers, top_k=top_k, mode=mode, backend=backend).tolist() == expected.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["all", "assigned"])
@pytest.mark.parametrize("geometry", [name for name in GEOMETRIES if name not in ("duplicated", "collinear")])
def test_geometries(small_panels, backend, mode, geometry):
    centers, texts = pair(geometry, 30, 700)
    expected = retrieve(texts, centers, top_k=4, mode=mode, backend="reference")
    assert retrieve(texts, centers, top_k=4, mode=mode, backend=backend).tolist() == expected.tolist()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("mode", ["all", "assigned"])
def test_ties_go_to_the_lowest_index(small_panels, backend, mode):
    texts, centers = torch.eye(4, device=DEVICE).repeat(20, 1), torch.eye(4, device=DEVICE)[:2]
    assert (
        retrieve(texts, centers, top_k=3, mode=mode, backend=backend).tolist()
        == {
            "all": [0, 1, 4, 5, 8, 9],
            # Texts 2 and 3 are as close to either center: they are the first one's, and less probable than its own.
            "assigned": [0, 1, 4, 5, 8, 9],
        }[mode]
    )


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_all_and_assigned_differ_as_documented(backend):
    """A text that is second best for one center is taken by "all" although it belongs to the other one."""
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], device=DEVICE)
    centers = torch.eye(2, device=DEVICE)
    assert retrieve(texts, centers, top_k=2, mode="all", backend=backend).tolist() == [0, 1, 2]
    assert retrieve(texts[:2], centers, top_k=1, mode="assigned", backend=backend).tolist() == [0, 1]
    assert retrieve(texts[[0, 0, 0, 1]], centers, top_k=2, mode="assigned", backend=backend).tolist() == [0, 1, 3]
    assert retrieve(texts[[0, 0, 0, 1]], centers, top_k=2, mode="all", backend=backend).tolist() == [0, 1, 3]
    assert retrieve(texts[:1], centers, top_k=2, mode="assigned", backend=backend).tolist() == [0]
