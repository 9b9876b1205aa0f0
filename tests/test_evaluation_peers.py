"""Methods of others that CAE is compared with."""

import torch
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.evaluation.peers import image_spectral, ntk_sc


def groups(n=300, k=4, d=20, noise=0.15):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, k, (n,), generator=generator)
    return normalize(torch.eye(d)[labels] + noise * torch.randn(n, d, generator=generator), dim=1), labels


def test_spectral_clustering_finds_plain_groups():
    x, labels = groups()
    assert adjusted_rand_score(image_spectral(x, 4, seed=0), labels) > 0.95


def test_ntk_sc_follows_the_texts_where_images_are_all_alike():
    """Images that hardly differ, but each is a little nearer to one of two texts than to the other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    x = torch.randn(200, 20, generator=generator) * 0.1
    x[:, 0] = 1
    x[:, 1] = 0.1 * (1 - 2 * labels)
    texts = normalize(torch.tensor([[0.1, 1.0], [0.1, -1.0]]) @ torch.eye(2, 20), dim=1)
    config = CAEConfig(n_clusters=2)
    assert adjusted_rand_score(ntk_sc(normalize(x, dim=1), texts, config), labels) > 0.9
