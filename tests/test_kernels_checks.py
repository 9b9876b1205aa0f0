"""Bad input: one clear error that names argument and remedy, before any work."""

from fractions import Fraction

import pytest
import torch
from kernel_cases import unit

from cae.kernels import AndersonAcceleration, cosine_sinkhorn, counterparts, dispatch, fuse, nearest, retrieve

X, U = unit(6, 8, seed=1), unit(4, 8, seed=2)
NAN = X.clone()
NAN[2, 3] = torch.nan
G = torch.zeros(4, device=X.device)


def transport(x, u, **options):
    return cosine_sinkhorn(x, u, **{"epsilon": 0.1} | options)


BAD_PAIRS = {
    "x: contains NaN or Inf": (NAN, U),
    "u: contains NaN or Inf": (X, U / 0),
    "x: expected a non-empty": (X[:, :0], U),
    "u: expected a non-empty": (X, U[:0]),
    "u: expected a non-empty .* got shape .8,": (X, U[0]),
    "x: expected float32, float16 or bfloat16, got torch.float64": (X.double(), U.double()),
    "x: expected a torch.Tensor, got list": (X.tolist(), U),
    "u: expected the width of x, 8": (X, U[:, :7]),
    "u: expected the dtype of x": (X, U.half()),
    "u: expected the device of x": (X, U.to("meta")),
    "u: expected a dense matrix, got layout torch.sparse_coo": (X, U.to_sparse()),
}


@pytest.mark.parametrize("op", [transport, lambda x, u: counterparts(x, u, G, epsilon=0.1)])
@pytest.mark.parametrize(
    ("message", "x", "u"),
    [
        *((message, *pair) for message, pair in BAD_PAIRS.items()),
        ("x: expected rows of unit length .* row . is off by 1; pass .*normalize", 2 * X, U),
        ("u: expected rows of unit length", X, 0 * U),
    ],
)
def test_pairs_of_unit_matrices(op, message, x, u):
    with pytest.raises(ValueError, match=message):
        op(x, u)


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_no_rows_give_no_results(backend):
    """The last batch of a loader, say, of which no image could be read; plans and texts need at least one."""
    x = X[:0]
    assert counterparts(x, U, G, epsilon=0.1, backend=backend).shape == (0, 8)
    z, beta = fuse([x, x, x], gamma=0.1, backend=backend)
    assert (z.shape, beta.shape) == ((0, 8), (0, 3))
    assert nearest(x, U, backend=backend).labels.shape == (0,)
    assert nearest(x, U, k=2, backend=backend).similarity.shape == (0, 2)
    for op in (lambda: transport(x, U), lambda: retrieve(U, x, top_k=1)):
        with pytest.raises(ValueError, match="expected a non-empty"):
            op()


@pytest.mark.parametrize(("message", "x", "u"), [(message, *pair) for message, pair in BAD_PAIRS.items()])
def test_matrices_of_any_length(message, x, u):
    with pytest.raises(ValueError, match=message.replace("u:", "centroids:")):
        nearest(x, u)
    if "dtype of x" not in message:  # texts may be stored in half precision
        with pytest.raises(ValueError, match=message.replace("u:", "centers:").replace("x", "(x|texts)")):
            retrieve(x, u, top_k=1)
    with pytest.raises(ValueError, match=r"parts\[[01]\]: "):
        fuse([x, u], gamma=0.1)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("epsilon: expected a finite number above 0, got 0", {"epsilon": 0}),
        ("epsilon: ", {"epsilon": -1.0}),
        ("epsilon: ", {"epsilon": float("nan")}),
        ("epsilon: expected a number, got '0.1' .str.", {"epsilon": "0.1"}),
        ("epsilon: expected a number, got tensor.*Tensor", {"epsilon": torch.tensor([0.1, 0.2])}),
        ("epsilon: expected a finite number above 0, got 10{400}", {"epsilon": 10**400}),
        ("tol: ", {"tol": 0.0}),
        ("balance: ", {"balance": 0.0}),
        ("balance: ", {"balance": 1.5}),
        ("max_iter: expected a whole number of at least 1", {"max_iter": 0}),
        (
            "row_weights: expected weights of at least 0, the least is -1",
            {"row_weights": torch.tensor([-1.0, 2, 0, 0, 0, 0])},
        ),
        ("row_weights: expected weights that sum to 1, the sum is 6", {"row_weights": torch.ones(6)}),
        (r"row_weights: expected a floating tensor of shape \(6,\)", {"row_weights": torch.full((4,), 0.25)}),
        ("col_weights: contains NaN", {"col_weights": torch.full((4,), torch.nan)}),
        ("col_weights: expected weights that sum to 1", {"col_weights": torch.zeros(4)}),
        (r"init: expected a floating tensor of shape \(4,\)", {"init": torch.zeros(6)}),
        ("init: contains NaN or Inf", {"init": torch.full((4,), torch.inf)}),
        ("backend: expected one of", {"backend": "cuda"}),
    ],
)
def test_options_of_the_transport(message, options):
    options = {key: value.to(X.device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        transport(X, U, **options)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("epsilon: ", lambda: counterparts(X, U, G, epsilon=0)),
        ("g: expected a floating tensor", lambda: counterparts(X, U, G[:3], epsilon=0.1)),
        ("g: expected finite numbers", lambda: counterparts(X, U, G / 0, epsilon=0.1)),
        ("g: .*not all of them -inf", lambda: counterparts(X, U, G - torch.inf, epsilon=0.1)),
        ("top_k: ", lambda: retrieve(X, U, top_k=0)),
        ("mode: expected one of", lambda: retrieve(X, U, top_k=1, mode="some")),
        ("parts: expected at least one", lambda: fuse([], gamma=0.1)),
        (r"parts\[1\]: expected the shape of parts\[0\], \(6, 8\), got \(4, 8\)", lambda: fuse([X, U], gamma=0.1)),
        ("gamma: ", lambda: fuse([X], gamma=0.0)),
        ("k: expected at most the number of centroids, 4", lambda: nearest(X, U, k=5)),
        ("k: ", lambda: nearest(X, U, k=0)),
        ("bias: expected a floating", lambda: nearest(X, U, bias=G[:2])),
        ("bias: contains NaN", lambda: nearest(X, U, bias=G / 0)),
    ],
)
def test_options_of_the_others(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_backend_that_cannot_run_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"runs on CUDA.*'cpu'.*backend='torch'.*TRITON_INTERPRET=1"):
        transport(X.cpu(), U.cpu(), backend="triton")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs the triton package"):
        transport(X, U, backend="triton")


def test_auto_goes_by_device():
    backends = dispatch.Backends(lambda: "reference", lambda: "torch", lambda: lambda: "triton")
    for device, expected in (("cpu", "torch"), ("mps", "torch"), ("cuda", "triton")):
        assert backends.choose("auto", torch.device(device)).__wrapped__() == expected
    with pytest.raises(ValueError, match="backend: expected one of"):
        backends.choose("cuda", torch.device("cpu"))


@pytest.mark.parametrize("options", [{"memory": 0}, {"patience": 1.5}, {"start": -1}, {"slack": 0.5}, {"backoff": 0}])
def test_options_of_the_acceleration(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        AndersonAcceleration(**options)


@pytest.mark.parametrize("kind", [Fraction, torch.tensor, lambda value: torch.tensor([value])])
def test_numbers_of_any_kind(kind):
    check_numbers(kind, 3)


def test_numbers_of_numpy():
    np = pytest.importorskip("numpy")
    check_numbers(np.float32, np.int64(3))


def check_numbers(kind, three):
    """Options given as `kind` makes them, and a whole number, are as good as Python's."""
    quarter = kind(0.25)
    assert torch.equal(counterparts(X, U, G, epsilon=quarter), counterparts(X, U, G, epsilon=0.25))
    for value, expected in zip(fuse([X, X.flip(0)], gamma=quarter), fuse([X, X.flip(0)], gamma=0.25), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(
        transport(X, U, epsilon=quarter, tol=kind(2**-10)).g, transport(X, U, epsilon=0.25, tol=2**-10).g
    )
    assert torch.equal(nearest(X, U, k=three).labels, nearest(X, U, k=3).labels)
    assert torch.equal(retrieve(X, U, top_k=three), retrieve(X, U, top_k=3))
