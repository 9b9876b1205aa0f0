"""The result of `predict_step` for one batch as the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

_DENSE = (Tensor, np.ndarray)


def to_table(prediction: Any, indices: Sequence[int], where: str, dataloader: int | None) -> pa.Table:
    """The result of `predict_step` for B samples as a table of B rows.

    Args:
        prediction: a column (`to_array`), called `prediction`; columns by name in a dict or named tuple, or by position
            in a tuple, called `prediction_0`, …; or a list of B dicts.
        indices: positions of the samples in the data set, empty if unknown.
        where: beginning of error messages.
        dataloader: index of the loader, None if there is one.

    Raises:
        ValueError: something else, or columns of different length.

    Example:
        >>> to_table({"score": torch.zeros(2), "box": torch.zeros(2, 4)}, [7, 9], "batch 0", None).column_names
        ['score', 'box', 'index']
    """
    columns = named_columns(prediction)
    n_rows = row_count(columns, where) if columns else 0
    arrays = {name: to_array(values, f"{where}: {name!r}", n_rows) for name, values in columns.items()}
    if not arrays:
        raise ValueError(f"{where} must have as many rows in each column, got no columns")
    if "index" not in arrays and indices:
        if len(indices) != n_rows:
            raise ValueError(
                f"{where} has {n_rows} rows for {len(indices)} samples; return also which samples they are, as 'index'"
            )
        arrays["index"] = pa.array(indices, pa.int64())
    if dataloader is not None:
        arrays["dataloader"] = pa.array([dataloader] * n_rows, pa.int64())
    return pa.table(arrays)


def named_columns(prediction: Any) -> dict[str, Any]:
    """The columns of a prediction by name."""
    if isinstance(prediction, Mapping):
        return {str(name): values for name, values in prediction.items()}
    if is_named_tuple(prediction):
        return prediction._asdict()
    if isinstance(prediction, tuple):
        return {f"prediction_{i}": values for i, values in enumerate(prediction)}
    if isinstance(prediction, list) and prediction and all(isinstance(row, Mapping) for row in prediction):
        # As detectors return them: one dict per sample, with tensors of any length.
        names = dict.fromkeys(name for row in prediction for name in row)
        return {str(name): [row.get(name) for row in prediction] for name in names}
    return {"prediction": prediction}


def is_named_tuple(value: Any) -> bool:
    """Whether a value is a tuple with names."""
    return isinstance(value, tuple) and hasattr(value, "_asdict")


def row_count(columns: Mapping[str, Any], where: str) -> int:
    """The rows that all columns have.

    Raises:
        ValueError: a value has none, or not all have the same number; the message begins with `where`.
    """
    lengths = {}
    for name, values in columns.items():
        if isinstance(values, _DENSE) and values.ndim:
            lengths[name] = len(values)
        elif isinstance(values, Mapping) or is_named_tuple(values):
            lengths[name] = row_count(named_columns(values), f"{where}: {name!r}")
        elif isinstance(values, list | tuple):
            lengths[name] = len(values)
        elif values is not None:
            got = f"one of shape {tuple(values.shape)}" if isinstance(values, _DENSE) else "one"
            raise ValueError(
                f"{where}: {name!r} must be a tensor (B, …) or a list, with a row for each of B samples, got "
                f"{type(values).__name__}, {got} for the batch; return it for each sample, such as "
                f"torch.full((len(batch),), value), or leave it out"
            )
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{where} must have as many rows in each column, got {lengths or 'no columns'}")
    return next(iter(lengths.values()))


def to_array(values: Any, where: str, n_rows: int) -> pa.Array:
    """One column.

    Args:
        values: a tensor or NumPy array (B, …); a list of B strings, numbers, None, lists, dicts or tensors, the latter
            of different lengths (n_i, …) if need be; a dict or named tuple of columns; or None for B nulls.
        where: beginning of error messages.
        n_rows: B.

    Returns:
        Numbers, strings, fixed-size lists of what a sample's shape is, variable lists, or structs.

    Raises:
        ValueError: what has no form in Parquet.
    """
    if values is None:
        return pa.nulls(n_rows)
    if isinstance(values, _DENSE):
        return dense_array(as_numpy(values), where)
    if isinstance(values, Mapping) or is_named_tuple(values):
        columns = named_columns(values)
        return pa.StructArray.from_arrays(
            [to_array(column, f"{where}[{name!r}]", n_rows) for name, column in columns.items()], list(columns)
        )
    rows = list(values)
    kinds = {type(row) for row in rows}
    if any(issubclass(kind, _DENSE) for kind in kinds):
        return array_of_tensors(rows, where)
    if any(issubclass(kind, Mapping) for kind in kinds):
        names = dict.fromkeys(name for row in rows for name in row or ())
        columns = {str(name): [None if row is None else row.get(name) for row in rows] for name in names}
        return pa.StructArray.from_arrays(
            [to_array(column, f"{where}[{name!r}]", n_rows) for name, column in columns.items()],
            list(columns),
            mask=pa.array([row is None for row in rows]),
        )
    if any(issubclass(kind, list | tuple) for kind in kinds):
        rows = [plain(row) for row in rows]
    try:
        return pa.array(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        named = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(
            f"{where} is a list of {named}, which no Parquet column can hold ({error}); return values of one type"
        ) from error


def plain(row: Any) -> Any:
    """A row of nested lists, with tensors turned into lists."""
    if isinstance(row, _DENSE):
        return as_numpy(row).tolist()
    return [plain(part) for part in row] if isinstance(row, list | tuple) else row


def as_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """The array in a type that every reader of Parquet knows: half precision becomes float32."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float32) if values.dtype == np.float16 else values
    values = values.detach() if values.layout is torch.strided else values.detach().to_dense()
    half = values.is_floating_point() and values.dtype not in (torch.float32, torch.float64)
    return (values.float() if half else values).numpy(force=True)


def dense_array(values: np.ndarray, where: str) -> pa.Array:
    """(B, …) numbers as nested lists of fixed size.

    Raises:
        ValueError: a type that has no form in Parquet.
    """
    try:
        array = pa.array(values.reshape(-1))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        advice = "; return its real and imaginary parts" if np.iscomplexobj(values) else ""
        raise ValueError(
            f"{where} must hold numbers that Parquet has, got {values.dtype} of shape {values.shape}{advice}"
        ) from error
    for axis in range(values.ndim - 1, 0, -1):
        size, count = values.shape[axis], int(np.prod(values.shape[:axis]))
        if size == 0:  # no list of fixed size 0 can be read back
            array = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), array)
        else:
            array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def array_of_tensors(rows: Sequence[Any], where: str) -> pa.Array:
    """A list of tensors: one column of them if they have one shape, variable lists if they differ in length.

    Raises:
        ValueError: they differ otherwise, or something else is among them.
    """
    parts = [as_numpy(row) if isinstance(row, _DENSE) else row for row in rows]
    tensors = [part for part in parts if part is not None]
    if not all(isinstance(part, np.ndarray) for part in tensors):
        kinds = ", ".join(sorted({type(row).__name__ for row in rows}))
        raise ValueError(f"{where} mixes {kinds}; return a list of tensors only, or of none")
    shapes = sorted({part.shape for part in tensors})
    if len({len(shape) for shape in shapes}) > 1 or len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"{where} is a list of tensors of shapes {', '.join(map(str, shapes))}; they may differ in their first "
            "dimension alone: return lists (part.tolist()), or pad them"
        )
    if shapes[0] == ():
        return pa.array([None if part is None else part.item() for part in parts])
    lengths = [0 if part is None else len(part) for part in parts]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = dense_array(np.concatenate(tensors), where)
    mask = pa.array([part is None for part in parts]) if len(tensors) < len(parts) else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)
