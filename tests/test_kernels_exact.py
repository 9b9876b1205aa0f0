"""Every op gives the same bits whatever is switched on around it, and leaves that as it was."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kernel_cases import BACKENDS, CUDA, DEVICE, pair, relative_error, unit

from cae.kernels import cosine_sinkhorn, counterparts, fuse, nearest, retrieve
from cae.kernels.exact import exact_products, onednn_is_faster
from cae.kernels.products import inner_products

# What products on a CPU are set to inside.
INSIDE = "bf16" if onednn_is_faster() else "ieee"
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
    assert seen == [(INSIDE, False)]


def test_threads_put_back_what_was_set_before_the_first_of_them():
    def work(_):
        for _ in range(50):
            with exact_products(DEVICE):
                assert torch.backends.mkldnn.matmul.fp32_precision == INSIDE

    with product_precision(("tf32", "tf32")), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_copies_of_the_package_put_back_what_was_set_before_the_first_of_them():
    file = Path(sys.modules[exact_products.__module__].__file__)
    spec = importlib.util.spec_from_file_location("another_copy", file)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.exact_products is not exact_products
    with product_precision(("tf32", "tf32")):
        first, second = exact_products(DEVICE), copy.exact_products(DEVICE)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.backends.mkldnn.matmul.fp32_precision == INSIDE
        second.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("able", "found"),
    [
        ({"avx512_f": True, "amx_bf16": False}, torch.__version__ >= "2.14"),
        ({"avx512_f": True, "amx_bf16": True}, False),
        ({"avx512_f": False, "amx_bf16": False}, False),
        ({"neon": True}, False),
    ],
)
def test_only_processors_that_gain_and_round_nothing_multiply_by_onednn(able, found, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert onednn_is_faster() == found


@pytest.mark.parametrize("width", [1, 3, 127, 128, 129, 512, 1280])
def test_products_are_those_of_float32(width):
    x, u = unit(300, width, seed=1).abs(), unit(200, width, seed=2).abs()  # of one sign: rounding does not cancel
    exact = x.double() @ u.double().T
    # CUDA's library may add a whole width up in one number, which is 3.5e-7 off at 512 and 5.5e-7 at 1,280; in TF32 it
    # would be 1e-4.
    tolerance = 1e-6 if CUDA else 2e-7
    with product_precision(("tf32", "bf16")), exact_products(DEVICE):
        assert relative_error(inner_products(x, u), exact) < tolerance
        assert relative_error(inner_products(x[::2], u[:, :width], out=u.new_empty(150, 200)), exact[::2]) < tolerance
    torch.testing.assert_close(inner_products(x.double(), u.double()), exact)
    torch.testing.assert_close(inner_products(x.T.clone().T, u), exact.float())


def test_a_row_is_the_same_in_a_matrix_of_any_height():
    x, u = unit(1000, 512, seed=1).cpu(), unit(300, 512, seed=2).cpu()
    with exact_products(x.device):
        if not onednn_is_faster():
            pytest.skip("the matrix library may round matrices of some heights in another way")
        whole = inner_products(x, u)
        for height in (1, 2, 3, 11, 97, 512):
            assert torch.equal(inner_products(x[:height], u), whole[:height])


def test_a_compiled_function_may_call_an_op():
    x, u = pair("clustered", 60, 20)
    compiled = torch.compile(lambda x: 2 * nearest(2 * x, u, backend="torch").similarity, backend="eager")
    assert torch.equal(compiled(x), 2 * nearest(2 * x, u, backend="torch").similarity)


def test_an_estimator_clusters_the_same_under_autocast():
    CAEClusterer = pytest.importorskip("cae.models.estimator").CAEClusterer
    x, _ = pair("clustered", 120, 1)
    x = x.cpu().numpy()
    plain = CAEClusterer(4).fit(x)
    with torch.autocast("cpu", torch.bfloat16):
        under = CAEClusterer(4).fit(x)
        assert (under.predict(x) == plain.labels_).all()
        assert (under.transform(x) == plain.transform(x)).all()
    assert (under.cluster_centers_ == plain.cluster_centers_).all()
