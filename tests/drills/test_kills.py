"""SIGKILL at any moment, then the same command again: the files are those of a run that nobody disturbed.

A *life* is what people do with a result, command by command, through the command line: cluster, edit, update, export,
predict. It runs in a forked process that kills itself just before its n-th change to the file system; another one goes
on with the command that was cut off. Afterwards all files of results, exports and cache are compared, byte by byte.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cae.results import SavedResult
from drills.record import record

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
N_PICTURES, N_MORE = 24, 6


def paint(folder: Path, start: int, stop: int) -> None:
    for i in range(start, stop):
        pixels = np.random.default_rng(i).integers(0, 60, (20, 24, 3), dtype=np.uint8)
        pixels[..., i % 3] += 150
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")


def commands(place: Path) -> list[list[str]]:
    """The command lines of a life, in order."""
    (pictures, more, result), texts = (str(place / name) for name in ("pictures", "more", "result")), place / "texts"
    corpora = ["--nouns", str(texts / "nouns.txt"), "--captions", str(texts / "captions.txt")]
    plain = ["--workers", "0", "--batch-size", "4", "--quiet"]
    return [
        ["cluster", pictures, "-k", "3", "--encoder", "fake", "--preset", "default", *corpora, "--out", result, *plain],
        ["edit", result, "rename", "0", "renamed"],
        ["update", result, more, *plain],
        ["export", result, "--to", "folders", "--out", str(place / "folders"), "--quiet"],
        ["export", result, "--to", "parquet", "--out", str(place / "tables"), "--quiet"],
        ["report", result, "--quiet"],
        ["predict", result, more, "--out", str(place / "predictions"), *plain],
    ]


def prepare(place: Path) -> None:
    for name in ("pictures", "more", "texts"):
        (place / name).mkdir(parents=True)
    paint(place / "pictures", 0, N_PICTURES)
    paint(place / "more", N_PICTURES, N_PICTURES + N_MORE)
    (place / "texts" / "nouns.txt").write_text("".join(f"thing {i}\n" for i in range(60)))
    (place / "texts" / "captions.txt").write_text("".join(f"somebody does thing {i}\n" for i in range(90)))


def live(place: Path, start: int, kill_at: int | None, stop: int | None = None) -> None:
    """Run the commands from `start` up to `stop`; note down how many changes they made."""
    from conftest import FakeEncoder

    import cae.embedder
    import cae.store
    import cae.text.bank
    from cae.cli import app

    torch.set_num_threads(1)
    os.environ["CAE_CACHE"] = str(place / "cache")
    cae.embedder.load_encoder = lambda *_, **__: FakeEncoder()
    cae.store.BLOCK, cae.text.bank.BLOCK = 8, 32
    # Times and the page's nonce are no part of what must be equal.
    time.perf_counter = lambda: 0.0
    __import__("secrets").token_urlsafe = lambda: "nonce"
    changes = [0]

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes and str(arguments[0]).startswith(str(place))) or event in CHANGES:
            changes[0] += 1
            if changes[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
    for command in commands(place)[start:stop]:
        failed = app(command, prog_name="cae", standalone_mode=False)
        if failed:
            raise RuntimeError(f"{command[0]} ended with {failed}")
    place.with_suffix(".changes").write_text(str(changes[0]))


def forked(work: Callable[[], None], log: Path) -> int:
    """Run in a process of its own, which has all modules already; returns what killed it, or its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def files(place: Path) -> dict[str, bytes]:
    """Everything below a folder by name, with the content of files."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(place.rglob("*"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], list[int]]:
    """A place prepared for lives, the files that one leaves, and how many changes it has made by each command's end."""
    # Forked processes find these in memory.
    import cae.cli_edit
    import cae.export
    import cae.report
    import cae.trained
    import cae.update  # noqa: F401

    place = tmp_path_factory.mktemp("kills") / "place"
    prepare(place)
    shutil.copytree(place, place.with_name("prepared"))
    ends = []
    for start in range(len(commands(place))):
        assert forked(lambda: live(place, start, None, stop=start + 1), place.with_suffix(".log")) == 0  # noqa: B023
        ends.append(int(place.with_suffix(".changes").read_text()))
    return place, files(place), ends


def killed_and_resumed(place: Path, whole: dict[str, bytes], command: int, change: int) -> str:
    """Kill a life at a change of one of its commands, and go on; returns what differs in the end, if anything."""
    shutil.rmtree(place)
    shutil.copytree(place.with_name("prepared"), place)
    log = place.with_suffix(".log")
    log.unlink(missing_ok=True)
    if command:
        assert forked(lambda: live(place, 0, None, stop=command), log) == 0
    ended = forked(lambda: live(place, command, change, stop=command + 1), log)
    if ended != -signal.SIGKILL:
        return f"ended with {ended} in place of being killed: {log.read_text()[-500:]}"
    name, edits = commands(place)[command][0], "result/edits.json"
    if name == "edit" and files(place).get(edits) == whole[edits]:  # people see that their edit is there
        command += 1
    if forked(lambda: live(place, command, None), log) != 0:
        return log.read_text()[-1000:]
    found = files(place)
    return ", ".join(name for name in sorted({*found, *whole}) if found.get(name) != whole.get(name))


def drill(undisturbed: tuple[Path, dict[str, bytes], list[int]], every: int) -> tuple[int, list[str]]:
    """Kill at every so-many-th change of the life; returns how many kills there were, and what was lost by which."""
    place, whole, ends = undisturbed
    moments = [(command, change) for command, end in enumerate(ends) for change in range(1, end + 1)][::every]
    lost = []
    for command, change in moments:
        difference = killed_and_resumed(place, whole, command, change)
        if difference:
            lost.append(f"{commands(place)[command][0]}, change {change} of {ends[command]}: {difference}")
    return len(moments), lost


def test_killed_at_some_changes_to_the_disk(undisturbed):
    tried, lost = drill(undisturbed, every=61)
    assert tried >= 5
    assert not lost


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_killed_at_every_change_to_the_disk(undisturbed):
    tried, lost = drill(undisturbed, every=1)
    record("SIGKILL before every change to the file system", tried=tried, lost=len(lost))
    assert tried > 100
    assert not lost, "\n".join(lost)


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path):
    """The command itself, with the encoder, the loader processes and the threads that people run it with."""
    prepare(tmp_path)
    paint(tmp_path / "pictures", N_PICTURES, 400)

    def start(name: str) -> subprocess.Popen[bytes]:
        command, *rest = commands(tmp_path)[0]
        options = ["--encoder", "lite", "--workers", "2", "--out", str(tmp_path / name)]  # the last ones count
        return subprocess.Popen(
            [sys.executable, "-c", "from cae.cli import main; main()", command, *rest, *options],
            env={**os.environ, "CAE_CACHE": str(tmp_path / f"cache-{name}")},
        )

    started = time.monotonic()
    assert start("whole").wait() == 0
    duration = time.monotonic() - started
    whole = assignments(tmp_path / "whole")
    kills, lives, lost, moments = 0, 0, 0, np.random.default_rng(0)
    while kills < 20:
        lives += 1
        ended = -signal.SIGKILL
        while ended == -signal.SIGKILL:
            process = start(f"killed-{lives}")
            try:
                ended = process.wait(timeout=float(moments.uniform(0.2, 1)) * duration)
            except subprocess.TimeoutExpired:
                process.kill()
                ended = process.wait()
                kills += 1
        names = [path.name for kind in ("killed", "cache-killed") for path in (tmp_path / f"{kind}-{lives}").rglob("*")]
        litter = any(name.startswith((".writing-", ".committed")) for name in names)
        lost += ended != 0 or litter or assignments(tmp_path / f"killed-{lives}") != whole
    record("SIGKILL of `cae cluster` at random moments, lite encoder, loader processes", tried=kills, lost=lost)
    assert not lost


def assignments(result: Path) -> dict[str, object]:
    return SavedResult.load(result).assignments.to_pydict()
