"""A flat map of all images: what the method sees as alike lies close together."""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from cae.kernels import nearest
from cae.utils.progress import Progress

N_COMPONENTS = 50
"""Principal components that t-SNE gets to see, as in the experiments of its authors (van der Maaten & Hinton 2008)."""
PERPLEXITY = 30
N_ITER = (250, 500)
"""Iterations with early exaggeration and after it."""
N_LANDMARKS = 20_000
"""Images that t-SNE itself arranges. Further ones go to the median of their nearest neighbours among those."""
N_NEIGHBOURS = 10
FEWEST = 8
"""Images below which there are no neighbourhoods to keep: the map is the first two principal components."""
ALIKE = 1e-6
"""Images that differ by less in every coordinate are all the same, and lie in one place."""
_REPORT_EVERY = 10


def lay_out(z: NDArray[np.float32], *, seed: int, progress: Progress | None = None) -> NDArray[np.float32]:
    """Positions by t-SNE (openTSNE; Poličar et al. 2024), started from the first two principal components.

    Args:
        z: (N, D) unit rows, what was clustered; N at least 2.
        seed: same seed, same map.
        progress: called with (done, total) iterations.

    Returns:
        (N, 2) in [0, 1]: the longer side fills the range, the shape of the cloud is kept.
    """
    if np.ptp(z, axis=0).max() < ALIKE:
        return np.full((len(z), 2), 0.5, dtype=np.float32)
    # Both take a second to import, and `cae --help` should not wait for them.
    from openTSNE import TSNE
    from sklearn.decomposition import PCA

    points = PCA(min(N_COMPONENTS, *z.shape), svd_solver="randomized", random_state=seed).fit_transform(z)
    if len(z) < FEWEST:
        return _fill_unit_square(np.pad(points, ((0, 0), (0, 2)))[:, :2])
    chosen = np.random.default_rng(seed).permutation(len(z))[:N_LANDMARKS]
    chosen.sort()
    done, total = count(_REPORT_EVERY, _REPORT_EVERY), sum(N_ITER)
    landmarks = TSNE(
        perplexity=min(PERPLEXITY, (len(chosen) - 1) / 3),
        early_exaggeration_iter=N_ITER[0],
        n_iter=N_ITER[1],
        n_jobs=1,  # two threads take longer than one wherever the cores have other work
        random_state=seed,
        callbacks=None if progress is None else lambda *_: progress(next(done), total),
        callbacks_every_iters=_REPORT_EVERY,
    ).fit(points[chosen])
    flat = np.empty((len(z), 2))
    flat[chosen] = landmarks
    if len(chosen) < len(z):
        others = np.setdiff1d(np.arange(len(z)), chosen, assume_unique=True)
        flat[others] = landmarks.prepare_partial(points[others], initialization="median", k=N_NEIGHBOURS)
    return _fill_unit_square(flat)


def lay_among(z: NDArray[np.float32], position: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions of further images on a map that stays: each at the median of its nearest neighbours.

    Args:
        z: (N, D) unit rows, as for `lay_out`.
        position: (M, 2) of the first M, at most N.

    Returns:
        (N, 2), the first M as given.
    """
    m = len(position)
    if m == len(z):
        return position
    near = nearest(torch.from_numpy(z[m:]), torch.from_numpy(z[:m]), k=min(N_NEIGHBOURS, m)).labels
    placed = np.median(position[near.numpy().reshape(len(z) - m, -1)], axis=1)
    return np.concatenate([position, placed.astype(np.float32)])


def _fill_unit_square(flat: NDArray[np.floating]) -> NDArray[np.float32]:
    low, high = flat.min(axis=0), flat.max(axis=0)
    side = max(float((high - low).max()), np.finfo(np.float32).tiny)
    return ((flat - (low + high) / 2) / side + 0.5).astype(np.float32)
