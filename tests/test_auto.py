"""What the texts may weigh: the probe, the choice, and that it is the choice that gets fitted."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.method import auto, pipeline
from cae.method.auto import CANDIDATES, MARGIN, PREFERRED, Probe
from cae.method.kmeans import image_kmeans
from cae.metrics import clustering_scores
from cae.text import Corpus, TextBank

N, D, K = 600, 32, 4


def bank(kind: str, vectors: torch.Tensor) -> TextBank:
    texts = [f"{kind} {i}" for i in range(len(vectors))]
    corpus = Corpus(kind, "toy", texts, None, source_rows=len(texts))
    return TextBank(corpus, vectors.half(), prompt="{}", encoder="toy", fingerprint="0")


def world(*, texts_know: bool):
    """Images of K concepts. Either style drowns the concepts and the texts know them, or the texts are random."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    concepts = torch.eye(D)[:K]
    style = torch.randn(N, 4, generator=generator) @ torch.eye(D)[K : K + 4]
    noise = 0.05 * torch.randn(N, D, generator=generator)
    images = normalize(concepts[labels] + (0.8 if texts_know else 0.05) * style + noise, dim=1)
    told = concepts.repeat_interleave(6, dim=0) if texts_know else torch.randn(6 * K, D, generator=generator)
    texts = [normalize(told + 0.1 * torch.randn(len(told), D, generator=generator), dim=1) for _ in range(2)]
    return images, labels, {"noun": bank("noun", texts[0]), "caption": bank("caption", texts[1])}


@pytest.mark.parametrize("n", [40, 300])
def test_probe_is_ridge_regression_on_the_other_half(n):
    """Fewer images than dimensions, and more."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, D)).astype(np.float32) / D**0.5
    labels = generator.integers(0, 3, n)
    half = n // 2
    predicted = np.empty(n, dtype=np.int64)
    for train, test in ((slice(0, half), slice(half, n)), (slice(half, n), slice(0, half))):
        ridge = Ridge(alpha=auto.RIDGE).fit(x[train], np.eye(3)[labels[train]])
        predicted[test] = ridge.predict(x[test]).argmax(axis=1)
    expected = clustering_scores(torch.from_numpy(predicted), torch.from_numpy(labels))["nmi"] / 100
    assert Probe(torch.from_numpy(x)).score(torch.from_numpy(labels), 3) == pytest.approx(expected)


def test_takes_texts_that_know_more_than_the_images():
    images, labels, banks = world(texts_know=True)
    fitted, prediction = pipeline.fit(images, banks, CAEConfig(n_clusters=K, fusion="auto", images_per_center=50))
    assert fitted.config.text_weight > 0
    assert clustering_scores(prediction.cluster, labels)["acc"] > 95
    baseline = image_kmeans(images, K, n_init=20, max_iter=300, seed=0)
    assert clustering_scores(baseline, labels)["acc"] < 90


def test_leaves_out_texts_that_know_nothing():
    images, labels, banks = world(texts_know=False)
    config = CAEConfig(n_clusters=K, fusion="auto", images_per_center=50)
    fitted, prediction = pipeline.fit(images, banks, config)
    assert clustering_scores(prediction.cluster, labels)["acc"] > 99
    scores = fitted.provenance["auto"]["scores"]
    assert scores["image alone"] > scores["prototype"] + 5


def test_the_image_alone_by_kmeans_is_image_kmeans():
    images, _, banks = world(texts_know=True)
    config = CAEConfig.from_preset("default", K, **CANDIDATES["image alone"], clustering="kmeans")
    _, prediction = pipeline.fit(images, banks, config)
    assert torch.equal(prediction.cluster, image_kmeans(images, K, n_init=20, max_iter=300, seed=0))


def test_without_the_image_no_candidate_is_there_twice():
    images, labels, banks = world(texts_know=True)
    config = CAEConfig(n_clusters=K, fusion="auto", images_per_center=50, image=False)
    fitted, prediction = pipeline.fit(images, banks, config)
    assert list(fitted.provenance["auto"]["scores"]) == ["some text", "prototype", "prototype, texts as they come"]
    assert not fitted.config.image
    assert clustering_scores(prediction.cluster, labels)["acc"] > 95


def test_what_was_chosen_is_what_is_fitted_and_said():
    images, _, banks = world(texts_know=True)
    config = CAEConfig(n_clusters=K, fusion="auto", images_per_center=50, epsilon=0.02, n_init=4)
    fitted, prediction = pipeline.fit(images, banks, config, {"encoder": "toy"})
    record = fitted.provenance["auto"]
    assert set(record["scores"]) == set(CANDIDATES)
    best = max(record["scores"].values())
    if best > record["scores"][PREFERRED] + 100 * MARGIN:
        assert record["scores"][record["chosen"]] == best
    else:
        assert record["chosen"] == PREFERRED
    assert fitted.provenance["encoder"] == "toy"
    assert (fitted.config.epsilon, fitted.config.n_init) == (0.02, 4)
    assert fitted.config.fusion != "auto"
    _, again = pipeline.fit(images, banks, fitted.config)
    assert torch.equal(again.cluster, prediction.cluster)


def test_compares_on_a_sample_of_bounded_size(monkeypatch):
    images, _, banks = world(texts_know=True)
    monkeypatch.setattr(auto, "SAMPLE", 100)
    monkeypatch.setattr(auto, "PER_CLUSTER", 30)
    fitted, prediction = pipeline.fit(images, banks, CAEConfig(n_clusters=K, fusion="auto", images_per_center=50))
    assert fitted.provenance["auto"]["sample"] == 120
    assert len(prediction.cluster) == N
