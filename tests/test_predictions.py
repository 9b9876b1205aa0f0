"""Predictions in the groups as edited: what `cae update` would show, and by the result's own images alone."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import FakeEncoder
from PIL import Image
from safetensors.torch import save_file

from cae.api import Result
from cae.results.edits import Anchors, Merge, Rename
from cae.results.edits_file import save_edits
from cae.results.make_edits import anchors_of, find_cluster
from cae.utils.checksums import content_hash

EDITED = ("cluster", "name", "runner_up")
OPTIONS = {"workers": 0, "progress": False}


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    for home in ("cae.models.embedder", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: FakeEncoder())


@pytest.fixture
def more(tmp_path):
    """Six new pictures of each colour of `tree_folder`."""
    generator = np.random.default_rng(1)
    (tmp_path / "more").mkdir()
    for i in range(48):
        pixels = generator.integers(0, 60, (20, 24, 3), dtype=np.uint8)
        pixels += np.array([150 * (i % 8 >> bit & 1) for bit in range(3)], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "more" / f"{i}.png")
    return tmp_path / "more"


@pytest.fixture
def edited(tree_folder):
    """A result with an edit of each kind: two groups made one, the one of two colours split, one renamed."""
    result = Result(tree_folder)
    ids = [record["id"] for record in sorted(result.clusters, key=lambda record: -record["size"])]
    largest, second, third, fourth, *_ = ids
    result.rename(second, "flowers").merge([third, fourth], "boats").split(largest, 2).pin("flowers")
    flower = result.assignments["path"].to_pylist()[result.names.index("flowers")]
    return result.move([flower], "boats")


def rows(found, columns=EDITED):
    return found.assignments().select(list(columns)).to_pylist()


def test_new_images_are_where_an_update_shows_them(edited, more):
    found = edited.predict(more, **OPTIONS)
    before = len(edited.labels)
    names = set(found.assignments()["name"].to_pylist())
    assert {"flowers", "boats"} < names
    records = {record["id"]: record for record in found.clusters()}
    assert [record["name"] for record in records.values()] == [record["name"] for record in edited.clusters]
    edited.update(more, **OPTIONS)
    assert rows(found) == edited.assignments.slice(before).select(list(EDITED)).to_pylist()
    grown = {record["id"]: record["size"] for record in edited.clusters}
    assert sum(record["size"] for record in records.values()) == 48 == sum(grown.values()) - before


def test_the_parts_of_a_split_take_new_images_by_what_they_look_like(edited, more):
    table = edited.predict(more, **OPTIONS).assignments()
    names = dict(zip(table["path"].to_pylist(), table["name"].to_pylist(), strict=True))
    by_colour = [{names[f"{i}.png"] for i in range(colour, 48, 8)} for colour in range(8)]
    for part in edited.saved.edits[2].parts:
        assert {part.name} in by_colour


def test_a_prediction_depends_on_nothing_beside_it(edited, more, tmp_path):
    together = dict(
        zip(sorted(path.name for path in more.iterdir()), rows(edited.predict(more, **OPTIONS)), strict=True)
    )
    (tmp_path / "one").mkdir()
    for name in ("0.png", "7.png", "11.png"):
        (more / name).rename(tmp_path / "one" / "x.png")
        assert rows(edited.predict(tmp_path / "one", **OPTIONS)) == [together[name]]


def test_images_of_the_result_are_where_it_has_them(edited, tmp_path):
    found = edited.predict(tmp_path / "colours", **OPTIONS)
    assert found.assignments().equals(edited.assignments)
    assert (found.prediction.cluster.numpy() == edited.saved.assignments["cluster"].to_numpy()).all()
    assert found.clusters()[0]["representatives"]


def test_what_the_result_lacks_the_predicted_images_do_not_bring(edited, more, run, tmp_path):
    """An edit of images that are gone is no edit of the result, whoever shows them to it again."""
    ghost = Anchors("ghosts", (content_hash(more / "0.png"),))
    before = rows(edited.predict(more, **OPTIONS))
    boats = find_cluster(edited.saved.view, "boats")
    merge = Merge((anchors_of(edited.saved.view, boats), ghost), "boats")
    save_edits([Rename(ghost, "again"), *edited.saved.edits, merge], edited.folder)
    code, stdout, stderr = run("predict", edited.folder, more, "--out", tmp_path / "out", "--workers", 0)
    assert (code, "edit not applied: rename ghosts to again: the pictures of ghosts are gone" in stderr) == (0, True)
    table = pq.read_table(tmp_path / "out" / "assignments.parquet")
    assert table.select(EDITED).to_pylist() == before
    assert "flowers" in stdout
    code, *_ = run("predict", edited.folder / "model", more, "--out", tmp_path / "out", "--workers", 0, "--quiet")
    names = set(pq.read_table(tmp_path / "out" / "assignments.parquet")["name"].to_pylist())
    assert names <= {cluster["name"] for cluster in edited.saved.clusters}


def test_a_group_that_all_images_were_moved_out_of_takes_new_ones(tree_folder, more):
    result = Result(tree_folder)
    first, second = (record["id"] for record in result.clusters[:2])
    inside = [path for path, k in zip(result.assignments["path"].to_pylist(), result.labels, strict=True) if k == first]
    assert first not in {record["id"] for record in result.move(inside, second).clusters}
    found = result.predict(more, **OPTIONS)
    sizes = {record["id"]: record["size"] for record in found.clusters()}
    assert sizes[first] == (found.prediction.cluster == first).sum() > 0


def test_embeddings_are_sorted_into_edited_groups(edited, more, tmp_path):
    found = edited.predict(more, **OPTIONS)
    save_file({"embedding": found.embeddings}, tmp_path / "x.safetensors")
    assert rows(edited.predict(tmp_path / "x.safetensors", **OPTIONS)) == rows(found)
