"""Exports read back with the libraries they are for, safe names, and originals and strangers' files untouched."""

import csv
import json
import os
import shutil
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cae.results.cut import cut
from cae.results.edits import Merge, Rename
from cae.results.edits_file import save_edits
from cae.results.export import TARGETS, ExportError, export
from cae.results.make_edits import anchors_of
from cae.results.saved import SavedResult
from cae.utils.names import MAX_BYTES, distinct_names, safe_name


@pytest.fixture
def result(result_folder):
    return SavedResult.load(result_folder)


def tree(folder):
    """Every file below, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder):
    return {name for name in tree(folder) if not name.startswith(".")}


def rename(result, *names):
    """Call the clusters something, and read the result again."""
    edits = [Rename(anchors_of(result.view, k), name) for k, name in enumerate(names)]
    save_edits(edits, result.folder)
    return SavedResult.load(result.folder)


# Names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("harbor", "harbor"),
        ("a/b\\c:d*e?f\"g<h>i|j", "a_b_c_d_e_f_g_h_i_j"),
        ("mixed: dog, cat", "mixed - dog, cat"),
        ("CON", "CON_"),
        ("nul.jpg", "nul_.jpg"),
        ("dots. . .", "dots"),
        ("..", "unnamed"),
        ("", "unnamed"),
        (".hidden.png", "hidden.png"),
        ("line\nbreak\t", "line_break"),
        ("caf\u0065\u0301", "café"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\ufffd.jpg"),
    ],
)  # fmt: skip
def test_names_that_every_system_takes(text, expected):
    assert safe_name(text) == expected


@pytest.mark.parametrize("text", ["x" * 300 + ".jpeg", "ü" * 200 + ".jpeg"])
def test_long_names_keep_their_ending(text):
    name = safe_name(text)
    assert len(name.encode()) <= MAX_BYTES
    assert name.endswith(".jpeg")


def test_names_that_differ_in_case_alone_are_numbered():
    assert distinct_names(["cat", "Cat", "CAT", "dog"]) == ["cat", "Cat (2)", "CAT (3)", "dog"]
    assert distinct_names(["a.jpg", "a (2).jpg", "a.jpg"]) == ["a.jpg", "a (2).jpg", "a (3).jpg"]
    assert distinct_names(["a.jpg", "A.png"], by_stem=True) == ["a.jpg", "A (2).png"]
    assert distinct_names(["a"] * 2000)[-1] == "a (2000)"
    assert distinct_names(["a.jpg", "a.png"]) == ["a.jpg", "a.png"]


# Folders.


@pytest.mark.parametrize("by", ["copy", "hardlink", "symlink"])
def test_folders_hold_every_picture_once_and_originals_stay(result, picture_folder, tmp_path, by):
    before = tree(picture_folder)
    out = tmp_path / "out"
    done = export(result, "folders", out, by=by)
    assert done == (30, 0, [], [])
    assert tree(picture_folder) == before
    content = sorted(content for name, content in tree(out).items() if not name.startswith("."))
    assert content == sorted(before.values())
    assert {path.name for path in out.iterdir() if path.is_dir()} == {record["name"] for record in result.clusters}
    # 0.png is in three folders; where two of them are in one cluster, both are there.
    for record in result.clusters:
        assert len(list((out / record["name"]).iterdir())) == record["size"]


def test_the_same_export_again_touches_no_picture(result, tmp_path):
    out = tmp_path / "out"
    export(result, "folders", out)
    inodes = {path: path.stat().st_ino for path in out.rglob("*.png")}
    assert export(result, "folders", out).removed == 0
    assert {path: path.stat().st_ino for path in out.rglob("*.png")} == inodes


def test_another_way_of_placing_replaces_the_first(result, tmp_path, picture_folder):
    before, out = tree(picture_folder), tmp_path / "out"
    for by in ("copy", "hardlink", "copy", "symlink", "hardlink", "symlink", "copy"):
        export(result, "folders", out, by=by)
        pictures = list(out.rglob("*.png"))
        assert len(pictures) == 30
        assert all(picture.is_symlink() == (by == "symlink") for picture in pictures)
        linked = 31 if by == "hardlink" else 0
        assert sum(picture.lstat().st_nlink > 1 for picture in pictures) == min(linked, 30)
    assert tree(picture_folder) == before


def test_edits_show_and_bring_an_earlier_export_up_to_date(result, tmp_path):
    out = tmp_path / "out"
    export(result, "folders", out)
    strangers = out / "notes.txt"
    strangers.write_text("mine")
    old = {record["name"] for record in result.clusters}
    save_edits([Merge((anchors_of(result.view, 0), anchors_of(result.view, 1)), "both/all")], result.folder)
    edited = SavedResult.load(result.folder)
    done = export(edited, "folders", out)
    names = {path.name for path in out.iterdir() if path.is_dir()}
    assert "both_all" in names
    assert len(names - old) == 1  # and the merged clusters' folders are gone
    assert done.removed
    assert len(list(out.rglob("*.png"))) == 30
    assert strangers.read_text() == "mine"


def test_clusters_with_dangerous_names(result, tmp_path):
    out = tmp_path / "out"
    export(rename(result, "CON", "../../evil", "con"), "folders", out)
    folders = [path.name for path in out.iterdir() if path.is_dir()]
    assert sorted(folders) == ["CON_", "_.._evil", "con_ (2)"]
    assert not (tmp_path.parent / "evil").exists()


def test_a_picture_that_changed_is_copied_again(result, picture_folder, tmp_path):
    export(result, "folders", tmp_path / "out")
    (picture_folder / "red/0.png").write_bytes((picture_folder / "red/1.png").read_bytes() + b"tail")
    assert export(result, "folders", tmp_path / "out").changed == ["red/0.png"]
    assert (picture_folder / "red/0.png").read_bytes() in tree(tmp_path / "out").values()


def test_missing_pictures_are_told_and_left_out(result, picture_folder, tmp_path):
    (picture_folder / "red/0.png").unlink()
    for target in TARGETS:
        done = export(SavedResult.load(result.folder), target, tmp_path / target)
        expected = [] if target in ("csv", "parquet", "json") else ["red/0.png"]
        assert done.missing == expected, target
    assert len(list((tmp_path / "folders").rglob("*.png"))) == 29


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes UTF-8 names alone")
def test_names_that_are_no_utf8_are_exported(picture_folder, text_files, tmp_path, request):
    strange = os.fsdecode(b"caf\xe9.png")
    (picture_folder / "red/0.png").rename(picture_folder / "red" / strange)
    result = SavedResult.load(request.getfixturevalue("result_folder"))
    assert None not in result.image_paths
    export(result, "folders", tmp_path / "out")
    assert len(list(tmp_path.glob("out/*/caf\ufffd.png"))) == 1


# What happens when things go wrong.


def test_an_interrupted_export_holds_whole_files_and_goes_on(result, picture_folder, tmp_path, monkeypatch):
    originals, out = set(tree(picture_folder).values()), tmp_path / "out"
    copies = []

    def interrupted(source, target):
        copies.append(target)
        if len(copies) == 12:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        return shutil.copyfile(source, target) and shutil.copystat(source, target)

    monkeypatch.setattr("cae.results.export.tree.shutil.copy2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(result, "folders", out)
    assert len(list(out.rglob("*.png"))) == 11
    assert {path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name[0] != "."} <= originals
    export(result, "folders", out)
    assert len(copies) == 12 + 19
    assert not list(out.glob(".writing-*"))
    assert len(list(out.rglob("*.png"))) == 30


def test_files_in_the_way_are_not_overwritten(result, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("mine")
    with pytest.raises(ExportError, match="in the way"):
        export(result, "json", out)
    assert tree(out) == {"result.json": b"mine"}


def test_one_folder_holds_one_kind_of_export(result, tmp_path):
    export(result, "csv", tmp_path / "out")
    with pytest.raises(ExportError, match="holds an export to csv"):
        export(result, "parquet", tmp_path / "out")


def test_pictures_are_not_exported_among_the_originals(result, picture_folder):
    with pytest.raises(ExportError, match="mix with the original pictures"):
        export(result, "folders", picture_folder / "sorted")
    assert not (picture_folder / "sorted").exists()
    # A group that is called like the folder of the originals, beside it.
    with pytest.raises(ExportError, match="mix with the original pictures"):
        export(rename(result, picture_folder.name), "folders", picture_folder.parent)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "is damaged"),
        ('{"format_version": 1, "target": "folders", "files": ["../pictures/red/0.png"]}', "outside of the export"),
        ('{"format_version": 1, "target": "folders", "files": ["/etc/passwd"]}', "outside of the export"),
        ('{"format_version": 9, "target": "folders", "files": []}', "upgrade cae"),
        ('{"format_version": 1, "target": "folders", "files": ["red/0.png"], "sha256": "0"}', "its checksum differs"),
        ('{"format_version": 1, "target": "folders", "files": ' + "[" * 99999, "nested too deeply"),
        ('{"format_version": "x", "target": "folders", "files": []}', "is damaged"),
    ],
)
def test_a_manifest_that_is_not_right_removes_nothing(result, picture_folder, tmp_path, manifest, message):
    before = tree(picture_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.cae-export.json").write_text(manifest)
    with pytest.raises(ExportError, match=message):
        export(result, "folders", tmp_path / "out")
    assert tree(picture_folder) == before


def test_a_folder_that_became_a_link_to_the_originals_loses_nothing(result, picture_folder, tmp_path):
    before, out = tree(picture_folder), tmp_path / "out"
    out.mkdir()
    (out / "old").symlink_to(picture_folder / "red")
    manifest = {"format_version": 1, "target": "folders", "files": ["old/0.png"]}
    (out / ".cae-export.json").write_text(json.dumps(manifest))
    export(result, "folders", out)
    assert tree(picture_folder) == before


def test_a_file_as_target_is_named(result, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="choose another folder with --out"):
        export(result, "csv", tmp_path / "file")


def test_an_unknown_target_is_named(result, tmp_path):
    with pytest.raises(ExportError, match="unknown target 'zip'; choose one of folders, csv"):
        export(result, "zip", tmp_path / "out")


def test_links_that_a_disk_cannot_hold_say_what_to_do(result, tmp_path, monkeypatch):
    def across_disks(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("cae.results.export.tree.os.link", across_disks)
    with pytest.raises(ExportError, match=r"have the pictures copied \(--by copy\)"):
        export(result, "folders", tmp_path / "out", by="hardlink")


# Tables and data sets, read back.


def test_tables_hold_the_edited_view(result, tmp_path):
    edited = rename(result, 'röt, "mine"\n<b>')
    for target in ("csv", "parquet", "json"):
        export(edited, target, tmp_path / target)
    table = pq.read_table(tmp_path / "parquet/assignments.parquet")
    assert table.equals(edited.edited.assignments)
    assert pq.read_table(tmp_path / "parquet/clusters.parquet").to_pylist() == edited.edited.clusters
    with (tmp_path / "csv/assignments.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == table["name"].to_pylist()
    document = json.loads((tmp_path / "json/result.json").read_text(encoding="utf-8"))
    assert document["pictures"] == table.to_pylist()
    assert document["clusters"] == edited.edited.clusters
    assert document["run"]["encoder"]["spec"] == "fake"


def test_hugging_face_loads_its_folder_without_code(result, tmp_path):
    from datasets import load_dataset

    # Names that `datasets` would take for splits.
    edited = rename(result, "test", "train", "validation")
    export(edited, "hf", tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert len(rows) == 30
    by_path = {row["path"]: row for row in edited.edited.assignments.to_pylist()}
    for row in rows:
        expected = by_path[row["path"]]
        assert row["label"] == expected["name"]
        assert row["top_nouns"] == expected["top_nouns"]
        assert row["image"].tobytes() == Image.open(edited.root / row["path"]).tobytes()


def test_fiftyone_finds_pictures_by_their_labels(result, tmp_path):
    export(result, "fiftyone", tmp_path / "out")
    document = json.loads((tmp_path / "out/labels.json").read_text(encoding="utf-8"))
    files = {path.stem: path for path in (tmp_path / "out/data").iterdir()}
    assert set(files) == set(document["labels"])
    wanted = {(result.root / row["path"]).read_bytes(): row["name"] for row in result.assignments.to_pylist()}
    for stem, label in document["labels"].items():
        assert document["classes"][label] == wanted[files[stem].read_bytes()]


def test_coco_annotates_whole_images(result, tmp_path):
    export(result, "coco", tmp_path / "out")
    document = json.loads((tmp_path / "out/annotations.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in document["images"]}
    categories = {category["id"]: category["name"] for category in document["categories"]}
    names = {row["path"]: row["name"] for row in result.assignments.to_pylist()}
    assert len(document["annotations"]) == len(images) == 30
    assert min(categories) == 1
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        assert (image["width"], image["height"]) == (24, 20)
        assert categories[annotation["category_id"]] == names[image["file_name"]]
        assert "bbox" not in annotation


def test_coco_names_a_picture_that_is_none_any_more(result, picture_folder, tmp_path):
    (picture_folder / "red/0.png").write_bytes(b"something else")
    with pytest.raises(ExportError, match=r"red/0\.png is no picture any more"):
        export(result, "coco", tmp_path / "out")


# Nested folders.


def test_nested_folders_follow_the_tree(tree_folder, tmp_path):
    saved = SavedResult.load(tree_folder)
    levels = saved.fitted.hierarchy.levels
    cut(saved, levels[-1])
    saved = SavedResult.load(tree_folder)
    export(saved, "folders", tmp_path / "nested", nested=True)
    found = {path: path.split("/") for path in visible(tmp_path / "nested")}
    assert len(found) == 72
    assert len({parts[0] for parts in found.values()}) == levels[0]
    assert len({tuple(parts[:-1]) for parts in found.values()}) == levels[-1]
    by_parent = {node["name"]: node for node in json.loads((tree_folder / "clusters.json").read_text())["tree"]}
    assert {parts[0] for parts in found.values()} == {
        name for name, node in by_parent.items() if node["parent"] is None
    }
    assert {parts[-2] for parts in found.values()} == {record["name"] for record in saved.clusters}


def test_only_folders_of_a_result_with_a_tree_nest(tree_folder, tmp_path):
    saved = SavedResult.load(tree_folder)
    with pytest.raises(ExportError, match="only folders can be nested, not csv"):
        export(saved, "csv", tmp_path / "out", nested=True)
    replace(saved.fitted, hierarchy=None, nodes=[]).save(tree_folder / "model")
    with pytest.raises(ExportError, match="no tree of groups to nest by"):
        export(SavedResult.load(tree_folder), "folders", tmp_path / "out", nested=True)
    assert not (tmp_path / "out").exists()


def test_progress_goes_on_while_files_are_compared_with_what_was_clustered(result, tmp_path):
    reports = {}
    export(result, "folders", tmp_path / "out", reporter=lambda what: lambda *done: reports.__setitem__(what, done))
    assert reports == {"files": (30, 30), "hashes": (30, 30)}
