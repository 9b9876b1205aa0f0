"""The stages that `pipeline` puts together, and that `auto` tries settings on, from the choice of texts to z."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.method.blocks import blockwise, row_blocks
from cae.method.fitted import SelectedTexts
from cae.method.fusion import fuse_modalities, modality_means
from cae.method.semantic_space import select_texts, semantic_centers
from cae.method.transport import column_potentials, text_counterparts
from cae.text import TextBank

Texts = Mapping[str, tuple[list[str], Tensor]]
"""By modality the selected texts, M strings, and their unit embeddings (M, D)."""


def select(
    x: Tensor,
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Texts:
    """Eq. 1-3: the texts of each modality that these images' centers select, U and V; arguments as for `fit`."""
    return select_for(semantic_centers(x, config, index, group), banks, config)


def select_for(centers: Tensor, banks: Mapping[str, TextBank], config: CAEConfig) -> Texts:
    """Eq. 2-3: the texts of each modality that these centers (n, D) float32 select, U and V."""
    texts: dict[str, tuple[list[str], Tensor]] = {}
    for modality in config.modalities:
        bank = banks[modality]
        chosen = select_texts(bank.embeddings, centers, config).cpu()
        u = normalize(bank.embeddings[chosen].float(), dim=1).to(centers.device)
        texts[modality] = [bank.texts[j] for j in chosen.tolist()], u
    return texts


def potentials(
    x: Tensor, texts: Texts, config: CAEConfig, group: ProcessGroup | None = None, weights: Tensor | None = None
) -> dict[str, SelectedTexts]:
    """U with g_u, V with g_v (Eq. 4-6); arguments as for `column_potentials`."""
    return {
        modality: SelectedTexts(names, u, column_potentials(x, u, config, group, weights))
        for modality, (names, u) in texts.items()
    }


def means(
    x: Tensor,
    selected: Mapping[str, SelectedTexts],
    config: CAEConfig,
    n_images: int,
    group: ProcessGroup | None,
) -> Tensor:
    """The mean that centring subtracts from each modality: (m, D), zero where the config does not centre."""
    if not config.center_modalities:
        return torch.zeros(1 + len(selected), x.shape[1], dtype=torch.float32, device=x.device)

    def blocks() -> Iterator[tuple[Tensor, ...]]:
        for (rows,), place in row_blocks(x):
            parts = counterparts(rows, selected, config, n_images)
            yield tuple(part[: place.stop - place.start] for part in parts)

    return modality_means(blocks(), group)


def counterparts(
    rows: Tensor, selected: Mapping[str, SelectedTexts], config: CAEConfig, n_fitted: int
) -> tuple[Tensor, ...]:
    """A block of x, and its counterpart in each modality: m tensors (B, D) float32."""
    rows = rows.float()
    return rows, *(text_counterparts(rows, texts.embeddings, texts.g, config, n_fitted) for texts in selected.values())


def fused(
    rows: Tensor, selected: Mapping[str, SelectedTexts], means: Tensor, config: CAEConfig, n_fitted: int
) -> tuple[Tensor, Tensor]:
    """A block of x to z and the modality weights."""
    return fuse_modalities(counterparts(rows, selected, config, n_fitted), means, config)


class Trial:
    """The stages up to Eq. 17 on a sample, to try settings on; counterparts are kept, by balance."""

    def __init__(self, sample: Tensor, texts: Texts) -> None:
        self.sample, self.texts = sample, texts
        self._parts: dict[float, tuple[Tensor, ...]] = {}

    def fused(self, config: CAEConfig) -> Tensor:
        """The z (S, D) of these settings, which may differ between calls in balance and in the fusion."""
        if config.balance not in self._parts:
            selected = potentials(self.sample, self.texts, config)
            self._parts[config.balance] = blockwise(
                lambda rows: counterparts(rows, selected, config, len(self.sample)), self.sample
            )
        parts = self._parts[config.balance]
        means = modality_means([parts]) if config.center_modalities else torch.zeros(len(parts), parts[0].shape[1])
        means = means.to(self.sample)
        return blockwise(lambda *rows: fuse_modalities(rows, means, config)[:1], *parts)[0]
