"""Full disks, dying helpers, hubs that misbehave, two at once: a clear error or none, and nothing is lost."""

import http.server
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import FakeEncoder, thumbnail
from PIL import Image

from cae.data import ImageFolderData
from cae.models.embedder import embed_images
from cae.results.saved import SavedResult
from drills.lives import CRASHED, N_PICTURES, commands, forked, full_from, has_litter, live, prepare, start
from drills.record import record

FULL = "no room from each change to the disk of eight commands on: a clear error; then again with room: all files equal"
TWO = "two `cae cluster` (lite) at once on an empty cache and one result: one is refused, equal assignments, no litter"
HUB = "weights and captions asked for: a clear error within 2 minutes"


def is_clear(ended: int, said: str) -> bool:
    return ended == 0 or (ended == 1 and "no space left" in said.lower() and "Traceback" not in said)


def test_a_disk_that_is_full_at_some_moment(life):
    tried, lost = life.losses(61, full_from, is_clear)
    assert tried >= 5
    assert not lost, "\n".join(lost)


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_from_any_change_on(life):
    tried, lost = life.losses(1, full_from, is_clear)
    record("full-disk", tried=tried, lost=len(lost), note=FULL)
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("most", [300, 3_000, 10_000])
def test_writes_that_fail_half_way(life, most):
    """No file may grow beyond a size: a write is cut there, as a quota cuts it, in whatever library makes it."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        code = live(life.place, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return code

    life.disturb(0, full_from(1))
    ended, said = forked(limited, life.place.with_name("output"))
    assert ended == 1, said
    assert ended != CRASHED
    assert life.resume(0) == ""


class Deadly(FakeEncoder):
    """Kills the process that prepares the tenth picture, once."""

    def __init__(self, killed: Path) -> None:
        self.killed, self.prepared = killed, 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        self.prepared += 1
        if self.prepared == 10 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return thumbnail(image)


def signalled(*_) -> None:
    """What torch's handler does once the worker is gone, if it has not done so before."""
    for worker in multiprocessing.active_children():
        worker.join()
    raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")


@pytest.mark.parametrize("late", [False, True])
def test_a_loader_process_that_dies(tmp_path, picture_folder, monkeypatch, late):
    """The signal of its end is an error wherever it comes: also while Lightning tells of the broken connection."""
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=1)
    with monkeypatch.context() as patch:
        if late:
            patch.setattr("cae.models.embedder._CloseStore.on_exception", signalled)
        with pytest.raises(RuntimeError, match=r"run again.*--workers"):
            embed_images(data, Deadly(tmp_path / "killed"))
    rows, index = embed_images(data, Deadly(tmp_path / "killed"))
    whole, _ = embed_images(data, FakeEncoder())
    assert index.tolist() == list(range(30))
    assert torch.equal(rows, whole)


@pytest.mark.drill
def test_two_at_once_on_the_same_cache_and_result(tmp_path):
    """One of them makes banks, embeddings, the text map and the result, whole; the other is refused at its start."""
    prepare(tmp_path)
    command = [*commands(tmp_path)[0], "--encoder", "lite"]  # the last one counts
    first, lost = None, 0
    for round in range(5):
        cache = str(tmp_path / f"cache{round}")
        both = [start(*command, output=subprocess.PIPE, CAE_CACHE=cache) for _ in range(2)]
        said = [process.communicate()[0] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], said
        assert any("another run of `cae` is at work on" in text for text in map(str, said)), said
        found = SavedResult.load(tmp_path / "result")
        first = first or found.assignments.to_pydict()
        lost += has_litter(tmp_path) or found.assignments.to_pydict() != first or len(found.embeddings) != N_PICTURES
    record("two-at-once", tried=5, lost=lost, note=TWO)
    assert not lost


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """A hub that does not do what it should."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        way = self.server.way  # type: ignore[attr-defined]
        if way == "hangs":
            time.sleep(600)
        size, body = (1000, b"x" * 10) if way == "truncates" else (9, b"<garbage>")
        self.send_response(500 if way == "fails" else 200)
        for name, value in {
            "Content-Length": size,
            "ETag": '"0123"',
            "X-Repo-Commit": "0" * 40,
            "X-Linked-Size": size,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.drill
@pytest.mark.parametrize("way", ["hangs", "fails", "garbage", "truncates"])
def test_a_hub_that_misbehaves(tmp_path, picture_folder, way):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as server:
        server.daemon_threads = True
        server.way = way
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        asked = {
            "weights": ["--encoder", "open_clip:ViT-B-32/openai"],
            "captions": ["--encoder", "lite", "--captions", "flickr30k", "--nouns", str(tmp_path / "nouns.txt")],
        }
        (tmp_path / "nouns.txt").write_text("cat\ndog\nhouse\n")
        lost = []
        for what, options in asked.items():
            command = ["cluster", str(picture_folder), "-k", "3", *options, "--out", str(tmp_path / "result")]
            process = start(*command, output=subprocess.PIPE, **place)
            try:
                said = process.communicate(timeout=120)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                lost.append(f"{what}: hangs")
                continue
            if process.returncode != 1 or "Traceback" in said or "cannot be" not in said:
                lost.append(f"{what}: {said[-1000:]}")
        server.shutdown()
    record(f"hub-{way}", tried=len(asked), lost=len(lost), note=HUB)
    assert not lost, "\n".join(lost)
