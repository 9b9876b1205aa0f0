"""SIGKILL at any moment, then the same command again: the files are those of a run that nobody disturbed.

The first two kill a forked process just before its n-th change to the file system; afterwards all files of results,
exports, pages and cache are compared, byte by byte.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cae.results import SavedResult
from drills.lives import N_PICTURES, Life, commands, killed_at, paint, prepare
from drills.record import record

CHANGES = "SIGKILL before each change to the disk of seven commands, then again: all files equal to the byte, no litter"
RANDOM = "SIGKILL of `cae cluster` (lite, loader processes) at random moments, then again: equal assignments, no litter"


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life.undisturbed(tmp_path_factory.mktemp("life"))


def kills(life: Life, every: int) -> tuple[int, list[str]]:
    """Kill at every so-many-th change of the life; returns how many kills there were, and what was lost by which."""
    tried, lost = 0, []
    for command, change in life.moments(every):
        tried += 1
        ended, said = life.disturb(command, killed_at(change))
        difference = life.resume(command) if ended == -signal.SIGKILL else f"not killed but ended with {ended}: {said}"
        if difference:
            lost.append(f"{commands(life.place)[command][0]}, change {change}: {difference}")
    return tried, lost


def test_killed_at_some_changes_to_the_disk(life):
    tried, lost = kills(life, every=61)
    assert tried >= 5
    assert not lost


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_killed_at_every_change_to_the_disk(life):
    tried, lost = kills(life, every=1)
    record("kills-at-changes", tried=tried, survived=tried - len(lost), lost=len(lost), note=CHANGES)
    assert tried > 100
    assert not lost, "\n".join(lost)


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path):
    """The command itself, with the encoder, the loader processes and the threads that people run it with."""
    prepare(tmp_path)
    paint(tmp_path / "pictures", range(N_PICTURES, 400))

    def start(name: str) -> "subprocess.Popen[bytes]":
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
        for _ in range(4):
            process = start(f"killed-{lives}")
            try:
                process.wait(timeout=float(moments.uniform(0.1, 0.9)) * duration)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        ended = start(f"killed-{lives}").wait()
        names = [path.name for kind in ("killed", "cache-killed") for path in (tmp_path / f"{kind}-{lives}").rglob("*")]
        litter = any(name.startswith((".writing-", ".committed")) for name in names)
        lost += ended != 0 or litter or assignments(tmp_path / f"killed-{lives}") != whole
    record("kills-at-random", tried=kills, survived=kills - lost, lost=lost, note=RANDOM)
    assert not lost


def assignments(result: Path) -> dict[str, object]:
    return SavedResult.load(result).assignments.to_pydict()
