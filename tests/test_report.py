"""The report: every picture once, with what is true of it; nothing that a name holds becomes markup."""

import base64
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import rewrite_assignments
from PIL import Image
from report_page import NASTY, Elements, page_data, silent

from cae.report import write_report
from cae.report.data import N_DOUBTFUL, columns, describe_groups, fused, packed
from cae.report.map import lay_among, lay_out
from cae.report.thumbnails import COLUMNS, PER_SHEET, Thumbnails, thumbnail_side, write_sheets
from cae.results.edits import Anchors, Merge, Rename
from cae.results.edits_file import save_edits
from cae.results.layout import ResultError
from cae.results.make_edits import anchors_of
from cae.results.representatives import N_REPRESENTATIVES
from cae.results.saved import SavedResult
from cae.results.writing import OutputError
from cae.utils.files import write_json


def test_groups_hold_every_picture_once_and_the_most_typical_first(result_folder):
    result = SavedResult.load(result_folder)
    z = fused(result)
    groups, order = describe_groups(result, z)
    assert sorted(order) == list(range(30))
    assert sum(group.size for group in groups) == 30
    for group in groups:
        rows = order[group.first : group.first + group.size]
        assert set(result.assignments["cluster"].to_numpy()[rows]) == {group.id}
        centre = torch.nn.functional.normalize(z[rows].mean(dim=0), dim=0)
        cosines = z[rows] @ centre
        assert (cosines.diff() <= 1e-6).all()
        assert group.cohesion == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_borderline_pictures_are_unsure_and_odd_ones_unlike_the_rest(result_folder):
    result = SavedResult.load(result_folder)
    groups, order = describe_groups(result, fused(result))
    confidence = result.assignments["confidence"].to_numpy()[order]
    x = result.embeddings[torch.from_numpy(order)].float()
    group = max(groups, key=lambda group: group.size)
    shown = [*group.representatives, *group.borderline, *group.odd]
    assert len(shown) == len(set(shown))
    assert len(group.representatives) == min(N_REPRESENTATIVES, group.size)
    members = range(group.first, group.first + group.size)
    others = [i for i in members if i not in shown and i not in group.borderline]
    assert len(group.borderline) == min(N_DOUBTFUL, group.size - len(group.representatives))
    assert max(confidence[group.borderline], default=0) <= min(confidence[others], default=1)
    likeness = x @ x[list(members)].mean(dim=0)
    assert max(likeness[group.odd].tolist(), default=-1) <= min(likeness[others].tolist(), default=1)


def test_columns_say_what_the_assignments_say(result_folder):
    result = SavedResult.load(result_folder)
    groups, order = describe_groups(result, fused(result))
    facts = columns(result, groups, order)
    for number, row in enumerate(result.assignments.take(order).to_pylist()):
        assert facts["path"][number] == row["path"]
        assert groups[facts["group"][number]].name == row["name"]
        assert groups[facts["runnerUp"][number]].id == row["runner_up"]
        assert [facts["nounNames"][j] for j in facts["nouns"][number]] == row["top_nouns"]
        assert facts["captionTexts"][facts["caption"][number]] == row["top_caption"]
        assert facts["confidence"][number] == pytest.approx(100 * row["confidence"], abs=0.51)
        assert facts["weights"][number][1] == pytest.approx(100 * row["beta_noun"], abs=0.51)


def test_what_is_unknown_of_a_picture_is_left_out(result_folder):
    table = pq.read_table(result_folder / "assignments.parquet")
    for name, value in (("runner_up", None), ("top_nouns", []), ("top_caption", "")):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([value] * len(table), table.schema.field(name).type))
    rewrite_assignments(result_folder, table)
    result = SavedResult.load(result_folder)
    groups, order = describe_groups(result, fused(result))
    facts = columns(result, groups, order)
    assert set(facts["runnerUp"]) == set(facts["caption"]) == set(facts["nouns"].ravel()) == {-1}


@pytest.mark.parametrize("values", [[0, 255], [-1, 127], [-1, 128], [0, 65535], [-1, 40000], []])
def test_columns_are_packed_without_loss(values):
    column = packed(np.array(values, dtype=np.int64))
    assert np.frombuffer(base64.b64decode(column["base64"]), column["type"]).tolist() == values


def test_the_page_knows_all_pictures(report):
    data = page_data(report)
    facts = data["columns"]
    assert data["count"] == len(facts["path"]) == len(set(facts["path"])) == 30
    assert len(facts["position"]) == len(facts["size"]) == 60
    assert {tuple(size) for size in facts["size"].reshape(-1, 2)} == {(24, 20)}
    assert data["links"] == {}
    for root in data["roots"]:
        assert root.endswith("/pictures/")


def test_sheets_hold_the_thumbnails_where_the_page_looks_for_them(tmp_path):
    # More than a sheet, of all shapes: a cell is as large as the largest thumbnail on its sheet.
    paths, side = [], thumbnail_side(PER_SHEET + 3)
    for i in range(PER_SHEET + 3):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (300, 100) if i == 1 else (40, 60), (3 * i, 255 - 3 * i, 0)).save(path)
        paths.append(path)
    paths[5] = None
    paths[7].write_bytes(b"no picture any more")
    paths[9] = None
    place, sizes, sheets = write_sheets(paths, range(len(paths)), tmp_path, Thumbnails.none(len(paths)), side)
    assert sizes[1].tolist() == [side, side // 3]
    assert sizes[0].tolist() == [40, 60]
    assert sizes[5].tolist() == sizes[7].tolist() == [0, 0]
    assert sheets.tolist() == [[side, PER_SHEET], [60, 1]]
    assert place[[5, 9]].tolist() == [-1, -1]
    for sheet, cell in enumerate((side, 60)):
        image = Image.open(tmp_path / f"{sheet:05d}.webp")
        for i in np.flatnonzero(place // PER_SHEET == sheet):
            if sizes[i, 0]:
                corner = place[i] % PER_SHEET % COLUMNS * cell, place[i] % PER_SHEET // COLUMNS * cell
                middle = image.getpixel((corner[0] + int(sizes[i, 0]) // 2, corner[1] + int(sizes[i, 1]) // 2))
                assert np.abs(np.array(middle) - (3 * i, 255 - 3 * i, 0)).max() < 12


def test_a_thousand_pictures_are_a_few_files(report):
    assert len(list((report / "report_files/thumbnails").iterdir())) == 1
    assert sum(path.is_file() for path in report.rglob("*")) <= 20
    assert thumbnail_side(1_000) > thumbnail_side(10_000) > thumbnail_side(100_000)


@pytest.mark.parametrize("n", [2, 7, 8, 40])
def test_any_number_of_pictures_has_a_map(n):
    z = torch.nn.functional.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    steps = []
    flat = lay_out(z, seed=0, progress=lambda done, total: steps.append((done, total)))
    assert flat.shape == (n, 2)
    assert np.isfinite(flat).all()
    assert flat.min() >= -1e-6
    assert flat.max() <= 1 + 1e-6
    assert all(done <= total for done, total in steps)


def test_pictures_that_are_all_the_same_lie_in_one_place():
    assert lay_out(np.ones((9, 4), dtype=np.float32) / 2, seed=0).tolist() == [[0.5, 0.5]] * 9


def test_the_map_keeps_neighbours_together_and_comes_out_the_same_again(monkeypatch):
    # With fewer landmarks than pictures: the others have to find their place, too.
    monkeypatch.setattr("cae.report.map.N_LANDMARKS", 60)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    z = torch.nn.functional.normalize(
        4 * torch.eye(16)[labels] + torch.randn(90, 16, generator=generator), dim=1
    ).numpy()
    flat = lay_out(z, seed=0)
    distances = np.linalg.norm(flat[:, None] - flat, axis=2) + 9 * np.eye(90)
    assert (labels[distances.argmin(axis=1)] == labels).float().mean() > 0.95
    np.testing.assert_array_equal(flat, lay_out(z, seed=0))


def test_nothing_that_people_or_corpora_write_becomes_markup(result_folder, report):
    clean = Elements((report / "index.html").read_text(encoding="utf-8"))
    clusters = json.loads((result_folder / "clusters.json").read_text(encoding="utf-8"))["clusters"]
    for cluster in clusters:
        cluster |= {"name": NASTY, "gloss": NASTY, "nouns": [NASTY] * 3, "captions": [NASTY] * 3}
    write_json({"clusters": clusters}, result_folder / "clusters.json")
    run = json.loads((result_folder / "run.json").read_text(encoding="utf-8"))
    run["skipped"] = {NASTY: NASTY}
    run["scores"] = {NASTY: {"acc": 1.0, "nmi": 1.0, "ari": 1.0}}
    run["stages"] = {NASTY: 1.0}
    run["encoder"] |= {"spec": NASTY, "fingerprint": NASTY}
    run["corpora"]["noun"]["name"] = NASTY
    write_json(run, result_folder / "run.json")
    write_report(SavedResult.load(result_folder), report, silent)
    html = (report / "index.html").read_text(encoding="utf-8")
    found = Elements(html)
    assert found.tags.count("script") == clean.tags.count("script")
    assert "img" not in found.tags
    assert found.handlers == []
    assert "alert(1)" in html
    assert page_data(report)["groups"][0]["name"] == NASTY


def test_any_file_name_is_shown_and_linked(result_folder, picture_folder):
    """Names go through the page's data as they are; where bytes were lost in showing them, the link is kept beside."""
    lost = picture_folder / os.fsdecode(b"red/caf\xe9\xff.png")
    names = ["red/" + "ü" * 125 + "u.png", "red/new\nline.png", "red/quote\"'<b>#?%41.png", "red/日本語.png"]
    for number, name in enumerate([*names, lost.relative_to(picture_folder)]):
        (picture_folder / f"red/{number}.png").rename(picture_folder / name)
    table = pq.read_table(result_folder / "assignments.parquet")
    shown = dict(zip([f"red/{i}.png" for i in range(5)], [*names, "red/caf\ufffd\ufffd.png"], strict=True))
    paths = [shown.get(path, path) for path in table["path"].to_pylist()]
    table = table.set_column(table.column_names.index("path"), "path", pa.array(paths))
    rewrite_assignments(result_folder, table)
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    data = page_data(result_folder / "report")
    assert set(data["columns"]["path"]) == set(paths)
    assert data["columns"]["size"].min() > 0
    number = data["columns"]["path"].index("red/caf\ufffd\ufffd.png")
    assert data["links"] == {str(number): (picture_folder / lost).as_uri()}
    assert data["links"][str(number)].endswith("/red/caf%E9%FF.png")


def test_missing_pictures_are_told_and_the_rest_is_shown(result_folder, picture_folder):
    (picture_folder / "red/0.png").unlink()
    (picture_folder / "red/1.png").write_bytes(b"")
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    facts = page_data(result_folder / "report")["columns"]
    gone = [path for path, width in zip(facts["path"], facts["size"][::2], strict=True) if width == 0]
    assert sorted(gone) == ["red/0.png", "red/1.png"]
    assert "no longer readable: 2 of 30 pictures" in (result_folder / "report/index.html").read_text(encoding="utf-8")


def test_pictures_that_are_all_gone_still_leave_a_page(result_folder, picture_folder):
    picture_folder.rename(picture_folder.with_name("elsewhere"))
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    assert "no longer readable: 30 of 30 pictures" in (result_folder / "report/index.html").read_text(encoding="utf-8")
    write_report(
        SavedResult.load(result_folder, images=picture_folder.with_name("elsewhere")), result_folder / "report", silent
    )
    assert "missing" not in (result_folder / "report/index.html").read_text(encoding="utf-8")


def test_edits_show(result_folder):
    result = SavedResult.load(result_folder)
    first, second, third = (anchors_of(result.view, record["id"]) for record in result.clusters)
    gone = Anchors("gone", ("0" * 64,))
    save_edits([Rename(first, NASTY), Merge((second, third), "both"), Rename(gone, "x")], result_folder)
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    assert {group["name"] for group in page_data(result_folder / "report")["groups"]} == {NASTY, "both"}
    assert "Edit not applied" in (result_folder / "report/index.html").read_text(encoding="utf-8")


def test_a_page_of_somebody_else_is_not_overwritten(result_folder, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<p>my home page</p>")
    with pytest.raises(OutputError, match="not a report of cae"):
        write_report(SavedResult.load(result_folder), tmp_path / "site", silent)
    assert (tmp_path / "site/index.html").read_text() == "<p>my home page</p>"


def test_a_new_report_replaces_the_old_one(result_folder, report):
    (report / "report_files/stale").touch()
    (report / "report_files/folder").mkdir()
    (report / "notes.txt").touch()
    write_report(SavedResult.load(result_folder), report, silent)
    assert not (report / "report_files/stale").exists()
    assert (report / "report_files/folder").is_dir()
    assert sorted(path.name for path in report.iterdir()) == ["index.html", "notes.txt", "report_files"]


def test_an_interrupted_report_leaves_the_old_one(result_folder, report, monkeypatch):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cae.report.page.lay_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(SavedResult.load(result_folder), report, silent)
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before


def test_a_result_without_embeddings_says_so(result_folder):
    (result_folder / "embeddings.safetensors").unlink()
    with pytest.raises(ResultError, match=r"embeddings\.safetensors is missing"):
        write_report(SavedResult.load(result_folder), result_folder / "report", silent)


def test_decisions_are_shown(result_folder, tmp_path):
    run = json.loads((result_folder / "run.json").read_text(encoding="utf-8"))
    run["auto"] = {"chosen": "some text", "scores": {"image alone": 40.0, "some text": 90.0}}
    run["cluster_count"] = {"chosen": 3, "from": "image", "curves": {"image": {"2": 0.3, "3": 0.5, "4": 0.4}}}
    (result_folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    html = write_report(SavedResult.load(result_folder), tmp_path / "report", silent).read_text(encoding="utf-8")
    assert "How much the texts weigh: some text" in html
    assert "Number of groups: 3, found out" in html
    assert 'points="2.0,28.0 50.0,2.0 98.0,15.0 "' in html


def test_new_pictures_come_among_their_neighbours_on_the_map_and_the_others_stay():
    directions = torch.eye(8)[torch.arange(40) % 2]
    z = torch.nn.functional.normalize(
        directions + 0.05 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1
    ).numpy()
    position = lay_out(z[:30], seed=0)
    assert lay_among(z[:30], position) is position
    flat = lay_among(z, position)
    np.testing.assert_array_equal(flat[:30], position)
    centres = np.stack([position[::2].mean(axis=0), position[1::2].mean(axis=0)])
    distances = np.linalg.norm(flat[30:, None] - centres, axis=2)
    assert distances.argmin(axis=1).tolist() == [i % 2 for i in range(10)]


def test_without_a_comparison_or_an_update_nothing_is_said_of_them(report):
    html = (report / "index.html").read_text(encoding="utf-8")
    for part in ("compared", "outliers", "only"):
        assert f'id="{part}"' not in html


def test_an_undecided_choice_is_told_as_such(result_folder, report):
    run = json.loads((result_folder / "run.json").read_text(encoding="utf-8"))
    run["auto"] = {"chosen": "image alone", "scores": {"image alone": 0.0, "some text": 0.0}, "undecided": True}
    (result_folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report(SavedResult.load(result_folder), report, silent)
    assert "How much the texts weigh: image alone, undecided" in (report / "index.html").read_text(encoding="utf-8")
