"""Files are written whole or not at all, several of them together, and killed writers leave no litter for long."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from cae.utils import files
from cae.utils.files import committing, drafting, holding, replacing, tidy, write_json


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "b").write_text(text)


def test_an_error_leaves_a_file_as_it_was(tmp_path):
    write_json([1], tmp_path / "sub" / "a.json")
    with pytest.raises(RuntimeError), replacing(tmp_path / "sub" / "a.json") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "sub" / "a.json").read_text()) == [1]
    assert len(list(tmp_path.rglob("*"))) == 2


def test_an_error_leaves_a_folder_as_it_was(tmp_path):
    with committing(tmp_path / "out") as draft:
        write(draft, "old")
    with pytest.raises(RuntimeError), committing(tmp_path / "out") as draft:
        write(draft, "new")
        raise RuntimeError
    assert tree(tmp_path / "out") == {"a": "old", "deep/b": "old"}


def interrupted_commit(folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """A commit that ends after it has moved so many files."""
    replace = Path.replace
    moved = []

    def replace_some(self: Path, target: Path) -> Path:
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), committing(folder) as draft:
        write(draft, "new")
        patch.setattr(Path, "replace", replace_some)
    assert len(moved) == moves


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("who", ["reader", "writer"])
def test_a_commit_that_was_interrupted_is_finished(tmp_path, monkeypatch, moves, who):
    with committing(tmp_path) as draft:
        write(draft, "old")
        (draft / "c").write_text("old")
    interrupted_commit(tmp_path, monkeypatch, moves)
    if who == "reader":
        tidy(tmp_path)
    else:
        with committing(tmp_path):
            pass
    assert tree(tmp_path) == {"a": "new", "deep/b": "new", "c": "old"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "deep", "c"}


def test_drafts_of_processes_that_are_gone_are_removed(tmp_path):
    gone = multiprocessing.get_context("spawn").Process(target=os.getpid)
    gone.start()
    gone.join()
    litter = tmp_path / f"{files._DRAFT}{files._HERE}.{gone.pid}.x"
    alive = tmp_path / f"{files._DRAFT}{files._HERE}.{os.getppid()}.x"
    elsewhere = tmp_path / f"{files._DRAFT}12345678.{gone.pid}.x"
    for folder in (litter, alive, elsewhere):
        folder.mkdir()
    with drafting(tmp_path) as draft, drafting(tmp_path):
        assert draft.is_dir()  # of this process, which is alive
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, elsewhere.name}


def _commit_often(folder: Path, who: str) -> None:
    for i in range(30):
        with committing(folder) as draft:
            write(draft, f"{who}{i}")


def test_commits_of_two_processes_do_not_mix(tmp_path):
    writers = [multiprocessing.get_context("spawn").Process(target=_commit_often, args=(tmp_path, w)) for w in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = tree(tmp_path)
    assert set(found) == {"a", "deep/b"}
    assert found["a"] == found["deep/b"] in ("x29", "y29")


def _count(folder: Path) -> None:
    for _ in range(20):
        with holding(folder / ".lock"):
            n = int((folder / "n").read_text())
            time.sleep(0.001)
            (folder / "n").write_text(str(n + 1))


def test_who_holds_a_lock_is_alone(tmp_path):
    (tmp_path / "n").write_text("0")
    counters = [multiprocessing.get_context("spawn").Process(target=_count, args=(tmp_path,)) for _ in range(2)]
    for counter in counters:
        counter.start()
    for counter in counters:
        counter.join()
    assert (tmp_path / "n").read_text() == "40"


def test_names_that_no_process_has_are_no_litter(tmp_path):
    names = [f"{files._DRAFT}{files._HERE}.{process}.x" for process in ("9" * 30, "\u00b2", "-1", "")]
    for name in names:
        (tmp_path / name).mkdir()
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


# ---- folders that somebody else has made ----


def stranger(folder: Path, others: Path) -> None:
    """A folder for a stranger's result, and one that is nobody else's business."""
    folder.mkdir()
    others.mkdir()
    (others / "kept").write_text("kept")


def test_a_commit_that_is_a_link_takes_nothing_from_elsewhere(tmp_path):
    stranger(tmp_path / "made", tmp_path / "others")
    (tmp_path / "made" / files._COMMIT).symlink_to(tmp_path / "others")
    with pytest.raises(OSError, match=r"\.committed is a link"):
        tidy(tmp_path / "made")
    assert tree(tmp_path / "others") == {"kept": "kept"}


@pytest.mark.parametrize("deep", ["link", "link/deeper"])
def test_a_commit_writes_nothing_by_way_of_a_link(tmp_path, deep):
    stranger(tmp_path / "made", tmp_path / "others")
    (tmp_path / "made" / "link").symlink_to(tmp_path / "others")
    (tmp_path / "made" / files._COMMIT / deep).mkdir(parents=True)
    (tmp_path / "made" / files._COMMIT / deep / "kept").write_text("changed")
    with pytest.raises(OSError, match="link is a link"):
        tidy(tmp_path / "made")
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["kept"]
    assert tree(tmp_path / "others") == {"kept": "kept"}


def test_a_link_among_what_is_committed_does_not_keep_a_writer_forever(tmp_path):
    stranger(tmp_path / "made", tmp_path / "others")
    (tmp_path / "made" / files._COMMIT).mkdir()
    (tmp_path / "made" / files._COMMIT / "link").symlink_to(tmp_path / "others")
    with pytest.raises(OSError, match="link is a link"), committing(tmp_path / "made") as draft:
        write(draft, "new")
    assert tree(tmp_path / "others") == {"kept": "kept"}


def test_a_lock_that_is_a_link_empties_no_other_file(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match=r"\.lock is a link"), holding(tmp_path / ".lock"):
        pass
    assert (tmp_path / "kept").read_text() == "kept"
