"""What holds for any input, tried on many by hypothesis: in a file of its own, since a GPU's machine may lack it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BACKENDS, DEVICE, poison, unit  # noqa: F401

from cae.kernels import cosine_sinkhorn
from cae.kernels.ranking import largest

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.2, 0.5, 1.0]), st.integers(0, 10**6))
def test_order_does_not_matter_and_g_is_unique(backend, N, M, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = torch.randperm(N, generator=generator), torch.randperm(M, generator=generator)
    x, u = unit(N, 16, seed=seed), unit(M, 16, seed=seed + 1)
    options = {"epsilon": epsilon, "tol": 1e-5, "max_iter": 5000, "backend": backend}
    result = cosine_sinkhorn(x, u, **options)
    permuted = cosine_sinkhorn(x[rows], u[cols], **options)
    shifted = cosine_sinkhorn(x, u, init=torch.randn(M, generator=generator).to(DEVICE) * epsilon + 3, **options)
    # Two solutions to an error of 1e-5 differ by as much times the conditioning of the problem, exp(2 / epsilon) at
    # worst: at a small epsilon and a few rows g is unique in theory alone.
    for other in (permuted.g, shifted.g[cols]):
        torch.testing.assert_close(other, result.g[cols], atol=0.02 * epsilon, rtol=0)
    torch.testing.assert_close(permuted.f, result.f[rows], atol=0.02 * epsilon, rtol=0)
    assert abs(float(result.g.mean())) < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1e-40, 0.25, 7.0]), min_size=1, max_size=30), st.data())
def test_largest_orders_by_value_then_column(values, data):
    k = data.draw(st.integers(1, len(values)))
    scores = torch.tensor([values])
    expected = scores.double().sort(dim=1, descending=True, stable=True)
    result, columns = largest(scores, k)
    assert columns.tolist() == expected.indices[:, :k].tolist()
    assert result.tolist() == expected.values[:, :k].tolist()
