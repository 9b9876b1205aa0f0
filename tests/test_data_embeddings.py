"""Embeddings in memory and in files, with their labels, as a data module."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cae.data import (
    EmbeddingData,
    EmbeddingError,
    read_embeddings,
)

X = torch.nn.functional.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
Y = np.arange(10) % 3


def write_npy(folder):
    np.save(folder / "x.npy", X)
    np.save(folder / "x.labels.npy", Y)
    return folder / "x.npy"


def write_safetensors(folder):
    save_file({"embeddings": torch.from_numpy(X), "labels": torch.from_numpy(Y)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_parquet(folder):
    table = pa.table({"embedding": pa.array(list(X)), "label": Y})
    pq.write_table(table, folder / "x.parquet", row_group_size=3)
    return folder / "x.parquet"


def write_fixed_parquet(folder):
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
    pq.write_table(pa.table({"embedding": column, "label": Y}), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    "write", [write_npy, write_safetensors, write_parquet, write_fixed_parquet, lambda _: torch.from_numpy(X)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_embeddings_from_anywhere(attached, tmp_path, write, workers):
    source = write(tmp_path)
    labels = torch.from_numpy(Y) if isinstance(source, torch.Tensor) else None
    data = attached(EmbeddingData(source, labels, batch_size=4, num_workers=workers))
    batches = list(data.predict_dataloader())
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    for key, expected in (("embedding", X), ("index", np.arange(10)), ("label", Y)):
        np.testing.assert_array_equal(torch.cat([batch[key] for batch in batches]).numpy(), expected)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "f2", "f8", "g"])
def test_embeddings_may_be_floats_of_any_size_and_order_of_bytes(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.asfortranarray(X.astype(dtype)))
    np.testing.assert_allclose(EmbeddingData(tmp_path / "x.npy").x.float().numpy(), X, atol=1e-3)


@pytest.mark.parametrize("change", [lambda x: x.astype(">f4"), lambda x: x.astype("g"), lambda x: x[::-1].copy()[::-1]])
def test_so_may_those_in_memory(change):
    np.testing.assert_array_equal(EmbeddingData(change(X)).x, X)


def test_arrays_that_are_only_to_be_read_are_used_where_they_are(tmp_path):
    x = np.load(write_npy(tmp_path), mmap_mode="r")
    assert np.shares_memory(EmbeddingData(x).x.numpy(), x)


def test_npy_files_are_mapped(tmp_path):
    x, _ = read_embeddings(write_npy(tmp_path))
    assert isinstance(x, np.memmap)


def write_ragged(folder):
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), folder / "x.parquet")
    return folder / "x.parquet"


def write_named(folder):
    save_file({"vectors": torch.zeros(3, 2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def write_numbers(folder):
    np.save(folder / "x.npy", np.arange(10))
    return folder / "x.npy"


def write_archive(folder):
    np.savez(folder / "x.npz", X)
    return (folder / "x.npz").rename(folder / "x.npy")


def write_plain_column(folder):
    pq.write_table(pa.table({"embedding": [1.0, 2.0]}), folder / "x.parquet")
    return folder / "x.parquet"


def write_nothing(folder):
    (folder / "x.npy").touch()
    return folder / "x.npy"


def write_pickle(folder):
    np.save(folder / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "none.npy", "no such file"),
        (lambda folder: folder / "x.csv", "is none of .npy"),
        (write_nothing, "cannot be used as embeddings"),
        (write_ragged, "rows that are not 2 numbers"),
        (write_named, "expected a tensor `embeddings`, found vectors"),
        (write_numbers, r"not embeddings \(N, D\)"),
        (write_pickle, "cannot be used as embeddings"),
        (write_archive, "an archive of arrays"),
        (write_plain_column, "cannot be used as embeddings"),
    ],
)
def test_files_that_hold_no_embeddings_are_named(tmp_path, write, message):
    with pytest.raises(EmbeddingError, match=message):
        EmbeddingData(write(tmp_path))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(EmbeddingError, match=r"10 embeddings, but labels of shape \(3,\)"):
        EmbeddingData(X, np.arange(3))
    with pytest.raises(EmbeddingError, match=r"got torch.int64 of shape \(10,\)"):
        EmbeddingData(Y)


@pytest.mark.parametrize("dtype", ["bool", "i1", "u1", "u2", "u4", "u8", ">i2", "<U3"])
def test_labels_of_embeddings_may_be_of_any_integer_type_or_names(tmp_path, dtype):
    labels = (Y > 0 if dtype == "bool" else Y).astype(dtype)
    expected = np.unique(labels, return_inverse=True)[1]
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "x.labels.npy", labels)
    for data in (EmbeddingData(tmp_path / "x.npy"), EmbeddingData(X, labels)):
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "c8"])
def test_labels_that_are_floats_are_refused_by_name(tmp_path, dtype):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "x.labels.npy", Y.astype(dtype))
    with pytest.raises(EmbeddingError, match=r"x\.labels\.npy.*labels are (>f4|float|complex).*, not classes: "):
        EmbeddingData(tmp_path / "x.npy")
    with pytest.raises(EmbeddingError, match=r"labels are (>f4|float|complex).*, not classes: "):
        EmbeddingData(X, Y.astype(dtype))
