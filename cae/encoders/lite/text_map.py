"""The map from sentence vectors into the image space: kernel ridge regression on WordNet.

The pairs to fit come from `hypernyms.tsv`: a noun, and the ImageNet-1k classes below it. The noun's sentence vector
goes to the mean of those classes' rows of the image classifier, centred and unit. So "dog" lies where dogs of all
breeds lie, and a text that is like no noun of the table is drawn to the nouns that its sentence is most like.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize

from cae.encoders.lite.image_tower import class_rows
from cae.encoders.lite.text_tower import TextTower
from cae.encoders.onednn import linear
from cae.utils.cache import cache_dir
from cae.utils.checksums import load_tensors, save_tensors
from cae.utils.files import replacing, tidy

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("hypernyms.tsv")
SHARPNESS = 8.0
RIDGE = 0.5
TEXTS_AT_ONCE = 1024


class TextMap(nn.Module):
    """Sentence vectors t ↦ Σ_a exp(8 (t·t_a − 1)) w_a over the anchors a, made unit.

    Args:
        anchors: (A, 384) unit sentence vectors of the nouns fitted on.
        coefficients: (A, D).
    """

    anchors: Tensor
    coefficients: Tensor

    def __init__(self, anchors: Tensor, coefficients: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors)
        self.register_buffer("coefficients", coefficients)

    def forward(self, sentences: Tensor) -> Tensor:
        """(T, 384) unit rows ↦ (T, D) unit rows."""
        out = sentences.new_empty(len(sentences), self.coefficients.shape[1])
        # In parts: the kernel matrix of 100,000 texts would take over a gigabyte.
        for part, mapped in zip(sentences.split(TEXTS_AT_ONCE), out.split(TEXTS_AT_ONCE), strict=True):
            mapped.copy_(normalize(linear(_kernel(part, self.anchors), self.coefficients.T), dim=1))
        return out


def load_text_map(tower: TextTower, fingerprint: str) -> TextMap:
    """The fitted map from the cache, or fitted now and cached.

    Args:
        tower: Encodes the nouns if the map is to be fitted.
        fingerprint: Changes with everything that changes the map.
    """
    path = cache_dir() / "lite" / f"text_map-{fingerprint}.safetensors"
    tidy(path.parent)
    if path.exists():
        try:
            weights = load_tensors(path)
            return TextMap(weights["anchors"], weights["coefficients"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("the cached map of texts %s is damaged (%s): fitting it again", path, error)
    fitted = fit_text_map(tower)
    with replacing(path) as draft:
        save_tensors(fitted.state_dict(), draft)
    return fitted


def fit_text_map(tower: TextTower) -> TextMap:
    """Fit the map on the table of hypernyms."""
    rows = class_rows()
    rows = normalize(rows - rows.mean(0), dim=1)
    with TABLE.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, delimiter="\t"))
    targets = torch.stack([rows[[int(index) for index in classes.split()]].mean(0) for _, classes in table])
    with torch.inference_mode():
        anchors = tower.encode([noun for noun, _ in table]).cpu()
    kernel = _kernel(anchors, anchors)
    kernel.diagonal().add_(RIDGE)
    return TextMap(anchors, torch.linalg.solve(kernel, targets).contiguous())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return linear(a, b).sub_(1).mul_(SHARPNESS).exp_()
