"""fuse: against the float64 reference and its degenerate inputs."""

import pytest
import torch
from kernel_cases import BACKENDS, DTYPES, GEOMETRIES, SHAPES, pair, poison, relative_error, unit  # noqa: F401

from cae.kernels import fuse

pytestmark = pytest.mark.usefixtures("poison")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [3, 64, 384, 512, 768, 1280])
@pytest.mark.parametrize("N", [1, 2, 15, 127, 129])
def test_shapes_and_dtypes(backend, dtype, N, D):
    for m in (1, 2, 3, 5):
        parts = [(0.5 + i) * unit(N, D, seed=i) for i in range(m)]
        parts = [part.to(dtype) for part in parts]
        fused, beta = fuse(parts, gamma=0.1, backend=backend)
        expected, expected_beta = fuse(parts, gamma=0.1, backend="reference")
        assert fused.dtype == dtype
        assert beta.dtype == torch.float32
        assert relative_error(fused, expected) < TOLERANCE[dtype]
        torch.testing.assert_close(beta.double(), expected_beta, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("gamma", [1e-3, 0.01, 1.0])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_weights_are_those_of_the_equations(backend, gamma, geometry):
    x, y = pair(geometry, 40, 40)
    fused, beta = fuse([x, y], gamma=gamma, backend=backend)
    for i in range(3):
        a, b = x[i].double(), y[i].double()
        p = (a + b) / 2
        alpha = torch.stack([a @ p / (a.norm() * p.norm()), b @ p / (b.norm() * p.norm())])
        expected = torch.softmax(alpha / gamma, dim=0)
        torch.testing.assert_close(beta[i].double(), expected, atol=2e-4, rtol=0)  # float32's 1e-7 over gamma
        torch.testing.assert_close(fused[i].double(), expected[0] * a + expected[1] * b, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_zero_vectors_give_no_nan(backend):
    x = unit(5, 16)
    fused, beta = fuse([x, torch.zeros_like(x), -x], gamma=0.01, backend=backend)
    assert fused.isfinite().all()
    torch.testing.assert_close(beta, torch.full_like(beta, 1 / 3))
    fused, beta = fuse([torch.zeros_like(x)] * 2, gamma=0.01, backend=backend)
    assert (fused == 0).all()
    assert (beta == 0.5).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_depends_on_no_other(backend):
    parts = [unit(3000, 512, seed=i) for i in range(3)]
    fused, beta = fuse(parts, gamma=0.05, backend=backend)
    alone, alone_beta = fuse([part[1234:1236] for part in parts], gamma=0.05, backend=backend)
    torch.testing.assert_close(alone, fused[1234:1236])
    torch.testing.assert_close(alone_beta, beta[1234:1236], atol=1e-5, rtol=1e-5)
