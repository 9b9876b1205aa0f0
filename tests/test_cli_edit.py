"""`cae edit` and `cae cut` as a user meets them: what they change, what they print, and what they refuse."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import assert_not_loaded, page_of
from PIL import Image

from cae.api import Result
from cae.results.saved import SavedResult


def unboxed(text):
    """What stands in the frame that usage errors have."""
    return " ".join(text.replace("│", " ").split())


def test_edits_are_shown_exported_and_outlive_the_next_run(clustered, run, picture_folder, text_files, tmp_path):
    out, *_ = clustered
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    assert run("cluster", picture_folder, "-k", 2, "--seed", 5, "-o", tmp_path / "two", "--no-report", *texts)[0] == 0
    # The colours that two clusters put together, by the names that they have as three.
    names = [c["name"] for c in json.loads((out / "clusters.json").read_text())["clusters"]]
    named = {row["path"]: names[row["cluster"]] for row in pq.read_table(out / "assignments.parquet").to_pylist()}
    two = {row["path"]: row["cluster"] for row in pq.read_table(tmp_path / "two/assignments.parquet").to_pylist()}
    sides = sorted(({named[path] for path in two if two[path] == side} for side in (0, 1)), key=len)
    assert [len(side) for side in sides] == [1, 2]
    (third,), (first, second) = sides
    moved = [path for path in named if named[path] != third][:2]
    for edit in (
        ["merge", first, second, "--name", "warm"],
        ["rename", third, "cold [blue]"],
        ["move", moved[0], picture_folder / moved[1], "--to", "cold [blue]"],
        ["pin", "warm"],
    ):
        code, stdout, stderr = run("edit", out, *edit)
        assert code == 0, stderr
    assert "4. pin warm" in stdout
    assert "cold [blue]" in stdout
    code, stdout, stderr = run(
        "cluster", picture_folder, "-k", 2, "--seed", 5, "--out", out, "--workers", 0, "--quiet", *texts
    )
    assert code == 0, stderr
    assert stdout == ""
    code, stdout, stderr = run("export", out, "--to", "csv", "--out", tmp_path / "csv")
    assert code == 0, stderr
    names = {row["path"]: row["name"] for row in pacsv.read_csv(tmp_path / "csv/assignments.csv").to_pylist()}
    assert {"warm", "cold [blue]"} == set(names.values())
    assert names[moved[0]] == names[moved[1]] == "cold [blue]"
    code, stdout, _ = run("edit", out, "undo")
    assert code == 0
    assert "taken back: pin warm" in stdout
    assert len(json.loads((out / "edits.json").read_text())["edits"]) == 3
    code, stdout, _ = run("edit", out, "redo", "--no-report")
    assert (code, "4. pin warm" in stdout) == (0, True)


def test_undo_tells_the_edit_that_it_takes_back(clustered, run, monkeypatch):
    """Another program may have made one since the result was opened."""
    out, *_ = clustered

    def opened(_):
        result = Result(out).rename(0, "boats")
        Result(out).rename(1, "ships")
        return result

    monkeypatch.setattr("cae.cli.commands.edit._open", opened)
    code, stdout, _ = run("edit", out, "undo", "--no-report")
    assert (code, "ships" in stdout, "boats" in stdout) == (0, True, False)
    assert Result(out).clusters[0]["name"] == "boats"


def test_the_page_follows_edits_unless_told_otherwise(clustered, run):
    out, *_ = clustered
    code, stdout, stderr = run("edit", out, "rename", "0", "harbour")
    assert code == 0, stderr
    assert stdout.endswith(f"report: {out}/report/index.html\n")
    assert "harbour" in page_of(out)
    code, stdout, stderr = run("edit", out, "rename", "0", "lighthouse", "--no-report")
    assert code == 0, stderr
    assert "report:" not in stdout
    assert f"to draw it again: cae report {out}" in stderr
    assert "lighthouse" not in page_of(out)
    assert run("edit", out, "undo")[0] == 0
    assert "harbour" in page_of(out)
    shutil.rmtree(out / "report")
    for flag in ("--report", "--no-report"):
        code, stdout, stderr = run("edit", out, "pin", "0", flag)
        assert code == 0, stderr
        assert "report" not in stdout + stderr
    assert not (out / "report").exists()


def test_split_makes_parts(clustered, run):
    out, *_ = clustered
    code, stdout, stderr = run("edit", out, "split", 0, "--into", 2)
    assert code == 0, stderr
    assert "3  " in stdout  # the number of the new group


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rename", "nobody", "x"], "no group is called 'nobody'"),
        (["rename", "0", " "], "cannot be empty"),
        (["rename", "0", "\u200b"], "cannot be empty"),
        (["rename", "0", "two\nlines"], r"the name 'two\nlines' holds a line break or control characters"),
        (["merge", "0", "1", "--name", "\x1b[2J"], r"the name '\x1b[2J' holds a line break or control characters"),
        (["rename", "0", "right\u202eleft"], r"the name 'right\u202eleft' holds"),
        (["rename", "0", "caf\udce9"], "the name 'caf\\udce9' holds bytes that are no UTF-8"),
        (["rename", "0", "{second}"], "merge the two"),
        (["merge", "0", "0"], "at least two groups"),
        (["split", "0", "--into", "29"], "too few different pictures"),
        (["move", "no/such.png", "--to", "0"], "not in the result: no/such.png"),
        (["undo"], "there are no edits, and so nothing to take back"),
        (["redo"], "no edit was taken back last"),
        (["rename", "9", "x"], "there is no group 9; they are 0 ("),
    ],
)
def test_edits_that_cannot_be_made_say_why(clustered, run, arguments, message):
    out, *_ = clustered
    second = json.loads((out / "clusters.json").read_text())["clusters"][1]["name"]
    code, _, stderr = run("edit", out, *(argument.format(second=second) for argument in arguments))
    assert code == 1
    assert message.format(out=out) in " ".join(stderr.split())
    assert not (out / "edits.json").exists()


@pytest.mark.parametrize("arguments", [["rename", "old name", "new"], ["undo"], ["split", "--help"]])
def test_a_command_in_place_of_the_result_is_told_what_comes_first(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("edit", *arguments)
    assert (code, stdout) == (2, "")
    assert f"the folder of the result comes first: cae edit RESULT {shlex.join(arguments)}" in unboxed(stderr)


def test_a_result_may_be_called_as_a_command(clustered, run, monkeypatch):
    out, *_ = clustered
    monkeypatch.chdir(out.parent)
    code, stdout, stderr = run("edit", out.rename(out.with_name("split")).name, "rename", "0", "boats")
    assert code == 0, stderr
    assert "boats" in stdout


def test_broken_edits_stop_a_run_before_its_work(clustered, run, picture_folder, monkeypatch):
    out, *_ = clustered
    (out / "edits.json").write_text("{")
    monkeypatch.setattr("cae.results.run.run_folder", lambda *_, **__: pytest.fail("work that would be lost"))
    code, _, stderr = run("cluster", picture_folder, "-k", 3, "--out", out)
    assert code == 1
    assert "repair it, or remove it" in stderr


@pytest.mark.parametrize("verb", ["rename", "merge", "split", "pin", "move", "undo"])
def test_help_on_an_edit_needs_no_result(run, verb):
    code, stdout, _ = run("edit", "RESULT", verb, "--help")
    assert code == 0
    assert re.search(rf"cae edit {{?RESULT}}? {verb} ", stdout)  # newer releases of typer have braces


def test_an_edit_does_not_wait_for_what_only_a_fit_needs():
    rooms = "make_edits, cae.results.edits_file, cae.results.export, cae.results.compare, cae.results.saved, cae.report"
    statement = f"import cae.results.{rooms}"
    assert_not_loaded(statement, "lightning", "torchmetrics", "torchvision", "sklearn", "open_clip")


def test_cut_shows_another_level_and_predict_agrees(run, tree_folder, tmp_path):
    levels = SavedResult.load(tree_folder).fitted.hierarchy.levels
    assert run("report", tree_folder)[0] == 0
    code, stdout, stderr = run("cut", tree_folder, "--clusters", levels[-1])
    assert code == 0, stderr
    assert f"report: {tree_folder}/report/index.html" in stdout
    assert f"in {levels[-1]} groups" in (tree_folder / "report/index.html").read_text(encoding="utf-8")
    code, _, stderr = run("predict", tree_folder, tmp_path / "colours", "--out", tmp_path / "again", "--workers", 0)
    assert code == 0, stderr
    cut, again = (pq.read_table(folder / "assignments.parquet") for folder in (tree_folder, tmp_path / "again"))
    assert again.equals(cut)
    named = Result(tree_folder).rename(0, "harbour").assignments
    code, stdout, stderr = run(
        "predict", tree_folder, tmp_path / "colours", "--out", tmp_path / "again", "--workers", 0
    )
    assert (code, "harbour" in stdout) == (0, True), stderr
    assert pq.read_table(tmp_path / "again" / "assignments.parquet").equals(named)


def test_update_after_a_cut_sorts_into_its_groups(run, tree_folder, tmp_path):
    levels = SavedResult.load(tree_folder).fitted.hierarchy.levels
    assert run("cut", tree_folder, "--clusters", levels[0])[0] == 0
    old = tmp_path / "colours" / "colour 3" / "0.png"
    with Image.open(old) as image:
        changed = numpy.asarray(image) ^ 1
    Image.fromarray(changed).save(old.with_name("new.png"))
    code, _, stderr = run("update", tree_folder, tmp_path / "colours", "--workers", 0)
    assert code == 0, stderr
    rows = {row["path"]: row for row in pq.read_table(tree_folder / "assignments.parquet").to_pylist()}
    assert len(rows) == 73
    assert rows["colour 3/new.png"]["cluster"] == rows["colour 3/0.png"]["cluster"]
    assert run("cut", tree_folder, "--clusters", levels[-1])[0] == 0
    saved = SavedResult.load(tree_folder)
    assert sum(record["size"] for record in saved.clusters) == 73
    tree = json.loads((tree_folder / "clusters.json").read_text())["tree"]
    assert sum(node["size"] for node in tree if node["parent"] is None) == 73
    code, _, stderr = run("predict", tree_folder, tmp_path / "colours", "--out", tmp_path / "again", "--workers", 0)
    assert code == 0, stderr
    again = {row["path"]: row for row in pq.read_table(tmp_path / "again/assignments.parquet").to_pylist()}
    for row in saved.assignments.drop_columns(["outlier"]).to_pylist():
        # Where an image stands among others can change the last bit.
        assert row == {**again[row["path"]], "confidence": pytest.approx(again[row["path"]]["confidence"], abs=1e-6)}


@pytest.mark.parametrize("n", ["1", "70", "-3"])
def test_cut_names_what_cannot_be(run, tree_folder, n):
    code, stdout, stderr = run("cut", tree_folder, "--clusters", n)
    assert code != 0
    assert n in stderr
    assert not stdout


def test_cut_of_a_method_without_a_tree_says_why(run, tree_folder):
    fitted = SavedResult.load(tree_folder).fitted
    replace(fitted, hierarchy=None, nodes=[]).save(tree_folder / "model")
    code, _, stderr = run("cut", tree_folder, "--clusters", 5)
    assert code == 1
    assert "before there were trees" in stderr
