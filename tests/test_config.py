"""Settings: presets, overrides and refusals."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cae.config import CAEConfig


def test_paper_preset_is_the_letter_of_the_equations():
    config = CAEConfig.from_preset("paper", 10)
    assert (config.gamma, config.images_per_center, config.retrieval) == (0.01, 300, "all")
    assert (config.balance, config.text_weight, config.similarity_weight) == (1, 1, True)
    assert not config.unit_counterparts
    assert not config.center_modalities


def test_tac_preset_is_nouns_softmax_concatenation():
    config = CAEConfig.from_preset("tac", 10)
    assert (config.modalities, config.balance, config.epsilon, config.fusion) == (
        ("noun",),
        0.0,
        0.005,
        "concat",
    )


def test_overrides_change_a_preset_and_survive_json():
    config = CAEConfig.from_preset("paper", 7, epsilon=0.2, modalities=["caption"])
    assert CAEConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": 1}, "n_clusters must be a whole number of at least 2, got 1"),
        ({"n_clusters": 2.5}, "n_clusters must be a whole number"),
        ({"n_clusters": False}, "n_clusters must be a whole number"),  # which equals AUTO_N_CLUSTERS
        ({"n_clusters": 0.0}, "n_clusters must be a whole number"),
        ({"n_clusters": 3, "epsilon": 0}, "epsilon must be a positive number"),
        ({"n_clusters": 3, "gamma": float("nan")}, "gamma must be a positive number"),
        ({"n_clusters": 3, "top_k": 0}, "top_k"),
        ({"n_clusters": 3, "retrieval": "some"}, "retrieval must be one of all, assigned"),
        ({"n_clusters": 3, "balance": 1.5}, "balance must be a number from 0 to 1, got 1.5"),
        ({"n_clusters": 3, "text_weight": -1}, "text_weight must be a number of at least 0, got -1"),
        ({"n_clusters": 3, "fusion": "best"}, "fusion must be one of auto, prototype, concat, sum"),
        ({"n_clusters": 3, "sinkhorn_tol": 2}, "sinkhorn_tol must be a positive number of at most 1"),
        ({"n_clusters": 3, "epsilon": 1e-320}, "epsilon must be a positive number"),
        ({"n_clusters": 3, "epsilon": 10**400}, "epsilon must be a positive number"),
        ({"n_clusters": 3, "text_weight": 1e30}, "text_weight must be at most 1e"),
        ({"n_clusters": 3, "spherical": 1}, "spherical must be True or False, got 1"),
        ({"n_clusters": 3, "seed": -1}, "seed must be a whole number of at least 0"),
        ({"n_clusters": 3, "seed": 2**31}, r"seed must be below 2\^31, got 2147483648"),
        ({"n_clusters": 3, "modalities": None}, "modalities must name"),
        ({"n_clusters": 3, "modalities": ("noun", "noun")}, "modalities must name"),
        ({"n_clusters": 3, "modalities": ()}, "modalities must name"),
        ({"n_clusters": 3, "modalities": ("sound",)}, "modalities must name"),
    ],
)
def test_refuses_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CAEConfig(**settings)


def test_unknown_settings_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'epsilon'"):
        CAEConfig.from_preset("default", 3, epsilom=1)
    with pytest.raises(ValueError, match="choose one of auto, default, paper, tac"):
        CAEConfig.from_preset("best", 3)


def test_numbers_of_numpy_and_torch_are_numbers():
    """What a search over settings brings."""
    given = CAEConfig.from_preset(
        "default", np.int64(7), epsilon=np.float32(0.5), seed=torch.tensor(3), spherical=np.True_
    )
    assert given == CAEConfig.from_preset("default", 7, epsilon=0.5, seed=3, spherical=True)
    assert {type(given.n_clusters), type(given.seed)} == {int}
    assert type(given.epsilon) is float
    assert type(given.spherical) is bool
    with pytest.raises(ValueError, match="n_clusters must be a whole number"):
        CAEConfig(n_clusters=np.float64(7.5))
