"""What every op asks of its arguments. Each check raises one error that names argument, finding and remedy."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from .tiles import panels

# How far from 1 the length of a "unit" row may be: rounding D components moves it by about the type's epsilon.
UNIT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def matrix(name: str, value: Tensor, *, may_be_empty: bool = False) -> None:
    """A 2-D tensor of a dtype that the kernels take; `may_be_empty`: of rows. Its entries are not looked at."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}; pass torch.as_tensor({name})")
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense matrix, got layout {value.layout}; pass {name}.to_dense()")
    if value.ndim != 2 or value.shape[1] == 0 or not (len(value) or may_be_empty):
        raise ValueError(f"{name}: expected a non-empty (rows, width) matrix, got shape {tuple(value.shape)}")
    if value.dtype not in UNIT_TOLERANCE:
        raise ValueError(f"{name}: expected float32, float16 or bfloat16, got {value.dtype}; pass {name}.float()")


def finite(name: str, value: Tensor) -> None:
    """No NaN and no Inf; in one pass and without scratch, since both extremes carry a NaN on."""
    if value.numel() and not all(bool(extreme.isfinite()) for extreme in torch.aminmax(value)):
        raise ValueError(f"{name}: contains NaN or Inf, shape {tuple(value.shape)}; drop or repair these entries")


def alike(name: str, value: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Two matrices of one width, on one device and, unless told otherwise, of one dtype."""
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{other_name}: expected the width of {name}, {value.shape[1]}, got shape {tuple(other.shape)}; "
            "embed both with the same encoder"
        )
    on_device(other_name, other, name, value)
    if dtype and value.dtype != other.dtype:
        raise ValueError(
            f"{other_name}: expected the dtype of {name}, {value.dtype}, got {other.dtype}; "
            f"pass {other_name}.to({name}.dtype)"
        )


def on_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """One device for both."""
    if value.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {other.device}, got {value.device}; "
            f"pass {name}.to({other_name}.device)"
        )


def unit_rows(name: str, value: Tensor) -> None:
    """Every row has length 1, within the rounding of its dtype."""
    tolerance = UNIT_TOLERANCE[value.dtype]
    for rows in panels(value.shape[0], value.shape[1], value.device):
        error = (torch.linalg.vector_norm(value[rows], dim=1, dtype=torch.float32) - 1).abs()
        worst = int(error.argmax())
        if error[worst] > tolerance:
            raise ValueError(
                f"{name}: expected rows of unit length (within {tolerance:g} in {value.dtype}), shape "
                f"{tuple(value.shape)}; row {rows.start + worst} is off by {error[worst]:.3g}; "
                f"pass torch.nn.functional.normalize({name}, dim=1)"
            )


def vector(name: str, value: Tensor, length: int, other_name: str, other: Tensor) -> None:
    """A floating vector with one entry per row of `other`, on its device."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != (length,):
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name}: expected a floating tensor of shape ({length},), one entry per row of {other_name}, got {found}"
        )
    on_device(name, value, other_name, other)


def log_weights(name: str, value: Tensor, length: int, other_name: str, other: Tensor) -> None:
    """A vector of finite numbers or -inf (weight zero), not all of them -inf."""
    vector(name, value, length, other_name, other)
    # A NaN fails the comparison too.
    if not bool((value < math.inf).all()) or not bool((value > -math.inf).any()):
        raise ValueError(f"{name}: expected finite numbers, or -inf for texts that take no part, not all of them -inf")


def non_negative(name: str, value: Tensor) -> None:
    """Finite weights, none of them below zero."""
    finite(name, value)
    if bool((value < 0).any()):
        raise ValueError(f"{name}: expected weights of at least 0, the least is {float(value.min()):.3g}; clip them")


def sums_to_one(name: str, total: float) -> None:
    """Weights of a probability vector."""
    if abs(total - 1) > 1e-4:
        raise ValueError(f"{name}: expected weights that sum to 1, the sum is {total:.6g}; divide {name} by its sum")


def positive(name: str, value: object) -> float:
    """A finite number above zero, which float32 can hold: any real number, or a tensor of one number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number, got {value!r} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 2**-126 <= number < 2**128:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return number


def count(name: str, value: object) -> int:
    """A whole number of at least one, NumPy's included."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return int(value)
