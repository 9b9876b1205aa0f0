"""counterparts: against the float64 reference and the paper's words."""

import pytest
import torch
from kernel_cases import BACKENDS, DEVICE, DTYPES, GEOMETRIES, SHAPES, pair, poison, relative_error, unit  # noqa: F401

from cae.kernels import cosine_sinkhorn, counterparts

pytestmark = pytest.mark.usefixtures("poison")
# ||y - y'|| / ||y'||: the rounding of float32 exponents up to 1/epsilon = 50, then that of the result's dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_shapes_and_dtypes(backend, dtype, N, M, D):
    x, u = unit(N, D, dtype, seed=1), unit(M, D, dtype, seed=2)
    g = 0.05 * torch.randn(M, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for normalize in (True, False):
        for similarity_weight in (True, False):
            options = {"epsilon": 0.02, "normalize": normalize, "similarity_weight": similarity_weight}
            y = counterparts(x, u, g, **options, backend=backend)
            assert y.dtype == dtype
            assert relative_error(y, counterparts(x, u, g, **options, backend="reference")) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometries(backend, geometry):
    x, u = pair(geometry, 301, 130)
    g = cosine_sinkhorn(x, u, epsilon=0.02, backend=backend).g
    y = counterparts(x, u, g, epsilon=0.02, backend=backend)
    assert relative_error(y, counterparts(x, u, g, epsilon=0.02, backend="reference")) < TOLERANCE[torch.float32]


def test_reference_is_equations_7_and_9():
    x, u = (part.double().cpu() for part in pair("random", 6, 4))
    g = torch.tensor([0.1, -0.2, 0.0, 0.3])
    y = counterparts(x.float(), u.float(), g, epsilon=0.1, normalize=False, backend="reference")
    softmax = counterparts(
        x.float(), u.float(), None, epsilon=1, normalize=False, similarity_weight=False, backend="reference"
    )
    for i in range(6):
        s = [float(x[i] @ u[j]) for j in range(4)]
        t = torch.tensor([(s[j] + float(g[j])) / 0.1 for j in range(4)]).double().exp()
        w = torch.tensor(s).double().exp()
        torch.testing.assert_close(y[i], sum(t[j] / t.sum() * s[j] * u[j] for j in range(4)), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(softmax[i], sum(w[j] / w.sum() * u[j] for j in range(4)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_text_at_minus_infinity_takes_no_part(backend):
    x, u = pair("random", 20, 10)
    g = torch.zeros(10, device=DEVICE)
    g[::2] = -torch.inf
    y = counterparts(x, u, g, epsilon=0.05, backend=backend)
    torch.testing.assert_close(y, counterparts(x, u[1::2], None, epsilon=0.05, backend=backend), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_no_similarity_gives_zero_not_nan(backend):
    x, u = torch.eye(4, device=DEVICE)[:2], torch.eye(4, device=DEVICE)[2:]
    assert (counterparts(x, u, None, epsilon=0.02, backend=backend) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_depends_on_no_other(backend):
    x, u = pair("clustered", 2500, 1000)
    y = counterparts(x, u, None, epsilon=0.02, backend=backend)
    alone = torch.cat([counterparts(part, u, None, epsilon=0.02, backend=backend) for part in x[:20].split(7)])
    torch.testing.assert_close(alone, y[:20], atol=1e-6, rtol=1e-5)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    permuted = counterparts(x[:100], u[order], None, epsilon=0.02, backend=backend)
    torch.testing.assert_close(permuted, y[:100], atol=1e-6, rtol=1e-5)
