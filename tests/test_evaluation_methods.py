"""Every row of the comparison runs, the ablations do what they say, and the simulator shows the mechanism."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.evaluation import METHODS, parse_method, run_method
from cae.method import pipeline
from cae.metrics import clustering_scores
from cae.utils.progress import stage, stopwatch


@pytest.fixture(scope="module")
def simulation():
    """benchmarks/simulation.py, which belongs to no package."""
    file = Path(__file__).parents[1] / "benchmarks" / "simulation.py"
    spec = importlib.util.spec_from_file_location("simulation", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulation"]


@pytest.fixture(scope="module")
def nouns():
    """600 nouns of 64 dimensions in groups of related ones, in a cone as CLIP's are."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(60, 64, generator=generator).repeat_interleave(10, dim=0)
    return normalize(groups + 0.7 * torch.randn(600, 64, generator=generator) + 8, dim=1)


@pytest.fixture(scope="module")
def problem(simulation, nouns):
    return simulation.simulate(nouns, simulation.SEVERITIES["mild"], n_classes=4, n_images=400, n_captions=300)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_labels_and_repeats_itself(problem, name):
    fast = name if METHODS[name].kind != "fit" else f"{name}:n_init=2:images_per_center=40"
    labels = run_method(fast, problem, seed=0)
    assert labels.shape == (400,)
    assert labels.min() >= 0
    assert labels.max() < 4
    assert torch.equal(labels, run_method(fast, problem, seed=0))


def test_simulated_texts_know_the_classes(problem):
    assert clustering_scores(run_method("zero-shot", problem, 0), problem.labels)["acc"] > 95


def test_true_names_are_not_in_the_bank(problem):
    bank = problem.banks["noun"].embeddings.float()
    assert (bank @ problem.class_texts.T).max() < 0.9999


def test_simulation_repeats_itself_and_refuses_too_many_classes(simulation, nouns):
    mild = simulation.SEVERITIES["mild"]
    a, b = (simulation.simulate(nouns, mild, n_images=50, n_captions=20, seed=3) for _ in range(2))
    assert torch.equal(a.x, b.x)
    with pytest.raises(ValueError, match="distinct concepts"):
        simulation.simulate(nouns, mild, n_classes=500)


def test_settings_behind_colons():
    method, config = parse_method("default:gamma=0.5:top_k=7:spherical=false:modalities=noun:retrieval=assigned", 5)
    assert method is METHODS["default"]
    assert config == CAEConfig(
        n_clusters=5, gamma=0.5, top_k=7, spherical=False, modalities=("noun",), retrieval="assigned"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "unknown method 'magic'; methods are kmeans"),
        ("default:gama=1", "did you mean 'gamma'"),
        ("default:gamma", "no setting=value"),
        ("default:n_clusters=5", "no setting=value"),
        ("default:preset=paper", "no setting=value"),
        ("default:gamma=much", "gamma must be a number"),
        ("default:image=maybe", "true or false"),
        ("default:top_k=0", "top_k must be a whole number"),
    ],
)
def test_unknown_methods_and_settings_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        parse_method(name, 3)


def test_zero_shot_needs_names(problem):
    nameless = type(problem)(problem.x, problem.banks, 4, problem.labels)
    with pytest.raises(ValueError, match="names of the classes"):
        run_method("zero-shot", nameless, 0)


def test_texts_only_leaves_the_image_out(problem):
    config = parse_method("texts-only:n_init=1", 4)[1]
    fitted, prediction = pipeline.fit(problem.x, problem.banks, config)
    assert (prediction.beta[:, 0] == 0).all()
    torch.testing.assert_close(prediction.beta.sum(dim=1), torch.ones(400))
    assert torch.equal(pipeline.predict(problem.x[:9], fitted).cluster, prediction.cluster[:9])


def test_sum_and_concat_weigh_all_alike_and_differ_in_width(problem):
    for fusion, width in (("sum", 64), ("concat", 3 * 64)):
        config = parse_method(f"{fusion}:n_init=1:text_weight=1", 4)[1]
        fitted, prediction = pipeline.fit(problem.x, problem.banks, config)
        assert torch.allclose(prediction.beta, torch.tensor(1 / 3))
        assert fitted.partition.centroids.shape == (4, width)
        shown = pipeline.representations(problem.x, fitted)
        assert list(shown) == ["image", "noun", "caption", "fused"]
        assert shown["fused"].shape == (400, width)
        if fusion == "sum":
            means = fitted.means
            parts = [normalize(shown[k] - mean, dim=1) for k, mean in zip(("image", "noun", "caption"), means)]  # noqa: B905
            torch.testing.assert_close(shown["fused"], normalize(sum(parts), dim=1), atol=1e-5, rtol=0)


def test_texts_can_be_selected_on_other_images(problem):
    config = CAEConfig(n_clusters=4, n_init=1, images_per_center=40)
    own, _ = pipeline.fit(problem.x, problem.banks, config)
    other, _ = pipeline.fit(problem.x, problem.banks, config, select_on=problem.x[problem.labels < 2])
    assert own.selected["noun"].texts != other.selected["noun"].texts


def test_stages_add_up_and_inner_ones_belong_to_outer_ones():
    with stopwatch() as seconds:
        with stage("outer"), stage("inner"):
            pass
        with stage("other"):
            pass
    assert list(seconds) == ["outer", "other"]
    with stage("unwatched"):
        pass
    assert "unwatched" not in seconds
