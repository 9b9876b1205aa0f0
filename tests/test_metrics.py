"""Scores against scikit-learn and scipy, on one process and on two."""

import pickle

import matplotlib.pyplot
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import free_port, leave_group
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.metrics.cluster import contingency_matrix
from torchmetrics import MetricCollection

from cae import metrics
from cae.metrics import (
    AdjustedRandIndex,
    ClusterAccuracy,
    NormalizedMutualInfo,
    cluster_accuracy,
    clustering_metrics,
    clustering_scores,
    stability,
)


def labelings(n_clusters: int, n_classes: int, n: int = 500):
    """Clusters, and classes that half depend on them."""
    generator = torch.Generator().manual_seed(0)
    preds = torch.randint(n_clusters, (n,), generator=generator)
    return preds, torch.where(torch.rand(n, generator=generator) < 0.5, preds % n_classes, 0)


def expected_scores(preds: torch.Tensor, target: torch.Tensor) -> list[float]:
    counts = contingency_matrix(preds, target)
    accuracy = counts[linear_sum_assignment(-counts)].sum() / len(preds)
    return [normalized_mutual_info_score(target, preds), accuracy, adjusted_rand_score(target, preds)]


SIZES = [(5, 5), (8, 3), (2, 6), (1, 4), (4, 1), (1, 1), (500, 5)]


@pytest.mark.parametrize(("n_clusters", "n_classes"), SIZES)
def test_functions_match_scikit_learn(n_clusters, n_classes):
    preds, target = labelings(n_clusters, n_classes)
    np.testing.assert_allclose(
        list(clustering_scores(preds, target).values()), 100 * np.array(expected_scores(preds, target)), atol=1e-9
    )


@pytest.mark.parametrize(("n_clusters", "n_classes"), SIZES)
def test_metrics_match_scikit_learn_in_batches(n_clusters, n_classes):
    preds, target = labelings(n_clusters, n_classes)
    collection = clustering_metrics(n_clusters, n_classes)
    for rows in torch.arange(len(preds)).split(64):
        collection.update(preds[rows], target[rows])
    found = collection.compute()
    np.testing.assert_allclose(
        [found[name] for name in ("nmi", "acc", "ari")], expected_scores(preds, target), atol=1e-6
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_images(n):
    for preds in (torch.zeros(n, dtype=torch.int64), torch.arange(n)):
        for target in (torch.zeros(n, dtype=torch.int64), torch.arange(n)):
            np.testing.assert_allclose(
                list(clustering_scores(preds, target).values()), 100 * np.array(expected_scores(preds, target))
            )


def test_empty_clusters_and_a_million_images_change_nothing():
    preds, target = labelings(5, 5, n=1_000_000)
    collection = clustering_metrics(9, 7)
    collection.update(preds, target)
    found = collection.compute()
    np.testing.assert_allclose(
        [found[name] for name in ("nmi", "acc", "ari")], expected_scores(preds, target), atol=1e-6
    )


def test_scores_ignore_how_labels_are_called():
    target = torch.arange(6) % 3
    renamed = torch.tensor([7, 100, 2])[target]
    assert cluster_accuracy(renamed, target) == 1
    assert clustering_scores(renamed, target) == {"nmi": 100, "acc": 100, "ari": 100}


def test_mapping_says_which_cluster_is_which_class():
    metric = ClusterAccuracy(3, 2)
    metric.update(torch.tensor([2, 2, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 1]))
    assert metric.mapping() == {2: 0, 0: 1}
    assert metric.compute() == pytest.approx(0.8)
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="no images to score"),
    ):
        metric.compute()


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        ([0, 1], [0], "2 cluster labels but 1 class labels"),
        ([0.5], [0], "whole numbers"),
        ([-1], [0], "preds must be at least 0; .* placeholders"),
        ([0], [-1], "target must be at least 0; leave out images without a class"),
        ([3], [0], "made for 3 and 2"),
        ([0], [2], "made for 3 and 2"),
        ([0], [2**40], "made for 3 and 2"),  # whose table no memory would hold
    ],
)
def test_labels_that_cannot_be_counted_are_named(preds, target, message):
    with pytest.raises(ValueError, match=message):
        ClusterAccuracy(3, 2).update(torch.tensor(preds), torch.tensor(target))


def test_lists_are_told_how_to_become_tensors():
    with pytest.raises(ValueError, match=r"preds must be .*, got list; pass torch\.as_tensor\(preds\)"):
        clustering_scores([0, 1], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"target must be a torch\.Tensor"):
        ClusterAccuracy(2, 2).update(torch.tensor([0, 1]), [0, 1])


@pytest.mark.parametrize("sizes", [(0, 4), (4, -1), (5.0, 4), ("5", 4), (4, None)])
def test_numbers_of_clusters_and_classes_are_checked(sizes):
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got"):
        ClusterAccuracy(*sizes)
    assert ClusterAccuracy(np.int64(5), np.int32(4)).counts.shape == (5, 4)


def test_metrics_do_what_torchmetrics_own_do():
    preds, target = labelings(5, 4)
    collection = MetricCollection([ClusterAccuracy(5, 4), NormalizedMutualInfo(5, 4), AdjustedRandIndex(5, 4)])
    for rows in (slice(0, 1), slice(0, 0), slice(1, None)):  # single, empty, the rest
        collection.update(preds[rows], target[rows])
    assert len(collection.compute_groups) == 1
    found = [
        float(collection.compute()[name]) for name in ("NormalizedMutualInfo", "ClusterAccuracy", "AdjustedRandIndex")
    ]
    assert found == pytest.approx(expected_scores(preds, target), abs=1e-6)
    for metric in collection.values():
        for same in (metric.clone(), pickle.loads(pickle.dumps(metric)), metric.double()):
            assert same.compute() == pytest.approx(float(metric.compute()))
        figure, _ = metric.plot()
        assert figure.axes
        matplotlib.pyplot.close(figure)


INTEGERS = [
    *(getattr(torch, name) for name in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")),
    *(np.dtype(name) for name in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", ">i4")),
]
BOOLS = [torch.bool, np.dtype("bool")]


def of_dtype(labels: torch.Tensor, dtype: torch.dtype | np.dtype):
    return labels.to(dtype) if isinstance(dtype, torch.dtype) else labels.numpy().astype(dtype)


def all_scores(preds, target, n_clusters: int, n_classes: int) -> list[float]:
    """NMI, ACC and ARI by function, and by metric."""
    collection = clustering_metrics(n_clusters, n_classes)
    collection.update(preds, target)
    found = collection.compute()
    return [score / 100 for score in clustering_scores(preds, target).values()] + [
        float(found[name]) for name in ("nmi", "acc", "ari")
    ]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("k", [2, 12, 17, 100, 127])  # int8 holds no k² from 12 on, uint8 from 16 on
def test_labels_of_every_integer_type_score_alike(dtype, k):
    perfect = torch.arange(2000) % k
    preds, target = labelings(k, k, n=2000)
    expected = 2 * expected_scores(preds, target)
    for other in (torch.int64, torch.uint8, np.dtype("uint8")):
        for ours, theirs in ((dtype, other), (other, dtype), (dtype, dtype)):
            assert all_scores(of_dtype(perfect, ours), of_dtype(perfect, theirs), k, k) == pytest.approx([1] * 6)
            assert all_scores(of_dtype(preds, ours), of_dtype(target, theirs), k, k) == pytest.approx(
                expected, abs=1e-6
            )


@pytest.mark.parametrize("dtype", BOOLS)
@pytest.mark.parametrize("other", [*BOOLS, torch.uint16, np.dtype("int8")])
def test_labels_may_be_truth_values(dtype, other):
    perfect = torch.arange(100) % 2
    assert all_scores(of_dtype(perfect, dtype), of_dtype(perfect, other), 2, 2) == pytest.approx([1] * 6)
    assert all_scores(of_dtype(perfect, other), of_dtype(perfect, dtype), 2, 2) == pytest.approx([1] * 6)


def test_narrow_labels_fill_the_table_and_its_match():
    labels = (torch.arange(2000) % 200).to(torch.uint8)
    assert metrics.contingency_matrix(labels, labels).equal(10 * torch.eye(200, dtype=torch.int64))
    metric = ClusterAccuracy(200, 200)
    metric.update(labels, labels)
    assert metric.mapping() == {i: i for i in range(200)}
    assert stability([labels, labels.short(), labels.numpy()]) == 1


def test_labels_may_be_views_read_only_or_the_largest_numbers():
    labels = np.arange(50)[::-2] % 5
    labels.flags.writeable = False
    wide = labels.astype(np.uint64) + np.uint64(2**63)
    assert all_scores(labels, labels, 5, 5) == pytest.approx([1] * 6)
    assert cluster_accuracy(labels, wide) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, np.dtype("f4"), np.dtype("f8")])
def test_floats_are_no_labels_even_where_they_are_whole(dtype):
    """Random floats are classes of one image each, and would score 100."""
    whole = torch.arange(6) % 3
    floats = of_dtype(whole, dtype)
    for score in (clustering_scores, cluster_accuracy, metrics.contingency_matrix, ClusterAccuracy(3, 3).update):
        with pytest.raises(ValueError, match=r"preds must be \(N,\) whole numbers, got .*(float|complex)"):
            score(floats, whole)
        with pytest.raises(ValueError, match=r"target must be \(N,\) whole numbers, got .*(float|complex)"):
            score(whole, floats)
    with pytest.raises(ValueError, match="labels must be"):
        metrics.silhouette_score(torch.randn(6, 2), floats)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no images to score"):
        clustering_scores(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))


SCIKIT_LEARNS = {
    "permuted": ([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1]),
    "homogeneous": ([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]),
    "complete": ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]),
    "neither": ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 2, 2]),
    "gaps": ([0, 0, 0, 2, 2, 2], [0, 1, 0, 4, 2, 4]),
    "uncorrelated": ([1, 0] * 50, [0, 0, 1, 1] * 25),
    "one of each": (list(range(7)), list(range(7))),
    "one for all": ([0] * 7, [0] * 7),
    "one cluster": ([0] * 6, [0, 0, 1, 1, 2, 2]),
    "one class": ([0, 0, 1, 1, 2, 2], [0] * 6),
    "a million": ([0] * 500_000 + [1] * 500_000, [0] * 499_999 + [1] * 500_001),
}
"""The labelings of scikit-learn's own tests of its clustering metrics."""


@pytest.mark.parametrize("name", SCIKIT_LEARNS)
def test_the_labelings_of_scikit_learns_own_tests(name):
    preds, target = map(torch.tensor, SCIKIT_LEARNS[name])
    scores = clustering_scores(preds, target)
    np.testing.assert_allclose([scores[key] / 100 for key in ("nmi", "acc", "ari")], expected_scores(preds, target))


def test_one_update_is_as_good_as_many_and_one_without_images_changes_nothing():
    preds, target = labelings(8, 3)
    none = torch.empty(0, dtype=torch.int64)
    at_once, in_pieces = clustering_metrics(8, 3), clustering_metrics(8, 3)
    at_once.update(preds, target)
    for piece in ((none, none), *zip(preds.split(7), target.split(7), strict=True), (none, none)):
        in_pieces.update(*piece)
    assert at_once.compute() == in_pieces.compute()


SHARES = {"halves": (slice(0, None, 2), slice(1, None, 2)), "uneven": (slice(0, 490), slice(490, None))}
SHARES["one has all"] = (slice(None), slice(0, 0))


def _score_share(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    preds, target = labelings(8, 3)
    found = {}
    for name, shares in SHARES.items():
        collection = clustering_metrics(8, 3)
        collection.update(preds[shares[rank]], target[shares[rank]])
        found[name] = collection.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    leave_group()


def test_two_processes_agree_with_one(tmp_path):
    # Spawned: a fork of a process whose OpenMP threads have run hangs in its first parallel loop.
    mp.spawn(_score_share, (free_port(), str(tmp_path)), nprocs=2)
    expected = expected_scores(*labelings(8, 3))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == SHARES.keys()
        for scores in found.values():
            np.testing.assert_allclose([scores[name] for name in ("nmi", "acc", "ari")], expected, atol=1e-6)


def test_the_table_of_no_images_is_where_the_labels_are():
    labels = torch.empty(0, dtype=torch.int64, device="meta")
    assert metrics.contingency_matrix(labels, labels).device == labels.device


def test_silhouette_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 6, generator=generator), torch.arange(200) % 4
    expected = silhouette_score(x.numpy(), labels.numpy(), metric="cosine")
    assert metrics.silhouette_score(x, labels) == pytest.approx(expected, abs=1e-5)
    assert metrics.silhouette_score(x, labels.to(torch.uint16)) == metrics.silhouette_score(x, labels)
    assert -1 <= metrics.silhouette_score(x, labels, sample=50) <= 1
    assert metrics.silhouette_score(x, torch.zeros(200, dtype=torch.int64)) == 0
    assert metrics.silhouette_score(x, torch.arange(200)) == 0
    assert metrics.silhouette_score(x.requires_grad_(), labels) == pytest.approx(expected, abs=1e-5)
    for n in (199, 201):
        with pytest.raises(ValueError, match=f"{n} labels for 200 embeddings"):
            metrics.silhouette_score(x, torch.zeros(n, dtype=torch.int64))


def test_stability_is_mean_pairwise_ari():
    a, b = torch.arange(90) % 3, torch.arange(90) // 30
    assert stability([a, a.clone(), (a + 1) % 3]) == 1
    assert stability([a, b]) == pytest.approx(adjusted_rand_score(a, b))
    with pytest.raises(ValueError, match="at least two"):
        stability([a])
