"""Every op gives the same bits whatever is switched on around it, and leaves that as it was."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from kernel_cases import BACKENDS, DEVICE, pair

from cae import CAEClusterer
from cae.kernels import cosine_sinkhorn, counterparts, fuse, nearest, retrieve
from cae.kernels.exact import exact_products

OPS = {
    "cosine_sinkhorn": lambda x, u, backend: cosine_sinkhorn(x, u, epsilon=0.02, backend=backend),
    "counterparts": lambda x, u, backend: (counterparts(x, u, None, epsilon=0.02, backend=backend),),
    "retrieve": lambda x, u, backend: (retrieve(u, x, top_k=3, backend=backend),),
    "fuse": lambda x, u, backend: fuse([x, x.flip(0)], gamma=0.1, backend=backend),
    "nearest": lambda x, u, backend: nearest(x, u, k=2, backend=backend),
}


@contextmanager
def set_to(value, read, write):
    before = read()
    write(value)
    try:
        yield
        assert read() == value
    finally:
        write(before)


def product_precision(value):
    """The setting of each library, which all other ways to set it come down to."""
    libraries = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul

    def write(values):
        for library, precision in zip(libraries, values, strict=True):
            library.fp32_precision = precision

    return set_to(value, lambda: tuple(library.fp32_precision for library in libraries), write)


OUTSIDE = {
    "autocast to bfloat16": lambda: torch.autocast(DEVICE.type, torch.bfloat16),
    "autocast to float16": lambda: torch.autocast(DEVICE.type, torch.float16),
    "low precision of products": lambda: set_to(
        "medium", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "low precision by library": lambda: product_precision(("tf32", "bf16")),
    "float64 by default": lambda: set_to(torch.float64, torch.get_default_dtype, torch.set_default_dtype),
    "float16 by default": lambda: set_to(torch.float16, torch.get_default_dtype, torch.set_default_dtype),
    "deterministic algorithms": lambda: set_to(
        True, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    ),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_in_every_surrounding(op, outside, backend, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for where products are deterministic
    x, u = pair("clustered", 120, 40)
    expected = OPS[op](x, u, backend)
    with OUTSIDE[outside]():
        found = OPS[op](x, u, backend)
        # Tensors made under inference mode, too.
        again = OPS[op](x.clone(), u.clone(), backend)
    for value, other, third in zip(expected, found, again, strict=True):
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype == third.dtype
            assert torch.equal(value, other)
            assert torch.equal(value, third)
        else:
            assert value == other == third


def test_products_are_exact_inside_and_the_setting_is_put_back_after_an_error():
    x, u = pair("clustered", 60, 20)
    seen = []

    def look(*_):
        seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.is_autocast_enabled(DEVICE.type)))
        raise KeyboardInterrupt

    with product_precision(("tf32", "bf16")), torch.autocast(DEVICE.type, torch.bfloat16):
        with pytest.raises(KeyboardInterrupt):
            cosine_sinkhorn(x, u, epsilon=0.02, callback=look, backend="torch")
        assert (x @ u.T).dtype == torch.bfloat16
    assert seen == [("ieee", False)]


def test_threads_put_back_what_was_set_before_the_first_of_them():
    def work(_):
        for _ in range(50):
            with exact_products(DEVICE):
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"

    with product_precision(("tf32", "bf16")), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_a_compiled_function_may_call_an_op():
    x, u = pair("clustered", 60, 20)
    compiled = torch.compile(lambda x: 2 * nearest(2 * x, u, backend="torch").similarity, backend="eager")
    assert torch.equal(compiled(x), 2 * nearest(2 * x, u, backend="torch").similarity)


def test_an_estimator_clusters_the_same_under_autocast():
    x, _ = pair("clustered", 120, 1)
    x = x.cpu().numpy()
    plain = CAEClusterer(4).fit(x)
    with torch.autocast("cpu", torch.bfloat16):
        under = CAEClusterer(4).fit(x)
        assert (under.predict(x) == plain.labels_).all()
        assert (under.transform(x) == plain.transform(x)).all()
    assert (under.cluster_centers_ == plain.cluster_centers_).all()
