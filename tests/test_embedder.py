"""Embedding alone: `Embedder`, and what becomes of images that are bytes or were not prepared."""

import logging
import multiprocessing
import signal
import warnings
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from PIL import Image
from test_cae import trainer

from cae import CAE, ImageFolderData
from cae.models.embedder import Embedder, embed_images
from cae.utils.termination import Terminated, terminating_as_ctrl_c


def test_the_embedder_alone_gives_embeddings(fake_encoder, picture_folder):
    embedder = Embedder(fake_encoder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer(max_epochs=1).fit(embedder, datamodule=ImageFolderData(picture_folder, num_workers=0))
    assert embedder.store.rows.shape == (30, fake_encoder.dim)
    assert embedder.store.index.tolist() == list(range(30))
    with pytest.raises(ValueError, match="float32 or float16"):
        Embedder(fake_encoder, dtype="int8")


def test_embedding_pictures_says_nothing_and_leaves_lightning_its_voice(fake_encoder, picture_folder, caplog):
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    embed_images(ImageFolderData(picture_folder, num_workers=0), fake_encoder)
    assert log.level == level
    assert not caplog.records


def test_more_workers_than_cores_are_the_callers_choice(fake_encoder, picture_folder, monkeypatch):
    """torch warns of it with every pass over the pictures."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    rows, _ = embed_images(ImageFolderData(picture_folder, batch_size=16, num_workers=2), fake_encoder)
    assert len(rows) == 30


class Ended(FakeEncoder):
    """A system ends the job while images are encoded: it and the processes that read them get SIGTERM."""

    def encode_images(self, images):
        signal.raise_signal(signal.SIGTERM)
        for process in multiprocessing.active_children():
            while process.is_alive():  # one that has only begun still notes the signal as its parent does, and goes on
                process.terminate()
                process.join(timeout=1)  # at which torch raises for it
        return super().encode_images(images)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("handled", [terminating_as_ctrl_c, nullcontext], ids=["handled", "noted by Lightning alone"])
def test_sigterm_ends_embedding_as_ctrl_c_does(picture_folder, signal_handlers, workers, handled):
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=workers)
    with handled(), pytest.raises(Terminated):
        embed_images(data, Ended())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError], ids=["Ctrl-C", "no such device"])
def test_what_comes_before_there_is_a_trainer_is_told_as_it_is(fake_encoder, picture_folder, monkeypatch, error):
    def stopped(**_):
        raise error

    monkeypatch.setattr("lightning.pytorch.Trainer", stopped)
    with pytest.raises(error):
        embed_images(ImageFolderData(picture_folder, num_workers=0), fake_encoder)


class Normalising(FakeEncoder):
    """Preprocesses as CLIP does: black is below 0, white above 1."""

    @staticmethod
    def preprocess(image):
        return (FakeEncoder.preprocess(image) - 0.5) / 0.25


def prepared(n):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 9, 7, 3), dtype=torch.uint8, generator=generator).numpy()
    return [Image.fromarray(each) for each in pixels]


def test_bytes_are_preprocessed_and_unprepared_floats_are_told(text_files):
    module = CAE(3, encoder=Normalising(), **text_files)
    images = prepared(6)
    expected = module.embed(torch.stack([module.encoder.preprocess(image) for image in images]))
    bytes_ = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    torch.testing.assert_close(module.embed(bytes_), expected)
    for floats, message in (
        (bytes_ / 255, r"are 9 × 7 pixels, in place of 4 × 4"),
        (torch.rand(6, 3, 4, 4), r"hold no value below 0, where black is -2"),
        (255 * torch.rand(6, 3, 4, 4), r"hold values up to 2\d\d, where white is 2"),
    ):
        fresh = CAE(3, encoder=Normalising(), **text_files)
        with pytest.warns(UserWarning, match=message + r".*transform=model.encoder.preprocess"), suppress(RuntimeError):
            fresh.embed(floats)
        with suppress(RuntimeError):  # once is enough; an encoder may refuse another size
            fresh.embed(floats)
