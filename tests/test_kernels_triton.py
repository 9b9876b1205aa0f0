"""The Triton backends against the float64 reference: compiled on CUDA, in Triton's interpreter elsewhere."""

import pytest
import torch
from kernel_cases import CLIP, DEVICE, DTYPES, SHAPES, poison, real_text_vectors, relative_error, unit  # noqa: F401
from torch import Tensor
from torch.nn.functional import normalize

triton = pytest.importorskip("triton")
tl = triton.language

from cae.kernels import cosine_sinkhorn, counterparts, fuse, launch, nearest, retrieve  # noqa: E402
from cae.kernels import triton as shared_kernels  # noqa: E402
from cae.kernels.counterparts import triton as counterparts_kernels  # noqa: E402
from cae.kernels.counterparts.gradient import counterparts_gradient  # noqa: E402
from cae.kernels.fuse import triton as fuse_kernels  # noqa: E402
from cae.kernels.fuse.gradient import fuse_gradient  # noqa: E402
from cae.kernels.nearest import triton as nearest_kernels  # noqa: E402
from cae.kernels.sinkhorn.triton import TritonSweep  # noqa: E402
from cae.kernels.triton import _ROWS, SoftmaxPanel, product  # noqa: E402

pytestmark = pytest.mark.usefixtures("poison")

# Largest relative error ||y - y'|| / ||y'|| of a result kept in a dtype. What the reference gets is the same inputs, so
# what counts is the rounding of the softmax between two kernels and of the result. The interpreter truncates bfloat16.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
# Columns of a tile, by dtype, for tests of what happens between tiles.
TILE = {dtype: launch.product_tile(launch.architecture(DEVICE), dtype, 16).BLOCK_J for dtype in DTYPES}


@pytest.fixture
def one_tile_panels(monkeypatch):
    """The least scratch: every tile of rows is a panel of its own."""
    monkeypatch.setattr(launch, "_PANEL_BYTES", {"cpu": 1, "cuda": 1})


def geometry(kind: str, rows: int, width: int, dtype: torch.dtype, *, seed: int) -> Tensor:
    """Unit rows of a kind that makes trouble: scores that tie, or that all but tie."""
    noise = unit(rows, width, seed=seed)
    if kind == "random":
        return noise.to(dtype)
    if kind == "duplicated":
        return noise[torch.arange(rows, device=DEVICE) // 3].to(dtype)
    centers = unit(4, width, seed=7)[torch.arange(rows, device=DEVICE) % 4]
    spread = {"clustered": 0.3, "collinear": 1e-3}[kind]
    return normalize(centers + spread * noise, dim=1).to(dtype)


def check_sweep(x: Tensor, u: Tensor, epsilon: float) -> None:
    """One sweep against the same in float64."""
    N, M = len(x), len(u)
    a = torch.rand(N, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    a /= a.sum()
    log_v = torch.randn(M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_u, columns = TritonSweep(x, u, a, epsilon)(log_v)

    e = x.double() @ u.double().T / epsilon + log_v.to(DEVICE)
    t = torch.softmax(e, dim=1)
    # The exponent s / epsilon is held in float32: its rounding is the floor of what follows. Half types add that of p.
    floor = 4e-7 / epsilon + (5e-7 if x.dtype == torch.float32 else 5e-4)
    torch.testing.assert_close(log_u.double(), -torch.logsumexp(e, dim=1), atol=2 * floor, rtol=1e-6)
    torch.testing.assert_close(columns, a.double() @ t, atol=1e-9, rtol=2 * floor)
    # The rows of the plan are exact whatever the rounding, so all that was sent arrives.
    assert float(columns.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_sweep(N, M, D, dtype):
    check_sweep(unit(N, D, dtype), unit(M, D, dtype, seed=1), epsilon=0.05)


@pytest.mark.parametrize("epsilon", [1e-3, 0.02, 1.0])
@pytest.mark.parametrize("kind", ["clustered", "duplicated", "collinear"])
def test_sweep_on_hard_geometry(kind, epsilon):
    for dtype in (torch.float32, torch.float16):
        x, u = geometry(kind, 70, 64, dtype, seed=0), geometry(kind, 45, 64, dtype, seed=1)
        check_sweep(x, u, epsilon)


@pytest.mark.parametrize(
    ("N", "M", "D"),
    [
        pytest.param(1100, 40, 16, id="column sums by several programs"),
        pytest.param(
            3,
            _ROWS["BLOCK_T"] * TILE[torch.float16] + 1,
            16,
            id="more tiles in a row than one step of the normaliser takes",
        ),
    ],
)
def test_sweep_of_long_sides(N, M, D):
    check_sweep(unit(N, D, torch.float16), unit(M, D, torch.float16, seed=1), epsilon=0.05)


@pytest.mark.usefixtures("one_tile_panels")
def test_sweep_over_several_panels_gives_the_same_rows_and_repeats():
    x, u, a = unit(150, 32), unit(40, 32, seed=1), torch.full((150,), 1 / 150, device=DEVICE)
    check_sweep(x, u, epsilon=0.05)
    sweep, log_v = TritonSweep(x, u, a, 0.05), torch.zeros(40, dtype=torch.float64)
    assert sweep.panel.rows < 150
    first, second = sweep(log_v), sweep(log_v)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("acceleration", [False, True])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float16, 3e-4)])
def test_sinkhorn_converges_to_the_reference(dtype, tol, acceleration):
    x, u = unit(60, 64, dtype), unit(40, 64, dtype, seed=1)
    a, b = (torch.rand(n, generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (60, 40))
    a[3] = b[5] = 0
    kwargs = {"epsilon": 0.1, "row_weights": a / a.sum(), "col_weights": b / b.sum()}
    result = cosine_sinkhorn(x, u, **kwargs, tol=tol, acceleration=acceleration, backend="triton")
    reference = cosine_sinkhorn(x, u, **kwargs, tol=1e-6, max_iter=2000, backend="reference")
    assert result.converged
    assert result.marginal_error <= tol
    assert torch.isneginf(result.g[5])
    kept = torch.arange(40, device=DEVICE) != 5
    # An L1 error of tol moves a column of weight b by about tol / b, and its potential by epsilon times that.
    torch.testing.assert_close(result.g[kept].double(), reference.g[kept], atol=40 * 0.1 * tol, rtol=0)
    torch.testing.assert_close(result.f.double(), reference.f, atol=40 * 0.1 * tol, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_counterparts(N, M, D, dtype):
    x, u = unit(N, D, dtype), unit(M, D, dtype, seed=1)
    g = 0.1 * torch.randn(M, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    y = counterparts(x, u, g, epsilon=0.05, backend="triton")
    assert y.dtype == dtype
    assert relative_error(y, counterparts(x, u, g, epsilon=0.05, backend="reference")) < TOLERANCE[dtype]


@pytest.mark.parametrize("similarity_weight", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_counterparts_at_their_own_length(dtype, similarity_weight):
    x, u = unit(40, 64, dtype), unit(70, 64, dtype, seed=1)
    kwargs = {"epsilon": 1.0, "normalize": False, "similarity_weight": similarity_weight}
    y = counterparts(x, u, None, **kwargs, backend="triton")
    assert relative_error(y, counterparts(x, u, None, **kwargs, backend="reference")) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["clustered", "duplicated", "collinear"])
def test_counterparts_on_hard_geometry(kind):
    x, u = geometry(kind, 40, 64, torch.float16, seed=0), geometry(kind, 70, 64, torch.float16, seed=1)
    for epsilon in (1e-3, 0.02, 1.0):
        y = counterparts(x, u, None, epsilon=epsilon, backend="triton")
        assert relative_error(y, counterparts(x, u, None, epsilon=epsilon, backend="reference")) < 1e-3


@pytest.mark.usefixtures("one_tile_panels")
def test_counterparts_pass_over_texts_of_weight_zero():
    none = TILE[torch.float32] + 10  # the whole first tile, and a part of the second
    x, u, g = unit(70, 32), unit(none + 40, 32, seed=1), torch.zeros(none + 40, device=DEVICE)
    g[:none] = -torch.inf
    y = counterparts(x, u, g, epsilon=0.05, backend="triton")
    assert relative_error(y, counterparts(x, u[none:], None, epsilon=0.05, backend="reference")) < 2e-6


def test_counterparts_keep_a_zero_sum():
    x, u = torch.zeros(2, 32, device=DEVICE), torch.zeros(1, 32, device=DEVICE)
    x[:, 0], u[:, 1] = 1, 1  # similarity 0 with the only text
    assert torch.equal(counterparts(x, u, None, epsilon=0.05, backend="triton"), torch.zeros_like(x))


# As TOLERANCE, for four factors rounded one after another. With bfloat16 rounded as a GPU does it, a third was found.
GRADIENT_TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 4e-2}


def check_counterparts_gradient(grad: Tensor, x: Tensor, u: Tensor, g: Tensor, tolerance: float, **options) -> None:
    """In x, u and g, against the reference's autograd in float64."""
    found = counterparts_kernels.counterparts_gradient(grad, x, u, g, **options)
    assert [value.dtype for value in found] == [x.dtype, u.dtype, g.dtype]
    leaves = [value.detach().clone().requires_grad_() for value in (x, u, g)]
    y = counterparts(*leaves, **options, backend="reference")
    expected = torch.autograd.grad(y, leaves, grad.to(y.dtype))
    # What is rounded is the gradient of the sum before it is scaled. Where texts are alike, others cancel to nothing.
    sums = counterparts(x, u, g, **options | {"normalize": False}, backend="reference").norm(dim=1, keepdim=True)
    rounded = grad / sums.clamp_min(1e-12) if options["normalize"] else grad.double()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= tolerance * max(theirs.double().norm(), rounded.norm())


@pytest.mark.parametrize(("scale", "weigh"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_counterparts_gradient(N, M, D, dtype, scale, weigh):
    x, u, grad = (unit(rows, D, dtype, seed=seed) for seed, rows in enumerate((N, M, N)))
    g = 0.1 * torch.randn(M, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    options = {"epsilon": 0.1, "normalize": scale, "similarity_weight": weigh}
    check_counterparts_gradient(grad, x, u, g, GRADIENT_TOLERANCE[dtype], **options)


@pytest.mark.parametrize("kind", ["clustered", "duplicated", "collinear"])
def test_counterparts_gradient_on_hard_geometry(kind):
    x, u = geometry(kind, 40, 64, torch.float16, seed=0), geometry(kind, 70, 64, torch.float16, seed=1)
    for epsilon in (5e-3, 0.02, 1.0):
        for scale in (True, False):
            options = {"epsilon": epsilon, "normalize": scale, "similarity_weight": True}
            check_counterparts_gradient(unit(40, 64, seed=2), x, u, torch.zeros(70, device=DEVICE), 4e-3, **options)


def test_counterparts_gradient_among_texts_that_all_but_coincide():
    """Terms of 1 / epsilon cancel: they have to come from one and the same plan."""
    x, u = unit(3, 3, seed=1), unit(130, 3, seed=2)
    options = {"epsilon": 0.01, "normalize": False, "similarity_weight": True}
    check_counterparts_gradient(unit(3, 3, seed=5), x, u, torch.zeros(130, device=DEVICE), 2e-5, **options)


@pytest.mark.usefixtures("one_tile_panels")
def test_counterparts_gradient_over_several_panels():
    none = TILE[torch.float32] + 10  # texts of weight zero: the whole first tile, and a part of the second
    x, u, g = unit(150, 32), unit(none + 40, 32, seed=1), torch.zeros(none + 40, device=DEVICE)
    g[:none] = -torch.inf
    options = {"epsilon": 0.1, "normalize": True, "similarity_weight": True}
    check_counterparts_gradient(unit(150, 32, seed=2), x, u, g, 5e-6, **options)
    _, in_u, in_g = counterparts_kernels.counterparts_gradient(unit(150, 32, seed=2), x, u, g, **options)
    assert not in_u[:none].any()
    assert not in_g[:none].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_counterparts_gradient_of_rows_that_weigh_from_nothing_to_a_thousand(dtype):
    """Every row's own gradient is as exact as if it were alone, and no half type overflows on the way."""
    x, u, g = unit(70, 64, dtype), unit(45, 64, dtype, seed=1), torch.zeros(45, device=DEVICE)
    weights = torch.logspace(-9, 3, 70, device=DEVICE)[:, None]
    weights[7] = 0
    grad = weights * unit(70, 64, seed=2)
    options = {"epsilon": 0.1, "normalize": True, "similarity_weight": True}
    check_counterparts_gradient(grad, x, u, g, GRADIENT_TOLERANCE[dtype], **options)
    in_x, _, _ = counterparts_kernels.counterparts_gradient(grad, x, u, g, **options)
    expected, _, _ = counterparts_gradient(grad.double(), x.double(), u.double(), g.double(), **options)
    representable = weights[:, 0] > 1e-2 if dtype == torch.float16 else weights[:, 0] > 0
    error = (in_x.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error[representable].max()) < GRADIENT_TOLERANCE[dtype]
    assert not in_x[7].any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "M", "D"), SHAPES)
def test_nearest(N, M, D, dtype, bias):
    x, c = unit(N, D, dtype), unit(M, D, dtype, seed=1)
    b = torch.randn(M, generator=torch.Generator().manual_seed(2)).to(DEVICE) if bias else None
    for k in {1, min(M, 3)}:
        labels, similarity = nearest(x, c, k=k, bias=b, backend="triton")
        expected = nearest(x, c, k=k, bias=b, backend="reference")
        assert torch.equal(labels, expected.labels)
        torch.testing.assert_close(similarity.double(), expected.similarity, atol=1e-6, rtol=1e-6)


def whole_numbers(rows: int, width: int, *, seed: int = 0) -> Tensor:
    """Rows whose products are exact, so that equal rows have equal scores in whatever order they are summed."""
    return torch.randint(-3, 4, (rows, width), generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


def test_nearest_gives_ties_to_the_lowest_index():
    x, c = whole_numbers(3, 32), whole_numbers(5, 32, seed=1).repeat(30, 1)
    expected = nearest(x, c[:5], backend="reference").labels
    assert torch.equal(nearest(x, c, backend="triton").labels, expected)
    labels = nearest(x, c, k=9, backend="triton").labels
    assert torch.equal(labels, expected[:, None] + 5 * torch.arange(9, device=DEVICE))


def test_nearest_lists_every_centroid():
    x, c = unit(40, 32), unit(37, 32, seed=1)
    assert torch.equal(nearest(x, c, k=37, backend="triton").labels, nearest(x, c, k=37, backend="reference").labels)


def test_lists_too_long_for_registers_take_another_way(monkeypatch):
    x, c, k = unit(20, 32), unit(300, 32, seed=1), nearest_kernels.LONGEST_LIST + 1
    monkeypatch.setattr(nearest_kernels, "nearest_kernel", None)
    assert torch.equal(nearest(x, c, k=k, backend="triton").labels, nearest(x, c, k=k, backend="reference").labels)
    assert torch.equal(retrieve(c, x, top_k=k, backend="triton"), retrieve(c, x, top_k=k, backend="reference"))


@pytest.mark.parametrize("mode", ["all", "assigned"])
@pytest.mark.parametrize(("T", "n", "D"), SHAPES)
def test_retrieve(T, n, D, mode):
    # Seeds with which no two texts compete within 3e-5, which the rounding of a logarithm could turn round.
    texts, centers = unit(T, D, torch.float16, seed=10), 0.8 * unit(n, D, seed=11)
    chosen = retrieve(texts, centers, top_k=4, mode=mode, backend="triton")
    assert torch.equal(chosen, retrieve(texts, centers, top_k=4, mode=mode, backend="reference"))


@pytest.mark.parametrize("mode", ["all", "assigned"])
def test_retrieve_takes_the_first_of_equal_texts(mode):
    texts, centers = whole_numbers(6, 64).repeat(20, 1) / 64, whole_numbers(2, 64, seed=1) / 64
    chosen = retrieve(texts, centers, top_k=3, mode=mode, backend="triton")
    assert torch.equal(chosen, retrieve(texts, centers, top_k=3, mode=mode, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D", "m"), [(1, 3, 1), (129, 64, 2), (15, 384, 3), (2, 1280, 4), (5, 512, 5)])
def test_fuse(N, D, m, dtype):
    parts = [(1 + i) * unit(N, D, seed=i).to(dtype) for i in range(m)]
    parts[0][0] = 0  # the cosine with a zero vector is 0
    fused, beta = fuse(parts, gamma=0.1, backend="triton")
    reference, reference_beta = fuse(parts, gamma=0.1, backend="reference")
    assert fused.dtype == dtype
    torch.testing.assert_close(fused.double(), reference, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(beta.double(), reference_beta, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D", "m"), [(1, 3, 1), (129, 64, 2), (15, 384, 3), (2, 1280, 4), (5, 512, 5)])
def test_fuse_gradient(N, D, m, dtype):
    parts = [(1 + i) * unit(N, D, seed=i).to(dtype) for i in range(m)]
    parts[0][0] = 0
    grad_z, grad_beta = unit(N, D, dtype, seed=8), unit(N, m, seed=9)
    found = fuse_kernels.fuse_gradient(grad_z, grad_beta, parts, gamma=0.1)
    expected = fuse_gradient(grad_z.double(), grad_beta.double(), [part.double() for part in parts], gamma=0.1)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


def test_inputs_need_not_be_contiguous():
    x, u = unit(40, 64).T.contiguous().T, unit(30, 64, seed=1)[::2]
    assert (
        relative_error(
            counterparts(x, u, None, epsilon=0.05, backend="triton"),
            counterparts(x, u, None, epsilon=0.05, backend="reference"),
        )
        < 2e-6
    )
    assert torch.equal(nearest(x, u, backend="triton").labels, nearest(x, u, backend="reference").labels)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU has tiles of its own")
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")  # in such rows
@pytest.mark.parametrize(("arch", "dtype"), [(75, torch.float16), (80, torch.float32), (90, torch.float16)])
def test_tiles_of_a_gpu(monkeypatch, arch, dtype):
    """They are larger than the interpreter's: rows past the last one reach further than what gets a normaliser."""
    for module in (shared_kernels, counterparts_kernels, nearest_kernels):
        monkeypatch.setattr(module, "architecture", lambda device: arch)
    x, u, grad = unit(70, 24, dtype), unit(300, 24, dtype, seed=1), unit(70, 24, dtype, seed=2)
    check_sweep(x, u, epsilon=0.05)
    y = counterparts(x, u, None, epsilon=0.05, backend="triton")
    assert relative_error(y, counterparts(x, u, None, epsilon=0.05, backend="reference")) < TOLERANCE[dtype]
    options = {"epsilon": 0.1, "normalize": True, "similarity_weight": True}
    check_counterparts_gradient(grad, x, u, torch.zeros(300), GRADIENT_TOLERANCE[dtype], **options)
    assert torch.equal(nearest(x, u, k=3, backend="triton").labels, nearest(x, u, k=3, backend="reference").labels)


@triton.jit
def far_product_kernel(p_x, p_u, p_s, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """The product of rows that stand `first` rows after an address `first` rows before x."""
    o = tl.arange(0, BLOCK)
    p_x -= first.to(tl.int64) * D
    tl.store(p_s + o[:, None] * BLOCK + o[None, :], product(p_x, p_u, first + o, o, D, 16, "ieee"))


def test_offsets_pass_32_bits():
    x, u, s = unit(16, 512), unit(16, 512, seed=1), torch.empty(16, 16, device=DEVICE)
    far_product_kernel[(1,)](x, u, s, 2**22 + 1, D=512, BLOCK=16, **launch.FUSED)  # (2^22 + 1) · 512 > 2^31
    torch.testing.assert_close(s, x @ u.T, atol=1e-6, rtol=1e-6)


def test_scratch_does_not_grow_with_the_rows():
    u = unit(2000, 32, torch.float16)

    def scratch_bytes(N: int) -> int:
        x = u[:1].expand(N, 32)
        return sum(
            t.nbytes for t in vars(SoftmaxPanel(x, u, dtype=u.dtype)).values() if isinstance(t, Tensor) and t is not x
        )

    assert scratch_bytes(10**6) == scratch_bytes(10**7) <= launch._PANEL_BYTES[DEVICE.type] + u.nbytes


@pytest.mark.slow
@pytest.mark.skipif(not CLIP.exists(), reason="needs ../shared/data/clip_text")
def test_real_text_vectors():
    vectors = real_text_vectors()
    x, u = vectors[:300], vectors[300:500]
    for epsilon in (5e-3, 0.02):
        check_sweep(x, u, epsilon)
        y = counterparts(x, u, None, epsilon=epsilon, backend="triton")
        assert relative_error(y, counterparts(x, u, None, epsilon=epsilon, backend="reference")) < 1e-3
    assert torch.equal(
        retrieve(vectors, vectors[:20], top_k=5, backend="triton"),
        retrieve(vectors, vectors[:20], top_k=5, backend="reference"),
    )


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
class TestAtScale:
    """Shapes that fill a GPU: many tiles, several panels, 64-bit offsets, and the memory that they take."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("N", "M", "D"), [(20_011, 5003, 512), (5003, 20_011, 768), (3001, 2003, 1280)])
    def test_numbers(self, monkeypatch, N, M, D, dtype):
        # A quarter of the scratch makes several panels of what the dense reference can hold.
        monkeypatch.setattr(launch, "_PANEL_BYTES", {"cpu": 2**20, "cuda": 2**27})
        x, u = unit(N, D, dtype), unit(M, D, dtype, seed=1)
        check_sweep(x, u, epsilon=0.02)
        y = counterparts(x, u, None, epsilon=0.02, backend="triton")
        assert relative_error(y, counterparts(x, u, None, epsilon=0.02, backend="reference")) < TOLERANCE[dtype]
        options = {"epsilon": 0.05, "normalize": True, "similarity_weight": True}
        check_counterparts_gradient(unit(N, D, dtype, seed=2), x, u, torch.zeros(M, device=DEVICE), 2e-2, **options)
        labels, similarity = nearest(x, u, backend="triton")
        expected = nearest(x, u, backend="reference")
        torch.testing.assert_close(similarity.double(), expected.similarity, atol=1e-5, rtol=0)
        assert (labels == expected.labels).float().mean() > 0.999  # scores within 1e-6 of each other may swap

    def test_a_row_depends_on_no_other(self):
        x, u = unit(5000, 512, torch.float16), unit(3000, 512, torch.float16, seed=1)
        order = torch.randperm(5000, device=DEVICE)
        whole = counterparts(x, u, None, epsilon=0.02, backend="triton")
        assert torch.equal(counterparts(x[order], u, None, epsilon=0.02, backend="triton"), whole[order])
        assert torch.equal(counterparts(x[:7], u, None, epsilon=0.02, backend="triton"), whole[:7])

    def test_results_repeat(self):
        x, u = unit(50_000, 512, torch.float16), unit(20_000, 512, torch.float16, seed=1)
        first, second = (cosine_sinkhorn(x, u, epsilon=0.02, backend="triton") for _ in range(2))
        assert torch.equal(first.f, second.f)
        assert torch.equal(first.g, second.g)

    def test_more_than_two_to_the_31_numbers(self):
        x = unit(1000, 512, torch.float16).repeat(4300, 1)
        c = unit(100, 512, torch.float16, seed=1)
        labels = nearest(x, c, backend="triton").labels
        assert torch.equal(labels, nearest(x[:1000], c, backend="reference").labels.repeat(4300))

    def test_memory_is_inputs_and_a_panel(self):
        x, u = unit(400_000, 512, torch.float16), unit(20_000, 512, torch.float16, seed=1)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sweep = TritonSweep(x, u, torch.full((len(x),), 1 / len(x), device=DEVICE), 0.02)
        sweep(torch.zeros(len(u), dtype=torch.float64))
        assert torch.cuda.max_memory_allocated() - before < 2**30

    def test_memory_of_a_gradient_is_three_gradients_and_a_panel(self):
        x, u = unit(400_000, 512, torch.float16), unit(20_000, 512, torch.float16, seed=1)
        g, options = torch.zeros(len(u), device=DEVICE), {"normalize": True, "similarity_weight": True}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        counterparts_kernels.counterparts_gradient(x, x, u, g, epsilon=0.02, **options)
        assert torch.cuda.max_memory_allocated() - before < 2**30 + x.nbytes
