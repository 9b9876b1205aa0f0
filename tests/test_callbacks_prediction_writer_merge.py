"""`PredictionWriter` on several processes: their parts become one file, sorted, and no row twice."""

import pyarrow.parquet as pq
import pytest
import torch

from cae.callbacks.columns import to_table
from cae.callbacks.prediction_writer import merge


def test_merging_sorts_and_drops_what_the_sampler_repeated(tmp_path):
    # Three ranks as DistributedSampler deals 100 samples to them: 102, the first two twice.
    parts, indices = [], torch.cat([torch.arange(100), torch.arange(2)])
    for rank in range(3):
        own = indices[rank::3].tolist()
        table = to_table({"value": torch.tensor(own) * 10}, own, "", None)
        parts.append(tmp_path / f"{rank}.parquet")
        pq.write_table(table, parts[-1], row_group_size=5)
    merge(parts, tmp_path / "merged.parquet")
    merged = pq.read_table(tmp_path / "merged.parquet")
    assert merged["index"].to_pylist() == list(range(100))
    assert merged["value"].to_pylist() == list(range(0, 1000, 10))
    assert pq.ParquetFile(tmp_path / "merged.parquet").num_row_groups > 3


def test_merging_brings_the_processes_to_one_type(tmp_path):
    own = {"rank-0.0": ([0, 2], [None, None]), "rank-0.1": ([2, 4], ["c", "e"]), "rank-1.0": ([1, 3, 0], list("bda"))}
    parts = []
    for name, (index, words) in own.items():
        parts.append(tmp_path / f"{name}.parquet")
        pq.write_table(to_table({"word": words}, index, "", None), parts[-1], row_group_size=1)
    with pytest.warns(RuntimeWarning, match="1 rows of"):  # the second 2 of the first process
        merge(parts, tmp_path / "merged.parquet")
    merged = pq.read_table(tmp_path / "merged.parquet")
    assert merged["index"].to_pylist() == [0, 1, 2, 2, 3, 4]
    assert merged["word"].to_pylist() == [None, "b", None, "c", "d", "e"]  # 0 was dealt to both: the first is heard
    pq.write_table(to_table({"word": [5]}, [5], "", None), tmp_path / "rank-2.0.parquet")
    with pytest.raises(
        ValueError, match=r"the process of rank-2.0.parquet has columns word \(int64\).*before word \(str"
    ):
        merge([*parts, tmp_path / "rank-2.0.parquet"], tmp_path / "merged.parquet")
