"""One op against its float64 reference, in a process of its own: `python -m kernel_bench.smoke OP DEVICE [--thorough]`.

The last line is JSON: the largest error found. Needs torch alone, and Triton on CUDA.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from kernel_bench.problems import TOLERANCE, column_error
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts, fuse, nearest, retrieve

Backend = str
# N, M and D: sides that no tile divides. The second serves `--thorough`, where pytest is missing, and only on a GPU.
SHAPES = [(70, 45, 64), (3, 130, 3), (129, 127, 384)]
LARGE = [(5003, 2003, 512), (3001, 5003, 768), (1501, 2003, 1280)]
# ||y - y'|| / ||y'|| of a result that was rounded once; the interpreter truncates bfloat16.
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}


def main() -> None:
    op, device = sys.argv[1], torch.device(sys.argv[2])
    thorough = "--thorough" in sys.argv
    on_gpu = device.type == "cuda"
    shapes = SHAPES + LARGE * (thorough and on_gpu) if thorough else SHAPES[:1] + LARGE[:1] * on_gpu
    worst = {}
    for dtype in ROUNDING if thorough else [torch.float16]:
        for N, M, D in shapes:
            x, u = unit(N, D, dtype, device, seed=1), unit(M, D, dtype, device, seed=2)
            error = OPS[op](x, u)
            print(op, dtype, (N, M, D), f"{error:.3g} of what is allowed", flush=True)
            name = str(dtype).removeprefix("torch.")
            worst[name] = max(worst.get(name, 0), error)
    print(json.dumps({"error over tolerance": worst}))
    sys.exit(max(worst.values()) > 1)


def unit(rows: int, width: int, dtype: torch.dtype, device: torch.device, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator), dim=1).to(device, dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def check_sinkhorn(x: Tensor, u: Tensor) -> float:
    """The marginal error that the potentials have in float64, over what was asked for."""
    plan = cosine_sinkhorn(x, u, epsilon=0.1, tol=TOLERANCE, backend="triton")
    return column_error(x, u, plan.g, 0.1) / (1.1 * TOLERANCE)


def check_counterparts(x: Tensor, u: Tensor) -> float:
    found, expected = (counterparts(x, u, None, epsilon=0.05, backend=name) for name in ("triton", "reference"))
    return relative(found, expected) / ROUNDING[x.dtype]


def check_fuse(x: Tensor, u: Tensor) -> float:
    parts = [x, x.flip(0), x.roll(1, 0)]
    (found, weights), (expected, exact) = (fuse(parts, gamma=0.1, backend=name) for name in ("triton", "reference"))
    return max(relative(found, expected) / ROUNDING[x.dtype], relative(weights, exact) / 1e-5)


def check_nearest(x: Tensor, u: Tensor) -> float:
    found, expected = (nearest(x, u, k=min(3, len(u)), backend=name) for name in ("triton", "reference"))
    # Scores within rounding of each other may change places.
    moved = float((found.labels != expected.labels).float().mean())
    return max(float((found.similarity - expected.similarity).abs().max()) / 1e-5, moved / 1e-3)


def check_retrieve(x: Tensor, u: Tensor) -> float:
    found, expected = (
        set(retrieve(u, x[:20].float(), top_k=4, backend=name).tolist()) for name in ("triton", "reference")
    )
    return len(found ^ expected) / (1 + 0.01 * len(expected))


def check_gradients(x: Tensor, u: Tensor) -> float:
    """Of the ops that have one, in everything that they are differentiable in."""
    g = 0.05 * unit(1, len(u), torch.float32, x.device, seed=3)[0]

    def gradients(loss: Callable[..., Tensor], backend: Backend, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        y = loss(*leaves, backend)
        return torch.autograd.grad((y * torch.arange(y.shape[1], device=y.device).cos()).sum(), leaves)

    def means(x: Tensor, u: Tensor, g: Tensor, backend: Backend) -> Tensor:
        return counterparts(x, u, g, epsilon=0.1, backend=backend)

    def sums(x: Tensor, u: Tensor, g: Tensor, backend: Backend) -> Tensor:
        return counterparts(x, u, g, epsilon=0.1, normalize=False, similarity_weight=False, backend=backend)

    def fused(x: Tensor, y: Tensor, backend: Backend) -> Tensor:
        return fuse([x, y], gamma=0.2, backend=backend)[0]

    errors = [
        relative(found, expected)
        for loss, inputs in ((means, (x, u, g)), (sums, (x, u, g)), (fused, (x, x.flip(0))))
        for found, expected in zip(
            gradients(loss, "triton", *inputs), gradients(loss, "reference", *inputs), strict=True
        )
    ]
    return max(errors) / (4 * ROUNDING[x.dtype])


OPS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cosine_sinkhorn": check_sinkhorn,
    "counterparts": check_counterparts,
    "fuse": check_fuse,
    "nearest": check_nearest,
    "retrieve": check_retrieve,
    "gradients": check_gradients,
}

if __name__ == "__main__":
    main()
