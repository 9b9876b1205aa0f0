"""What the heads are trained on, as pure functions of their predictions.

Everywhere `p` and `q` are (B, K) softmax outputs of two heads for B images. A column of one of them, the same cluster
over the whole batch, says which images a cluster takes: these columns are the vectors that the distillation compares,
so a batch has to be large against K, and on several processes the predictions of all have to be gathered first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

SMALLEST = 1e-9
"""Probabilities below it count as it, so that no logarithm is infinite."""


def distillation(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each cluster's column in `p` against its own column in `q` among all columns, and mirrored.

    With e_1 … e_2K the unit columns of p, then of q, and a' the same cluster in the other half (arXiv 2310.11989):

        D(p, q) = -1 / 2K · sum_a log( exp(e_a·e_a' / T) / sum_{b != a} exp(e_a·e_b / T) )

    Args:
        p: (B, K) predictions for the images.
        q: (B, K) predictions of the other head for neighbours of the same images.
        temperature: T.

    Returns:
        A scalar; at least 0.
    """
    k = p.shape[1]
    columns = normalize(torch.cat([p, q], dim=1), dim=0)
    logits = (columns.T @ columns / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * k, device=p.device).roll(k)
    return cross_entropy(logits, partner)


def consistency(p: Tensor, q: Tensor) -> Tensor:
    """Both heads should say the same of an image: C(p, q) = -1 / B · sum_i log(p_i·q_i), (B, K) each; a scalar."""
    return -(p * q).sum(dim=1).clamp_min(SMALLEST).log().mean()


def balance(p: Tensor) -> Tensor:
    """Entropy of the mean prediction, H(p) = -sum_k m_k log m_k with m = mean_i p_i: log K if all clusters are used.

    Args:
        p: (B, K) predictions.

    Returns:
        A scalar in [0, log K].
    """
    mean = p.mean(dim=0)
    return -(mean * mean.clamp_min(SMALLEST).log()).sum()


def mutual_distillation(
    p: Tensor, q: Tensor, p_neighbour: Tensor, q_neighbour: Tensor, *, temperature: float, balance_weight: float
) -> dict[str, Tensor]:
    """TAC's loss of two heads (arXiv 2310.11989).

        L = D(p, q') + D(q, p') + C(p, q) - w (H(p) + H(q))

    Args:
        p: (B, K) predictions of the one head.
        q: (B, K) predictions of the other.
        p_neighbour: p' (B, K), the one head's predictions for a neighbour of each image in its own modality.
        q_neighbour: q' (B, K), the other head's.
        temperature: temperature of D.
        balance_weight: w.

    Returns:
        `loss` and its terms `distillation`, `consistency` and `balance`, unweighted.
    """
    terms = {
        "distillation": distillation(p, q_neighbour, temperature) + distillation(q, p_neighbour, temperature),
        "consistency": consistency(p, q),
        "balance": balance(p) + balance(q),
    }
    loss = terms["distillation"] + terms["consistency"] - balance_weight * terms["balance"]
    return {"loss": loss, **terms}


def instance_alignment(logits: Tensor, best: Tensor) -> Tensor:
    """Contrast each image's best texts with all others: -1 / B · sum_i log sum_{j in best_i} softmax(logits_i)_j.

    Args:
        logits: (B, M) similarity of images and texts over the temperature.
        best: (B, P) int64, the texts that belong to each image.

    Returns:
        A scalar; 0 where an image's whole probability lies on its best texts.
    """
    return -logits.log_softmax(dim=1).gather(1, best).logsumexp(dim=1).mean()


def semantic_alignment(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each image's distribution over the texts with the one it should have.

    Args:
        logits: (B, M) similarity of images and texts over the temperature.
        target: (B, M) distributions; no gradient flows into them.

    Returns:
        A scalar; smallest, the entropy of the targets, where both agree.
    """
    return cross_entropy(logits, target.detach())
