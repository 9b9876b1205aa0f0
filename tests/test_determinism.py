"""Same seed, same machine, same bytes; threads, batch sizes, loader processes and resuming change no label."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conftest import FakeEncoder

from cae.data import ImageFolderData
from cae.models.cae import CAE
from cae.models.embedder import embed_images
from cae.results.run import run_folder


@pytest.fixture(params=["auto", "default", "paper", "tac"])
def run(request, picture_folder, text_files, tmp_path, monkeypatch):
    """`cae cluster` with one of the presets, each time from an empty cache."""
    runs = []

    def run(*, threads: int = 1, batch_size: int = 8, workers: int = 0, resumed: bool = False) -> pa.Table:
        monkeypatch.setenv("CAE_CACHE", str(tmp_path / f"cache-{len(runs)}"))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        options = {"device": torch.device("cpu"), "batch_size": batch_size, "workers": workers}
        try:
            if resumed:
                interrupted(picture_folder)
            module = CAE(3, preset=request.param, encoder=FakeEncoder(), return_embeddings=True, **text_files)
            result = run_folder(module, picture_folder, reporter=lambda _: lambda *_: None, **options)
        finally:
            torch.set_num_threads(before)
        runs.append(result.assignments())
        return runs[-1]

    return run


def interrupted(folder: Path) -> None:
    """Leave the first dozen pictures embedded in the cache."""

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        embed_images(ImageFolderData(folder, batch_size=4, num_workers=0), FakeEncoder(), progress=stop)


def test_the_same_run_twice_gives_the_same_bytes(run):
    assert run().equals(run())


@pytest.mark.parametrize(
    "change", [{"threads": 2}, {"batch_size": 1}, {"batch_size": 30}, {"workers": 2}, {"resumed": True}], ids=str
)
def test_what_must_not_matter_does_not(run, change):
    assert run(**change)["cluster"].equals(run()["cluster"])
