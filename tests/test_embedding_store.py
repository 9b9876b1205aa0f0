"""The embedding store: what is whole on disk stays, what is not goes, and a killed run ends like one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cae.data import EmbeddingError, list_images, read_image
from cae.data import embedding_store as store_module
from cae.data.embedding_store import EmbeddingStore, StoreError
from cae.data.vector_files import read_vectors

DIM = 6
IDENTITY = {"data": "a", "encoder": "b"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK", 10)


def rows(n, start=0):
    return normalize(torch.randn(100, DIM, generator=torch.Generator().manual_seed(0)), dim=1)[start : start + n]


def filled(folder, n=35, **options):
    """A finished store of n rows, written 5 at a time: blocks of 10, and the rest."""
    store = EmbeddingStore(DIM, folder=folder, identity=IDENTITY, **options)
    for start in range(len(store.index), n, 5):
        store.append(torch.arange(start, start + 5), rows(5, start))
    store.finish()
    store.close()
    return store


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_keeps_rows_and_numbers_in_their_order(tmp_path, on_disk, dtype):
    store = filled(tmp_path if on_disk else None, dtype=dtype)
    assert store.rows.dtype == dtype
    assert torch.equal(store.rows, rows(35).to(dtype))
    assert store.index.tolist() == list(range(35))
    assert store.find(torch.tensor([3, 99, 0])).tolist() == [3, -1, 0]


def test_can_be_added_to_after_it_was_finished():
    store = filled(None, 10)
    store.append(torch.tensor([77]), rows(1, 40))
    store.finish()
    assert store.rows[store.find(torch.tensor([77]))].equal(rows(1, 40))
    assert len(store.rows) == 11


def test_empty_stores_and_batches(tmp_path):
    for folder in (None, tmp_path):
        store = EmbeddingStore(DIM, folder=folder)
        store.append(torch.empty(0, dtype=torch.int64), torch.empty(0, DIM))
        store.finish()
        assert store.rows.shape == (0, DIM)
        assert store.find(torch.tensor([0])).tolist() == [-1]
        store.close()


def test_opened_again_has_what_it_had_and_takes_no_row_twice(tmp_path):
    filled(tmp_path)
    store = EmbeddingStore(DIM, folder=tmp_path, identity=IDENTITY)
    assert torch.equal(store.rows, rows(35))
    assert store.last == 34
    store.append(torch.tensor([34, 35]), rows(2, 34))
    store.finish()
    assert torch.equal(store.rows, rows(36))
    store.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"identity": {**IDENTITY, "data": "x"}}, "data"),
        ({"identity": {**IDENTITY, "encoder": "x"}}, "encoder"),
        ({"identity": IDENTITY, "dtype": torch.float16}, "dtype"),
    ],
)
def test_rows_of_something_else_are_dropped_and_the_difference_named(tmp_path, caplog, change, named):
    filled(tmp_path)
    store = EmbeddingStore(DIM, folder=tmp_path, **change)
    assert len(store.rows) == 0
    assert f"of another {named}" in caplog.text
    store.close()


def damage_rows(folder):
    with (folder / "embeddings.bin").open("r+b") as file:
        file.seek(12 * DIM * 4)
        file.write(b"\xff\xfe")


def damage_index(folder):
    content = bytearray((folder / "index.bin").read_bytes())
    content[15 * 8] ^= 1
    (folder / "index.bin").write_bytes(content)


def cut_rows(folder):
    os.truncate(folder / "embeddings.bin", 19 * DIM * 4)


def lose_rows(folder):
    (folder / "embeddings.bin").unlink()


def tear_journal(folder):
    content = (folder / "blocks.jsonl").read_bytes()
    (folder / "blocks.jsonl").write_bytes(content[: content.index(b"\n", content.index(b"rows")) + 8])


def lose_journal(folder):
    (folder / "blocks.jsonl").write_bytes(b"\x80")


def lie_about_rows(folder):
    lines = (folder / "blocks.jsonl").read_text().splitlines()
    numbers = [-1, 10**30, True, "10"]
    blocks = [json.dumps({**json.loads(line), "rows": n}) for line, n in zip(lines[1:], numbers, strict=False)]
    (folder / "blocks.jsonl").write_text("\n".join([lines[0], *blocks]) + "\n")


def add_unfinished_block(folder):
    with (folder / "embeddings.bin").open("ab") as file:
        file.write(b"torn")


DAMAGES = [
    (damage_rows, 10),
    (damage_index, 10),
    (cut_rows, 10),
    (lose_rows, 0),
    (tear_journal, 10),
    (lose_journal, 0),
    (lie_about_rows, 0),
    (add_unfinished_block, 35),
]


@pytest.mark.parametrize(("damage", "left"), DAMAGES)
def test_goes_on_from_the_last_block_that_is_whole(tmp_path, damage, left):
    filled(tmp_path)
    damage(tmp_path)
    store = EmbeddingStore(DIM, folder=tmp_path, identity=IDENTITY)
    assert torch.equal(store.rows, rows(left) if left else torch.empty(0, DIM))
    store.close()
    assert torch.equal(filled(tmp_path).rows, rows(35))


@pytest.mark.parametrize(("damage", "left"), DAMAGES)
def test_what_is_whole_can_be_read_without_a_change(tmp_path, damage, left):
    filled(tmp_path).close()
    damage(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if left:
        np.testing.assert_array_equal(read_vectors(tmp_path).x, rows(left))
    else:
        with pytest.raises(EmbeddingError, match=re.escape(str(tmp_path))):
            read_vectors(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_stores_of_several_processes_are_read_as_one(tmp_path):
    for rank, numbers in enumerate(([0, 2, 4], [1, 3, 0])):  # the sampler repeats the first to even them out
        store = EmbeddingStore(DIM, folder=tmp_path / f"{rank}-of-2")
        store.append(torch.tensor(numbers), rows(5)[numbers])
        store.close()
    np.testing.assert_array_equal(read_vectors(tmp_path).x, rows(5))
    EmbeddingStore(DIM, folder=tmp_path / "0-of-1").close()
    with pytest.raises(EmbeddingError, match="holds 0-of-1, 0-of-2, 1-of-2: name one of them"):
        read_vectors(tmp_path)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("last", [-1, 9, 14, 34, 99])
def test_rows_beyond_a_number_can_be_dropped(tmp_path, on_disk, last):
    store = filled(tmp_path if on_disk else None)
    store = EmbeddingStore(DIM, folder=tmp_path, identity=IDENTITY) if on_disk else store
    store.keep_up_to(last)
    left = min(last + 1, 35)
    assert torch.equal(store.rows, rows(left))
    assert store.last == left - 1
    store.close()
    if on_disk:
        again = EmbeddingStore(DIM, folder=tmp_path, identity=IDENTITY)
        assert torch.equal(again.rows, rows(left))
        again.close()
        assert torch.equal(filled(tmp_path).rows, rows(35))


def test_a_second_run_waits_for_the_first(tmp_path, caplog):
    first = EmbeddingStore(DIM, folder=tmp_path, identity=IDENTITY)
    script = "import sys; from cae.data.embedding_store import EmbeddingStore; EmbeddingStore(6, folder=sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True) as second:
        assert "waiting for it" in second.stderr.readline()
        first.close()
        assert second.wait(60) == 0


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("dim", [None, 0, -1, True, "6", DIM - 1, DIM + 1, 2 * DIM])
def test_a_store_that_begins_with_another_width_is_not_read(tmp_path, dim, blocks):
    filled(tmp_path, 5)
    header, *lines = (tmp_path / "blocks.jsonl").read_text().splitlines()
    header = json.dumps({**json.loads(header), "dim": dim})
    (tmp_path / "blocks.jsonl").write_text("\n".join([header, *lines[:blocks]]) + "\n")
    with pytest.raises(EmbeddingError, match=r"does not begin as version 1|of shape"):
        read_vectors(tmp_path)


def test_stores_of_several_widths_are_not_read_as_one(tmp_path):
    for i, dim in enumerate((DIM, DIM + 1)):
        store = EmbeddingStore(dim, folder=tmp_path / f"{i}-of-2")
        store.append(torch.arange(5), torch.ones(5, dim))
        store.close()
    with pytest.raises(EmbeddingError, match="differ in width: name one"):
        read_vectors(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose a folder"):
        EmbeddingStore(DIM, folder=tmp_path / "file")


KILLED = """
import sys, cae.data.embedding_store
from cae.models.embedder import Embedder
from cae.data import ImageFolderData
from conftest import FakeEncoder
import lightning.pytorch as pl

class Told(FakeEncoder):
    def encode_images(self, images):
        print("batch", flush=True)
        return super().encode_images(images)

cae.data.embedding_store.BLOCK = 6
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Embedder(Told(), store=sys.argv[2]), datamodule=ImageFolderData(sys.argv[1], batch_size=2, num_workers=0))
"""


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(picture_folder, fake_encoder, tmp_path):
    def start():
        arguments = [sys.executable, "-W", "ignore", "-c", KILLED, str(picture_folder), str(tmp_path / "store")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    with start() as killed:
        for _ in range(8):
            assert killed.stdout.readline() == "batch\n"
        killed.send_signal(signal.SIGKILL)
    blocks = (tmp_path / "store/0-of-1/blocks.jsonl").read_text().splitlines()[1:]
    done = sum(json.loads(line)["rows"] for line in blocks)
    assert done in (12, 18)
    with start() as again:
        assert again.communicate()[0].split().count("batch") == (30 - done) / 2
    header = json.loads((tmp_path / "store/0-of-1/blocks.jsonl").read_text().splitlines()[0])
    identity = {key: header[key] for key in ("data", "encoder", "precision")}
    store = EmbeddingStore(fake_encoder.dim, folder=tmp_path / "store/0-of-1", identity=identity)
    pictures = [fake_encoder.preprocess(read_image(path)) for path in list_images(picture_folder)]
    assert torch.equal(store.rows, normalize(fake_encoder.encode_images(torch.stack(pictures)), dim=1))
    store.close()
