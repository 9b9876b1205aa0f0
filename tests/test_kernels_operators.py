"""The ops as PyTorch's operators: schemas, fake tensors, compiled and exported graphs, and checks that survive them."""

import pytest
import torch
from kernel_cases import DEVICE, pair
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

from cae.kernels import AndersonAcceleration, cosine_sinkhorn, counterparts, fuse, nearest, retrieve
from cae.kernels.counterparts import operator as counterparts_module
from cae.kernels.fuse import operator as fuse_module
from cae.kernels.nearest import operator as nearest_module
from cae.kernels.retrieve import operator as retrieve_module
from cae.kernels.sinkhorn import operator as sinkhorn_module

X, U = pair("random", 21, 9)
G = 0.01 * U[:, 0]

CALLS = {
    "counterparts": lambda x, u: counterparts(x, u, 0.01 * u[:, 0], epsilon=0.1),
    "counterparts plain": lambda x, u: counterparts(x, u, None, epsilon=0.1),
    "fuse": lambda x, u: fuse([x, x.flip(0)], gamma=0.1),
    "nearest": lambda x, u: tuple(nearest(x, u)),
    "nearest 3": lambda x, u: tuple(nearest(x, u, k=3, bias=u[:, 1])),
    "cosine_sinkhorn": lambda x, u: transport(x, u, None),
    "cosine_sinkhorn weighted": lambda x, u: transport(x, u, (1 + u[:, 0]).softmax(0)),
    "retrieve": lambda x, u: retrieve(x, u, top_k=3),
}


def transport(x, u, col_weights):
    """What the other tensors of a result are made from, and how good it is."""
    plan = cosine_sinkhorn(x, u, epsilon=0.2, col_weights=col_weights, tol=1e-6)
    error, n_iter, converged = map(torch.as_tensor, plan[2:5])
    return plan.f, plan.g, plan.value, error.double(), n_iter, converged


class Module(torch.nn.Module):
    """An op as a model has it, which `torch.export` takes."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, u):
        return self.call(x, u)


# opcheck looks at the .grad of what is no leaf.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("tracked", [False, True])
def test_opcheck(tracked):
    x, u, g = (value.clone().requires_grad_(tracked) for value in (X, U, G))
    torch.library.opcheck(counterparts_module.operator.operator, (x, u, g, 0.1, True, True, "torch"))
    torch.library.opcheck(fuse_module.operator.operator, ([x, (2 * x).detach()], 0.1, "torch"))
    if not tracked:
        torch.library.opcheck(counterparts_module.gradient.operator, (x, x, u, g, 0.1, True, True, "torch"))
        torch.library.opcheck(fuse_module.gradient.operator, (x, x[:, :2].clone(), [x, 2 * x], 0.1, "torch"))
        for mode in ("all", "assigned"):
            torch.library.opcheck(retrieve_module.operator.operator, (x, u, 3, mode, "torch"))
        for bias in (None, g):
            torch.library.opcheck(nearest_module.operator.operator, (x, u, 2, bias, "torch"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("tracked", [False, True])
def test_opcheck_of_sinkhorn(tracked):
    x, u = (value.clone().requires_grad_(tracked) for value in (X, U))
    plan = cosine_sinkhorn(X, U, epsilon=0.2)
    a, b = (torch.full_like(potential, 1 / len(potential), dtype=torch.float64) for potential in (plan.f, plan.g))
    torch.library.opcheck(sinkhorn_module.row_potentials.operator, (x, u, plan.f, plan.g, 0.2))
    torch.library.opcheck(sinkhorn_module.potentials.operator, (x, u, a, b, plan.f, plan.g, 0.2, 1.0))
    if not tracked:
        given = (x, u, None, b, plan.g, 0.2, 100, 1e-3, 1.0)
        for numbers in ([], AndersonAcceleration().numbers):
            torch.library.opcheck(sinkhorn_module.solve.operator, (*given, numbers, "torch"))
        torch.library.opcheck(sinkhorn_module.rows_gradient.operator, (a, x, u, plan.f, plan.g, 0.2))
        args = (plan.f, plan.g, x, u, a, b, plan.f, plan.g, 0.2, 0.5)
        torch.library.opcheck(sinkhorn_module.implicit_gradient.operator, args)


def strided_cases():
    """Every operator that returns a matrix, with arguments that lie column by column, and without rows."""
    x, u = (part.T.contiguous().T for part in (X, U))
    plan = cosine_sinkhorn(X, U, epsilon=0.2)
    a, b = (torch.full_like(potential, 1 / len(potential)).double() for potential in (plan.f, plan.g))
    row_wise = (plan.f, plan.g, x, u, a, b, plan.f, plan.g, 0.2, 1.0)
    cases = {
        "cosine_sinkhorn_rows_gradient": (sinkhorn_module.rows_gradient, (a, x, u, plan.f, plan.g, 0.2)),
        "cosine_sinkhorn_potentials_gradient": (sinkhorn_module.implicit_gradient, row_wise),
    }
    for name, part in (("", x), (", no rows", x[:0])):
        options = (0.1, True, True)
        cases |= {
            f"counterparts{name}": (counterparts_module.operator, (part, u, G, *options, "torch")),
            f"counterparts_gradient{name}": (counterparts_module.gradient, (part, part, u, G, *options, "torch")),
            f"fuse{name}": (fuse_module.operator, ([part, part], 0.1, "torch")),
            f"fuse_gradient{name}": (fuse_module.gradient, (part, part[:, :2], [part, part], 0.1, "torch")),
            f"nearest{name}": (nearest_module.operator, (part, u, 2, None, "torch")),
        }
    return cases


STRIDED = strided_cases()


@pytest.mark.parametrize("case", STRIDED)
def test_results_lie_in_memory_as_a_graph_expects(case):
    operator, args = STRIDED[case]
    with FakeTensorMode() as mode:
        fake = operator.operator(*tree_map_only(torch.Tensor, mode.from_tensor, args))
    real = operator.operator(*args)
    for ours, theirs in zip(tree_leaves(fake), tree_leaves(real), strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", CALLS)
def test_compiled_whole(op, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[op], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (21, 13):
        torch.testing.assert_close(compiled(X[:rows], U), CALLS[op](X[:rows], U))


@pytest.mark.parametrize("op", ["counterparts", "fuse", "cosine_sinkhorn"])
def test_compiled_gradient(op):
    torch._dynamo.reset()

    def loss(x, u):
        if op == "cosine_sinkhorn":
            f, g, value, *_ = CALLS[op](x, u)
            return f.square().sum() + g.sin().sum() + value
        y = CALLS[op](x, u)
        return (y[0] if op == "fuse" else y)[:, 0].sum()

    grads = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = X.clone().requires_grad_()
        run(x, U).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("op", CALLS)
def test_exported(op):
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(CALLS[op]), (X, U), dynamic_shapes={"x": {0: rows}, "u": None}, strict=True)
    torch.testing.assert_close(program.module()(X[:8], U), CALLS[op](X[:8], U))


@pytest.mark.parametrize("op", CALLS)
def test_fake_tensors(op):
    real = CALLS[op](X, U)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:  # it makes the symbol for how many indices `retrieve` returns
        fake = CALLS[op](mode.from_tensor(X), mode.from_tensor(U))
    for ours, theirs in zip(*((y,) if isinstance(y, torch.Tensor) else y for y in (fake, real)), strict=True):
        assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
        assert op == "retrieve" or ours.shape == theirs.shape


def test_no_op_is_recorded_in_a_cuda_graph():
    """Its checks read values, which a stream that records refuses: "reduce-overhead" has to leave it out."""
    torch._dynamo.reset()
    targets = []

    def look(graph, inputs):
        targets.extend(node.target for node in graph.graph.nodes if str(node.target).startswith("cae."))
        return graph

    backend = aot_autograd(fw_compiler=look)
    for call in CALLS.values():
        torch.compile(lambda x, u, call=call: call(x, u), fullgraph=True, backend=backend)(X, U)
    assert len({str(target) for target in targets}) >= 5
    assert all(torch.Tag.cudagraph_unsafe in target.tags for target in targets)


def test_checks_of_values_survive_compilation():
    torch._dynamo.reset()
    compiled = torch.compile(CALLS["counterparts"], fullgraph=True, backend="aot_eager")
    compiled(X, U)
    with pytest.raises(ValueError, match="x: expected rows of unit length"):
        compiled(2 * X, U)
    with pytest.raises(ValueError, match="x: contains NaN or Inf"):
        compiled(X.clone().fill_(torch.nan), U)


def test_what_a_graph_cannot_hold_is_refused():
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="callback: expected None inside a graph"):
        cosine_sinkhorn(mode.from_tensor(X), mode.from_tensor(U), epsilon=0.2, callback=print)


def test_row_weights_leave_the_number_of_rows_open():
    rows = torch.export.Dim("rows", min=2)
    call = Module(lambda x, u: cosine_sinkhorn(x, u, epsilon=0.2, row_weights=(1 + x[:, 0]).softmax(0), tol=1e-6).g)
    program = torch.export.export(call, (X, U), dynamic_shapes={"x": {0: rows}, "u": None}, strict=True)
    torch.testing.assert_close(program.module()(X[:8], U), call(X[:8], U))


def test_rows_that_are_not_there():
    x = torch.empty(0, U.shape[1], device=DEVICE, requires_grad=True)
    counterparts(x, U, None, epsilon=0.1).sum().backward()
    assert x.grad.shape == x.shape
    fuse([x, x], gamma=0.1)[0].sum().backward()
