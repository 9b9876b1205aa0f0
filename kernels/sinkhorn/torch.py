"""Streaming backend: one float32 panel of rows at a time, with all columns, in bounded scratch."""

import math
from typing import Any

import torch
from torch import Tensor

from ..products import inner_products
from ..tiles import kept_rows, panel_rows, panels
from .solver import SinkhornResult, solve


def cosine_sinkhorn(x: Tensor, u: Tensor, *, epsilon: float, row_weights: Tensor, **options: Any) -> SinkhornResult:
    """The public op; arguments as checked there, `options` those of `solve`."""
    return solve(PanelSweep(x, u, row_weights, epsilon), epsilon=epsilon, **options)


class PanelSweep:
    """The sweep of `solver.Sweep` by dense panels; the buffers live as long as the solve."""

    def __init__(self, x: Tensor, u: Tensor, row_weights: Tensor, epsilon: float) -> None:
        self.x, self.u, self.a = x, u.float(), row_weights.float()
        N, M = len(self.a), u.shape[0]
        # Base 2 throughout: torch's exp2 takes a fifth of the time that its exp takes.
        self.scale = 1 / (epsilon * math.log(2))
        self.panel = x.new_empty(min(N, panel_rows(M, x.device)), M, dtype=torch.float32)
        self.log_u = x.new_empty(N, dtype=torch.float32)
        # x·u of the first panels, from sweep to sweep: reading it is faster than making it anew.
        kept = panels(min(N, kept_rows(M, x.device)), M, x.device)
        self.scores = [inner_products(self.x[rows].float(), self.u) for rows in kept]

    def __call__(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """See `solver.Sweep`."""
        N, M, device = len(self.a), self.u.shape[0], self.x.device
        bias = (log_v / math.log(2)).to(device, torch.float32)
        # Float64 across panels, so that the sums do not drift with N.
        columns = torch.zeros(M, dtype=torch.float64, device=device)
        for index, rows in enumerate(panels(N, M, device)):
            p = self.panel[: rows.stop - rows.start]
            is_kept = index < len(self.scores)
            s = self.scores[index] if is_kept else inner_products(self.x[rows].float(), self.u, out=p)
            torch.add(bias, s, alpha=self.scale, out=p)
            top = p.amax(dim=1)
            p.sub_(top[:, None]).exp2_()
            z = p.sum(dim=1)
            columns += (self.a[rows] / z) @ p
            self.log_u[rows] = z.log2_().add_(top).mul_(-math.log(2))
        return self.log_u, columns
