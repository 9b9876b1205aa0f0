"""Counterparts: each image expressed by nouns or by captions (Eq. 4-11)."""

from __future__ import annotations

import logging
import math
import warnings

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.kernels import ConvergenceWarning, cosine_sinkhorn, counterparts
from cae.utils.distributed import all_reduce_count, is_first
from cae.utils.progress import report_progress, stage
from cae.utils.words import counted

logger = logging.getLogger(__name__)


@stage("transport")
def column_potentials(
    x: Tensor, u: Tensor, config: CAEConfig, group: ProcessGroup | None = None, weights: Tensor | None = None
) -> Tensor:
    """Eq. 4-6 and 10-11: the column potentials of entropic optimal transport between images and texts.

    They are all that is kept of the plan: a row's plan is softmax_j((x.u_j + g_j) / epsilon), so a new image needs
    no other image. For `balance=0` (Eq. 9) the columns are free and g is zero.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        u: (M, D) float32 unit embeddings of the selected texts.
        config: gives balance, epsilon, iterations and tolerance.
        group: the processes that share the images.
        weights: (N,) float64, the images' shares of the mass, equal by default; not with a group, which has its own.

    Returns:
        g (M,) float32, the same on every rank.
    """
    if config.balance == 0:
        return torch.zeros(len(u), dtype=torch.float32, device=u.device)
    u = u.to(x.dtype)
    if group is not None:
        weights = x.new_full((len(x),), 1 / all_reduce_count(len(x), group), dtype=torch.float64)
        if not len(x):  # the kernels take no empty matrix: any row will do, with no weight
            x, weights = u[:1], weights.new_zeros(1)

    def say(n_iter: int, error: float) -> None:
        # The error falls by about the same factor in each iteration, so progress is measured by its logarithm.
        left = math.log(max(error, config.sinkhorn_tol) / config.sinkhorn_tol) / math.log(2 / config.sinkhorn_tol)
        report_progress(1 - left, f"iteration {n_iter}, marginal error {error:.1e}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # which speaks of the kernel's arguments
        plan = cosine_sinkhorn(
            x,
            u,
            epsilon=config.epsilon,
            row_weights=weights,
            max_iter=config.sinkhorn_iter,
            tol=config.sinkhorn_tol,
            balance=config.balance,
            group=group,
            callback=say,
        )
    if not plan.converged and is_first(group):
        logger.warning(
            "the transport between images and texts has a marginal error of %.3g after %s, above "
            "sinkhorn_tol=%g; `CAE` takes a larger sinkhorn_iter, sinkhorn_tol or epsilon",
            plan.marginal_error,
            counted(plan.n_iter, "iteration"),
            config.sinkhorn_tol,
        )
    return plan.g.detach()  # kept in the fitted state


@stage("counterparts")
def text_counterparts(x: Tensor, u: Tensor, g: Tensor, config: CAEConfig, n_fitted: int) -> Tensor:
    """Eq. 7-8: x_i^u = sum_j t_ij s_ij u_j.

    Args:
        x: (B, D) float32 unit image embeddings.
        u: (M, D) float32 unit text embeddings.
        g: (M,) float32 from `column_potentials`.
        config: gives epsilon and the scale of a counterpart.
        n_fitted: N of Eq. 11, by which the letter of Eq. 7 divides.

    Returns:
        (B, D) float32; unit rows if `config.unit_counterparts`.
    """
    aggregated = counterparts(
        x,
        u,
        g,
        epsilon=config.epsilon,
        normalize=config.unit_counterparts,
        similarity_weight=config.similarity_weight,
    )
    return aggregated if config.unit_counterparts else aggregated / n_fitted
