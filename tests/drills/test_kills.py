"""SIGKILL at any moment, then the same command again: the files are those of a run that nobody disturbed.

The first two kill a forked process just before its n-th change to the file system; afterwards all files of results,
exports, pages and cache are compared, byte by byte.
"""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from cae.results.saved import SavedResult
from drills.lives import N_PICTURES, commands, has_litter, killed_at, paint, prepare, start
from drills.record import record

CHANGES = "SIGKILL before each change to the disk of eight commands, then again: all files equal to the byte, no litter"
RANDOM = "SIGKILL of `cae cluster` (lite, loader processes) at random moments, then again: equal assignments, no litter"


def was_killed(ended: int, said: str) -> bool:
    return ended == -signal.SIGKILL


def test_killed_at_some_changes_to_the_disk(life):
    tried, lost = life.losses(61, killed_at, was_killed)
    assert tried >= 5
    assert not lost


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_killed_at_every_change_to_the_disk(life):
    tried, lost = life.losses(1, killed_at, was_killed)
    record("kills-at-changes", tried=tried, lost=len(lost), note=CHANGES)
    assert tried > 100
    assert not lost, "\n".join(lost)


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path):
    """The command itself, with the encoder, the loader processes and the threads that people run it with."""
    prepare(tmp_path)
    paint(tmp_path / "pictures", range(N_PICTURES, 400))

    def cluster(name: str) -> "subprocess.Popen[str]":
        options = ["--encoder", "lite", "--workers", "2", "--out", str(tmp_path / name)]  # the last ones count
        return start(*commands(tmp_path)[0], *options, CAE_CACHE=str(tmp_path / f"cache-{name}"))

    started = time.monotonic()
    assert cluster("whole").wait() == 0
    duration = time.monotonic() - started
    whole = assignments(tmp_path / "whole")
    kills, lives, lost, moments = 0, 0, 0, np.random.default_rng(0)
    while kills < 20:
        lives += 1
        for _ in range(4):
            process = cluster(f"killed-{lives}")
            try:
                process.wait(timeout=float(moments.uniform(0.1, 0.9)) * duration)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        ended = cluster(f"killed-{lives}").wait()
        litter = has_litter(tmp_path / f"killed-{lives}", tmp_path / f"cache-killed-{lives}")
        lost += ended != 0 or litter or assignments(tmp_path / f"killed-{lives}") != whole
    record("kills-at-random", tried=kills, lost=lost, note=RANDOM)
    assert not lost


def assignments(result: Path) -> dict[str, object]:
    return SavedResult.load(result).assignments.to_pydict()
