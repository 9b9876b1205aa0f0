"""The methods of the comparison: one table, from embeddings and banks to labels.

A method is named as on the command line: a row of `METHODS`, and any setting of `CAEConfig` behind colons, as in
`default:gamma=0.05:top_k=10`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_type_hints

from torch import Tensor

from cae.config import CAEConfig, Preset
from cae.evaluation.peers import image_spectral, ntk_sc
from cae.kernels import nearest
from cae.method import pipeline, stages
from cae.method.auto import CANDIDATES
from cae.method.kmeans import image_kmeans
from cae.models.trained import TRAINED
from cae.text import TextBank


@dataclass(frozen=True)
class Problem:
    """What a method is given, and what it is scored by.

    Attributes:
        x: (N, D) float32 unit image embeddings.
        banks: text banks of the same encoder, `noun` and `caption`.
        n_clusters: K.
        labels: (N,) int64 true classes, which no method sees.
        class_texts: (C, D) float32 unit embeddings of the class names in the order of the labels, for zero-shot.
        select_on: (N', D) float32 unit embeddings of other images whose centers select the texts; None for `x` itself.

    Examples:
        >>> import torch
        >>> x = torch.eye(4)[:2].repeat_interleave(10, dim=0)
        >>> problem = Problem(x, banks={}, n_clusters=2, labels=torch.arange(2).repeat_interleave(10))
        >>> problem.x.shape
        torch.Size([20, 4])
    """

    x: Tensor
    banks: Mapping[str, TextBank]
    n_clusters: int
    labels: Tensor
    class_texts: Tensor | None = None
    select_on: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        about: description in tables.
        preset: preset of `CAEConfig`.
        settings: settings that differ from the preset.
        kind: `fit` runs the pipeline, `trained` one of `cae.models.trained` on top of it; `ntk-sc` is a method of
            others; `kmeans`, `spectral` and `zero-shot` are the baselines without texts.

    Examples:
        >>> Method("without counterparts", settings={"text_weight": 0.0}).needs_texts
        True
    """

    about: str
    preset: Preset = "default"
    settings: Mapping[str, Any] | None = None
    kind: Literal["fit", "trained", "ntk-sc", "kmeans", "spectral", "zero-shot"] = "fit"

    @property
    def needs_texts(self) -> bool:
        """Whether it needs the banks of its config's modalities."""
        return self.kind in ("fit", "trained", "ntk-sc")


METHODS: dict[str, Method] = {
    "kmeans": Method("k-means on image embeddings", kind="kmeans"),
    "spectral": Method("spectral clustering of image embeddings by scikit-learn", kind="spectral"),
    "zero-shot": Method("nearest class name; the only row that is told the names", kind="zero-shot"),
    "ntk-sc": Method(
        "NTK-SC (arXiv 2602.09586), our reading, fixed temperature", settings={"modalities": ("noun",)}, kind="ntk-sc"
    ),
    "tac": Method("TAC without training (Li et al. 2024)", "tac"),
    "paper": Method("CAE by the letter of the equations", "paper"),
    "default": Method("CAE with the defaults of this package"),
    "auto": Method("CAE that decides without labels what the texts may weigh", "auto"),
    # With training.
    "tac-heads": Method("TAC with trained cluster heads (Li et al. 2024)", "tac", kind="trained"),
    "mca": Method("MCA (Qiu et al. 2024), our reading", "tac", kind="trained"),
    "cae-heads": Method("TAC's training on CAE's counterparts", settings={"fusion": "concat"}, kind="trained"),
    # The paper's last step in place of ours.
    "default-kmeans": Method("the defaults with k-means as the last step", settings={"clustering": "kmeans"}),
    # Table 3 of the paper, which semantics are clustered.
    "image-only": Method("image embeddings without texts", settings={**CANDIDATES["image alone"]}),
    "noun-only": Method("noun counterparts alone", settings={"image": False, "modalities": ("noun",)}),
    "caption-only": Method("caption counterparts alone", settings={"image": False, "modalities": ("caption",)}),
    "texts-only": Method("noun and caption counterparts without the image", settings={"image": False}),
    # Table 4, how they are combined.
    "concat": Method("image and counterparts side by side", settings={"fusion": "concat"}),
    "sum": Method("image and counterparts added up", settings={"fusion": "sum"}),
    # Eq. 9 against Eq. 5.
    "softmax": Method("softmax in place of optimal transport", settings={"balance": 0.0}),
    "uniform": Method("texts used evenly, as in Eq. 5", settings={"balance": 1.0}),
}


def run_method(name: str, problem: Problem, seed: int) -> Tensor:
    """Labels (N,) int64 of a method, on the CPU.

    Args:
        name: a row of `METHODS`, with settings behind colons if need be.
        problem: embeddings and banks.
        seed: seed of every k-means.

    Raises:
        ValueError: no such method or setting, zero-shot without class names, or what `cae.method.pipeline.fit` refuses.

    Examples:
        >>> import torch
        >>> x = torch.eye(4)[:2].repeat_interleave(10, dim=0)
        >>> problem = Problem(x, banks={}, n_clusters=2, labels=torch.arange(2).repeat_interleave(10))
        >>> run_method("kmeans", problem, seed=0).bincount().tolist()
        [10, 10]
    """
    method, config = parse_method(name, problem.n_clusters, seed=seed)
    if method.kind == "kmeans":
        return image_kmeans(
            problem.x, config.n_clusters, n_init=config.n_init, max_iter=config.kmeans_iter, seed=config.seed
        ).cpu()
    if method.kind == "spectral":
        return image_spectral(problem.x, config.n_clusters, seed=config.seed)
    if method.kind == "ntk-sc":
        return ntk_sc(problem.x, stages.select(problem.x, problem.banks, config)["noun"][1], config)
    if method.kind == "zero-shot":
        if problem.class_texts is None:
            raise ValueError(
                "zero-shot needs the names of the classes, and this data set has none; give them (class_names, "
                "--class-names)"
            )
        return nearest(problem.x, problem.class_texts).labels.cpu()
    if method.kind == "trained":
        module = TRAINED[name.partition(":")[0]](**asdict(config))
        # TAC's protocol: what selects the texts is also what is trained on.
        module.fit_embeddings(problem.x if problem.select_on is None else problem.select_on, banks=problem.banks)
        return module.predict_embeddings(problem.x).cluster.cpu()
    _, prediction = pipeline.fit(problem.x, problem.banks, config, select_on=problem.select_on)
    return prediction.cluster.cpu()


def parse_method(name: str, n_clusters: int | Literal["auto"], **overrides: Any) -> tuple[Method, CAEConfig]:
    """The row of `METHODS` and the whole configuration that a name stands for.

    Raises:
        ValueError: no such method or setting, or a value that does not fit its setting.

    Examples:
        >>> method, config = parse_method("default:gamma=0.1", n_clusters=10)
        >>> method.about, config.gamma
        ('CAE with the defaults of this package', 0.1)
    """
    row, *changes = name.split(":")
    if row not in METHODS:
        raise ValueError(
            f"unknown method {row!r}; methods are {', '.join(METHODS)}, with settings as in default:gamma=0.1"
        )
    method = METHODS[row]
    settings = dict(method.settings or {})
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key in ("preset", "n_clusters"):  # the row's, and the classes'
            raise ValueError(f"the method {name!r} holds {change!r}, which is no setting=value as in default:gamma=0.1")
        settings[key] = _value(key, value)
    return method, CAEConfig.from_preset(method.preset, n_clusters, **{**settings, **overrides})


def _value(setting: str, text: str) -> Any:
    """A setting's value from the command line, by the type of the setting."""
    kind = get_type_hints(CAEConfig).get(setting, str)
    if setting == "modalities":
        return tuple(text.split("+"))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{setting} must be true or false, got {text!r}")
        return text == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError as error:
        raise ValueError(f"{setting} must be a number, got {text!r}") from error
