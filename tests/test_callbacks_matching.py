"""Clusters keep their ids, whatever k-means calls them next time."""

import torch

from cae.callbacks.matching import cluster_centers, match_clusters, overlap


def test_renamed_clusters_get_their_old_names_back():
    previous = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    labels = torch.tensor([2, 0, 1])[previous]
    ids = match_clusters(overlap(labels, previous, 3))
    assert torch.equal(ids[labels], previous)


def test_ids_are_a_permutation_even_if_clusters_vanish():
    previous, labels = torch.zeros(5, dtype=torch.int64), torch.tensor([3, 3, 3, 1, 1])
    ids = match_clusters(overlap(labels, previous, 4))
    assert sorted(ids.tolist()) == [0, 1, 2, 3]
    assert ids[3] == 0


def test_centers_are_directions_and_zero_without_samples():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    centers = cluster_centers(x, torch.tensor([0, 0, 2]), 4)
    torch.testing.assert_close(centers, torch.tensor([[0.5**0.5, 0.5**0.5], [0, 0], [0, -1], [0, 0]]))
