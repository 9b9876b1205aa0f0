"""Whom the kernels are measured against. A peer that cannot be had is passed over, and why is added to `missing`.

- Loops that do the plain Sinkhorn iteration: a dense torch loop in the log domain, POT (log domain, and lazy) and
  KeOps' online log-sum-exp, which is what GeomLoss runs. They share one iteration and so one number of iterations to an
  error. The dense loop runs to it and gives that number; the others' time is the number times their time for one, from
  calls of a few iterations. A dense peer's product is free.
- Counterparts against TAC's dense softmax counterpart.
- On CUDA both against flash-sinkhorn too, which is told the plain iteration's number of iterations. What is dense runs
  where an (N, M) matrix fits.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from kernel_bench.measuring import Contender, matrix_product, quiet
from kernel_bench.peers import dense_loop, flash_counterparts, flash_sinkhorn, keops_iteration, softmax_counterpart
from kernel_bench.problems import TOLERANCE
from torch import Tensor

from cae.kernels import SinkhornResult, cosine_sinkhorn, counterparts

STEPS = 5  # iterations whose mean is one
# Minutes on CUDA, so it runs once, after everything else.
LONGEST = "flash-sinkhorn, to 1e-3"
# The most plain iterations that anything waits for on CUDA: a minute and a half of them.
MOST_PLAIN = 1000


def our_contenders(x: Tensor, u: Tensor, g: Tensor, epsilon: float) -> dict[str, Contender]:
    """Ours, and the product that an iteration is made of."""
    # From zeros: many rows start from a sample of them otherwise, whose sweeps are not counted.
    few = {"epsilon": epsilon, "tol": 1e-12, "max_iter": STEPS, "init": u.new_zeros(len(u))}
    return {
        "matrix product": (lambda: matrix_product(x, u), 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, **few)), STEPS, 0),
        "ours, to 1e-3": (lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE).g, 1, 0),
        "ours, counterparts": (lambda: counterparts(x, u, g, epsilon=epsilon), 1, 0),
    }


def plain_iterations(x: Tensor, u: Tensor, epsilon: float, missing: list[str]) -> int:
    """How many the plain iteration takes to the tolerance, or how many it was given where they were not enough."""
    cold = {"acceleration": False, "init": u.new_zeros(len(u))}
    plain = quiet(lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=MOST_PLAIN, **cold))()
    if not plain.converged:
        missing.append(f"the plain iteration's end: {plain.marginal_error:.2g} from it after {plain.n_iter} iterations")
    return int(plain.n_iter)


def flash_steps(plain: int) -> int:
    """Updates behind the g that the plain iteration accepts: its last sweep is the test alone."""
    return max(1, plain - 1)


def flash_contenders(
    x: Tensor, u: Tensor, ours: SinkhornResult, epsilon: float, plain: int, missing: list[str]
) -> dict[str, Contender]:
    """flash-sinkhorn after its autotuning; the conversion to float32 is part of what it does."""
    contenders: dict[str, Contender] = {
        "flash-sinkhorn, iteration": (lambda: flash_sinkhorn(x, u, epsilon, STEPS), STEPS, 0),
        LONGEST: (lambda: flash_sinkhorn(x, u, epsilon, flash_steps(plain)), 1, 0),
        "flash-sinkhorn, counterparts": (lambda: flash_counterparts(x, u, ours.f, ours.g, epsilon), 1, 0),
    }
    if not runnable(contenders["flash-sinkhorn, iteration"], "flash-sinkhorn", missing):
        return {}
    if not runnable(contenders["flash-sinkhorn, counterparts"], "flash-sinkhorn, counterparts", missing):
        del contenders["flash-sinkhorn, counterparts"]
    return contenders


def runnable(contender: Contender, name: str, missing: list[str]) -> bool:
    """Whether a peer that compiles at its first call comes through it; why not is added to `missing`."""
    try:
        contender[0]()
    except Exception as error:  # a package, compiler or memory that is not there shows up as one of many types
        missing.append(f"{name}: {type(error).__name__}: {error}")
        return False
    return True


def dense_contenders(
    x: Tensor, u: Tensor, epsilon: float, counts: dict[str, int], missing: list[str]
) -> dict[str, Contender]:
    """Peers with an (N, M) matrix, and POT; the dense loop's run to the end leaves its iterations in `counts`."""
    matrix_mb = 4 * len(x) * len(u) / 2**20
    if x.is_cuda:
        missing.append("POT: measured on the CPU only")
        torch.cuda.empty_cache()  # what the allocator keeps for later is free too
        # The matrix and two temporaries.
        if 3.2 * matrix_mb > (free_mb := torch.cuda.mem_get_info()[0] / 2**20):
            missing.append(f"dense loop, TAC: needs {3.2 * matrix_mb:,.0f} MB of {free_mb:,.0f} free")
            return {}
    scores = x.float() @ u.float().T / epsilon

    def to_the_end() -> Tensor:
        log_v, counts["plain"] = dense_loop(scores, 5000, TOLERANCE)
        return epsilon * log_v

    contenders: dict[str, Contender] = {
        "dense loop, iteration": (lambda: dense_loop(scores, STEPS), STEPS, matrix_mb),
        "dense loop, to 1e-3": (to_the_end, 1, matrix_mb),
        "TAC softmax counterpart": (lambda: softmax_counterpart(x, u, epsilon), 1, 0),
    }
    return contenders if x.is_cuda else contenders | pot_contenders(x, u, scores, epsilon, missing)


def pot_contenders(x: Tensor, u: Tensor, scores: Tensor, epsilon: float, missing: list[str]) -> dict[str, Contender]:
    """POT with the matrix and without."""
    if not find_spec("ot"):
        missing.append("POT: not installed")
        return {}
    import ot

    (N, M), matrix_mb = scores.shape, scores.nbytes / 2**20
    a, b = torch.full((N,), 1 / N), torch.full((M,), 1 / M)

    def dense() -> Tensor:
        return ot.sinkhorn(a, b, -scores, 1.0, method="sinkhorn_log", numItermax=STEPS, stopThr=0)

    def lazy() -> tuple[Tensor, Tensor]:
        # Its cost is |x - u|^2 = 2 (1 - x·u), so its regularisation is 2 epsilon.
        options = {"numIterMax": STEPS, "stopThr": 0, "isLazy": True, "batchSize": 1000}
        return ot.bregman.empirical_sinkhorn(x, u, 2 * epsilon, **options)

    return {
        "POT log, iteration": (quiet(dense), STEPS, matrix_mb),
        "POT lazy, iteration": (quiet(lazy), STEPS, 0),
    }


def keops_contender(x: Tensor, u: Tensor, epsilon: float, missing: list[str]) -> dict[str, Contender]:
    """KeOps' work is linear in N, and all of it would take minutes: a 40th, in float32."""
    name, share = "KeOps (GeomLoss), iteration", max(1, len(x) // 40)
    few, texts = x[:share].float(), u.float()

    def iteration() -> Tensor:
        from pykeops.torch import LazyTensor

        return keops_iteration(LazyTensor, few, texts, epsilon)

    contender: Contender = (iteration, share / len(x), 0)
    return {name: contender} if runnable(contender, "KeOps", missing) else {}
