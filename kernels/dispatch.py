"""Which implementation of an op runs: named by the caller, or chosen by device; never swapped in silence."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from cae.kernels.exact import exact_products

Backend = Literal["auto", "reference", "torch", "triton"]


def resolve(backend: Backend, device: torch.device) -> str:
    """The backend that will run on `device`: `auto` is Triton on CUDA and torch elsewhere.

    Raises:
        ValueError: unknown backend name.
        RuntimeError: `triton` asked for where it cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    if backend == "auto":
        backend = "triton" if device.type == "cuda" else "torch"
    if backend == "triton":
        _require_triton(device)
    return backend


def implementation(op: str, function: str, backend: Backend, device: torch.device) -> Callable[..., Any]:
    """`function` as the resolved backend's module `cae.kernels.<op>.<backend>` implements it, with exact products."""
    run = getattr(import_module(f"cae.kernels.{op}.{resolve(backend, device)}"), function)
    return exact_products(device)(run)


def _require_triton(device: torch.device) -> None:
    if find_spec("triton") is None:
        raise RuntimeError("backend: 'triton' needs the triton package; install it or pass backend='torch'")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend: 'triton' runs on CUDA, and these tensors are on {device.type!r}; move them to a CUDA device, "
            "pass backend='torch', or set TRITON_INTERPRET=1 before Python starts to run it in Triton's interpreter"
        )
