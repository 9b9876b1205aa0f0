"""The settings of CAE, and the presets that answer what the paper leaves open."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

Preset = Literal["auto", "default", "paper", "tac"]
Modality = Literal["noun", "caption"]
Fusion = Literal["auto", "prototype", "concat", "sum"]
Clustering = Literal["spectral", "kmeans"]

AUTO_N_CLUSTERS = 0
"""The value of `n_clusters` that means: choose it automatically."""

MIN_POSITIVE, MAX_FINITE = 1e-30, 1e6
"""The range of positive settings: dividing by the least and adding to the greatest must not overflow float32."""

DEFAULT_ENCODER = "open_clip:ViT-B-32/openai"
"""The paper's."""

DEFAULT_BATCH_SIZE, DEFAULT_WORKERS = 64, 2
"""Images encoded at once, and processes that read images."""


@dataclass(frozen=True, kw_only=True)
class CAEConfig:
    """Every setting of the method; symbols as in the paper (arXiv 2512.00904).

    Attributes:
        n_clusters: K of Eq. 18, at least 2; or `AUTO_N_CLUSTERS` to find it out (`cae.method.cluster_count`).
        images_per_center: the semantic centers of Eq. 1 number N / images_per_center (the paper and TAC: 300).
        top_k: texts retrieved per center, K of Eq. 3. The paper sweeps 1-30 without stating its choice; TAC uses 5.
        retrieval: `all` ranks every text for every center (Eq. 2-3); `assigned` gives each text to its best center
            first and ranks inside it, as TAC's code does.
        modalities: the text counterparts that join the image.
        image: let the image embedding take part in the fusion; False clusters the counterparts alone (Table 3).
        balance: evenness of the use of texts, from 0 to 1. 1 is Eq. 5, where every text gets the same mass, also one
            that fits no image; at 0 a text gets what a softmax over the texts gives it (Eq. 9), and hubs draw all;
            between them the transport is unbalanced (`cae.kernels.cosine_sinkhorn`).
        epsilon: entropic regularisation of Eq. 10, or the temperature of the softmax.
        similarity_weight: multiply the plan by the similarity as in Eq. 7-8; False aggregates as in Eq. 9. A negative
            similarity turns its text round, which unit counterparts do not forgive.
        unit_counterparts: bring counterparts to unit length. False keeps the letter of Eq. 7, whose rows sum to 1/N and
            make a counterpart about 1/N long.
        center_modalities: subtract each modality's mean over the fitted images before fusion, then renormalise. Takes
            out the gap between images and texts, which would otherwise dominate the prototype of Eq. 14.
        fusion: `prototype` is Eq. 14-17; `concat` puts the modalities side by side, as TAC does; `sum` adds them up
            with equal weights (Table 4); `auto` lets the data decide how the texts take part, down to not at all
            (`cae.method.auto`), starting from the other settings.
        text_weight: weight of a counterpart beside the image in the fusion; 1 is the letter, 0 leaves the image
            embeddings alone.
        gamma: temperature of the modality weights, Eq. 16.
        clustering: method that finds the clusters of Eq. 18: `spectral` cuts the graph of nearest neighbours
            (`cae.method.spectral`), `kmeans` is the paper's.
        spherical: bring z to unit length; k-means then goes by cosine. False is Euclidean k-means.
        n_init: restarts of the last k-means; the best objective wins.
        kmeans_iter: most iterations of one k-means run.
        sinkhorn_iter: most Sinkhorn iterations.
        sinkhorn_tol: Sinkhorn stops when the L1 error of the column marginal is at most this.
        seed: seed of every k-means and eigen-solver, from 0 to 2^31 - 1. Same seed, same labels.

    Raises:
        ValueError: a value is out of range; the message names the setting.

    Examples:
        >>> config = CAEConfig(n_clusters=10, epsilon=0.02)
        >>> config.clustering, config.epsilon
        ('spectral', 0.02)
    """

    n_clusters: int
    images_per_center: int = 300
    top_k: int = 5
    retrieval: Literal["all", "assigned"] = "all"
    modalities: tuple[Modality, ...] = ("noun", "caption")
    image: bool = True
    balance: float = 0.5
    epsilon: float = 0.01
    similarity_weight: bool = False
    unit_counterparts: bool = True
    center_modalities: bool = True
    fusion: Fusion = "prototype"
    text_weight: float = 0.25
    gamma: float = 0.1
    clustering: Clustering = "spectral"
    spherical: bool = True
    n_init: int = 20
    kmeans_iter: int = 300
    sinkhorn_iter: int = 1000
    sinkhorn_tol: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Take numbers of NumPy and torch as Python's, and refuse values that no stage could work with."""
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        minima = {
            "n_clusters": 2,
            "images_per_center": 1,
            "top_k": 1,
            "n_init": 1,
            "kmeans_iter": 1,
            "sinkhorn_iter": 1,
            "seed": 0,
        }
        if self.n_clusters == AUTO_N_CLUSTERS:
            minima["n_clusters"] = AUTO_N_CLUSTERS
        for name, least in minima.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
            if value >= 2**31:
                raise ValueError(f"{name} must be below 2^31, got {value!r}")
        for name, most in {"epsilon": MAX_FINITE, "gamma": MAX_FINITE, "sinkhorn_tol": 1}.items():
            if not _is_number(getattr(self, name), MIN_POSITIVE, most):
                raise ValueError(f"{name} must be a positive number of at most {most:g}, got {getattr(self, name)!r}")
        if self.balance != 0 and not _is_number(self.balance, MIN_POSITIVE, 1):
            raise ValueError(f"balance must be a number from 0 to 1, got {self.balance!r}")
        if not _is_number(self.text_weight, 0, float("inf")):
            raise ValueError(f"text_weight must be a number of at least 0, got {self.text_weight!r}")
        if self.text_weight > MAX_FINITE:
            raise ValueError(f"text_weight must be at most {MAX_FINITE:g}, got {self.text_weight!r}")
        for name in ("image", "similarity_weight", "unit_counterparts", "center_modalities", "spherical"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        choices = {
            "retrieval": ("all", "assigned"),
            "fusion": get_args(Fusion),
            "clustering": get_args(Clustering),
        }
        for name, allowed in choices.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        # Lists arrive from JSON and command lines; a tuple keeps the config hashable.
        if isinstance(self.modalities, list):
            object.__setattr__(self, "modalities", tuple(self.modalities))
        known = (("noun",), ("caption",), ("noun", "caption"), ("caption", "noun"))
        if not isinstance(self.modalities, tuple) or self.modalities not in known:
            raise ValueError(f"modalities must name noun, caption or both, got {self.modalities!r}")

    @classmethod
    def from_preset(cls, preset: Preset, n_clusters: int | Literal["auto"], **overrides: Any) -> Self:
        """A named configuration with single settings changed.

        Args:
            preset: `auto` decides from the data, without labels, what the texts may weigh; `default` is our fixed
                setting; `paper` is the letter of the equations; `tac` is the training-free baseline of Li et al. 2024
                (arXiv 2310.11989).
            n_clusters: K, or `auto` for `AUTO_N_CLUSTERS`.
            overrides: any other field of this class.

        Raises:
            ValueError: unknown preset or setting, or a value out of range.
        """
        if n_clusters == AUTO_N_CLUSTERS or (isinstance(n_clusters, str) and n_clusters != "auto"):
            raise ValueError(f"n_clusters must be a whole number of at least 2, or auto, got {n_clusters!r}")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
        known = [field.name for field in fields(cls)]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; settings are {', '.join(known)}"
                raise ValueError(f"unknown setting {name!r}{hint}")
        return cls(
            n_clusters=AUTO_N_CLUSTERS if n_clusters == "auto" else n_clusters, **{**PRESETS[preset], **overrides}
        )


def _plain(value: Any) -> Any:
    """A scalar of NumPy or torch, as a search over settings brings it, as Python's number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"fusion": "auto"},
    "default": {},
    "paper": {
        "balance": 1.0,
        "similarity_weight": True,
        "text_weight": 1.0,
        "unit_counterparts": False,
        "center_modalities": False,
        "gamma": 0.01,
        "clustering": "kmeans",
        "spherical": False,
    },
    "tac": {
        "retrieval": "assigned",
        "modalities": ("noun",),
        "balance": 0.0,
        "epsilon": 0.005,
        "text_weight": 1.0,
        "center_modalities": False,
        "fusion": "concat",
        "clustering": "kmeans",
    },
}
