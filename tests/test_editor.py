"""A result held open: every edit as `cae edit` makes it, undone and made again, and never on a revision that is old."""

import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import rewrite_assignments

from cae.api import Result
from cae.results import make_edits
from cae.results.editor import Editor, StaleError
from cae.results.edits import EditError, Pin
from cae.results.edits_file import load_history
from cae.results.layout import ResultError
from cae.results.saved import SavedResult
from cae.results.writing import OutputError


@pytest.fixture
def editor(result_folder):
    return Editor(result_folder)


def change(editor, verb, *arguments):
    """As the routes do."""
    with editor.changing(editor.revision):
        if verb in ("undo", "redo"):
            getattr(editor, verb)()
        elif verb == "split":
            editor.add(editor.split(*arguments))
        else:
            made = getattr(make_edits, verb)(editor.view, *arguments)
            editor.add(*made if isinstance(made, list) else [made])


def seen(result):
    """What people see of a result."""
    return result.assignments.select(["path", "cluster", "name", "runner_up"]).to_pylist(), result.clusters


def rows_of(editor, cluster):
    return [row for row, label in enumerate(editor.result.assignments["cluster"].to_pylist()) if label == cluster]


CHANGES = [
    ("rename", 0, "boats"),
    ("split", 1, 3),
    ("pin_images", [0, 1, 2]),
    ("move", [3, 4], 0),
    ("pin", [0]),
    ("merge", [0, 2], "both"),
    ("merge", [3, 4]),
]


def test_the_view_after_each_edit_is_that_of_the_result_read_anew(editor, result_folder):
    for verb, *arguments in CHANGES:
        change(editor, verb, *arguments)
        assert seen(editor.result) == seen(SavedResult.load(result_folder).edited)
        assert editor.revision == Editor(result_folder).revision


def test_edits_are_taken_back_and_made_again_any_number(editor, result_folder):
    states = [(seen(editor.result), editor.history.edits)]
    for verb, *arguments in CHANGES:
        change(editor, verb, *arguments)
        states.append((seen(editor.result), editor.history.edits))
    for state in states[-2::-1]:
        change(editor, "undo")
        assert (seen(editor.result), editor.history.edits) == state
    with pytest.raises(EditError, match="nothing to take back"):
        change(editor, "undo")
    editor = Editor(result_folder)  # as after a kill
    for state in states[1:]:
        change(editor, "redo")
        assert (seen(editor.result), editor.history.edits) == state
    with pytest.raises(EditError, match="none to make again"):
        change(editor, "redo")


def test_a_new_edit_leaves_nothing_to_make_again(editor, result_folder):
    change(editor, "rename", 0, "boats")
    change(editor, "undo")
    change(editor, "rename", 0, "ships")
    assert load_history(result_folder).undone == ()


def test_the_command_line_takes_back_and_makes_again_what_the_editor_made(editor, result_folder):
    change(editor, "rename", 0, "boats")
    result = Result(result_folder).undo()
    assert result.clusters[0]["name"] != "boats"
    assert result.redo().clusters[0]["name"] == "boats"
    with pytest.raises(EditError, match="none to make again"):
        result.redo()
    with editor.looking():
        assert seen(editor.result) == seen(result.saved.edited)


def test_a_change_on_an_old_revision_is_refused_and_writes_nothing(editor, result_folder):
    old = editor.revision
    Result(result_folder).rename("0", "from the terminal")
    before = (result_folder / "edits.json").read_bytes()
    with pytest.raises(StaleError), editor.changing(old):
        editor.add(make_edits.rename(editor.view, 1, "boats"))
    assert (result_folder / "edits.json").read_bytes() == before
    assert editor.result.clusters[0]["name"] == "from the terminal"
    change(editor, "rename", 1, "boats")
    assert {"from the terminal", "boats"} <= {
        record["name"] for record in SavedResult.load(result_folder).edited.clusters
    }


def test_of_many_changes_at_once_on_one_revision_one_is_made(editor, result_folder):
    revision, outcomes = editor.revision, []

    def rename(name):
        try:
            with editor.changing(revision):
                editor.add(make_edits.rename(editor.view, 0, name))
            outcomes.append(name)
        except StaleError:
            outcomes.append(None)

    threads = [threading.Thread(target=rename, args=(f"name {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = filter(None, outcomes)
    assert [edit.name for edit in load_history(result_folder).edits] == [made]


def test_a_preview_is_what_the_split_makes_and_changes_nothing(editor):
    before = seen(editor.result)
    parts = editor.preview(0, 3, 12)
    assert seen(editor.result) == before
    change(editor, "split", 0, 3)
    made = {record["name"]: rows_of(editor, record["id"]) for record in editor.result.clusters}
    assert len(parts) == 3
    for part in parts:
        assert sorted(part.rows.tolist()) == made[part.name]


def test_of_copies_a_preview_shows_the_original(result_folder):
    saved = SavedResult.load(result_folder)
    hashes, labels = saved.assignments["sha256"].to_pylist(), saved.assignments["cluster"].to_pylist()
    first, *copies = [row for row, label in enumerate(labels) if label == 0][:4]
    for row in copies:
        hashes[row] = hashes[first]
    table = saved.assignments
    rewrite_assignments(result_folder, table.set_column(table.column_names.index("sha256"), "sha256", pa.array(hashes)))
    parts = Editor(result_folder).preview(0, 2, 12)
    shown = [row for part in parts for row in part.typical]
    assert first in shown
    assert sorted(shown) == sorted({row for part in parts for row in part.rows.tolist()} - set(copies))
    assert [len(part.typical) for part in Editor(result_folder).preview(0, 2, 1)] == [1, 1]


def test_pictures_pinned_one_after_the_other_stay_in_one_group(editor):
    first, second, third = rows_of(editor, 0)[:3]
    change(editor, "pin_images", [first])
    change(editor, "pin_images", [second, third])
    assert editor.pinned(0) == 3
    assert len(editor.result.clusters) == 3
    change(editor, "move", [first], 1)
    assert editor.pinned(0) == 2


def test_pins_in_several_groups_keep_each_where_it_is(editor):
    before = editor.result.assignments["cluster"].to_pylist()
    change(editor, "pin_images", [rows_of(editor, 0)[0], rows_of(editor, 1)[0]])
    assert editor.result.assignments["cluster"].to_pylist() == before
    assert [editor.pinned(0), editor.pinned(1), editor.pinned(2)] == [1, 1, 0]


def test_what_was_pinned_stays_pinned_in_a_merged_group(editor):
    sizes = [len(rows_of(editor, id)) for id in (0, 1)]
    change(editor, "pin", [0])
    change(editor, "pin", [1])
    change(editor, "merge", [0, 1])
    assert editor.pinned(0) == sum(sizes)
    change(editor, "undo")
    assert [editor.pinned(0), editor.pinned(1)] == sizes


def test_pictures_of_a_pinned_group_that_was_merged_are_pinned_where_they_are(editor, result_folder):
    rows = rows_of(editor, 1)
    change(editor, "pin", [0])
    change(editor, "pin", [1])
    change(editor, "merge", [0, 1])
    with editor.changing(editor.revision):
        editor.add(Pin(editor.view.anchors(np.array(rows), "as other programs write it", None)))
    assert len(editor.result.clusters) == 2
    assert len(SavedResult.load(result_folder).edited.clusters) == 2


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("rename", (9, "x"), "there is no group 9; they are 0"),
        ("rename", (0, "  "), "cannot be empty"),
        ("merge", ([0, 0], None), "at least two"),
        ("merge", ([0, 9], None), "there is no group 9; they are 0"),
        ("split", (0, 900), "too few different pictures"),
        ("pin_images", ([],), "no picture is chosen"),
        ("pin_images", ([30],), "no picture 30"),
        ("move", ([-1], 0), "no picture -1"),
        ("move", ([], 0), "no picture is chosen"),
        ("pin", ([9],), "there is no group 9; they are 0"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_everything_as_it_was(editor, result_folder, verb, arguments, message):
    with pytest.raises(EditError, match=message):
        change(editor, verb, *arguments)
    assert not (result_folder / "edits.json").exists()
    assert editor.history == ((), ())


def test_a_write_that_fails_leaves_everything_as_it_was(editor, result_folder, monkeypatch):
    before, revision = seen(editor.result), editor.revision

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("cae.results.editor.save_edits", full)
    with pytest.raises(OSError, match="No space"):
        change(editor, "rename", 0, "boats")
    assert (seen(editor.result), editor.revision) == (before, revision)


def test_a_new_result_in_the_folder_is_noticed(editor, result_folder):
    fit = editor.fit
    run = json.loads((result_folder / "run.json").read_text())
    (result_folder / "run.json").write_text(json.dumps({**run, "seconds": 1}))
    with editor.looking():
        assert editor.fit != fit


def test_nothing_is_changed_while_the_result_cannot_be_read(editor, result_folder):
    change(editor, "rename", 0, "boats")
    edits = result_folder / "edits.json"
    whole = edits.read_text()
    edits.write_text("{")
    for _ in range(2):
        with pytest.raises(EditError, match="cannot be read"):
            change(editor, "rename", 1, "ships")
        with pytest.raises(EditError, match="cannot be read"), editor.looking():
            pass
    assert edits.read_text() == "{"
    edits.write_text(whole)
    change(editor, "rename", 1, "ships")
    assert len(load_history(result_folder).edits) == 2


def test_a_folder_that_cannot_be_written_is_told_with_what_to_do(result_folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "a temporary file")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"result cannot be changed: Permission denied; make it writable, or copy it"):
        Editor(result_folder)


def test_a_folder_that_is_no_result_is_refused(tmp_path):
    with pytest.raises(ResultError, match="is missing"):
        Editor(tmp_path)


KILLED = """
import sys
from cae.results import make_edits
from cae.results.editor import Editor
editor = Editor(sys.argv[1])
for i in range(10_000):
    with editor.changing(editor.revision):
        editor.add(make_edits.rename(editor.view, 0, f"name {i}"))
    print(i, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(result_folder):
    process = subprocess.Popen([sys.executable, "-c", KILLED, result_folder], stdout=subprocess.PIPE, text=True)
    for _ in range(40):
        said = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged = int((said + rest).split()[-1])
    edits = load_history(result_folder).edits
    assert [edit.name for edit in edits[: acknowledged + 1]] == [f"name {i}" for i in range(acknowledged + 1)]
    assert len(edits) <= acknowledged + 2
    change(Editor(result_folder), "undo")
    assert not list(Path(result_folder).glob(".writing-*"))


@pytest.mark.slow
def test_thousands_of_edits_outlive_kills_at_any_moment(result_folder):
    """Each life of the program goes on from what the last one has left."""
    generator, known = random.Random(0), 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", KILLED, result_folder], stdout=subprocess.PIPE, text=True)
        said = process.stdout.readline()
        for _ in range(generator.randrange(250)):
            said = process.stdout.readline() or said
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        acknowledged = known + 1 + int((said + rest).split()[-1])
        edits = load_history(result_folder).edits
        assert acknowledged <= len(edits) <= acknowledged + 1
        known = len(edits)
    assert known > 3000
    assert len(Editor(result_folder).history.edits) == known
