"""Derivatives of the ops: against finite differences and the float64 references' own, and in bounded memory."""

import pytest
import torch
from kernel_cases import BACKENDS, CUDA, DEVICE, pair, peak_bytes, unit
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from cae.kernels import ConvergenceWarning, cosine_sinkhorn, counterparts, fuse, sinkhorn_divergence
from cae.kernels.counterparts import reference
from cae.kernels.counterparts.gradient import counterparts_gradient
from cae.kernels.fuse import reference as fuse_reference
from cae.kernels.fuse.gradient import fuse_gradient
from cae.kernels.sinkhorn import reference as sinkhorn_reference
from cae.kernels.sinkhorn.gradient import potentials_gradient, row_gradient

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
OPTIONS = [(normalize, weigh) for normalize in (True, False) for weigh in (True, False)]


def gradients(run, *inputs):
    """Of a loss that no symmetry makes trivial, in every input."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    y = run(*leaves)
    grid = torch.arange(y.numel(), device=y.device).cos().reshape(y.shape)
    return torch.autograd.grad((y * grid).sum(), leaves)


def assert_near(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.linalg.norm(ours.double() - theirs.double()) <= tolerance * torch.linalg.norm(theirs.double())


def with_gradient(forward, backward):
    """The reference's values with the streaming derivative, for `gradcheck` in float64."""

    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx, *grads):
            return tuple(backward(*grads, *ctx.saved_tensors))

    return Both.apply


def doubles(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("scale", "weigh"), OPTIONS)
def test_counterparts_by_finite_differences(scale, weigh):
    options = {"epsilon": 0.7, "normalize": scale, "similarity_weight": weigh}
    run = with_gradient(
        lambda *inputs: reference.counterparts(*inputs, **options),
        lambda *inputs: counterparts_gradient(*inputs, **options),
    )
    assert gradcheck(run, doubles((5, 3), (4, 3), (4,)))


def test_fuse_by_finite_differences():
    run = with_gradient(
        lambda *parts: fuse_reference.fuse(parts, gamma=0.4),
        lambda grad_z, grad_beta, *parts: fuse_gradient(grad_z, grad_beta, parts, gamma=0.4),
    )
    assert gradcheck(run, doubles((4, 3), (4, 3), (4, 3)))


def test_row_potentials_by_finite_differences():
    x, u, g = doubles((5, 3), (4, 3), (4,))
    g = g.detach()

    def row_update(x, u):
        return 1 - 0.5 * torch.logsumexp((x @ u.T + g) / 0.5, dim=1)

    run = with_gradient(row_update, lambda grad, x, u: row_gradient(grad, x, u, row_update(x, u), g, 0.5))
    assert gradcheck(run, (x, u))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("scale", "weigh"), OPTIONS)
def test_counterparts(backend, dtype, scale, weigh):
    x, u = (part.to(dtype) for part in pair("random", 301, 130))
    g = 0.05 * unit(1, 130, seed=3)[0]
    options = {"epsilon": 0.1, "normalize": scale, "similarity_weight": weigh}
    found, expected = (
        gradients(lambda *inputs, name=name: counterparts(*inputs, **options, backend=name), x, u, g)
        for name in (backend, "reference")
    )
    assert [grad.dtype for grad in found] == [dtype, dtype, torch.float32]
    assert_near(found, expected, TOLERANCE[dtype])


def test_texts_that_take_no_part_get_no_gradient():
    x, u = pair("random", 20, 10)
    g = torch.zeros(10, device=DEVICE)
    g[::2] = -torch.inf
    _, in_u, in_g = gradients(lambda *inputs: counterparts(*inputs, epsilon=0.1), x, u, g)
    assert (in_u[::2] == 0).all()
    assert (in_g[::2] == 0).all()
    assert in_u[1::2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fuse(backend, dtype):
    parts = [unit(130, 64, seed=i).to(dtype) for i in range(3)]
    for output in (0, 1):
        found, expected = (
            gradients(lambda *p, name=name, i=output: fuse(p, gamma=0.2, backend=name)[i], *parts)
            for name in (backend, "reference")
        )
        assert_near(found, expected, TOLERANCE[dtype])


def test_fuse_takes_the_cosine_of_a_zero_vector_as_constant():
    x = unit(5, 16)
    for parts in ([x, torch.zeros_like(x), -x], [torch.zeros_like(x)] * 2):
        found, expected = (
            gradients(lambda *p, name=name: fuse(p, gamma=0.1, backend=name)[0], *parts)
            for name in ("auto", "reference")
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-5, rtol=1e-4)


def value(x, u, a, b, **options):
    """The transport value for rows and weights that are made to be admissible."""
    rows = (normalize(part, dim=1) for part in (x, u))
    weights = {"row_weights": a.softmax(0), "col_weights": b.softmax(0)}
    return cosine_sinkhorn(*rows, epsilon=0.2, tol=1e-6, max_iter=5000, **weights, **options).value


@pytest.mark.parametrize("balance", [1.0, 0.7])
def test_transport_value_by_finite_differences(balance):
    inputs = [part.detach().float() for part in doubles((6, 3), (4, 3), (6,), (4,))]
    grads = gradients(lambda *inputs: value(*inputs, balance=balance), *inputs)
    for index, grad in enumerate(grads):
        step = doubles(inputs[index].shape)[0].detach().float()
        ends = [
            value(*(p + sign * 1e-2 * step if i == index else p for i, p in enumerate(inputs)), balance=balance)
            for sign in (1, -1)
        ]
        torch.testing.assert_close(float((grad * step).sum()), float((ends[0] - ends[1]) / 2e-2), atol=1e-3, rtol=1e-2)


def reference_potentials(x, u, a, b, epsilon, balance):
    """f and g (M,) in float64, by textbook iterations that autograd can follow."""
    result = sinkhorn_reference.cosine_sinkhorn(
        x,
        u,
        epsilon=epsilon,
        row_weights=a,
        col_weights=b,
        init=None,
        max_iter=3000,
        tol=1e-13,
        balance=balance,
        acceleration=None,
        group=None,
        callback=None,
    )
    return result.f, result.g


@pytest.mark.parametrize("balance", [1.0, 0.6])
def test_potentials_by_finite_differences(balance):
    def forward(x, u, alpha, beta):
        with torch.no_grad():
            return torch.cat(reference_potentials(x, u, alpha.softmax(0), beta.softmax(0), 0.5, balance))

    def backward(grad, x, u, alpha, beta):
        with torch.enable_grad():
            logits = [value.detach().requires_grad_() for value in (alpha, beta)]
            a, b = (value.softmax(0) for value in logits)
        f, g = reference_potentials(x, u, a.detach(), b.detach(), 0.5, balance)
        parts = grad.split([len(f), len(g)])
        in_x, in_u, *in_weights = potentials_gradient(*parts, x, u, a.detach(), b.detach(), f, g, 0.5, balance)
        return in_x, in_u, *torch.autograd.grad((a, b), logits, in_weights)

    inputs = [normalize(part, dim=1).detach().requires_grad_() for part in doubles((6, 3), (4, 3))]
    # The streaming derivative solves its system to 1e-5.
    assert gradcheck(with_gradient(forward, backward), (*inputs, *doubles((6,), (4,))), atol=1e-4, rtol=1e-3)


def potentials_of(x, u, a, b, balance, backend=None, **options):
    """f and g side by side for weights with a sum of 1."""
    a, b = a / a.sum(), b / b.sum()
    if backend is None:
        return torch.cat(reference_potentials(x.double(), u.double(), a.double(), b.double(), 0.1, balance))
    plan = cosine_sinkhorn(
        x, u, epsilon=0.1, row_weights=a, col_weights=b, balance=balance, backend=backend, max_iter=5000, **options
    )
    return torch.cat([plan.f, plan.g])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "balance"), [(torch.float32, 1.0), (torch.float32, 0.5), (torch.bfloat16, 1.0)])
def test_potentials(backend, dtype, balance):
    """Against autograd through the reference's iterations."""
    x, u = (part.to(dtype) for part in pair("clustered", 90, 30))
    a, b = (1 + torch.arange(n, device=DEVICE).sin().square() for n in (90, 30))
    tol = 2e-6 if dtype == torch.float32 else 1e-4  # Triton's plan of half types is too coarse for more
    found = gradients(lambda *inputs: potentials_of(*inputs, balance, backend, tol=tol), x, u, a, b)
    expected = gradients(lambda *inputs: potentials_of(*inputs, balance), x, u, a, b)
    assert [grad.dtype for grad in found] == [dtype, dtype, torch.float32, torch.float32]
    assert_near(found, expected, {torch.float32: 2e-3, torch.bfloat16: 2e-2}[dtype])


def test_columns_of_weight_zero_get_no_gradient():
    x, u = pair("random", 40, 12)
    b = torch.ones(12, device=DEVICE)
    b[::3] = 0

    def loss(x, u, b):
        plan = cosine_sinkhorn(x, u, epsilon=0.2, col_weights=b / b.sum(), tol=1e-5)
        return plan.g.where(b > 0, 0).square() + plan.f.square().mean()

    in_x, in_u, in_b = gradients(loss, x, u, b)
    assert (in_u[::3] == 0).all()
    assert all(grad.isfinite().all() for grad in (in_x, in_u, in_b))
    kept = gradients(loss, x, u[b > 0], b[b > 0])
    assert kept[1].shape == (8, x.shape[1])


def test_a_linear_system_that_is_not_solved_is_told(monkeypatch):
    monkeypatch.setattr("cae.kernels.sinkhorn.gradient._MOST_PRODUCTS", 2)
    x, u = pair("clustered", 90, 30)
    x.requires_grad_()
    plan = cosine_sinkhorn(x, u, epsilon=0.05)
    with pytest.warns(ConvergenceWarning, match="gradient of the potentials is not solved for after 2 products"):
        plan.g.square().sum().backward()


def two_groups(noise):
    """Images and texts around two directions, so that hardly any mass moves from one to the other."""
    centers = unit(2, 4, seed=1)[torch.arange(8) % 2]
    return (normalize(centers + noise * unit(8, 4, seed=seed), dim=1) for seed in (2, 3))


def gradient_by_dense_algebra(x, u, g, in_g, epsilon):
    """In x of sum(in_g · g), by an eigenvalue decomposition in float64."""
    x, u, g = (value.detach().double() for value in (x, u, g))
    t = torch.softmax((x @ u.T + g) / epsilon, dim=1)
    A = (torch.diag(t.sum(dim=0)) - t.T @ t) / len(x)
    w = torch.linalg.pinv(A, hermitian=True, rtol=1e-12) @ (epsilon * (in_g - in_g.mean()))
    return -t * (w - (t @ w)[:, None]) / (len(x) * epsilon) @ u, torch.linalg.eigvalsh(A)


@pytest.mark.parametrize("epsilon", [0.08, 0.05, 0.035])
def test_potentials_of_groups_that_hardly_touch(epsilon):
    """The system is the more ill-conditioned the smaller epsilon is, down to what float32 does not tell from 0."""
    x, u = two_groups(0.3)
    x.requires_grad_()
    in_g = torch.arange(8, device=DEVICE).cos().double()
    g = cosine_sinkhorn(x, u, epsilon=epsilon, tol=1e-5).g
    (found,) = torch.autograd.grad((g.double() * in_g).sum(), x)
    expected, eigenvalues = gradient_by_dense_algebra(x, u, g, in_g, epsilon)
    assert eigenvalues[1] < 1e-3 * eigenvalues[-1]
    assert_near([found], [expected], 1e-3)


def test_a_gradient_that_cannot_be_solved_for_stays_small():
    x, u = two_groups(0.1)
    x.requires_grad_()
    g = cosine_sinkhorn(x, u, epsilon=0.01).g
    with pytest.warns(ConvergenceWarning, match="gradient of the potentials is not solved for"):
        (found,) = torch.autograd.grad(g[0], x)
    assert found.norm() < 3


@pytest.mark.filterwarnings("ignore:cosine_sinkhorn")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_overflowed_stays_visible(bad):
    """A gradient scaler skips the steps whose gradients are not finite."""
    x, u = pair("random", 20, 10)
    x.requires_grad_()
    g = cosine_sinkhorn(x, u, epsilon=0.5).g
    in_g = torch.zeros_like(g)
    in_g[3] = bad
    assert not torch.autograd.grad(g, x, in_g)[0].isfinite().any()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_transport_value_is_cost_and_divergence(backend):
    x, u = pair("random", 40, 12)
    b = torch.arange(12, device=DEVICE, dtype=torch.float64)
    b /= b.sum()  # the first text has no weight
    x.requires_grad_()
    found = cosine_sinkhorn(x, u, epsilon=0.1, tol=1e-6, col_weights=b, max_iter=5000, backend=backend)
    cost = (1 - x @ u.T).double()
    plan = torch.exp((found.f[:, None] + found.g - cost) / 0.1) / 40
    expected = (plan * cost).sum() + 0.1 * torch.special.xlogy(plan, plan / (b / 40).where(b > 0, 1.0)).sum()
    torch.testing.assert_close(found.value, expected, atol=1e-5, rtol=1e-5)
    found.value.backward()
    torch.testing.assert_close(x.grad.double(), -plan.detach() @ u.double(), atol=1e-6, rtol=1e-3)


def dense_divergence(x, u, epsilon):
    """Plans of the three problems in float64, and what they cost."""

    def value(x, u):
        a, b = (torch.full_like(part[:, 0], 1 / len(part)) for part in (x, u))
        f, g = reference_potentials(x, u, a, b, epsilon, 1.0)
        plan = a[:, None] * torch.exp((f[:, None] + g - (1 - x @ u.T)) / epsilon)
        return (plan * (1 - x @ u.T)).sum() + epsilon * torch.special.xlogy(plan, plan / (a[:, None] * b)).sum()

    return value(x, u) - value(x, x) / 2 - value(u, u) / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_divergence(backend):
    x, u = pair("clustered", 60, 25)
    options = {"epsilon": 0.1, "tol": 1e-6, "max_iter": 5000, "backend": backend}
    torch.testing.assert_close(
        sinkhorn_divergence(x, u, **options), dense_divergence(x.double(), u.double(), 0.1), atol=1e-6, rtol=0
    )
    assert abs(float(sinkhorn_divergence(x, x.flip(0), **options))) < 1e-6
    found = gradients(lambda *inputs: sinkhorn_divergence(*inputs, **options), x, u)
    expected = gradients(lambda *inputs: dense_divergence(*inputs, 0.1), x.double(), u.double())
    assert_near(found, expected, 1e-3)


CALLS = {
    "counterparts": lambda x, u: counterparts(x, u, None, epsilon=0.1)[:, 0].sum(),
    "fuse": lambda x, u: fuse([x, x.flip(0)], gamma=0.1)[0][:, 0].sum(),
    "cosine_sinkhorn": lambda x, u: cosine_sinkhorn(x, u, epsilon=0.5, tol=0.1).value,
    "cosine_sinkhorn_potentials": lambda x, u: cosine_sinkhorn(x, u, epsilon=0.5, tol=0.1).g.square().sum(),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it
@pytest.mark.parametrize("op", CALLS)
def test_func_and_what_is_not_there(op):
    x, u = pair("random", 20, 10)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(CALLS[op](leaf, u), leaf, create_graph=True)
    torch.testing.assert_close(torch.func.grad(CALLS[op])(x, u), expected.detach())
    with pytest.raises(NotImplementedError, match=rf"{op}\w* has a first derivative only.*create_graph=False"):
        expected.sum().backward()
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: CALLS[op](x, u), (x,), (x,))
    with torch.no_grad():
        assert not CALLS[op](leaf, u).requires_grad


@pytest.mark.parametrize("op", CALLS)
def test_peak_memory_of_backward_is_flat_in_n(op):
    """N x M is 375 MiB more at the larger N on a CPU, where a panel's ten temporaries are 8 MiB each.

    On CUDA it is 5 GiB; there it takes N rows to fill a panel.
    """
    N, M, D = 2**16 if CUDA else 4096, 3000, 16
    u = unit(M, D)

    def peak(rows):
        x = unit(rows, D).requires_grad_()
        return peak_bytes(lambda: CALLS[op](x, u).backward())

    peak(256)
    assert peak(8 * N) - peak(N) <= 7 * N * 10 * 4 * D + 96 * 2**20
