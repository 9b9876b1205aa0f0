"""Whether an op is called for its numbers or for a graph."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_traced(value: Tensor) -> bool:
    """Under `torch.compile`, `torch.export` or with fake tensors, where an op must be an operator of PyTorch's.

    Elsewhere its function is called as it is: the dispatcher's way to an operator in Python takes a noticeable share of
    a small op's time.
    """
    return torch.compiler.is_compiling() or isinstance(value, FakeTensor)
