"""Spectral clustering against a dense oracle, on data that k-means cannot part, and at the edges."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.sparse import csr_array
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from torch.nn.functional import normalize

from cae.method import spectral as module
from cae.method.graph import neighbour_graph
from cae.method.kmeans import assign, image_kmeans
from cae.method.spectral import cluster_qr, discriminants, leading_eigenvectors, spectral, whitened

K, D = 5, 20


def groups(n=400, noise=0.25, seed=0):
    """Rows around K directions, in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (n,), generator=generator)
    rows = torch.eye(D)[labels] + noise * torch.randn(n, D, generator=generator)
    return normalize(rows, dim=1), labels


def long_groups(n=600):
    """Two groups side by side, four times as long as they lie apart, so that k-means cuts both in the middle."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    rows = 0.1 * torch.randn(n, 6, generator=generator)
    rows[:, 0] = 1
    rows[:, 1] = 0.8 * torch.randn(n, generator=generator)
    rows[:, 2] += 0.4 * (1 - 2 * labels)
    return normalize(rows, dim=1), labels


def test_the_graph_is_that_of_scikit_learn():
    rows, _ = groups()
    expected = kneighbors_graph(rows.double().numpy(), 15)
    np.testing.assert_array_equal(neighbour_graph(rows).toarray(), ((expected + expected.T) / 2).toarray())


def test_the_graph_of_equal_rows_has_no_loops_and_as_many_edges():
    graph = neighbour_graph(torch.eye(3)[torch.arange(90) % 3], k=4)
    assert graph.diagonal().sum() == 0
    assert graph.sum() == 90 * 4


def test_whitening_leaves_the_fourth_root_of_the_variance_less_unequal():
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([16.0, 4.0, 1.0])
    flat = whitened(x).double()
    before, after = (torch.linalg.eigvalsh(torch.cov(rows.T)) for rows in (x.double(), flat))
    assert after[-1] / after[0] < (before[-1] / before[0]) ** 0.6
    torch.testing.assert_close(torch.linalg.vector_norm(flat, dim=1), torch.ones(5000, dtype=torch.float64))


def test_fewer_rows_than_dimensions_are_whitened_as_many_are():
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).double()
    left, widths, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    variance = widths**2 / 20
    expected = left * widths * (variance + module.SHRINKAGE * variance.sum() / 50) ** -module.WHITENING
    expected = normalize(expected, dim=1)
    flat = whitened(x.float()).double()
    torch.testing.assert_close(flat @ flat.T, expected @ expected.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [300, 1500])
def test_eigenvectors_are_those_of_the_dense_matrix(n):
    """Dense and sparse solver alike, the small edges between all images included."""
    rows, _ = groups(n)
    graph = neighbour_graph(rows)
    edges = 1 + (rows @ rows.T).double().numpy()
    a = graph.toarray() + edges * module.REGULARISATION * graph.sum() / edges.sum()
    root = 1 / np.sqrt(a.sum(axis=1))
    values, expected = scipy.linalg.eigh(root[:, None] * a * root, subset_by_index=(n - K, n - 1))
    assert np.diff(values).min() > 1e-4, "the vectors of equal values are not determined"
    found = leading_eigenvectors(graph, rows, K, seed=0)
    np.testing.assert_allclose(np.abs((found * expected[:, ::-1]).sum(axis=0)), 1, atol=1e-5)


def test_equal_rows_have_as_many_eigenvectors_as_others():
    """LAPACK finds none of some of these matrices, here of 27 rows, if it is asked for two."""
    for n in range(2, 40):
        rows, everybody = normalize(torch.ones(n, 8), dim=1), csr_array(np.ones((n, n)) - np.eye(n))
        vectors = leading_eigenvectors(everybody, rows, 2, seed=0)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 0.0], ids=["images", "equal images"])
def test_many_eigenvectors_are_those_of_the_dense_matrix(noise, monkeypatch):
    """Also where images are equal, and nearly all of the values."""
    k, n = 60, 1500
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(80)[torch.randint(0, k, (n,), generator=generator)]
    rows = normalize(rows + noise * torch.randn(n, 80, generator=generator), dim=1)
    graph = neighbour_graph(rows)
    exact = leading_eigenvectors(graph, rows, k, seed=0)
    monkeypatch.setattr(module, "MANY", k)
    found = leading_eigenvectors(graph, rows, k, seed=0)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-4)
    assert not np.array_equal(found, exact), "the same solver was asked twice"
    np.testing.assert_allclose(np.linalg.norm(exact.T @ found) ** 2 / k, 1, atol=1e-4)
    assert adjusted_rand_score(cluster_qr(exact), cluster_qr(found)) > 0.99


def test_cluster_qr_reads_off_rotated_indicators():
    labels = np.random.default_rng(0).integers(0, K, 200)
    indicators = np.eye(K)[labels] / np.sqrt(np.bincount(labels))
    rotation = scipy.linalg.qr(np.random.default_rng(1).normal(size=(K, K)))[0]
    assert adjusted_rand_score(cluster_qr(indicators @ rotation), labels) == 1


@pytest.mark.parametrize("n", [400, D - 2])
def test_discriminants_decide_as_scikit_learns(n):
    rows, labels = groups(n, noise=0.5)
    found = discriminants(rows, labels.numpy(), K)
    peer = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Shrunk(), priors=np.full(K, 1 / K))
    peer.fit(rows.double().numpy(), labels.numpy())
    agreed = assign(rows, *found).labels.numpy() == peer.predict(rows.double().numpy())
    assert agreed.mean() > 0.99
    assert found.metric.shape == (D, K - 1)


def test_few_rows_of_many_dimensions_need_no_square_of_them():
    rows = normalize(torch.randn(20, 200_000, generator=torch.Generator().manual_seed(0)), dim=1)  # squared: 320 GB
    found = discriminants(rows, np.arange(20) % 4, 4)
    assert assign(rows, *found).labels.tolist() == [0, 1, 2, 3] * 5


class _Shrunk:
    """Some of the mean variance in every direction."""

    def fit(self, x):
        covariance = np.cov(x.T, bias=True)
        self.covariance_ = covariance + module.ROUNDNESS * np.trace(covariance) / len(covariance) * np.eye(
            len(covariance)
        )
        return self


def test_parts_what_k_means_cuts_across():
    rows, labels = long_groups()
    found = spectral(rows, 2, seed=0)
    assert adjusted_rand_score(assign(rows, *found).labels, labels) > 0.95
    assert adjusted_rand_score(image_kmeans(rows, 2, n_init=10, max_iter=100, seed=0), labels) < 0.1


def test_a_small_cluster_is_not_swallowed():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 600 + [1] * 600 + [2] * 12)
    rows = normalize(torch.eye(D)[labels] + 0.1 * torch.randn(len(labels), D, generator=generator), dim=1)
    assert adjusted_rand_score(assign(rows, *spectral(rows, 3, seed=0)).labels, labels) == 1


def test_of_more_separate_groups_than_clusters_the_like_come_together():
    """Bursts of photographs: the graph falls into pieces, and which belong together only their cosine tells."""
    generator = torch.Generator().manual_seed(0)
    things = torch.eye(D)[torch.arange(12) % 3] + 0.3 * torch.randn(12, D, generator=generator) * (torch.arange(D) > 2)
    labels = torch.arange(480) % 12
    rows = normalize(things[labels] + 0.003 * torch.randn(480, D, generator=generator), dim=1)
    assert adjusted_rand_score(assign(rows, *spectral(rows, 3, seed=0)).labels, labels % 3) > 0.9


def test_clusters_are_numbered_as_they_appear_and_do_not_depend_on_the_order_of_rows():
    rows, _ = groups()
    found = assign(rows, *spectral(rows, K, seed=0)).labels
    assert found.unique_consecutive().tolist()[0] == 0
    first = [int((found == k).nonzero()[0]) for k in range(K)]
    assert first == sorted(first)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    again = assign(rows, *spectral(rows[order], K, seed=0, index=order)).labels
    assert torch.equal(found, again)


def test_a_sample_labels_the_rest(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 200)
    rows, labels = groups(2000)
    assert adjusted_rand_score(assign(rows, *spectral(rows, K, seed=0)).labels, labels) > 0.95


def test_fewer_different_rows_than_clusters_are_not_told_apart():
    assert spectral(torch.eye(D)[torch.arange(60) % 3], 4, seed=0) is None


@pytest.mark.parametrize("rows", [torch.eye(3), torch.full((9, 3), float("nan"))])
def test_refuses_what_cannot_be_clustered(rows):
    with pytest.raises(ValueError, match=r"at most 3|NaN"):
        spectral(rows, 4, seed=0)
