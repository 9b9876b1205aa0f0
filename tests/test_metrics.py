"""Scores against scikit-learn and scipy, on one process and on two."""

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.metrics.cluster import contingency_matrix

from cae import metrics
from cae.metrics import ClusterAccuracy, cluster_accuracy, clustering_metrics, clustering_scores, stability


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
        ([-1], [0], "at least 0"),
        ([3], [0], "made for 3 and 2"),
        ([0], [2], "made for 3 and 2"),
    ],
)
def test_labels_that_cannot_be_counted_are_named(preds, target, message):
    with pytest.raises(ValueError, match=message):
        ClusterAccuracy(3, 2).update(torch.tensor(preds), torch.tensor(target))


def test_arrays_are_told_how_to_become_tensors():
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match=r"preds must be a torch\.Tensor, got ndarray; pass torch\.as_tensor\(preds\)"):
        clustering_scores(labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"target must be a torch\.Tensor"):
        ClusterAccuracy(2, 2).update(torch.tensor([0, 1]), labels)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no images to score"):
        clustering_scores(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))


def _score_half(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    preds, target = labelings(8, 3)
    collection = clustering_metrics(8, 3)
    collection.update(preds[rank::2], target[rank::2])
    torch.save(collection.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Spawned: a fork of a process whose OpenMP threads have run hangs in its first parallel loop.
    mp.spawn(_score_half, (port, str(tmp_path)), nprocs=2)
    expected = expected_scores(*labelings(8, 3))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        np.testing.assert_allclose([found[name] for name in ("nmi", "acc", "ari")], expected, atol=1e-6)


def test_the_table_of_no_images_is_where_the_labels_are():
    labels = torch.empty(0, dtype=torch.int64, device="meta")
    assert metrics.count_matrix(labels, labels).device == labels.device


def test_silhouette_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 6, generator=generator), torch.arange(200) % 4
    expected = silhouette_score(x.numpy(), labels.numpy(), metric="cosine")
    assert metrics.silhouette_score(x, labels) == pytest.approx(expected, abs=1e-5)
    assert -1 <= metrics.silhouette_score(x, labels, sample=50) <= 1
    assert metrics.silhouette_score(x, torch.zeros(200, dtype=torch.int64)) == 0
    assert metrics.silhouette_score(x, torch.arange(200)) == 0


def test_stability_is_mean_pairwise_ari():
    a, b = torch.arange(90) % 3, torch.arange(90) // 30
    assert stability([a, a.clone(), (a + 1) % 3]) == 1
    assert stability([a, b]) == pytest.approx(adjusted_rand_score(a, b))
    with pytest.raises(ValueError, match="at least two"):
        stability([a])
