"""`CAEClusterer` among scikit-learn's estimators, and beside the pipeline that it calls."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import check_estimator
from torch.nn.functional import normalize

from cae import CAEClusterer
from cae.config import CAEConfig
from cae.method import pipeline
from cae.method.pipeline import Prediction
from cae.text import Corpus, TextBank

ONE_CLUSTER = "asks for n_clusters=1, which is no clustering; CAE needs two"
NOT_APPLICABLE = {
    "check_dont_overwrite_parameters": ONE_CLUSTER,
    "check_methods_subset_invariance": ONE_CLUSTER,
    "check_fit2d_1sample": ONE_CLUSTER,
    "check_fit2d_1feature": ONE_CLUSTER,
    "check_fit2d_predict1d": ONE_CLUSTER,
}


def text_banks(dim: int, n: int = 60) -> dict[str, TextBank]:
    """Random texts in a space of any width."""
    banks = {}
    for seed, kind in enumerate(("noun", "caption")):
        rows = normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)
        corpus = Corpus(kind, "random", [f"{kind} {i}" for i in range(n)], None, n)
        banks[kind] = TextBank(corpus, rows.half(), "{}", "random", "random-1")
    return banks


class AtLeastTwo(CAEClusterer):
    """Makes two clusters where a check asks for one, so that the rest of what it checks can be seen."""

    def fit(self, X, y=None):
        asked, self.n_clusters = self.n_clusters, max(self.n_clusters, 2)
        try:
            return super().fit(X, y)
        finally:
            self.n_clusters = asked


class WithTexts(AtLeastTwo):
    """Has text banks of whatever width a check's numbers have."""

    def fit(self, X, y=None):
        shape = np.asarray(X).shape
        self.banks = text_banks(shape[1] if len(shape) == 2 and shape[1] else 1)
        try:
            return super().fit(X, y)
        finally:
            self.banks = None


def failures(estimator, expected_failed_checks=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, expected_failed_checks=expected_failed_checks, on_fail=None, on_skip=None)
    return {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}, {
        r["check_name"] for r in results if r["status"] == "xfail"
    }


def test_scikit_learns_own_checks_pass():
    failed, expected = failures(CAEClusterer(), NOT_APPLICABLE)
    assert failed == {}
    assert expected == set(NOT_APPLICABLE)


def test_the_checks_that_ask_for_one_cluster_pass_with_two():
    assert failures(AtLeastTwo())[0] == {}


def test_the_checks_pass_with_texts():
    no_direction = {"check_estimators_dtypes": "has rows of zeros, which have no direction to compare with texts"}
    failed, expected = failures(WithTexts(settings={"n_init": 2}), no_direction)
    assert failed == {}
    assert expected == set(no_direction)


def test_rows_without_direction_are_refused_where_they_meet_texts(blobs):
    x = blobs[0].copy()
    x[3] = 0
    assert len(CAEClusterer(3).fit_predict(x)) == 120
    with pytest.raises(ValueError, match=r"1 of 120 rows are zero"):
        CAEClusterer(3, banks=text_banks(16)).fit(x)
    fitted = CAEClusterer(3, banks=text_banks(16)).fit(blobs[0])
    for ask in (fitted.predict, fitted.transform, fitted.score):
        with pytest.raises(ValueError, match=r"1 of 5 image embeddings are not of unit length: .* leave out zeros"):
            ask(x[:5])


@pytest.fixture
def blobs():
    x, y = make_blobs(120, centers=3, n_features=16, cluster_std=0.5, random_state=0)
    return x.astype(np.float32), y


def test_without_texts_it_is_the_graph_of_the_directions(blobs):
    x, y = blobs
    found = CAEClusterer(3).fit(x)
    assert adjusted_rand_score(found.labels_, y) == 1
    assert found.fitted_ is None
    np.testing.assert_array_equal(found.transform(x).argmin(axis=1), found.labels_)
    np.testing.assert_array_equal(found.predict(x), found.labels_)


def test_without_texts_it_is_spherical_k_means_if_asked(blobs):
    x, y = blobs
    found = CAEClusterer(3, random_state=1, settings={"clustering": "kmeans"}).fit(x)
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert adjusted_rand_score(found.labels_, KMeans(3, n_init=10, random_state=0).fit_predict(directions)) == 1
    assert adjusted_rand_score(found.labels_, y) == 1
    assert found.fitted_ is None
    assert found.beta_ is None
    np.testing.assert_allclose(found.transform(x), 1 - directions @ found.cluster_centers_.T, atol=1e-6)
    np.testing.assert_array_equal(found.transform(x).argmin(axis=1), found.labels_)


@pytest.mark.parametrize("preset", ["auto", "default", "paper", "tac"])
def test_with_text_banks_it_is_the_pipeline(blobs, preset):
    x, _ = blobs
    banks = text_banks(16)
    # These blobs lie further apart than CLIP embeddings: at an epsilon made for those no mass can move between them.
    settings = {"n_init": 2, "epsilon": 0.05}
    found = CAEClusterer(3, banks=banks, preset=preset, settings=settings, random_state=5).fit(x)
    unit = normalize(torch.from_numpy(x), dim=1)
    config = CAEConfig.from_preset(preset, 3, seed=5, **settings)
    fitted, prediction = pipeline.fit(unit, banks, config)
    np.testing.assert_array_equal(found.labels_, prediction.cluster.numpy())
    np.testing.assert_array_equal(found.beta_, prediction.beta.numpy())
    assert [cluster.name for cluster in found.fitted_.clusters] == [cluster.name for cluster in fitted.clusters]
    for rows in (slice(None), slice(7, 8)):
        np.testing.assert_array_equal(found.predict(x[rows]), found.labels_[rows])
    np.testing.assert_array_equal(found.transform(x).argmin(axis=1), found.labels_)


def test_the_state_goes_to_whatever_device_is_worked_on(blobs, monkeypatch):
    """A pickle of an estimator that was fitted on a GPU has to load where there is none."""
    x, _ = blobs
    found = CAEClusterer(4, banks=text_banks(x.shape[1]), preset="default").fit(x)
    devices = []

    def predict(rows, fitted):
        devices.append((rows.device.type, fitted.partition.centroids.device.type))
        return Prediction(*[torch.zeros(len(rows), dtype=torch.int64)] * 6)

    monkeypatch.setattr("cae.method.pipeline.predict", predict)
    found.predict(x)
    found.set_params(device="meta").predict(x)
    assert devices == [("cpu", "cpu"), ("meta", "meta")]
    assert found.fitted_.partition.centroids.device.type == "cpu"


def test_presets_and_settings_hold_without_texts(blobs):
    x, _ = blobs
    for options in ({"preset": "paper"}, {"settings": {"clustering": "kmeans", "spherical": False}}):
        assert not CAEClusterer(4, **options).fit(x).partition_.spherical
    assert CAEClusterer(4, settings={"clustering": "kmeans"}).fit(x).partition_.spherical


def test_the_score_is_accuracy_or_silhouette(blobs):
    x, y = blobs
    found = CAEClusterer(len(np.unique(y))).fit(x)
    assert found.score(x, y) == found.score(x, np.asarray(y).astype(str)) == 1
    assert 0.5 < found.score(x) <= 1
    searched = GridSearchCV(CAEClusterer(), {"n_clusters": np.array([2, 3, 4])}, cv=3).fit(x, y)
    assert searched.best_params_["n_clusters"] == len(np.unique(y))


def test_a_pickle_of_another_version_says_so(blobs, monkeypatch):
    found = CAEClusterer(4).fit(blobs[0])
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict(blobs[0]), found.labels_)
    assert vars(again).keys() == vars(found).keys()
    old = pickle.dumps(found)
    monkeypatch.setattr("cae.models.estimator.version", lambda _: "99.0")
    with pytest.warns(UserWarning, match=r"pickled by cae 0.* read by 99.0"):
        pickle.loads(old)


def test_an_encoder_brings_its_own_banks(blobs, fake_encoder, text_files):
    x = np.pad(blobs[0], ((0, 0), (0, fake_encoder.dim - 16)))
    found = CAEClusterer(3, encoder=fake_encoder, settings={"n_init": 2}, **text_files).fit(x)
    assert set(found.fitted_.selected) == {"noun", "caption"}


def test_it_works_in_pipelines_and_clones(blobs):
    x, y = blobs
    model = make_pipeline(Normalizer(), CAEClusterer(3))
    assert adjusted_rand_score(model.fit_predict(x), y) == 1
    assert model.transform(x).shape == (120, 3)
    assert list(model[-1].get_feature_names_out()) == ["caeclusterer0", "caeclusterer1", "caeclusterer2"]
    assert clone(model[-1]).get_params() == model[-1].get_params()


def test_parameters_may_be_what_scikit_learn_hands_out(blobs):
    x, y = blobs
    for seed in (None, np.int64(3), np.random.RandomState(0)):
        assert adjusted_rand_score(CAEClusterer(np.int64(3), random_state=seed).fit_predict(x), y) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number of at least 2, got 0"),
        ({"n_clusters": "auto"}, "n_clusters must be a whole number of at least 2, got 'auto'"),
        ({"n_clusters": 500}, "Found array with 120 sample"),
        ({"settings": {"epsilom": 1}}, "did you mean 'epsilon'"),
        ({"banks": text_banks(5)}, "the noun bank has width 5, the images 16"),
        ({"banks": {}}, "the noun bank is missing"),
        ({"banks": text_banks(16), "encoder": "lite"}, "banks or an encoder, not both"),
        ({"banks": text_banks(16), "nouns": "wordnet"}, "banks, or nouns and captions, not both"),
        ({"nouns": "wordnet"}, "have to be embedded: give the encoder"),
        ({"captions": "no-vectors.txt"}, "have to be embedded: give the encoder"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
    ],
)
def test_parameters_are_checked_in_fit(blobs, options, message):
    with pytest.raises(ValueError, match=message):
        CAEClusterer(**{"n_clusters": 3, **options}).fit(blobs[0])


def test_an_encoder_of_another_width_is_refused_before_it_embeds_texts(blobs, monkeypatch):
    encoder = FakeEncoder()
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: pytest.fail("texts are embedded"))
    with pytest.raises(ValueError, match="X has width 16, and the encoder fake makes vectors of width 48: give"):
        CAEClusterer(3, encoder=encoder).fit(blobs[0])


def test_nan_is_refused(blobs):
    x = blobs[0].copy()
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        CAEClusterer(3).fit(x)


FRAMES = {
    "float64": lambda x: x.astype(np.float64),
    "tensor": torch.from_numpy,
    "tensor that trains": lambda x: torch.from_numpy(x).requires_grad_(),
    "half precision": lambda x: torch.from_numpy(x).half(),
    "pandas": lambda x: pytest.importorskip("pandas").DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])]),
    "polars": lambda x: pytest.importorskip("polars").DataFrame(x),
    "polars, a column of lists": lambda x: pytest.importorskip("polars").DataFrame({"embedding": x.tolist()}),
    "polars, a series of arrays": lambda x: pytest.importorskip("polars").Series(x),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_embeddings_come_in_any_container(kind):
    x = make_blobs(60, 6, centers=3, random_state=0)[0].astype(np.float16).astype(np.float32)
    expected = CAEClusterer(3).fit(x)
    X = FRAMES[kind](x)
    found = CAEClusterer(3).fit(X)
    assert (found.labels_ == expected.labels_).all()
    assert (found.predict(X) == expected.labels_).all()
    assert (found.transform(X) == expected.transform(x)).all()


def test_distances_go_out_as_polars():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(make_blobs(60, 6, centers=3, random_state=0)[0])
    found = CAEClusterer(3).set_output(transform="polars").fit(frame)
    assert found.feature_names_in_.tolist() == frame.columns
    assert isinstance(found.transform(frame), polars.DataFrame)
    with pytest.raises(ValueError, match=r"polars LazyFrame, which is not computed yet; pass X.collect\(\)"):
        found.fit(frame.lazy())
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(frame.select(frame.columns[::-1]))


def test_sparse_embeddings_say_what_to_pass():
    sparse = torch.eye(6).to_sparse()
    with pytest.raises(ValueError, match=r"layout torch.sparse_coo; pass X.to_dense\(\)"):
        CAEClusterer(3).fit(sparse)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_settings_are_numbers_of_any_kind(kind):
    x = make_blobs(60, 6, centers=3, random_state=0)[0]
    settings = {"epsilon": kind(0.5), "gamma": kind(0.25), "n_init": np.int64(2)}
    plain = CAEClusterer(
        3, banks=text_banks(6), preset="default", settings={"epsilon": 0.5, "gamma": 0.25, "n_init": 2}
    )
    found = CAEClusterer(3, banks=text_banks(6), preset="default", settings=settings)
    assert (found.fit_predict(x) == plain.fit_predict(x)).all()


@pytest.mark.parametrize("scale", [1e300, 1e25, 1e-25, 1e-300])
def test_only_the_directions_of_rows_matter_however_long_they_are(scale):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 8))[np.arange(60) % 3] + 0.1 * generator.normal(size=(60, 8))
    expected = CAEClusterer(3).fit_predict(x)
    lengths = np.where(np.arange(60) % 2, scale, 1.0)[:, None]
    assert (CAEClusterer(3).fit_predict(x * lengths) == expected).all()
    if 1e-30 < scale < 1e30:
        assert (CAEClusterer(3).fit_predict((x * lengths).astype(np.float32)) == expected).all()
