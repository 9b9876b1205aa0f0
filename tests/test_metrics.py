"""Scores against scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from cae.metrics import cluster_accuracy, clustering_scores


@pytest.mark.parametrize(("n_clusters", "n_classes"), [(5, 5), (8, 3), (2, 6), (1, 4), (4, 1)])
def test_matches_scikit_learn(n_clusters, n_classes):
    generator = torch.Generator().manual_seed(0)
    preds = torch.randint(n_clusters, (500,), generator=generator)
    target = torch.where(torch.rand(500, generator=generator) < 0.5, preds % n_classes, 0)
    scores = clustering_scores(preds, target)
    counts = contingency_matrix(preds, target)
    accuracy = counts[linear_sum_assignment(-counts)].sum() / 500
    expected = [normalized_mutual_info_score(target, preds), accuracy, adjusted_rand_score(target, preds)]
    np.testing.assert_allclose([scores["nmi"], scores["acc"], scores["ari"]], 100 * np.array(expected), atol=1e-3)


def test_accuracy_ignores_how_labels_are_called():
    target = torch.arange(6) % 3
    assert cluster_accuracy(torch.tensor([7, 100, 2])[target], target) == 1
