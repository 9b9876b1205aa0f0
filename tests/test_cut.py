"""Another level of a result: the labels that its model predicts, edits that stay, and errors that change nothing."""

import hashlib
import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from conftest import rewrite_assignments
from safetensors.torch import load_file, save_file

from cae.method.fitted import ModelError
from cae.method.pipeline import predict
from cae.models.trained import load_pretrained
from cae.results import make_edits, writing
from cae.results.cut import cut
from cae.results.edits_file import save_edits
from cae.results.layout import MODEL_FOLDER, ResultError
from cae.results.run import run_embeddings
from cae.results.saved import SavedResult
from cae.results.writing import write_tables


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def labels_of(folder):
    return SavedResult.load(folder).assignments["cluster"].to_pylist()


def test_a_cut_is_what_its_model_predicts_and_the_way_back_is_open(tree_folder):
    before = SavedResult.load(tree_folder)
    tree = before.fitted.hierarchy
    assert tree.levels[0] < 6 < tree.levels[-1]
    for n in (tree.levels[-1], tree.levels[0]):
        cut(SavedResult.load(tree_folder), n)
        after = SavedResult.load(tree_folder)
        assert after.fitted.config.n_clusters == len(after.clusters) == after.run["config"]["n_clusters"] == n
        # The embeddings on disk are rounded. tests/test_cli_edit.py predicts from the pictures.
        found = predict(before.embeddings.float(), after.fitted)
        assert found.cluster.tolist() == after.assignments["cluster"].to_pylist()
        assert torch.allclose(found.confidence, torch.tensor(after.assignments["confidence"].to_pylist()), atol=5e-3)
        for record in after.clusters:
            assert record["size"] == after.assignments["cluster"].to_pylist().count(record["id"])
            assert len(record["representatives"]) == min(record["size"], 9)
        assert {row["name"] for row in after.assignments.to_pylist()} == {record["name"] for record in after.clusters}
        assert len({record["name"] for record in after.clusters}) == n
    cut(SavedResult.load(tree_folder), 6)
    back = SavedResult.load(tree_folder)
    assert back.assignments.equals(before.assignments)
    assert back.clusters == before.clusters
    assert back.run["scores"] == before.run.get("scores", {})


def test_images_are_placed_where_they_were_predicted(tree_folder, tmp_path, monkeypatch):
    """Another device rounds otherwise, and the way back to K would not be the predictions."""
    before, devices = SavedResult.load(tree_folder), []

    def seen(x, fitted, leaf):
        devices.extend(tensor.device.type for tensor in (x, fitted.means, fitted.hierarchy.prototypes, leaf))
        return before.placement

    save_file({"embedding": before.embeddings.float()}, tmp_path / "images.safetensors")
    module = load_pretrained(tree_folder / MODEL_FOLDER, return_embeddings=True)
    found = run_embeddings(module, tmp_path / "images.safetensors", device=torch.device("cpu"))
    monkeypatch.setattr("cae.results.folder.placement", seen)
    replace(found, device=torch.device("meta")).placement()
    assert (found.device.type, devices) == ("cpu", ["meta"] * 4)


def test_a_cut_leaves_alone_what_does_not_change(tree_folder):
    large = [tree_folder / name for name in ("embeddings.safetensors", "placement.safetensors")]

    def written() -> list[tuple[int, int]]:
        return [(file.stat().st_ino, file.stat().st_mtime_ns) for file in large]

    before = written()
    cut(SavedResult.load(tree_folder), 4)
    assert written() == before
    after = SavedResult.load(tree_folder)
    assert len(after.embeddings) == len(after.placement.leaf) == 72  # and their checksums


def test_a_result_without_a_placement_can_be_cut_and_has_one_from_then_on(tree_folder):
    before = SavedResult.load(tree_folder)
    exact = before.placement
    (tree_folder / "placement.safetensors").unlink()
    run = {**before.run, "sha256": {name: sha for name, sha in before.run["sha256"].items() if "placement" not in name}}
    write_tables(tree_folder, before.assignments, before.clusters, run, before.fitted)
    for n in (before.fitted.hierarchy.levels[-1], 3, 6):
        cut(SavedResult.load(tree_folder), n)
        after = SavedResult.load(tree_folder)
        expected = before.fitted.hierarchy.at(n, exact)
        for name, values in zip(("cluster", "runner_up", "confidence", "similarity"), expected, strict=True):
            found = torch.tensor(after.assignments[name].to_pylist())
            torch.testing.assert_close(found, values, atol=5e-3, rtol=0, msg=name)
    assert (tree_folder / "placement.safetensors").is_file()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "is incomplete: placement.safetensors is missing; run `cae cluster`"),
        (lambda file: file.write_bytes(b"junk"), "placement.safetensors is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1"), "is damaged (runner_up is not one of"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"), "is damaged"),
        (lambda file: save_file({"x": torch.zeros(72, 4)}, file), "is damaged"),
        (
            lambda file: save_file({**load_file(file), "similarity": torch.zeros(72, 2)}, file),
            "its checksum is not the one",
        ),
        (lambda file: save_file({**load_file(file), "similarity": torch.zeros(71, 2)}, file), "(71, 2) in place of"),
    ],
)
def test_a_damaged_placement_is_named_and_changes_nothing(tree_folder, damage, message):
    damage(tree_folder / "placement.safetensors")
    before = hashes(tree_folder)
    with pytest.raises(ResultError, match=re.escape(message)):
        cut(SavedResult.load(tree_folder), 5)
    assert hashes(tree_folder) == before


def test_a_placement_whose_checksum_is_gone_is_not_made_again(tree_folder):
    """Made from the rounded embeddings it would differ, and nobody would be told."""
    run = tree_folder / "run.json"
    run.write_text(run.read_text().replace('"placement.safetensors"', '"plagement.safetensors"'))
    with pytest.raises(ResultError, match=r"placement\.safetensors is damaged \(its checksum"):
        _ = SavedResult.load(tree_folder).placement


def test_the_tree_is_in_clusters_json(tree_folder):
    tree = json.loads((tree_folder / "clusters.json").read_text())["tree"]
    by_id = {node["id"]: node for node in tree}
    assert len(by_id) == len(tree)
    for node in tree:
        parts = [part for part in tree if part["parent"] == node["id"]]
        assert len(parts) in (0, 2)
        assert not parts or sum(part["size"] for part in parts) == node["size"]
    assert sum(node["size"] for node in tree if node["parent"] is None) == 72
    assert len({node["name"] for node in tree}) == len(tree)


def test_edits_that_still_fit_stay_and_others_are_named(tree_folder):
    result = SavedResult.load(tree_folder)
    first = result.clusters[0]
    picture = next(row["path"] for row in result.assignments.to_pylist() if row["cluster"] != first["id"])
    view = result.view
    edits = [
        make_edits.rename(view, record["id"], name) for record, name in zip(result.clusters, "abcdef", strict=True)
    ]
    edits.append(make_edits.move(view, make_edits.find_images(view, [picture]), first["id"]))
    save_edits(edits, tree_folder)
    cut(SavedResult.load(tree_folder), result.fitted.hierarchy.levels[-1])
    finest = SavedResult.load(tree_folder)
    assert len(finest.edits) == 7  # nothing is lost
    assert finest.unmatched_edits
    assert all("spread over several clusters" in line for line in finest.unmatched_edits)
    cut(finest, 6)
    again = SavedResult.load(tree_folder)
    assert again.unmatched_edits == []
    assert {record["name"] for record in again.edited.clusters} == set("abcdef")


def test_what_the_tree_does_not_hold_is_named_and_changes_nothing(tree_folder):
    result = SavedResult.load(tree_folder)
    levels, before = result.fitted.hierarchy.levels, hashes(tree_folder)
    with pytest.raises(ResultError, match=re.escape(f"holds {levels[0]} to {levels[-1]} groups, and not 70")):
        cut(result, 70)
    assert hashes(tree_folder) == before


def test_a_result_from_before_trees_says_so_and_stays(tree_folder):
    result = SavedResult.load(tree_folder)
    rewrite_assignments(tree_folder, result.assignments.drop_columns(["leaf"]))
    before = hashes(tree_folder)
    with pytest.raises(ResultError, match="no tree of groups: run `cae cluster` again"):
        cut(SavedResult.load(tree_folder), 5)
    assert hashes(tree_folder) == before


def test_leaves_that_the_tree_has_not_are_damage(tree_folder, monkeypatch):
    result = SavedResult.load(tree_folder)
    tree = json.loads((tree_folder / "clusters.json").read_text())["tree"]
    monkeypatch.setattr(writing, "_tree", lambda *_: tree)  # which counts images by their leaves
    leaf = pa.array([99] * len(result.assignments))
    table = result.assignments.set_column(result.assignments.column_names.index("leaf"), "leaf", leaf)
    rewrite_assignments(tree_folder, table)
    with pytest.raises(ResultError, match="leaf is not one of"):
        cut(SavedResult.load(tree_folder), 5)


def test_a_model_without_a_tree_cannot_be_cut(tree_folder):
    fitted = replace(SavedResult.load(tree_folder).fitted, hierarchy=None, nodes=[])
    with pytest.raises(ModelError, match="fitted before there were trees"):
        fitted.cut(2)
