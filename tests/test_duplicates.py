"""Duplicates of a result: what counts as a copy, which one is best, and that nothing is lost."""

import inspect
import json
import os
import shutil
from functools import partial

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from conftest import assert_not_loaded, clustered_folder, rewrite_assignments, run_cae
from PIL import Image, ImageFilter
from torch.nn.functional import normalize

import cae
from cae.data import ImageError, read_image
from cae.results import duplicates
from cae.results.duplicates import NEAR, find_duplicates, write_duplicates
from cae.results.layout import EMBEDDINGS, ResultError
from cae.results.saved import SavedResult


def scene(seed):
    """A picture of soft blobs, unlike that of any other seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((240, 180), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


@pytest.fixture
def copies(tmp_path, text_files):
    """A result of twelve pictures, of which the first are also there in other forms."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(12):
        scene(seed).save(folder / f"{seed:02d}.png")
    shutil.copy(folder / "00.png", folder / "same.png")
    scene(1).resize((480, 360)).save(folder / "larger.jpg", quality=95)
    scene(1).save(folder / "worse.jpg", quality=30)
    scene(2).crop((12, 9, 228, 171)).save(folder / "cropped.png")
    return clustered_folder(folder, 3, text_files, tmp_path / "copies-result")


def groups(found):
    return [(group.kind, [copy.path for copy in group.copies]) for group in found.groups]


def test_exact_and_near_copies_best_first(copies):
    found = find_duplicates(SavedResult.load(copies))
    assert groups(found) == [
        ("near", ["larger.jpg", "01.png", "worse.jpg"]),
        ("exact", ["00.png", "same.png"]),
        ("near", ["02.png", "cropped.png"]),
    ]
    best, original, _ = found.groups[0].copies
    assert (best.width, best.height, best.bytes) == (480, 360, best.file.stat().st_size)
    assert best.distance == 0
    assert original.distance <= NEAR
    paths = SavedResult.load(copies).assignments["path"].to_pylist()
    assert [paths[row] for row in found.rows] == sorted(["01.png", "worse.jpg", "same.png", "cropped.png"])
    assert found.n_images == 16


def test_exact_copies_alone_need_no_embeddings(copies):
    (copies / EMBEDDINGS).unlink()
    assert groups(find_duplicates(SavedResult.load(copies), near=None)) == [("exact", ["00.png", "same.png"])]
    with pytest.raises(ResultError, match="embeddings"):
        find_duplicates(SavedResult.load(copies))


def test_a_set_without_copies_has_none(tmp_path, text_files):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(40):
        scene(seed).save(folder / f"{seed}.png")
    out = clustered_folder(folder, 3, text_files, tmp_path / "out")
    assert find_duplicates(SavedResult.load(out)).groups == []


def test_nearness_can_be_chosen(copies):
    result = SavedResult.load(copies)
    assert len(groups(find_duplicates(result, near=0))) <= len(groups(find_duplicates(result, near=16)))
    for near in (-1, 33):
        with pytest.raises(ValueError, match=r"--near.*0 to 32"):
            find_duplicates(result, near=near)


def test_a_file_that_has_changed_is_no_exact_copy_any_more(copies):
    result = SavedResult.load(copies)
    scene(99).save(result.root / "same.png")
    assert groups(find_duplicates(result, near=None)) == []


def test_what_is_gone_or_unreadable_is_left_out(copies):
    result = SavedResult.load(copies)
    (result.root / "same.png").unlink()
    (result.root / "cropped.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ImageError):
        read_image(result.root / "cropped.png")
    found = find_duplicates(result)
    assert groups(found) == [("near", ["larger.jpg", "01.png", "worse.jpg"])]
    assert found.missing == ["same.png"]


def test_what_goes_while_it_is_compared_is_left_out(copies, tmp_path, monkeypatch):
    look_for_candidates = duplicates._candidates

    def lose_one(*arguments):
        (tmp_path / "photos/larger.jpg").unlink()
        return look_for_candidates(*arguments)

    monkeypatch.setattr(duplicates, "_candidates", lose_one)
    found = find_duplicates(SavedResult.load(copies))
    assert ("near", ["01.png", "worse.jpg"]) in groups(found)


def test_hashes_that_are_not_known_are_made(copies):
    table = SavedResult.load(copies).assignments
    column = table.column_names.index("sha256")
    rewrite_assignments(copies, table.set_column(column, "sha256", [[None] * len(table)]).cast(table.schema))
    assert groups(find_duplicates(SavedResult.load(copies), near=None)) == [("exact", ["00.png", "same.png"])]


def test_a_file_comes_before_a_link_to_it(copies):
    result = SavedResult.load(copies)
    (result.root / "00.png").unlink()
    (result.root / "00.png").symlink_to("same.png")
    assert groups(find_duplicates(result, near=None)) == [("exact", ["same.png", "00.png"])]


def test_one_picture_and_no_picture(copies):
    result = SavedResult.load(copies)
    for place in sorted(result.root.iterdir())[1:]:
        place.unlink()
    assert find_duplicates(SavedResult.load(copies)).groups == []
    (result.root / "00.png").unlink()
    assert find_duplicates(SavedResult.load(copies)).n_images == 0


def test_embeddings_without_pictures(tmp_path):
    x = normalize(torch.randn(30, 48, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "nouns.npy", x)
    (tmp_path / "nouns.txt").write_text("".join(f"noun {i}\n" for i in range(30)))
    nouns = str(tmp_path / "nouns.npy")
    result = cae.cluster(tmp_path / "x.npy", 3, nouns=nouns, out=tmp_path / "out", progress=False)
    with pytest.raises(ResultError, match="name no pictures"):
        result.duplicates(progress=False)


def test_lists(copies, tmp_path):
    found = find_duplicates(SavedResult.load(copies))
    for ending in ("csv", "parquet", "json"):
        write_duplicates(found, tmp_path / f"list.{ending}")
    rows = pq.read_table(tmp_path / "list.parquet").to_pylist()
    assert [row["path"] for row in rows if not row["best"]] == ["01.png", "worse.jpg", "same.png", "cropped.png"]
    assert [row["group"] for row in rows] == [0, 0, 0, 1, 1, 2, 2]
    assert pacsv.read_csv(tmp_path / "list.csv").to_pylist() == rows
    document = json.loads((tmp_path / "list.json").read_text())
    assert [copy["path"] for copy in document["groups"][1]["copies"]] == ["00.png", "same.png"]
    with pytest.raises(ValueError, match=r"list\.txt.*\.csv, \.parquet, \.json"):
        write_duplicates(found, tmp_path / "list.txt")


def test_a_list_that_cannot_be_written_is_named(copies, tmp_path):
    (tmp_path / "file").write_text("x")
    found = find_duplicates(SavedResult.load(copies))
    with pytest.raises(OSError, match=r"cannot write .*list\.csv: .*; choose another place for the list"):
        write_duplicates(found, tmp_path / "file" / "list.csv")


def test_the_command(copies, monkeypatch, capfd, tmp_path):
    run = partial(run_cae, monkeypatch, capfd)
    before = {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    code, stdout, stderr = run("duplicates", copies, "--out", tmp_path / "list.csv")
    assert code == 0, stderr
    assert "3 groups of copies in 16 pictures; 4 pictures besides the best" in stdout
    assert (tmp_path / "list.csv").is_file()
    code, stdout, stderr = run("duplicates", copies, "--json", "--exact", "--quiet")
    assert (code, stderr) == (0, "")
    assert [group["kind"] for group in json.loads(stdout)["groups"]] == ["exact"]
    code, _, stderr = run("duplicates", copies, "--exact", "--near", 3)
    assert code == 1
    assert "give one of the two" in stderr
    monkeypatch.setattr("cae.results.duplicates.find_duplicates", lambda *_, **__: pytest.fail("work for nothing"))
    code, _, stderr = run("duplicates", copies, "--out", tmp_path / "list.txt")
    assert code == 1
    assert "list.txt" in stderr
    assert {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()} == before


def test_an_export_without_duplicates(copies, monkeypatch, capfd, tmp_path):
    out = tmp_path / "export"
    code, stdout, stderr = run_cae(
        monkeypatch, capfd, "export", copies, "--to", "folders", "--out", out, "--without-duplicates"
    )
    assert code == 0, stderr
    assert "12 files" in stdout
    assert "4 duplicates left out" in stdout
    names = {name for _, _, files in os.walk(out) for name in files}
    assert {"larger.jpg", "00.png", "02.png"} < names
    assert not names & {"01.png", "worse.jpg", "same.png", "cropped.png"}
    result = cae.Result(copies)
    result.export("json", tmp_path / "json", without=result.duplicates(progress=False).rows, progress=False)
    document = json.loads((tmp_path / "json/result.json").read_text())
    assert sum(record["size"] for record in document["clusters"]) == len(document["pictures"]) == 12
    shown = {path for record in document["clusters"] for path in record["representatives"]}
    assert shown <= {row["path"] for row in document["pictures"]}


def test_the_default_is_the_same_everywhere():
    assert inspect.signature(cae.Result.duplicates).parameters["near"].default == NEAR


def test_looking_for_duplicates_needs_no_lightning():
    assert_not_loaded("import cae.results.duplicates", "lightning", "pytorch_lightning", "open_clip")
