"""Vectors made elsewhere: every form in which they come is read, and what is wrong is named by file and row."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cae.data import EmbeddingData, EmbeddingError, read_embeddings
from cae.data.vector_files import read_vectors

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
NAMES = [["ant", "bee", "cat"][i % 3] for i in range(12)]


def write_clip_retrieval(folder, shards=12):
    """One vector a shard, so that a shard's name and place say which row it is."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for i in range(shards):
        np.save(folder / f"img_emb/img_emb_{i}.npy", X[i : i + 1].astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{i}.npy", -X[i : i + 1].astype(np.float16))
        table = pa.table({"image_path": [f"photos/{i}.jpg"], "caption": [f"a thing {i}"], "key": [i]})
        pq.write_table(table, folder / f"metadata/metadata_{i}.parquet")
    return folder


def test_folders_of_clip_retrieval_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = write_clip_retrieval(tmp_path / "clip")
    images, texts = read_vectors(folder), read_vectors(folder, "texts")
    np.testing.assert_array_equal(images.x, X.astype(np.float16))
    np.testing.assert_array_equal(texts.x, -X.astype(np.float16))
    assert images.paths == [f"photos/{i}.jpg" for i in range(12)]
    assert texts.texts == [f"a thing {i}" for i in range(12)]
    assert images.place(10) == f"row 0 (the first is 0) of {folder}/img_emb/img_emb_10.npy"
    np.testing.assert_array_equal(EmbeddingData(folder).x.numpy(), X.astype(np.float16))


def test_clip_retrieval_that_does_not_fit_is_named(tmp_path):
    folder = write_clip_retrieval(tmp_path / "clip", shards=2)
    pq.write_table(pa.table({"caption": ["a", "b"]}), folder / "metadata/metadata_1.parquet")
    with pytest.raises(EmbeddingError, match=r"metadata_1\.parquet has 2 rows, but .*text_emb_1\.npy has 1 vectors"):
        read_vectors(folder, "texts")
    (folder / "metadata/metadata_1.parquet").unlink()
    with pytest.raises(EmbeddingError, match=r"text_emb_0\.npy has texts, .*text_emb_1\.npy has none"):
        read_vectors(folder, "texts")
    table = folder / "metadata/metadata_0.parquet"
    table.write_bytes(table.read_bytes().replace(b"caption", b"captio\x80"))
    with pytest.raises(EmbeddingError, match=r"metadata_0\.parquet cannot be read: 'utf-8' codec"):
        read_vectors(folder, "texts")
    with pytest.raises(EmbeddingError, match="holds no embeddings of images"):
        read_vectors(tmp_path)


def test_a_list_of_files_is_one_source(tmp_path):
    for name, part in (("a", slice(0, 7)), ("b", slice(7, 12))):
        np.save(tmp_path / f"{name}.npy", X[part])
        np.save(tmp_path / f"{name}.labels.npy", np.arange(12)[part])
    data = EmbeddingData([tmp_path / "a.npy", str(tmp_path / "b.npy")])
    np.testing.assert_array_equal(data.x.numpy(), X)
    assert data.labels.tolist() == list(range(12))
    (tmp_path / "b.labels.npy").unlink()
    with pytest.raises(EmbeddingError, match=r"a\.npy has labels, .*b\.npy has none"):
        EmbeddingData([tmp_path / "a.npy", tmp_path / "b.npy"])
    np.save(tmp_path / "c.npy", X[:, :3])
    with pytest.raises(EmbeddingError, match=r"c\.npy holds vectors of width 3, .*b\.npy of width 5"):
        EmbeddingData([tmp_path / "b.npy", tmp_path / "c.npy"])
    with pytest.raises(EmbeddingError, match="no files in the list"):
        EmbeddingData([])


@pytest.mark.parametrize(
    "table",
    [
        lambda: pd.DataFrame({"embedding": list(X), "label": NAMES}, index=range(5, 17)),
        lambda: pa.table({"embeddings": list(X), "labels": NAMES}),
        lambda: datasets.Dataset.from_dict({"image_embedding": X, "label": NAMES}),
        lambda: datasets.Dataset.from_dict({"embedding": X[::-1], "label": NAMES[::-1]}).select(range(11, -1, -1)),
    ],
)
def test_tables_in_memory_are_sources(table):
    data = EmbeddingData(table())
    np.testing.assert_array_equal(data.x.numpy(), X)
    assert data.labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict({"embedding": X})),
            "DatasetDict of train: choose",
        ),
        (
            lambda: pd.DataFrame({"vectors": list(X)}),
            "the table .*expected a column `embedding`, found vectors; rename",
        ),
        (lambda: object(), "a object is no source of embeddings"),
        (lambda: [[0.5, 1.0]], "a float is no source of embeddings"),
        (lambda: pd.DataFrame({"embedding": [[1.0, 2.0], [1.0]]}), r"not 2 numbers, as row 1 \(the first is 0\)"),
        (lambda: pd.DataFrame({"embedding": [[1.0, 2.0], None]}), r"not 2 numbers, as row 1 \(the first is 0\)"),
    ],
)
def test_other_sources_are_refused_with_what_to_do(source, message):
    with pytest.raises(EmbeddingError, match=message):
        EmbeddingData(source())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embedding": []}, "`embedding` holds null, not lists of numbers"),
        ({"embedding": [1.0, 2.0]}, "`embedding` holds double, not lists of numbers"),
        ({"embedding": [["a"], ["b"]]}, "could not convert"),
        ({"embedding": [[1.0], [2.0]], "label": [["a"], ["b"]]}, r"labels of shape \(2, 1\) are not one for each row"),
        ({"embedding": [[1.0], [2.0]], "path": ["a", None]}, r"row 1 \(the first is 0\) of its column `path` is empty"),
    ],
)
def test_columns_of_another_kind_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(EmbeddingError, match=rf"x\.parquet cannot be used as embeddings: .*{message}"):
        read_vectors(tmp_path / "x.parquet")


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<f2", ">f8"])
def test_any_float_in_any_byte_order(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.asfortranarray(X.astype(dtype)))
    data = EmbeddingData(tmp_path / "x.npy")
    np.testing.assert_array_equal(data._rows().__getitems__([0, 5])["embedding"].numpy(), X[[0, 5]].astype(dtype))


@pytest.mark.parametrize("key", ["embedding", "embeddings"])
@pytest.mark.parametrize("labels", ["label", "labels"])
def test_both_spellings_are_read_everywhere(tmp_path, key, labels):
    save_file({key: torch.from_numpy(X), labels: torch.arange(12)}, tmp_path / "x.safetensors")
    pq.write_table(pa.table({key: list(X), labels: range(12)}), tmp_path / "x.parquet")
    for name in ("x.safetensors", "x.parquet"):
        x, classes = read_embeddings(tmp_path / name)
        np.testing.assert_array_equal(x, X)
        assert classes.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [(NAMES, [0, 1, 2] * 4), (np.arange(12, dtype=np.uint8), list(range(12)))],
)
def test_labels_may_be_words_or_whole_numbers(labels, numbers):
    assert EmbeddingData(X, labels).labels.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*NAMES[:5], None, *NAMES[6:]], r"row 5 \(the first is 0\) has no label"),
        ([*range(5), float("nan"), *range(6, 12)], r"row 5 \(the first is 0\) has no label"),
        (np.linspace(0, 1, 12), r"labels are float64, as 0.0, not classes"),
        (torch.linspace(0, 1, 12), r"labels are float32, as 0.0, not classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    with pytest.raises(EmbeddingError, match=message):
        EmbeddingData(X, labels)
    pq.write_table(
        pa.table({"embedding": list(X), "label": pa.array(np.asarray(labels).tolist())}), tmp_path / "x.parquet"
    )
    with pytest.raises(EmbeddingError, match=message.replace("float32", "float64")):
        read_embeddings(tmp_path / "x.parquet")


@pytest.mark.parametrize(("value", "message"), [(np.nan, "holds NaN"), (np.inf, "NaN or infinity"), (0, "is zero")])
def test_rows_without_a_direction_are_named_by_file_and_row(tmp_path, value, message):
    x = X.copy()
    x[7], x[9] = value, value
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", x)
    expected = rf"row 7 \(the first is 0\) of .*b\.npy .*{message}.*, and 1 more"
    with pytest.raises(EmbeddingError, match=expected):
        read_vectors([tmp_path / "a.npy", tmp_path / "b.npy"]).unit_rows()
    data = EmbeddingData(tmp_path / "b.npy", num_workers=0)
    with pytest.raises(EmbeddingError, match=expected):
        data._rows().__getitems__(list(range(12)))
    with pytest.raises(EmbeddingError, match=r"row 7 .* of the embeddings"):
        EmbeddingData(x)._rows().__getitems__([1, 7])


@pytest.mark.parametrize("scale", [1e-9, 1, 1e15])
def test_unit_rows_are_those_of_float64(tmp_path, scale):
    np.save(tmp_path / "x.npy", X.astype(np.float64) * scale)
    rows = read_vectors(tmp_path / "x.npy").unit_rows()
    expected = X.astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-6)
