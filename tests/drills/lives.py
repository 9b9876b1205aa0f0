"""What people do with a result, command by command, in processes that meet a fault at their n-th change to the disk."""

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

N_PICTURES, N_MORE = 24, 6
MAKES = {"open", "os.mkdir", "os.link", "os.symlink"}
CHANGES = {*MAKES, "os.rename", "os.remove", "os.rmdir", "os.truncate"}
CRASHED = 70

Fault = Callable[[int, str, object], None]
"""Hears of every change before it is made: its number, from 1 on, Python's audit event of it, and the path."""


def killed_at(change: int) -> Fault:
    """SIGKILL just before a change."""

    def fault(number: int, event: str, path: object) -> None:
        if number == change:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def full_from(change: int) -> Fault:
    """A disk that takes nothing new from a change on."""

    def fault(number: int, event: str, path: object) -> None:
        if number >= change and event in MAKES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return fault


@dataclass(frozen=True)
class Life:
    """A place that `prepare` has prepared, and what an undisturbed life there leads to.

    Attributes:
        place: the folder. Beside it is a copy of how it was before each command, from which lives begin anew.
        whole: all that lies there in the end, by name, with the content of files.
        changes: how many changes to the disk each command makes.
    """

    place: Path
    whole: dict[str, bytes]
    changes: list[int]

    @classmethod
    def undisturbed(cls, folder: Path) -> "Life":
        """Live once without a fault."""
        # Forked processes find these in memory.
        import cae.cli.commands.edit
        import cae.models.trained
        import cae.report
        import cae.results.export
        import cae.results.update  # noqa: F401

        prepare(place := folder / "place")
        changes = []
        for command in range(len(commands(place))):
            shutil.copytree(place, folder / f"before-{command}")
            ended, output = forked(lambda command=command: live(place, command, command + 1), folder / "output")
            assert ended == 0, output
            changes.append(int((folder / "changes").read_text()))
        return cls(place, contents(place), changes)

    def moments(self, every: int) -> Iterator[tuple[int, int]]:
        """Commands, and changes of each, that a fault can meet."""
        every_one = [(i, change) for i, n in enumerate(self.changes) for change in range(1, n + 1)]
        return iter(every_one[::every])

    def losses(
        self, every: int, fault_at: Callable[[int], Fault], is_answer: Callable[[int, str], bool]
    ) -> tuple[int, list[str]]:
        """Meet a fault at every so-many-th change, and go on without it.

        Args:
            every: 1 for each change.
            fault_at: makes the fault of a change.
            is_answer: whether a command may end so, and say so, when it meets the fault.

        Returns:
            How many tries there were, and what was lost by which.
        """
        tried, lost = 0, []
        for command, change in self.moments(every):
            tried += 1
            ended, said = self.disturb(command, fault_at(change))
            difference = self.resume(command) if is_answer(ended, said) else f"ended with {ended}: {said[-1500:]}"
            if difference:
                lost.append(f"{commands(self.place)[command][0]}, change {change}: {difference}")
        return tried, lost

    def disturb(self, command: int, fault: Fault) -> tuple[int, str]:
        """Live from a command that meets a fault; returns how it ended, and what it said."""
        shutil.rmtree(self.place)
        shutil.copytree(self.place.with_name(f"before-{command}"), self.place)
        return forked(lambda: live(self.place, command, command + 1, fault), self.place.with_name("output"))

    def resume(self, command: int) -> str:
        """Go on with the command that was disturbed; returns what differs in the end from an undisturbed life."""
        edits = "result/edits.json"
        if commands(self.place)[command][0] == "edit" and contents(self.place).get(edits) == self.whole[edits]:
            command += 1  # people see that their edit is there
        ended, said = forked(lambda: live(self.place, command), self.place.with_name("output"))
        if ended != 0:
            return f"ended with {ended}: {said[-1000:]}"
        found = contents(self.place)
        return ", ".join(name for name in sorted({*found, *self.whole}) if found.get(name) != self.whole.get(name))


def commands(place: Path) -> list[list[str]]:
    """The command lines of a life, in order."""
    (pictures, more, result), texts = (str(place / name) for name in ("pictures", "more", "result")), place / "texts"
    corpora = ["--nouns", str(texts / "nouns.txt"), "--captions", str(texts / "captions.txt")]
    plain = ["--workers", "0", "--batch-size", "4", "--quiet"]
    return [
        ["cluster", pictures, "-k", "3", "--encoder", "fake", "--preset", "default", *corpora, "--out", result, *plain],
        ["edit", result, "rename", "0", "renamed"],
        ["update", result, more, *plain],
        ["cut", result, "-k", "2", "--quiet"],
        ["export", result, "--to", "folders", "--out", str(place / "folders"), "--quiet"],
        ["export", result, "--to", "parquet", "--out", str(place / "tables"), "--quiet"],
        ["report", result, "--quiet"],
        ["predict", result, more, "--out", str(place / "predictions"), *plain],
    ]


def prepare(place: Path) -> None:
    """Pictures and texts for a life."""
    for name in ("pictures", "more", "texts"):
        (place / name).mkdir(parents=True)
    paint(place / "pictures", range(N_PICTURES))
    paint(place / "more", range(N_PICTURES, N_PICTURES + N_MORE))
    (place / "texts" / "nouns.txt").write_text("".join(f"thing {i}\n" for i in range(60)))
    (place / "texts" / "captions.txt").write_text("".join(f"somebody does thing {i}\n" for i in range(90)))


def paint(folder: Path, numbers: range) -> None:
    """Pictures of three colours."""
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 60, (20, 24, 3), dtype=np.uint8)
        pixels[..., i % 3] += 150
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def live(place: Path, start: int, stop: int | None = None, fault: Fault | None = None) -> int:
    """Run the commands from `start` up to `stop` in this process, and note how many changes they make.

    Returns:
        What a shell would see of the last one.
    """
    from conftest import FakeEncoder

    import cae.data.embedding_store
    import cae.encoders.deferred
    import cae.models.embedder
    import cae.text.bank
    from cae.cli.commands import app

    torch.set_num_threads(1)
    os.environ["CAE_CACHE"] = str(place / "cache")
    for home in (cae.models.embedder, cae.encoders.deferred):
        home.load_encoder = lambda *_, **__: FakeEncoder()  # type: ignore[assignment]
    cae.data.embedding_store.BLOCK, cae.text.bank.BLOCK = 8, 32
    # Times and the page's nonce are no part of what must be equal.
    time.perf_counter = lambda: 0.0
    secrets.token_urlsafe = lambda *_: "nonce"
    changes = 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        if event in CHANGES and (event != "open" or _writes(place, *arguments)):
            changes += 1
            if fault:
                fault(changes, event, arguments[0])

    sys.addaudithook(on_event)
    for command in commands(place)[start:stop]:
        if code := app(command, prog_name="cae", standalone_mode=False):
            return code
    fault = None
    place.with_name("changes").write_text(str(changes))
    return 0


def _writes(place: Path, path: object, _mode: object, flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path).startswith(str(place))


def forked(work: Callable[[], int], output: Path) -> tuple[int, str]:
    """Run in a process of its own, which has all modules already; returns how it ended, and what it said."""
    pid = os.fork()
    if pid == 0:
        code = CRASHED
        try:
            sys.stdout = sys.stderr = output.open("w")
            code = work()
            sys.stdout.flush()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), output.read_text()


def start(*arguments: str, output: int | None = None, **environment: str) -> "subprocess.Popen[str]":
    """`cae` in a process of its own; `output` is where it prints, as `subprocess.Popen` takes it."""
    return subprocess.Popen(
        [sys.executable, "-c", "from cae.cli.commands import main; main()", *arguments],
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def has_litter(*folders: Path) -> bool:
    """Whether anything unfinished lies below the folders."""
    return any(path.name.startswith((".writing-", ".committed")) for folder in folders for path in folder.rglob("*"))


def contents(place: Path) -> dict[str, bytes]:
    """Everything below a folder by name, with the content of files."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(place.rglob("*"))
    }
