"""The peers that benchmarks/kernels.py measures: they have to solve our problem, or the comparison is of two others."""

import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_cases import CUDA, unit
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts

EPSILON, TOLERANCE = 0.05, 1e-3


@pytest.fixture
def peers(monkeypatch):
    """benchmarks/kernel_bench/peers.py, which belongs to no installed package."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("kernel_bench.peers")


@pytest.fixture
def problem():
    """float16 vectors, whose length is off by their rounding, and what the plain iteration makes of them."""
    x, u = unit(100, 64, torch.float16, seed=1), unit(40, 64, torch.float16, seed=2)
    return x, u, cosine_sinkhorn(x, u, epsilon=EPSILON, tol=TOLERANCE, acceleration=False, backend="torch")


def centered(g):
    """Potentials without their free constant."""
    return g.double() - g.double().mean()


def test_dense_loop_takes_the_plain_iterations(peers, problem):
    x, u, plain = problem
    log_v, iterations = peers.dense_loop(x.float() @ u.float().T / EPSILON, 100, TOLERANCE)
    assert iterations == plain.n_iter > 1
    torch.testing.assert_close(centered(EPSILON * log_v), centered(plain.g), atol=1e-5, rtol=0)


def test_potentials_of_half_squared_distances(peers):
    """Lengths far from 1 show a wrong sign or factor, which unit rows would hide."""
    x, u = (
        1.5 * unit(50, 8, seed=1).double(),
        unit(20, 8, seed=2).double() * torch.linspace(0.5, 2, 20)[:, None].to(unit(1, 1).device),
    )

    def solve(cost):
        g = cost.new_zeros(cost.shape[1])
        for _ in range(200):
            f = -torch.logsumexp(g - cost, dim=1)
            g = -torch.logsumexp(f[:, None] - cost, dim=0)
        return g

    theirs = peers.from_half_squared(solve(torch.cdist(x, u) ** 2 / 2), u)
    torch.testing.assert_close(centered(theirs), centered(solve(1 - x @ u.T)), atol=1e-5, rtol=0)


class OnCuda(torch.Tensor):
    """What flash-sinkhorn accepts: it asks for CUDA even in Triton's interpreter."""

    is_cuda = property(lambda self: True)


def given(*tensors):
    return tensors if CUDA else tuple(tensor.as_subclass(OnCuda) for tensor in tensors)


@pytest.fixture
def flash(monkeypatch):
    """flash-sinkhorn with the tiles that it takes untuned."""
    try:
        kernels = pytest.importorskip("flash_sinkhorn.kernels", reason="flash-sinkhorn: pip install '.[bench]'")
    except RuntimeError as error:
        pytest.skip(f"flash-sinkhorn needs a GPU with this version of Triton: {error}")
    ott = importlib.import_module("flash_sinkhorn.kernels.apply_ott")
    for module, name in ((kernels, "sinkhorn_flashstyle_alternating"), (ott, "mat5_sqeuclid")):
        monkeypatch.setattr(module, name, partial(getattr(module, name), autotune=False))


@pytest.mark.usefixtures("flash")
def test_flash_sinkhorn_takes_the_plain_iterations(peers, problem):
    """The number of updates it is told in benchmarks/kernels.py ends at the g that the plain iteration accepts."""
    x, u, plain = problem
    g = peers.flash_sinkhorn(*given(x, u), EPSILON, plain.n_iter - 1).as_subclass(torch.Tensor)
    torch.testing.assert_close(centered(g), centered(plain.g), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("flash")
def test_flash_counterparts_are_ours(peers, problem):
    x, u, plain = problem
    y = peers.flash_counterparts(*given(x, u, plain.f, plain.g), EPSILON).as_subclass(torch.Tensor)
    expected = counterparts(x, u, plain.g, epsilon=EPSILON, backend="reference")
    torch.testing.assert_close(normalize(y, dim=1), expected.float(), atol=1e-3, rtol=0)
