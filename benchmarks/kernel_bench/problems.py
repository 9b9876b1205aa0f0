"""What the kernels are measured on, and what tells whether they are right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts

CPU = torch.device("cpu")
TOLERANCE = 1e-3
DEFAULT_SHAPE = {"cpu": (40_000, 2_000, 512), "scaling": (10_000, 1_000, 512), "cuda": (1_281_167, 20_000, 512)}


def inputs(geometry: str, N: int, M: int, D: int = 512, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """(N, D) images and (M, D) texts with unit rows, float32 or on CUDA float16; D is 512 for "clip".

    "clip" is benchmarks/simulation.py's, where few iterations are enough: all texts are about as far from all images.
    "clustered" is 100 Gaussian clusters that hold other shares of the images than of the texts, so that mass has to
    move from cluster to cluster, which takes many.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if geometry == "clip":
        # Here, since it needs the whole package, where the kernels need torch alone.
        from simulation import SEVERITIES, load_noun_vectors, simulate

        problem = simulate(load_noun_vectors(), SEVERITIES["default"], n_images=N)
        x, u = problem.x, normalize(problem.banks["noun"].embeddings[:M].float(), dim=1)
        return x.to(device, dtype), u.to(device, dtype)
    on = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    centers = normalize(torch.randn(100, D, **on), dim=1)

    def sample(rows: int) -> Tensor:
        shares = torch.rand(100, **on) ** 2
        cluster = torch.multinomial(shares, rows, True, generator=on["generator"])
        return normalize(0.9 * centers[cluster] + normalize(torch.randn(rows, D, **on), dim=1), dim=1).to(dtype)

    return sample(N), sample(M)


def gate(x: Tensor, u: Tensor, epsilon: float) -> None:
    """Stop here if the ops are wrong."""
    half = x.dtype != torch.float32
    result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=5000)
    cost = 1 - x.double() @ u.double().T
    plan = ((result.f.double()[:, None] + result.g.double() - cost) / epsilon).exp() / len(x)
    rows = plan.sum(dim=1) * len(x)
    torch.testing.assert_close(rows, torch.ones_like(rows), atol=2e-3 if half else 1e-4, rtol=0)
    error = float((plan.sum(dim=0) - 1 / len(u)).abs().sum())
    assert error <= 1.1 * TOLERANCE, f"marginal error {error:.3g}, expected {TOLERANCE}"
    y = counterparts(x, u, result.g, epsilon=epsilon)
    exact = counterparts(x, u, result.g, epsilon=epsilon, backend="reference")
    torch.testing.assert_close(y.double(), exact.double(), atol=1e-4 if half else 1e-5, rtol=1e-3 if half else 0)


def column_error(x: Tensor, u: Tensor, g: Tensor, epsilon: float) -> float:
    """L1 error of the columns after the row update for g; weights are uniform."""
    columns = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for rows in x.split(1000):
        columns += torch.softmax((rows.double() @ u.double().T + g.double()) / epsilon, dim=1).sum(dim=0) / len(x)
    return float((columns - 1 / len(u)).abs().sum())
