"""The whole method against a dense float64 oracle, and the promise that fit and predict agree."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.kernels import nearest
from cae.method import pipeline
from cae.method.fusion import fuse_modalities
from cae.method.kmeans import image_kmeans, kmeans
from cae.method.semantic_space import n_centers, select_texts, semantic_centers
from cae.method.transport import column_potentials
from cae.metrics import clustering_scores
from cae.text import Corpus, TextBank

N, D, K = 700, 24, 4


def toy_world(seed: int = 0):
    """Images around K concepts, shifted by a modality gap, and banks with texts near and far from the concepts."""
    generator = torch.Generator().manual_seed(seed)
    concepts = normalize(torch.randn(K, D, generator=generator), dim=1)
    gap = normalize(torch.randn(D, generator=generator), dim=0)
    labels = torch.arange(N) % K
    images = normalize(concepts[labels] + 0.7 * gap + 0.15 * torch.randn(N, D, generator=generator), dim=1)

    def bank(kind: str, n: int) -> TextBank:
        near = concepts.repeat_interleave(n, dim=0) + 0.2 * torch.randn(n * K, D, generator=generator)
        far = torch.randn(5 * n, D, generator=generator)
        vectors = normalize(torch.cat([near, far]), dim=1)
        return make_bank(kind, [f"{kind} {i}" for i in range(len(vectors))], vectors)

    return images, labels, {"noun": bank("noun", 6), "caption": bank("caption", 9)}


def make_bank(kind: str, texts: list[str], vectors: torch.Tensor, glosses=None) -> TextBank:
    corpus = Corpus(kind, "toy", texts, glosses, source_rows=len(texts))
    return TextBank(corpus, vectors.half(), prompt="{}", encoder="toy", fingerprint="0")


# The oracle: numpy, float64, dense, one line an equation.


def oracle_selection(u: np.ndarray, p: np.ndarray, top_k: int) -> np.ndarray:
    log_probability = u @ p.T - logsumexp(u @ p.T, axis=1, keepdims=True)  # Eq. 2
    return np.unique(np.argsort(-log_probability, axis=0, kind="stable")[:top_k])  # Eq. 3 and its union


def oracle_plan(x: np.ndarray, u: np.ndarray, config: CAEConfig) -> np.ndarray:
    cost = 1 - x @ u.T  # Eq. 6
    n = len(cost)
    g = np.zeros(len(u))
    if config.balance == 0:
        return softmax(-cost / config.epsilon, axis=1) / n  # Eq. 12
    for _ in range(1000):
        f = -config.epsilon * (logsumexp((g - cost) / config.epsilon, axis=1) + np.log(n))
        columns = logsumexp((f[:, None] - cost) / config.epsilon, axis=0)
        g = -config.balance * config.epsilon * (columns + np.log(len(u)))
    return np.exp((f[:, None] + g - cost) / config.epsilon)  # Eq. 10


def oracle_counterpart(x: np.ndarray, u: np.ndarray, config: CAEConfig) -> np.ndarray:
    plan = oracle_plan(x, u, config)
    counterpart = (plan * (x @ u.T) if config.similarity_weight else plan) @ u  # Eq. 7-8
    return unit(counterpart) if config.unit_counterparts else counterpart


def oracle_fusion(parts: list[np.ndarray], config: CAEConfig) -> tuple[np.ndarray, np.ndarray]:
    if config.center_modalities:
        parts = [unit(part - part.mean(axis=0)) for part in parts]
    weight = np.array([1.0] + [config.text_weight] * (len(parts) - 1))
    if config.fusion == "concat":
        z = np.concatenate([w * part for w, part in zip(weight, parts, strict=True)], axis=1)
        return unit(z), np.tile(weight / weight.sum(), (len(z), 1))
    prototype = np.mean(parts, axis=0)  # Eq. 14
    alpha = np.stack([(unit(part) * unit(prototype)).sum(axis=1) for part in parts], axis=1)  # Eq. 15
    beta = weight * softmax(alpha / config.gamma, axis=1)  # Eq. 16
    beta /= beta.sum(axis=1, keepdims=True)
    z = sum(beta[:, [m]] * part for m, part in enumerate(parts))  # Eq. 17
    return (unit(z) if config.spherical else z), beta


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("preset", ["default", "paper", "tac"])
def test_matches_the_dense_float64_oracle(preset):
    images, _, banks = toy_world()
    config = CAEConfig.from_preset(preset, K, epsilon=0.05, sinkhorn_tol=1e-6, images_per_center=50, n_init=3)
    fitted, prediction = pipeline.fit(images, banks, config)

    x = images.double().numpy()
    parts = [x]
    for modality in config.modalities:
        selected = fitted.selected[modality]
        parts.append(oracle_counterpart(x, selected.embeddings.double().numpy(), config))
    z, beta = oracle_fusion(parts, config)
    centroids = fitted.partition.centroids.double().numpy()
    if config.clustering == "spectral":
        metric = fitted.partition.metric.double().numpy()
        z, centroids = z @ metric, centroids @ metric
    distance = ((z[:, None] - centroids) ** 2).sum(axis=2)

    np.testing.assert_allclose(prediction.beta.numpy(), beta, atol=2e-3)
    assert (prediction.cluster.numpy() == distance.argmin(axis=1)).all()
    nearest_two = np.sort(distance, axis=1)[:, :2]
    np.testing.assert_allclose(prediction.confidence.numpy(), 1 - nearest_two[:, 0] / nearest_two[:, 1], atol=2e-2)


def test_selection_matches_the_oracle_and_assigned_mode_differs():
    images, _, banks = toy_world()
    config = CAEConfig(n_clusters=K, images_per_center=50, top_k=3)
    centers = semantic_centers(images, config)
    u = banks["noun"].embeddings
    expected = oracle_selection(u.double().numpy(), centers.double().numpy(), config.top_k)
    np.testing.assert_array_equal(select_texts(u, centers, config).numpy(), expected)
    assigned = select_texts(u, centers, dataclasses.replace(config, retrieval="assigned"))
    assert assigned.tolist() != expected.tolist()


def test_centers_are_the_means_of_their_cells():
    images, _, _ = toy_world()
    config = CAEConfig(n_clusters=K, images_per_center=50)
    centers = semantic_centers(images, config)
    assert len(centers) == n_centers(N, config) == 14
    cells = nearest(images, normalize(centers, dim=1)).labels
    # Eq. 1 at a fixed point of spherical k-means: a cell's mean points where its centroid does.
    for j in range(len(centers)):
        torch.testing.assert_close(centers[j], images[cells == j].mean(dim=0), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("n_images", "expected"), [(3000, 10), (900, 3), (600, 9), (1281167, 4271), (6, 6)])
def test_number_of_centers_follows_tac(n_images, expected):
    assert n_centers(n_images, CAEConfig(n_clusters=3)) == expected


def test_transport_that_does_not_converge_is_told_in_the_settings_of_cae(caplog):
    images, _, banks = toy_world()
    pipeline.fit(images, banks, CAEConfig(n_clusters=K, sinkhorn_iter=1))
    told = {record.getMessage() for record in caplog.records}
    assert told
    for line in told:
        assert "after 1 iteration, above sinkhorn_tol=0.001; `CAE` takes a larger sinkhorn_iter" in line
        assert "max_iter" not in line
    caplog.clear()
    pipeline.fit(images, banks, CAEConfig(n_clusters=K))
    assert not caplog.records


@pytest.mark.parametrize("preset", ["auto", "default", "paper", "tac"])
def test_predict_gives_the_labels_of_fit_bit_for_bit(preset):
    images, _, banks = toy_world()
    fitted, at_fit = pipeline.fit(images, banks, CAEConfig.from_preset(preset, K, n_init=3))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    for batch_size in (1, 7, 256, N):
        batches = [pipeline.predict(rows, fitted) for rows in images[order].split(batch_size)]
        for field, expected in at_fit._asdict().items():
            found = torch.cat([getattr(batch, field) for batch in batches])
            assert torch.equal(found, expected[order]), (field, batch_size)


@pytest.mark.parametrize("n", [K, K - 1, K + 1])
def test_no_level_of_the_tree_depends_on_the_precision_that_is_set_outside(n, monkeypatch):
    """As for TF32, which Lightning recommends: every product of an assignment is one of float32."""
    images, _, banks = toy_world()
    fitted = pipeline.fit(images, banks, CAEConfig(n_clusters=K, n_init=1))[0].cut(n)
    seen, multiply, before = set(), torch.Tensor.__matmul__, torch.get_float32_matmul_precision()

    def watched(a, b):
        seen.add(torch.backends.cuda.matmul.fp32_precision)
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    torch.set_float32_matmul_precision("high")
    try:
        pipeline.predict(images[:3], fitted)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"ieee"}


def test_same_seed_same_labels():
    images, _, banks = toy_world()
    runs = [pipeline.fit(images, banks, CAEConfig(n_clusters=K, seed=3))[1] for _ in range(2)]
    assert torch.equal(runs[0].cluster, runs[1].cluster)


def test_texts_help_where_they_know_more_than_the_images():
    """The mechanism of the paper: nuisance that only images have is gone in their counterparts."""
    generator = torch.Generator().manual_seed(0)
    concepts = torch.eye(D)[:K]
    labels = torch.arange(N) % K
    style = torch.eye(D)[K + torch.randint(0, 3, (N,), generator=generator)]
    images = normalize(0.6 * concepts[labels] + style + 0.05 * torch.randn(N, D, generator=generator), dim=1)
    nouns = normalize(concepts.repeat_interleave(4, dim=0) + 0.1 * torch.randn(4 * K, D, generator=generator), dim=1)
    banks = {"noun": make_bank("noun", [f"n{i}" for i in range(len(nouns))], nouns)}
    config = CAEConfig(n_clusters=K, modalities=("noun",), text_weight=1.0, gamma=0.02)
    _, prediction = pipeline.fit(images, banks, config)
    baseline = image_kmeans(images, K, n_init=5, max_iter=100, seed=0)
    assert clustering_scores(prediction.cluster, labels)["acc"] > 95
    assert clustering_scores(baseline, labels)["acc"] < 80


def test_names_are_distinct_and_typical():
    images, _, banks = toy_world()
    fitted, prediction = pipeline.fit(images, banks, CAEConfig(n_clusters=K))
    names = [cluster.name for cluster in fitted.clusters]
    assert len(set(names)) == K
    for cluster in fitted.clusters:
        assert len(cluster.nouns) == len(cluster.captions) == 3
        assert cluster.size == (prediction.cluster == cluster.id).sum()
        assert cluster.gloss == ""


@pytest.mark.parametrize(
    ("modalities", "kind"), [(("caption", "noun"), "noun"), (("noun",), "noun"), (("caption",), "caption")]
)
def test_names_are_nouns_where_there_are_nouns(modalities, kind):
    images, _, banks = toy_world()
    fitted, _ = pipeline.fit(images, banks, CAEConfig(n_clusters=K, modalities=modalities))
    assert all(group.name.startswith(kind) for group in (*fitted.clusters, *fitted.nodes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, banks: (x[: K - 1], banks), "cannot make 4 clusters of 3 images"),
        (lambda x, banks: (x.index_fill(0, torch.tensor([2, 5]), float("nan")), banks), "2 of 700 image embeddings"),
        (lambda x, banks: (torch.cat([x[:-1], 1.005 * x[-1:]]), banks), "1 of 700 image embeddings are not of unit"),
        (lambda x, banks: (x[:, :-1], banks), "width 24, the images 23"),
        (lambda x, banks: (x, {"noun": banks["noun"]}), "caption bank is missing"),
    ],
)
def test_bad_input_is_named(change, message):
    images, _, banks = toy_world()
    with pytest.raises(ValueError, match=message):
        pipeline.fit(*change(images, banks), CAEConfig(n_clusters=K))


@pytest.mark.parametrize(("value", "message"), [(0.0, "not of unit length"), (float("nan"), "hold NaN or infinity")])
def test_a_bad_row_is_named_when_it_is_predicted(value, message):
    images, _, banks = toy_world()
    fitted, _ = pipeline.fit(images, banks, CAEConfig(n_clusters=K))
    for ask in (pipeline.predict, pipeline.representations):
        with pytest.raises(ValueError, match=f"1 of 3 image embeddings .*{message}"):
            ask(images[:3].index_fill(0, torch.tensor([1]), value), fitted)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.arange(699), r"here it is \(699,\) torch.int64 for 700 images"),
        (torch.arange(700).unsqueeze(1), r"here it is \(700, 1\) torch.int64 for 700 images"),
        (torch.arange(700.0), r"here it is \(700,\) torch.float32 for 700 images"),
        (torch.arange(700).clamp(min=2), "all be different, but 2 of them repeat another"),
    ],
)
def test_ids_that_do_not_fit_are_named(index, message):
    images, _, banks = toy_world()
    with pytest.raises(ValueError, match=message):
        pipeline.fit(images, banks, CAEConfig(n_clusters=K), index=index)


@pytest.mark.parametrize(("fusion", "spherical"), [("prototype", True), ("prototype", False), ("concat", True)])
@pytest.mark.parametrize("text_weight", [0.0, 0.25, 1.0])
def test_oracle_fusion_is_what_fuse_modalities_does(fusion, spherical, text_weight):
    generator = torch.Generator().manual_seed(0)
    parts = [normalize(torch.randn(50, D, generator=generator), dim=1) for _ in range(3)]
    settings = {"center_modalities": False, "fusion": fusion, "spherical": spherical, "text_weight": text_weight}
    config = CAEConfig(n_clusters=K, **settings)
    z, beta = fuse_modalities(parts, torch.zeros(3, D), config)
    expected_z, expected_beta = oracle_fusion([part.double().numpy() for part in parts], config)
    np.testing.assert_allclose(z.numpy(), expected_z, atol=1e-6)
    np.testing.assert_allclose(beta.numpy(), expected_beta, atol=1e-6)


@pytest.mark.parametrize("fusion", ["prototype", "sum"])
@pytest.mark.parametrize("spherical", [True, False])
def test_texts_of_no_weight_leave_the_image_alone(fusion, spherical):
    generator = torch.Generator().manual_seed(0)
    parts = [normalize(torch.randn(50, D, generator=generator), dim=1) for _ in range(3)]
    # So low a temperature that the image's weight of Eq. 16 is 0 in float32 for many rows.
    settings = {"center_modalities": False, "fusion": fusion, "gamma": 1e-3, "spherical": spherical}
    config = CAEConfig(n_clusters=K, text_weight=0.0, **settings)
    z, beta = fuse_modalities(parts, torch.zeros(3, D), config)
    torch.testing.assert_close(z, parts[0])
    torch.testing.assert_close(beta, torch.tensor([1.0, 0.0, 0.0]).expand(50, 3))


def test_balance_lies_between_the_softmax_and_even_use():
    """The mass of a text moves from what a softmax gives it to the same for all."""
    images, _, banks = toy_world()
    u = normalize(banks["noun"].embeddings.float(), dim=1)
    spread = []
    for balance in (0.0, 0.5, 1.0):
        g = column_potentials(images, u, CAEConfig(n_clusters=K, balance=balance, epsilon=0.05, sinkhorn_tol=1e-5))
        mass = torch.softmax((images @ u.T + g) / 0.05, dim=1).mean(dim=0).double()
        spread.append(float(mass.std()))
    assert spread[0] > spread[1] > spread[2] == pytest.approx(0, abs=1e-5)


def test_kmeans_reaches_the_quality_of_scikit_learn():
    from sklearn.cluster import KMeans

    images, _, _ = toy_world()
    ours = kmeans(images, 9, spherical=False, n_init=5, max_iter=300, seed=0)
    inertia = (images - ours[nearest(images, ours, bias=-0.5 * ours.square().sum(dim=1)).labels]).square().sum()
    peer = KMeans(9, n_init=5, random_state=0).fit(images.numpy())
    assert inertia < 1.02 * peer.inertia_


def test_kmeans_refuses_too_few_points_and_nan():
    options = {"spherical": True, "n_init": 1, "max_iter": 5, "seed": 0}
    with pytest.raises(ValueError, match="at most 3"):
        kmeans(torch.eye(3), 4, **options)
    with pytest.raises(ValueError, match="NaN"):
        kmeans(torch.full((5, 3), float("nan")), 2, **options)
