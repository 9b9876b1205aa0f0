"""An op as PyTorch knows it: an operator with shapes for tracing and, where there is one, a first derivative."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

# PyTorch keeps one operator of a name in a process, and this package may be there twice: as `cae.kernels` and, from
# Hugging Face's hub, under a name made for one version. So a copy's operators bear the name of the copy: `cae::fuse`.
NAMESPACE = __name__.rpartition(".")[0].removesuffix(".kernels").replace(".", "_")


class Operator:
    """A function of tensors and numbers, callable in eager mode, in a graph and under torch.func.

    Attributes:
        operator: what `torch.library` made of the function.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        *,
        fake: Callable[..., Any],
        schema: str | None = None,
        setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        """Register `<namespace>::<name>`, in `cae.kernels` `cae::<name>`.

        Args:
            name: as graphs show it.
            run: the function.
            fake: empty tensors of the shapes and dtypes that `run` returns, from its arguments.
            schema: of the operator; made from the annotations of `run` if None.
            setup_context: keeps what `backward` needs, as in `torch.autograd.Function`, with the arguments of `run`.
            backward: a gradient for each argument of `run`, None for what is no tensor. Without it the op refuses to be
                differentiated.
        """
        self.run, self.backward = run, backward or _no_derivative(name)
        self.setup_context = setup_context or (lambda ctx, inputs, output: None)
        # Ops look at their inputs' values, for which the CPU waits. So they can be no part of a CUDA graph, which
        # `torch.compile` with mode="reduce-overhead" records.
        tags = (torch.Tag.cudagraph_unsafe,)
        self.operator = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), schema=schema, tags=tags)
        self.operator.register_fake(fake)
        if backward:
            self.operator.register_autograd(backward, setup_context=setup_context)

    def __call__(self, *args: Any) -> Any:
        """Run by the way that the caller's mode takes, and by the shortest where it takes several."""
        # Dynamo takes a bare operator, torch.func one within a Function (whose wrappers have no memory that a Triton
        # kernel could read), and neither takes the other. Either costs a small op half of its time, so that without a
        # graph or a derivative there is none of them.
        if torch.compiler.is_compiling():
            return self.operator(*args)
        if is_tracked(args) or any(is_functorch_wrapped_tensor(tensor) for tensor in _tensors(args)):
            leaves, structure = tree_flatten(args)
            return _Function.apply(self, structure, *leaves)
        return self.eager(args)

    def eager(self, args: Sequence[Any]) -> Any:
        """Without a derivative."""
        return (self.operator if is_traced(*args) else self.run)(*args)


class _Function(torch.autograd.Function):
    """An operator under torch.func's transforms, which refuse derivatives that are registered with an operator.

    Its arguments come flat, since a Function sees no tensors within a list.
    """

    @staticmethod
    def forward(op: Operator, structure: Any, *leaves: Any) -> Any:
        """The operator's result, as a Function has to return it."""
        output = op.eager(tree_unflatten(leaves, structure))
        return tuple(output) if isinstance(output, list) else output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Let the operator keep what it needs."""
        ctx.op, structure, *leaves = inputs
        ctx.op.setup_context(ctx, tree_unflatten(leaves, structure), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The operator's gradients, flat as the arguments were."""
        return None, None, *tree_leaves(list(ctx.op.backward(ctx, *grads)))


def is_traced(*args: Any) -> bool:
    """Whether an op is called for a graph and not for its numbers: in `torch.compile` or with fake tensors."""
    traced = (FakeTensor, FunctionalTensor)
    return torch.compiler.is_compiling() or any(isinstance(tensor, traced) for tensor in _tensors(args))


def is_tracked(args: Sequence[Any]) -> bool:
    """Whether a derivative is taken: backward (`requires_grad`, `torch.func.grad`) or forward (`torch.func.jvp`)."""
    return torch.is_grad_enabled() and any(
        tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None for tensor in _tensors(args)
    )


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    """Those among the arguments and in lists among them; a fifth of the time that `tree_leaves` takes."""
    for arg in args:
        yield from (part for part in (arg if isinstance(arg, list) else (arg,)) if isinstance(part, Tensor))


def _no_derivative(name: str) -> Callable[..., NoReturn]:
    """A backward that refuses: without it a second derivative would fail without a name."""
    op = name.removesuffix("_gradient")

    def backward(*_: Any) -> NoReturn:
        raise NotImplementedError(
            f"{op} has a first derivative only; pass create_graph=False. For small inputs backend='reference' has all "
            "derivatives of counterparts and fuse"
        )

    return backward
