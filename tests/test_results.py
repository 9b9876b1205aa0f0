"""A result read back: what was written comes back, and a folder that is no whole result says so."""

import hashlib
import json
import shutil

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cae import pipeline
from cae.files import committing
from cae.results import FORMAT_VERSION, ResultError, SavedResult


def test_what_was_written_comes_back(result_folder, picture_folder):
    result = SavedResult.load(result_folder)
    rows = result.assignments.to_pylist()
    assert len(rows) == result.run["images"] == 30
    assert [picture_folder / row["path"] for row in rows] == result.pictures
    for row, picture in zip(rows, result.pictures, strict=True):
        assert row["sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
        assert row["runner_up"] != row["cluster"]
    names = {record["id"]: record["name"] for record in result.clusters}
    assert all(names[row["cluster"]] == row["name"] for row in rows)
    assert len(pacsv.read_csv(result_folder / "assignments.csv")) == 30


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
    with pytest.raises(ResultError, match="not a model folder"):
        _ = result.fitted


def test_missing_and_changed_pictures_are_told(result_folder, picture_folder):
    (picture_folder / "red/0.png").unlink()
    (picture_folder / "blue/3.png").write_bytes((picture_folder / "blue/4.png").read_bytes())
    result = SavedResult.load(result_folder)
    paths = result.assignments["path"].to_pylist()
    assert [path for path, place in zip(paths, result.pictures, strict=True) if place is None] == ["red/0.png"]
    assert [paths[row] for row in result.changed()] == ["blue/3.png"]


def test_pictures_that_moved_are_found(result_folder, picture_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    # Both together: as far from each other as before.
    shutil.move(picture_folder, moved / "pictures")
    shutil.move(result_folder, moved / "result")
    assert None not in SavedResult.load(moved / "result").pictures
    # The pictures alone: somebody has to say where to.
    shutil.move(moved / "pictures", tmp_path / "photos")
    assert set(SavedResult.load(moved / "result").pictures) == {None}
    assert None not in SavedResult.load(moved / "result", images=tmp_path / "photos").pictures
    with pytest.raises(ResultError, match="no such folder of pictures"):
        SavedResult.load(moved / "result", images=tmp_path / "nowhere")


def edit_json(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_table(path, change):
    pq.write_table(change(pq.read_table(path)), path)


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
    from cae import results

    before = {path.name: path.read_bytes() for path in result_folder.iterdir() if path.is_file()}
    old = SavedResult.load(result_folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "dump_json", interrupted)
    with pytest.raises(KeyboardInterrupt), committing(result_folder) as draft:
        results.write_tables(draft, old.assignments.slice(1), old.embeddings[1:], old.clusters, old.run)
    assert {path.name: path.read_bytes() for path in result_folder.iterdir() if path.is_file()} == before
