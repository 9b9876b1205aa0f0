"""Which implementation of an op runs: named by the caller, or chosen by device; never swapped in silence."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Generic, Literal, ParamSpec, TypeVar, get_args

import torch

from .exact import exact_products

Backend = Literal["auto", "reference", "torch", "triton"]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Backends(Generic[P, T]):
    """One op by each backend: functions of one signature."""

    reference: Callable[P, T]
    """Dense, in float64: the oracle."""
    streaming: Callable[P, T]
    """In PyTorch, with bounded scratch, on any device."""
    load_triton: Callable[[], Callable[P, T]]
    """Imports CUDA's kernels: triton may not be installed, and takes a second to import."""

    def choose(self, backend: str, device: torch.device) -> Callable[P, T]:
        """The function that will run on `device`, with exact products; `auto` is Triton on CUDA and torch elsewhere.

        Raises:
            ValueError: unknown backend name.
            RuntimeError: `triton` asked for where it cannot run.
        """
        if backend not in get_args(Backend):
            raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
        if backend == "triton" or (backend == "auto" and device.type == "cuda"):
            _require_triton(device)
            run = self.load_triton()
        else:
            run = self.reference if backend == "reference" else self.streaming
        return exact_products(device)(run)


def _require_triton(device: torch.device) -> None:
    if find_spec("triton") is None:
        raise RuntimeError("backend: 'triton' needs the triton package; install it or pass backend='torch'")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend: 'triton' runs on CUDA, and these tensors are on {device.type!r}; move them to a CUDA device, "
            "pass backend='torch', or set TRITON_INTERPRET=1 before Python starts to run it in Triton's interpreter"
        )
