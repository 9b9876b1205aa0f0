"""The public op: its contract, its checks and its dispatch."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backend
from .operator import operator

Mode = Literal["all", "assigned"]


@torch.no_grad()
def retrieve(texts: Tensor, centers: Tensor, *, top_k: int, mode: Mode = "all", backend: Backend = "auto") -> Tensor:
    """Indices of the texts most probable for some semantic center.

        log p(p_j | u_i) = u_i·p_j - logsumexp_l(u_i·p_l)    (Eq. 2)

    Probabilities are ranked by their float32 logarithm: in half precision they tie by the hundred. Equal ones are
    ranked by index. The texts are streamed, so their number is bound by storage alone. It can be compiled and exported;
    the number of indices is then an unbacked symbol.

    Args:
        texts: (T, D) text embeddings; float32, float16 or bfloat16, converted panel by panel.
        centers: (n, D) means of image embeddings (Eq. 1), not necessarily unit and of any of these dtypes.
        top_k: texts for each center, at least 1; more than there are means all of them.
        mode: "all" takes each center's top_k among all texts (Eq. 3); "assigned" gives each text to its most probable
            center first and takes the top_k among a center's own, as TAC's code does.
        backend: "reference" (dense float64), "torch", "triton", or "auto" by device.

    Returns:
        Sorted unique indices (M,) int64 into `texts`, the union over the centers; on their device.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> x = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> u = torch.eye(2)
        >>> retrieve(u, x[:1], top_k=1)
        tensor([0])
    """
    checks.matrix("texts", texts)
    checks.matrix("centers", centers)
    checks.alike("texts", texts, "centers", centers, dtype=False)
    top_k = checks.count("top_k", top_k)
    if mode not in get_args(Mode):
        raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
    return operator(texts, centers, top_k, mode, backend)
