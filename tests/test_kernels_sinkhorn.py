"""cosine_sinkhorn: against the float64 reference and POT, its convergence, its symmetries, its process group."""

import warnings
from datetime import timedelta
from itertools import accumulate, product
from math import ceil, log

import pytest
import torch
import torch.distributed as dist
from kernel_cases import BACKENDS, CUDA, DEVICE, DTYPES, GEOMETRIES, SHAPES, pair, poison, unit  # noqa: F401
from processes import free_port, leave_group
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import AndersonAcceleration, ConvergenceWarning, SinkhornResult, cosine_sinkhorn, tiles
from cae.kernels.sinkhorn.torch import PanelSweep, _start

pytestmark = pytest.mark.usefixtures("poison")


def plan(x: Tensor, u: Tensor, result: SinkhornResult, epsilon: float, a: Tensor | None = None) -> Tensor:
    """(N, M) transport plan in float64, as the docstring gives it."""
    f, g = result.f.double(), result.g.double()
    a = torch.full_like(f, 1 / len(f)) if a is None else a.double()
    return a[:, None] * ((f[:, None] + g - (1 - x.double() @ u.double().T)) / epsilon).exp()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_potentials_are_the_references(backend, dtype, N, M, D):
    """Every dtype is exact in float32, so that one tolerance, float32's at exponents of 1/epsilon, serves all.

    But Triton keeps the plan of half types in float16: its column sums are off by up to 2^-11, which moves a column of
    weight 1/M by up to M times that, and its potential by epsilon times as much.
    """
    half = backend == "triton" and dtype != torch.float32
    tol, atol = (2**-11, 0.1 * M * 2**-11) if half else (2e-6, 2e-5)
    x, u = unit(N, D, dtype, seed=1), unit(M, D, dtype, seed=2)
    expected = cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-9, max_iter=20_000, backend="reference")
    result = cosine_sinkhorn(x, u, epsilon=0.1, tol=tol, backend=backend)
    torch.testing.assert_close(result.g.double(), expected.g, atol=atol, rtol=0)
    torch.testing.assert_close(result.f.double(), expected.f, atol=atol, rtol=0)
    assert result.g.dtype == result.f.dtype == torch.float32


@pytest.mark.parametrize("kept", [0, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_panels_whose_scores_are_kept_are_like_those_made_anew(monkeypatch, dtype, kept):
    monkeypatch.setitem(tiles._PANEL_ENTRIES, DEVICE.type, 1)  # 16 rows, so seven panels
    monkeypatch.setitem(tiles._KEPT_PANELS, DEVICE.type, kept)
    x, u = unit(100, 64, dtype, seed=1), unit(30, 64, dtype, seed=2)
    expected = cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-9, max_iter=20_000, backend="reference")
    result = cosine_sinkhorn(x, u, epsilon=0.1, tol=2e-6, backend="torch")
    torch.testing.assert_close(result.g.double(), expected.g, atol=2e-5, rtol=0)
    torch.testing.assert_close(result.f.double(), expected.f, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("epsilon", [0.01, 0.1])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_marginals_hold_in_every_geometry(backend, epsilon, geometry):
    x, u = pair(geometry, 301, 130)
    result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=1e-3, max_iter=3000, backend=backend)
    P = plan(x, u, result, epsilon)
    assert result.converged
    # The potentials are float32 numbers near 1: half a unit in the last place over epsilon is 6e-6 at 0.01. Where a
    # product's width is added up in one number, as on CUDA, CLIP's rows are 6e-5 off.
    atol = 1e-4 if CUDA else 5e-5
    torch.testing.assert_close(P.sum(dim=1) * 301, torch.ones_like(P[:, 0]), atol=atol, rtol=0)
    error = float((P.sum(dim=0) - 1 / 130).abs().sum())
    assert error == pytest.approx(result.marginal_error, abs=atol)


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("balance", [0.1, 0.5, 0.9])
def test_unbalanced_plans_are_those_of_pot(backend, balance):
    ot = pytest.importorskip("ot")
    epsilon = 0.05
    x, u = pair("clustered", 130, 70)
    b = torch.rand(70, generator=torch.Generator().manual_seed(0)).to(DEVICE) + 0.1
    b /= b.sum()
    result = cosine_sinkhorn(x, u, epsilon=epsilon, col_weights=b, balance=balance, tol=1e-5, backend=backend)
    assert result.converged
    expected = ot.unbalanced.sinkhorn_unbalanced(
        torch.full_like(b[:1], 1 / 130).expand(130).double().cpu().numpy(),
        b.double().cpu().numpy(),
        (1 - x.double() @ u.double().T).cpu().numpy(),
        epsilon,
        (float("inf"), epsilon * balance / (1 - balance)),
        reg_type="entropy",
        numItermax=10_000,
        stopThr=1e-12,
    )
    P = plan(x, u, result, epsilon).cpu()
    torch.testing.assert_close(P, torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_unbalanced_transport_converges_where_mass_cannot_move():
    """Two groups too far apart, and texts that are not shared as the images are."""
    near = torch.nn.functional.one_hot(torch.arange(300) % 3 // 2, 4).float().to(DEVICE)
    texts = torch.nn.functional.one_hot(torch.arange(20) % 2, 4).float().to(DEVICE)
    with pytest.warns(ConvergenceWarning):
        cosine_sinkhorn(near, texts, epsilon=0.01, max_iter=100)
    assert cosine_sinkhorn(near, texts, epsilon=0.01, balance=0.5, max_iter=30).converged


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [0.0, 10.0])
@pytest.mark.parametrize("balance", [1e-30, 1e-3, 0.02])
def test_columns_that_are_hardly_held_from_any_start(backend, start, balance):
    """The first target is (b / v)^(1 / balance) or so, up to more than a float64 holds."""
    x, u = unit(20, 3, seed=1), unit(12, 3, seed=2)
    options = {"epsilon": 0.1, "balance": balance, "col_weights": (unit(1, 12, seed=3)[0] * 4).softmax(0)}
    expected = cosine_sinkhorn(x, u, tol=1e-9, backend="reference", **options)
    init = None if start == 0 else start * unit(1, 12, seed=4)[0]
    result = cosine_sinkhorn(x, u, tol=1e-6, max_iter=30, init=init, backend=backend, **options)
    assert result.converged
    torch.testing.assert_close(result.g.double(), expected.g, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.value, expected.value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("epsilon", [1e-3, 3e-3, 0.03, 0.3, 1.0])
def test_stable_from_small_to_large_epsilon(backend, epsilon):
    x, u = pair("clustered", 400, 100)
    result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=0.01, max_iter=3000, backend=backend)
    P = plan(x, u, result, epsilon)
    assert result.converged
    assert float((P.sum(dim=0) - 1 / 100).abs().sum()) <= 0.011


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_far_from_every_image_gets_its_share(backend):
    """Its first column sum is exp(-1000): nothing in float32, and no reason for an Inf."""
    x = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0]], device=DEVICE)
    u = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], device=DEVICE)
    result = cosine_sinkhorn(x, u, epsilon=2e-3, tol=1e-3, backend=backend)
    assert result.converged
    assert result.n_iter < 30
    assert float((plan(x, u, result, 2e-3).sum(dim=0) - 0.5).abs().sum()) < 2e-3


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_agrees_with_pot(backend):
    ot = pytest.importorskip("ot")
    x, u = pair("clustered", 90, 40)
    a, b = (torch.rand(n, generator=torch.Generator().manual_seed(n)).double() + 0.1 for n in (90, 40))
    a, b = a / a.sum(), b / b.sum()
    cost = 1 - (x.double() @ u.double().T).cpu()
    expected = ot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_log", stopThr=1e-10, numItermax=20_000)
    result = cosine_sinkhorn(
        x, u, epsilon=0.05, row_weights=a.to(DEVICE), col_weights=b.to(DEVICE), tol=3e-6, backend=backend
    )
    P = plan(x, u, result, 0.05, a.to(DEVICE)).cpu()
    assert float((P - expected).abs().sum()) < 3e-5
    assert float((P * cost).sum()) == pytest.approx(float((expected * cost).sum()), rel=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_weight_zero_takes_no_part(backend):
    x, u = pair("random", 60, 20)
    a, b = torch.ones(60, device=DEVICE), torch.ones(20, device=DEVICE)
    a[::3], b[:5] = 0, 0
    keep_x, keep_u = a > 0, b > 0
    with_zeros = cosine_sinkhorn(
        x, u, epsilon=0.1, tol=1e-5, row_weights=a / a.sum(), col_weights=b / b.sum(), backend=backend
    )
    without = cosine_sinkhorn(x[keep_x], u[keep_u], epsilon=0.1, tol=1e-5, backend=backend)
    assert (with_zeros.g[~keep_u] == -torch.inf).all()
    assert with_zeros.f.isfinite().all()
    torch.testing.assert_close(with_zeros.g[keep_u], without.g, atol=1e-6, rtol=0)
    torch.testing.assert_close(with_zeros.f[keep_x], without.f, atol=1e-6, rtol=0)
    weights = {"row_weights": a / a.sum(), "col_weights": b / b.sum()}
    again = cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-4, **weights, init=with_zeros.g, backend=backend)
    assert again.n_iter == 1


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_the_callback_hears_of_every_iteration(backend):
    x, u = pair("clustered", 90, 40)
    heard = []
    result = cosine_sinkhorn(x, u, epsilon=0.05, backend=backend, callback=lambda *news: heard.append(news))
    assert [n_iter for n_iter, _ in heard] == list(range(1, result.n_iter + 1))
    assert heard[-1][1] == result.marginal_error <= 1e-3 < heard[0][1]


@pytest.mark.parametrize("geometry", ["random", "clustered", "clip"])
@pytest.mark.parametrize("epsilon", [0.003, 0.01, 0.05])
def test_acceleration_is_never_worse_than_the_plain_iteration(geometry, epsilon):
    x, u = pair(geometry, 500, 120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for max_iter in (1, 3, 10, 30, 100):
            plain, accelerated = (
                cosine_sinkhorn(x, u, epsilon=epsilon, tol=1e-4, max_iter=max_iter, acceleration=on, backend="torch")
                for on in (False, True)
            )
            assert accelerated.marginal_error <= 1.05 * plain.marginal_error or accelerated.converged
            assert accelerated.n_iter <= plain.n_iter + 1


def errors_of(x: Tensor, u: Tensor, *, max_iter: int, **options) -> list[float]:
    """The lowest error after each iteration, down to 1e-4; the last one is what a longer run would have, too."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = cosine_sinkhorn(x, u, tol=1e-4, max_iter=max_iter, callback=lambda _, e: found.append(e), **options)
    lowest = [max(error, 1e-4) for error in accumulate(found, min)]
    assert max(result.marginal_error, 1e-4) == pytest.approx(lowest[-1], abs=1e-6)
    return lowest


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("geometry", ["near", "skewed", "clusters", "random"])
def test_no_geometry_throws_the_acceleration_off(geometry, noise):
    """Trials that are undone cost eleven iterations each, and come after 1, 4, 16, … plain steps: no more than that
    is lost to the plain iteration, and in all far fewer are taken.
    """
    plain_total = accelerated_total = 0
    for seed, (N, M, D) in enumerate([(400, 60, 64), (80, 8, 16), (120, 120, 48), (200, 8, 512)]):
        generator = torch.Generator().manual_seed(seed)
        x, u, centers = (normalize(torch.randn(n, D, generator=generator), dim=1).to(DEVICE) for n in (N, M, 5))
        if geometry == "near":  # images near one of the texts each
            x = normalize(u[torch.randint(0, M, (N,), generator=generator)] + noise * x, dim=1)
        elif geometry != "random":  # clusters, with the same or other shares of the images than of the texts
            shares = torch.rand(N, generator=generator) ** (3 if geometry == "skewed" else 1)
            x = normalize(centers[(5 * shares).long()] + noise * x, dim=1)
            u = normalize(centers[torch.arange(M) % 5] + noise * u, dim=1)
        for epsilon, balance in product([0.002, 0.01, 0.03, 0.1], [1.0, 0.9, 0.3]):
            options = {"epsilon": epsilon, "balance": balance, "backend": "torch"}
            plain = errors_of(x, u, max_iter=200, acceleration=False, **options)
            accelerated = errors_of(x, u, max_iter=300, **options)
            for n, error in enumerate(plain, start=1):
                later = n + 11 * ceil(1 + log(3 * n + 1, 4))
                assert accelerated[min(later, len(accelerated)) - 1] <= 1.05 * error, (seed, options, n)
            if plain[-1] == 1e-4:
                plain_total, accelerated_total = plain_total + len(plain), accelerated_total + len(accelerated)
    assert accelerated_total < 0.75 * plain_total


def test_a_wild_step_is_undone_before_plain_steps_go_on_from_it():
    """One step from an error that barely changes clamps columns; no iterate after it may be built on that."""
    generator = torch.Generator().manual_seed(0)
    x, u = (normalize(torch.randn(n, 512, generator=generator), dim=1).to(DEVICE) for n in (2000, 300))
    x = normalize(x + u[torch.randint(0, 300, (2000,), generator=generator)], dim=1)
    plain, accelerated = (cosine_sinkhorn(x, u, epsilon=0.03, acceleration=on) for on in (False, True))
    assert plain.converged
    assert accelerated.converged
    assert accelerated.n_iter < plain.n_iter


def test_acceleration_gets_across_a_plateau():
    """Two clusters of images, twice the texts near one of them: no plain step lowers the error until mass crosses."""
    x = torch.eye(8)[:2].repeat_interleave(10, dim=0)
    u = normalize(torch.eye(8)[[0, 0, 0, 0, 1, 1]] + 0.1 * torch.eye(8)[2:], dim=1)
    plain, accelerated = (cosine_sinkhorn(x, u, epsilon=0.01, acceleration=on) for on in (False, True))
    assert plain.n_iter > 50
    assert accelerated.converged
    assert accelerated.n_iter < 2 * plain.n_iter


def test_options_of_the_acceleration_reach_the_solver():
    x, u = pair("clustered", 400, 100)
    default, same, short = (
        cosine_sinkhorn(x, u, epsilon=0.003, acceleration=options)
        for options in (True, AndersonAcceleration(), AndersonAcceleration(memory=1))
    )
    assert torch.equal(default.g, same.g)
    assert short.converged
    assert not torch.equal(default.g, short.g)


def test_one_product_per_iteration(monkeypatch):
    calls = []
    sweep = PanelSweep.__call__
    monkeypatch.setattr(PanelSweep, "__call__", lambda self, log_v: calls.append(1) or sweep(self, log_v))
    x, u = pair("clustered", 300, 100)
    result = cosine_sinkhorn(x, u, epsilon=0.02, backend="torch")
    assert len(calls) == result.n_iter


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_stopping_short_is_said(backend):
    x, u = pair("clustered", 300, 100)
    with pytest.warns(ConvergenceWarning, match="above tol=1e-05 after 3 iterations") as caught:
        result = cosine_sinkhorn(x, u, epsilon=0.01, tol=1e-5, max_iter=3, backend=backend)
    assert caught[0].filename == __file__
    assert not result.converged
    assert result.n_iter == 3
    error = float((plan(x, u, result, 0.01).sum(dim=0) - 1 / 100).abs().sum())
    assert error == pytest.approx(result.marginal_error, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_repeat_bit_for_bit(backend):
    x, u = pair("clustered", 3000, 1000)  # several panels
    first, second = (cosine_sinkhorn(x, u, epsilon=0.02, backend=backend) for _ in range(2))
    assert torch.equal(first.g, second.g)
    assert torch.equal(first.f, second.f)


def _shard(rank: int, world: int, port: int, weighted: bool, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    x, u = pair("clustered", 301, 60)
    weights = torch.arange(1.0, 302)
    weights = weights / weights.sum()
    mine = torch.arange(301).tensor_split(world)[rank]
    result = cosine_sinkhorn(
        x.cpu()[mine],
        u.cpu(),
        epsilon=0.02,
        row_weights=weights[mine] if weighted else None,
        group=dist.group.WORLD,
        backend="torch",
    )
    results[rank] = tuple(value.tolist() if isinstance(value, Tensor) else value for value in result)
    leave_group()


def _uneven(rank: int, folder: str) -> None:
    """Ranks that give other options than each other, or what cannot be used: unchecked, they wait for ever."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    group, (x, u) = dist.group.WORLD, (matrix.cpu() for matrix in pair("clustered", 30, 20))
    for name, value in {"row_weights": torch.full((30,), 1 / 60), "col_weights": torch.full((20,), 1 / 20)}.items():
        with pytest.raises(ValueError, match=f"{name} is given on 1 of 2 ranks: give it on all or on none"):
            cosine_sinkhorn(x, u, epsilon=0.1, group=group, backend="torch", **({name: value} if rank else {}))
    # What only the second rank cannot use.
    weights = torch.full((30,), 1 / 60)
    for name, broken in {
        "x: contains NaN": {"x": x.clone().index_fill_(0, torch.tensor([3]), torch.nan)},
        "x: expected rows of unit length": {"x": 2 * x},
        "x: expected a non-empty": {"x": x[:0], "row_weights": weights[:0]},
        "row_weights: contains NaN": {"row_weights": torch.full((30,), torch.nan)},
        "row_weights: expected weights of at least 0": {"row_weights": -weights},
        "init: contains NaN": {"init": torch.full((20,), torch.nan)},
    }.items():
        given = {"x": x, "row_weights": weights, "init": torch.zeros(20)} | (broken if rank else {})
        with pytest.raises(ValueError, match=name if rank else "1 of 2 ranks cannot use what they were given"):
            cosine_sinkhorn(**given, u=u, epsilon=0.1, group=group, backend="torch")
    del group
    leave_group()


def test_what_is_wrong_on_some_ranks_alone_is_an_error_on_all(tmp_path):
    torch.multiprocessing.spawn(_uneven, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize(("world", "weighted"), [(2, True), (3, False)])
def test_rows_spread_over_processes(world, weighted):
    x, u = pair("clustered", 301, 60)
    weights = torch.arange(1.0, 302)
    expected = cosine_sinkhorn(
        x.cpu(), u.cpu(), epsilon=0.02, row_weights=weights / weights.sum() if weighted else None, backend="torch"
    )
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_shard, (world, free_port(), weighted, results), nprocs=world)
        shards = [SinkhornResult(*results[rank]) for rank in range(world)]
    f = torch.cat([torch.tensor(shard.f) for shard in shards])
    torch.testing.assert_close(f, expected.f, atol=1e-5, rtol=0)
    for shard in shards:
        assert shard.g == shards[0].g
        torch.testing.assert_close(torch.tensor(shard.g), expected.g, atol=1e-5, rtol=0)
        assert shard.n_iter == expected.n_iter


@pytest.fixture
def few_scores_kept(monkeypatch):
    monkeypatch.setitem(tiles._PANEL_ENTRIES, "cpu", 40 * 16)
    monkeypatch.setitem(tiles._KEPT_PANELS, "cpu", 16)


@pytest.mark.skipif(CUDA, reason="no scores are kept on CUDA")
@pytest.mark.parametrize("balance", [1.0, 0.5])
def test_many_rows_start_from_a_sample_of_them(balance, few_scores_kept):
    x, u = pair("clustered", 4000, 40)
    errors = []
    options = {"epsilon": 0.02, "tol": 1e-4, "balance": balance, "backend": "torch"}
    found = cosine_sinkhorn(x, u, callback=lambda _, error: errors.append(error), **options)
    expected = cosine_sinkhorn(x, u, **options | {"backend": "reference"})
    torch.testing.assert_close(found.g.double(), expected.g, atol=2e-4, rtol=0)
    cold = cosine_sinkhorn(x, u, init=torch.zeros(40), **options)
    assert found.n_iter == len(errors) < cold.n_iter
    assert torch.equal(cosine_sinkhorn(x, u, **options).g, found.g)


@pytest.mark.skipif(CUDA, reason="no scores are kept on CUDA")
def test_a_sample_without_weight_is_no_start(few_scores_kept):
    x, u = pair("clustered", 1000, 40)
    for row in (0, 1):  # of the sample is one of them at most
        weights = torch.zeros(1000).index_fill(0, torch.tensor(row), 1)
        options = {"epsilon": 0.05, "row_weights": weights}
        found = cosine_sinkhorn(x, u, backend="torch", **options)
        assert found.converged and found.g.isfinite().all()
        solver = {"col_weights": torch.full((40,), 1 / 40), "init": None, "max_iter": 9, "tol": 0.1, "balance": 1.0}
        solver |= {"acceleration": None, "group": None, "callback": None}
        assert _start(x, u, weights, 0.05, solver) is None


@pytest.mark.skipif(CUDA, reason="no scores are kept on CUDA")
def test_a_sample_in_which_few_rows_have_the_weight_is_no_start(few_scores_kept):
    x, u = pair("clustered", 4000, 40)
    drawn = torch.rand(2, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weights in ((drawn[0] < 0.01).double(), drawn[1] ** -2):
        options = {"epsilon": 0.02, "tol": 1e-4, "row_weights": weights / weights.sum(), "backend": "torch"}
        cold = cosine_sinkhorn(x, u, init=torch.zeros(40), **options)
        assert cosine_sinkhorn(x, u, **options).n_iter <= cold.n_iter
