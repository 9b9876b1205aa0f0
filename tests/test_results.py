"""A result read back: what was written comes back, and a folder that is no whole result says so."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from conftest import rewrite_assignments
from safetensors.torch import save_file

from cae.method import pipeline
from cae.results.export import export
from cae.results.layout import FORMAT_VERSION, ResultError
from cae.results.saved import SavedResult
from cae.results.writing import write_tables
from cae.utils.files import committing


def test_what_was_written_comes_back(result_folder, picture_folder):
    result = SavedResult.load(result_folder)
    rows = result.assignments.to_pylist()
    assert len(rows) == result.run["images"] == 30
    assert [picture_folder / row["path"] for row in rows] == result.image_paths
    for row, picture in zip(rows, result.image_paths, strict=True):
        assert row["sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
        assert row["runner_up"] != row["cluster"]
    names = {record["id"]: record["name"] for record in result.clusters}
    assert all(names[row["cluster"]] == row["name"] for row in rows)
    assert len(pacsv.read_csv(result_folder / "assignments.csv")) == 30


def test_pictures_may_lie_on_another_drive(request, monkeypatch, picture_folder):
    """As on Windows, where no path leads from one drive to another."""

    def relpath(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", relpath)
    result = SavedResult.load(request.getfixturevalue("result_folder"))
    assert result.root == picture_folder
    assert None not in result.image_paths


def test_embeddings_are_those_that_the_model_labelled(result_folder):
    result = SavedResult.load(result_folder)
    x = result.embeddings
    assert x.dtype == torch.float16
    torch.testing.assert_close(x.float().norm(dim=1), torch.ones(30), atol=2e-3, rtol=0)
    again = pipeline.predict(x.float(), result.fitted)
    assert again.cluster.tolist() == result.assignments["cluster"].to_pylist()


def test_model_and_embeddings_are_read_only_when_asked_for(result_folder):
    (result_folder / "embeddings.safetensors").unlink()
    shutil.rmtree(result_folder / "model")
    result = SavedResult.load(result_folder)
    with pytest.raises(ResultError, match=r"incomplete: embeddings\.safetensors is missing"):
        _ = result.embeddings
    with pytest.raises(ResultError, match=r"not a model folder.*the folder `model` in it"):
        _ = result.fitted


def test_missing_and_changed_pictures_are_told(result_folder, picture_folder):
    (picture_folder / "red/0.png").unlink()
    (picture_folder / "blue/3.png").write_bytes((picture_folder / "blue/4.png").read_bytes())
    result = SavedResult.load(result_folder)
    paths = result.assignments["path"].to_pylist()
    assert [path for path, place in zip(paths, result.image_paths, strict=True) if place is None] == ["red/0.png"]
    assert [paths[row] for row in result.changed()] == ["blue/3.png"]


def test_pictures_that_moved_are_found(result_folder, picture_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    # Both together: as far from each other as before.
    shutil.move(picture_folder, moved / "pictures")
    shutil.move(result_folder, moved / "result")
    assert None not in SavedResult.load(moved / "result").image_paths
    # The pictures alone: somebody has to say where to.
    shutil.move(moved / "pictures", tmp_path / "photos")
    assert set(SavedResult.load(moved / "result").image_paths) == {None}
    assert None not in SavedResult.load(moved / "result", images=tmp_path / "photos").image_paths
    with pytest.raises(ResultError, match="no such folder of pictures"):
        SavedResult.load(moved / "result", images=tmp_path / "nowhere")


def edit_json(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_table(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def damage_column(path):
    """Make a column's name one that is no UTF-8."""
    path.write_bytes(path.read_bytes().replace(b"sha256", b"sha25\x80"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "run.json").unlink(), r"no result of `cae cluster`: run\.json"),
        (lambda folder: (folder / "clusters.json").unlink(), r"incomplete: clusters\.json"),
        (lambda folder: (folder / "assignments.parquet").unlink(), r"incomplete: assignments\.parquet"),
        (lambda folder: (folder / "run.json").write_text("{"), r"run\.json is damaged"),
        (lambda folder: (folder / "run.json").write_text("[]"), r"run\.json is damaged"),
        (lambda folder: (folder / "run.json").write_bytes(b"\xff"), r"run\.json is damaged"),
        (lambda folder: (folder / "assignments.parquet").write_bytes(b"PAR1"), r"assignments\.parquet is damaged"),
        (
            lambda folder: damage_column(folder / "assignments.parquet"),
            r"assignments\.parquet is damaged \(name of a col",
        ),
        (lambda folder: (folder / "clusters.json").write_text('{"clusters": [3]}'), "expected records"),
        (lambda folder: edit_json(folder / "run.json", lambda r: r.pop("format_version")), "earlier version"),
        (lambda folder: edit_json(folder / "run.json", lambda r: r.pop("root")), "where the pictures are"),
        (
            lambda folder: edit_json(folder / "run.json", lambda r: r.update(format_version=FORMAT_VERSION + 1)),
            "upgrade cae",
        ),
        (lambda folder: edit_json(folder / "clusters.json", lambda r: r["clusters"].pop(1)), "no record of cluster 1"),
        (lambda folder: edit_table(folder / "assignments.parquet", lambda t: t.slice(1)), "speaks of 30 pictures"),
        (
            lambda folder: edit_table(folder / "assignments.parquet", lambda t: t.drop_columns(["sha256"])),
            "no column sha256",
        ),
    ],
)
def test_folders_that_are_no_whole_result_are_refused(result_folder, damage, message):
    damage(result_folder)
    with pytest.raises(ResultError, match=message):
        SavedResult.load(result_folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("clusters.json", lambda c: c["clusters"].__setitem__(1, "text")),
        ("clusters.json", lambda c: c["clusters"][1].update(nouns=[3])),
        ("clusters.json", lambda c: c["clusters"][1].update(id="1")),
        ("clusters.json", lambda c: c["clusters"][1].update(id=0)),
        ("clusters.json", lambda c: c["clusters"][1].update(size=2**70)),
        ("clusters.json", lambda c: c["clusters"][1].update(gloss=None)),
        ("run.json", lambda r: r.update(format_version=True)),
        ("run.json", lambda r: r.update(root=["a"])),
        ("run.json", lambda r: r.update(root_from_here=3)),
        ("run.json", lambda r: r.update(encoder="lite")),
        ("run.json", lambda r: r.pop("sha256")),
    ],
)
def test_values_of_another_kind_are_refused(result_folder, file, change):
    edit_json(result_folder / file, change)
    with pytest.raises(ResultError, match="run `cae cluster` again"):
        SavedResult.load(result_folder)


def test_a_root_that_no_system_takes_is_a_folder_that_is_gone(result_folder):
    edit_json(result_folder / "run.json", lambda run: run.update(root="/" + "x" * 5000, root_from_here="y" * 5000))
    assert set(SavedResult.load(result_folder).image_paths) == {None}


def test_changed_files_are_refused_and_changed_json_is_told(result_folder, caplog):
    def flip(name, at):
        content = bytearray((result_folder / name).read_bytes())
        content[at] ^= 1
        (result_folder / name).write_bytes(content)

    assert SavedResult.load(result_folder).embeddings.isfinite().all()
    assert not caplog.records
    flip("embeddings.safetensors", -100)
    with pytest.raises(ResultError, match=r"embeddings\.safetensors is damaged \(its checksum"):
        _ = SavedResult.load(result_folder).embeddings
    edit_json(result_folder / "clusters.json", lambda c: c["clusters"][0].update(name="other"))
    edit_json(result_folder / "run.json", lambda run: run.update(seconds=3))
    assert SavedResult.load(result_folder).clusters[0]["name"] == "other"
    assert [record.message.split(" was changed")[0] for record in caplog.records[-2:]] == [
        str(result_folder / "clusters.json"),
        str(result_folder / "run.json"),
    ]
    flip("assignments.parquet", 5)  # in the data of the first column
    with pytest.raises(ResultError, match=r"assignments\.parquet is damaged"):
        SavedResult.load(result_folder)


def test_a_result_from_before_there_were_checksums_loads(result_folder, caplog):
    edit_json(result_folder / "run.json", lambda run: run.pop("sha256") and run.update(format_version=1))
    result = SavedResult.load(result_folder)
    assert len(result.embeddings) == 30
    assert not caplog.records
    # As an update does.
    write_tables(result_folder, result.assignments, result.clusters, result.run, result.fitted)
    assert SavedResult.load(result_folder).run["format_version"] == FORMAT_VERSION


def test_an_emptied_record_of_checksums_does_not_pass_for_an_old_result(result_folder):
    edit_json(result_folder / "run.json", lambda run: run.update(sha256={}))
    with pytest.raises(ResultError, match=r"assignments\.parquet is damaged \(its checksum"):
        SavedResult.load(result_folder)


@pytest.mark.parametrize(
    "path", ["../secret.png", "{tmp}/secret.txt", "red/../../secret.png", "/etc/passwd", "a\0b.png"]
)
def test_a_result_cannot_name_files_that_are_no_pictures_of_it(result_folder, tmp_path, path):
    """Whoever made a result could else have any file copied into an export."""
    for name in ("secret.png", "secret.txt"):
        (tmp_path / name).write_text("secret")
    table = SavedResult.load(result_folder).assignments
    paths = [path.replace("{tmp}", str(tmp_path)), *table["path"].to_pylist()[1:]]
    rewrite_assignments(result_folder, table.set_column(0, "path", pa.array(paths)))
    result = SavedResult.load(result_folder)
    assert [picture is None for picture in result.image_paths] == [True] + [False] * 29
    assert export(result, "folders", tmp_path / "out").missing == [paths[0]]
    assert all(b"secret" not in file.read_bytes() for file in (tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"junk"), "is damaged"),
        (lambda file: save_file({"embedding": torch.zeros(29, 4)}, file), "29 rows for 30 pictures"),
        (lambda file: save_file({"x": torch.zeros(30, 4)}, file), "is damaged"),
    ],
)
def test_embeddings_of_something_else_are_refused(result_folder, damage, message):
    damage(result_folder / "embeddings.safetensors")
    with pytest.raises(ResultError, match=message):
        _ = SavedResult.load(result_folder).embeddings


def test_an_interrupted_write_leaves_the_old_result(result_folder, monkeypatch):
    from cae.results import writing as results

    before = {path.name: path.read_bytes() for path in result_folder.iterdir() if path.is_file()}
    old = SavedResult.load(result_folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "dump_json", interrupted)
    with pytest.raises(KeyboardInterrupt), committing(result_folder) as draft:
        results.write_vectors(draft, old.embeddings[1:], old.placement)
        results.write_tables(draft, old.assignments.slice(1), old.clusters, old.run, old.fitted)
    assert {path.name: path.read_bytes() for path in result_folder.iterdir() if path.is_file()} == before
