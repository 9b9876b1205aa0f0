"""Trainer verbs on several processes: everybody's images once, the labels of one process, and no rank left waiting."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import FakeEncoder
from processes import free_port, leave_group
from torch.nn.functional import normalize

import cae.data.embedding_store
from cae import CAE, ImageFolderData
from cae.data import EmbeddingData

K = 3
OPTIONS = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def blobs():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(61) % K
    centers = torch.randn(K, FakeEncoder.dim, generator=generator)
    return normalize(centers[groups] + 0.5 * torch.randn(61, FakeEncoder.dim, generator=generator), dim=1), groups


def run_verbs(folder, texts, **options):
    """Labels by index of pictures and embeddings, by `predict` on a fresh module and after `fit`; `test`'s scores."""
    # Lightning's hints on workers, and that a DistributedSampler repeats samples when testing, which is what is tested.
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    pictures = ImageFolderData(folder, batch_size=4, num_workers=0)
    embeddings = EmbeddingData(*blobs(), batch_size=8, num_workers=0)
    found = {}
    for name, data in (("pictures", pictures), ("embeddings", embeddings)):
        module = CAE(K, encoder=FakeEncoder(), n_init=3, **texts)
        found[name, "fresh"] = labels(pl.Trainer(**OPTIONS, **options).predict(module, datamodule=data))
        module = CAE(K, encoder=FakeEncoder(), n_init=3, **texts)
        pl.Trainer(**OPTIONS, **options, max_epochs=1).fit(module, datamodule=data)
        found[name, "fitted"] = labels(pl.Trainer(**OPTIONS, **options).predict(module, datamodule=data))
        found[name, "n"] = module.fitted.n_images
        found[name, "sizes"] = [cluster.size for cluster in module.fitted.clusters]
        (found[name, "test"],) = pl.Trainer(**OPTIONS, **options).test(module, datamodule=data, verbose=False)
    # A user's own loader: tuples, no index.
    module = CAE(K, encoder=FakeEncoder(), n_init=3, **texts)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*blobs()), batch_size=8)
    pl.Trainer(**OPTIONS, **options, max_epochs=1).fit(module, loader)
    found["own", "n"] = module.fitted.n_images
    found["own", "sizes"] = [cluster.size for cluster in module.fitted.clusters]
    (found["own", "test"],) = pl.Trainer(**OPTIONS, **options).test(module, loader, verbose=False)
    return found


def sizes_after_resuming(texts, checkpoint, **options):
    """Clusters of a module that takes up a fit by its checkpoint, which lacks what is there for DDP alone."""
    data = EmbeddingData(*blobs(), batch_size=8, num_workers=0)
    fitted, resumed = (CAE(K, encoder=FakeEncoder(), n_init=3, **texts) for _ in range(2))
    runner = pl.Trainer(**OPTIONS, **options, max_epochs=1)
    runner.fit(fitted, datamodule=data)
    runner.save_checkpoint(checkpoint)
    runner = pl.Trainer(**OPTIONS, **options, max_epochs=1)
    runner.fit(resumed, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return [cluster.size for cluster in resumed.fitted.clusters]


def labels(batches):
    return {
        int(index): int(label)
        for batch in batches
        for index, label in zip(batch["index"], batch["cluster"], strict=True)
    }


def _join(rank, world, port):
    """Be a process of torchrun's."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        TORCHELASTIC_RUN_ID="test", GROUP_RANK="0", LOCAL_WORLD_SIZE=str(world),
    )  # fmt: skip


def _enter(rank, world, port, folder, texts, out):
    _join(rank, world, port)
    found = run_verbs(folder, texts, devices=world, strategy="ddp")
    found["resumed", "sizes"] = sizes_after_resuming(texts, out / "fit.ckpt", devices=world, strategy="ddp")
    (out / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    leave_group()


@pytest.mark.parametrize("world", [2, 3])
def test_verbs_give_what_one_process_gives(picture_folder, text_files, tmp_path, world):
    (picture_folder / "red" / "broken.png").write_bytes(b"no picture")  # 31 files: no world divides them
    with warnings.catch_warnings():
        alone = run_verbs(picture_folder, text_files)
    torch.multiprocessing.spawn(_enter, (world, free_port(), picture_folder, text_files, tmp_path), nprocs=world)
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(world)]
    for name, n in (("pictures", 30), ("embeddings", 61)):
        for how in ("fresh", "fitted"):
            shares = [rank[name, how] for rank in ranks]
            assert sum(len(share) for share in shares) == n  # nobody predicts what another predicts
            assert {index: label for share in shares for index, label in share.items()} == alone[name, how]
        for rank in ranks:
            assert rank[name, "n"] == alone[name, "n"] == n
            assert rank[name, "sizes"] == alone[name, "sizes"]
            assert rank[name, "test"] == pytest.approx(alone[name, "test"], abs=1e-3)
    for rank in ranks:
        assert rank["resumed", "sizes"] == alone["embeddings", "sizes"]
        assert rank["own", "n"] == 61
        assert rank["own", "sizes"] == alone["own", "sizes"]
        assert rank["own", "test"] == pytest.approx(alone["own", "test"], abs=1e-3)


class Counting(FakeEncoder):
    """Counts the images that it has encoded, and at some number calls `end`."""

    def __init__(self, last=None, end=None):
        self.count, self.last, self.end = 0, last, end

    def encode_images(self, images):
        if self.last is not None and self.count >= self.last:
            self.end()
        self.count += len(images)
        return super().encode_images(images)


def _store(rank, world, port, folder, texts, store, out, killed):
    """A fit with a store on disk, in which the last rank is killed once each has blocks of 6 images."""
    _join(rank, world, port)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    cae.data.embedding_store.BLOCK = 6

    def end():
        blocks = [store / f"{other}-of-{world}/blocks.jsonl" for other in range(world)]
        while not all(file.exists() and len(file.read_text().splitlines()) > 1 for file in blocks):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    encoder = Counting(8, end) if killed and rank == world - 1 else Counting()
    module = CAE(K, encoder=encoder, n_init=3, store=store, **texts)
    data = ImageFolderData(folder, batch_size=2, num_workers=0)
    found = labels(pl.Trainer(**OPTIONS, devices=world, strategy="ddp").predict(module, datamodule=data))
    (out / f"{rank}.pickle").write_bytes(pickle.dumps((found, encoder.count)))
    leave_group()


def test_a_killed_fit_on_two_processes_goes_on_from_what_both_have_stored(picture_folder, text_files, tmp_path):
    def run(store, *, killed=False):
        arguments = (2, free_port(), picture_folder, text_files, tmp_path / store, tmp_path, killed)
        torch.multiprocessing.spawn(_store, arguments, nprocs=2)
        ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
        return {index: label for found, _ in ranks for index, label in found.items()}, sum(n for _, n in ranks)

    undisturbed, encoded = run("whole")
    assert encoded == len(undisturbed) == 30
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        run("broken", killed=True)
    resumed, encoded = run("broken")
    assert resumed == undisturbed
    assert encoded <= 30 - 2 * 6


FAILING = """
import os, sys
import lightning.pytorch as pl
from cae import CAE, ImageFolderData
from conftest import FakeEncoder

class Failing(FakeEncoder):
    def encode_images(self, images):
        if os.environ.get("LOCAL_RANK", "0") == "1":
            raise RuntimeError("this rank's encoder has failed")
        return super().encode_images(images)

module = CAE(3, encoder=Failing(), nouns=sys.argv[2], captions=sys.argv[3])
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
trainer.predict(module, datamodule=ImageFolderData(sys.argv[1], batch_size=4, num_workers=0))
"""


def test_a_rank_that_fails_ends_all_with_its_error(picture_folder, text_files, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    arguments = [sys.executable, str(script), str(picture_folder), text_files["nouns"], text_files["captions"]]
    # A session of its own, so that nothing is left running even where this test fails.
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            _, errors = run.communicate(timeout=280)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode != 0
    assert "this rank's encoder has failed" in errors
