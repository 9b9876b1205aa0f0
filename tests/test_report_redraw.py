"""A report that is drawn again: only what has changed is made anew, and nothing old is left."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_page import NASTY, Elements, page_data, silent
from safetensors.numpy import save_file

from cae.method.fitted import FittedCAE
from cae.report import redraw_report, thumbnails, write_report
from cae.report.kept import ReportCache
from cae.report.map import lay_out
from cae.report.thumbnails import PER_SHEET
from cae.results import make_edits
from cae.results.compare import compare
from cae.results.cut import cut
from cae.results.edits_file import save_edits
from cae.results.saved import SavedResult


def by_path(report):
    """What the page knows of each picture, with its name as the key."""
    data = page_data(report)
    facts = data["columns"]
    return {
        path: {
            "group": data["groups"][facts["group"][i]]["name"],
            "place": facts["place"][i],
            "size": facts["size"][2 * i : 2 * i + 2].tolist(),
            "position": facts["position"][2 * i : 2 * i + 2].tolist(),
            "move": facts["move"][i],
            "outlier": facts["outlier"][i],
        }
        for i, path in enumerate(facts["path"])
    }


@pytest.fixture
def drawn(monkeypatch):
    """How often the map has been laid out, and the pictures of which thumbnails have been made."""
    drawn = {"maps": 0, "thumbnails": []}

    def count_map(*arguments, **options):
        drawn["maps"] += 1
        return lay_out(*arguments, **options)

    def count_thumbnail(path, side):
        drawn["thumbnails"].append("/".join(path.parts[-2:]))
        return thumbnail(path, side)

    thumbnail = thumbnails._thumbnail
    monkeypatch.setattr("cae.report.page.lay_out", count_map)
    monkeypatch.setattr("cae.report.thumbnails._thumbnail", count_thumbnail)
    return drawn


def move(result_folder, path, name="elsewhere"):
    """Edit: a picture into another group, renamed."""
    result = SavedResult.load(result_folder)
    home = next(row["cluster"] for row in result.assignments.to_pylist() if row["path"] == path)
    other = next(record["id"] for record in result.clusters if record["id"] != home)
    view = result.view
    edits = [make_edits.rename(view, other, name), make_edits.move(view, make_edits.find_images(view, [path]), other)]
    save_edits(edits, result_folder)


def test_after_an_edit_only_what_it_changed_is_drawn(result_folder, report, drawn):
    before = by_path(report)
    sheets = {path.name: path.read_bytes() for path in (report / "report_files/thumbnails").iterdir()}
    move(result_folder, "red/3.png", NASTY)
    assert redraw_report(result_folder, silent) == report / "index.html"
    assert drawn == {"maps": 0, "thumbnails": []}
    after = by_path(report)
    assert after["red/3.png"]["group"] == NASTY
    for path, facts in after.items():
        assert {**facts, "group": before[path]["group"]} == before[path]
    assert {path.name: path.read_bytes() for path in (report / "report_files/thumbnails").iterdir()} == sheets


def test_pictures_that_go_and_come_are_shown_as_they_are(result_folder, picture_folder, drawn):
    away = [picture_folder / name for name in ("red/1.png", "red/2.png")]
    (picture_folder / "blue/4.png").write_bytes(b"")  # tried once, not at every drawing
    away[0].rename(away[0].with_suffix(".gone"))
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    assert by_path(result_folder / "report")["red/1.png"]["size"] == [0, 0]
    drawn["thumbnails"].clear()
    away[0].with_suffix(".gone").rename(away[0])
    away[1].rename(away[1].with_suffix(".gone"))
    redraw_report(result_folder, silent)
    assert drawn["thumbnails"] == ["red/1.png"]
    facts = by_path(result_folder / "report")
    assert [facts[path]["size"] for path in ("red/1.png", "red/2.png")] == [[24, 20], [0, 0]]
    assert facts["red/1.png"]["place"] == PER_SHEET  # on a sheet of its own
    away[1].with_suffix(".gone").rename(away[1])
    redraw_report(result_folder, silent)
    assert drawn["thumbnails"] == ["red/1.png"]
    assert by_path(result_folder / "report")["red/2.png"]["size"] == [24, 20]


def test_pictures_that_were_all_away_come(result_folder, picture_folder, drawn):
    picture_folder.rename(picture_folder.with_name("unplugged"))
    write_report(SavedResult.load(result_folder), result_folder / "report", silent)
    picture_folder.with_name("unplugged").rename(picture_folder)
    redraw_report(result_folder, silent)
    assert len(drawn["thumbnails"]) == 30
    assert drawn["maps"] == 1


def test_a_picture_that_has_changed_in_place_is_shown_as_it_is(result_folder, report, picture_folder, drawn):
    Image.new("RGB", (24, 12), (1, 200, 1)).save(picture_folder / "red/1.png")
    redraw_report(result_folder, silent)
    assert drawn == {"maps": 0, "thumbnails": ["red/1.png"]}
    assert by_path(report)["red/1.png"]["size"] == [24, 12]
    redraw_report(result_folder, silent)
    assert drawn["thumbnails"] == ["red/1.png"]  # once


def test_thumbnails_stay_while_the_folder_of_the_pictures_is_away(result_folder, report, picture_folder, drawn):
    before = by_path(report)
    picture_folder.rename(picture_folder.with_name("unplugged"))
    redraw_report(result_folder, silent)
    assert by_path(report) == before
    assert "The folder of the pictures is not there" in (report / "index.html").read_text(encoding="utf-8")
    picture_folder.with_name("unplugged").rename(picture_folder)
    redraw_report(result_folder, silent)
    assert "is not there" not in (report / "index.html").read_text(encoding="utf-8")
    assert drawn == {"maps": 0, "thumbnails": []}


def test_on_another_level_thumbnails_and_map_stay(tree_folder, drawn):
    write_report(SavedResult.load(tree_folder), tree_folder / "report", silent)
    before, n_maps, n_thumbnails = by_path(tree_folder / "report"), drawn["maps"], len(drawn["thumbnails"])
    cut(SavedResult.load(tree_folder), 3)
    redraw_report(tree_folder, silent)
    assert (drawn["maps"], len(drawn["thumbnails"])) == (n_maps, n_thumbnails)
    after = by_path(tree_folder / "report")
    assert len({facts["group"] for facts in after.values()}) == 3
    for path, facts in after.items():
        assert {**facts, "group": before[path]["group"]} == before[path]


@pytest.mark.parametrize("what", ["model", "kept", "deep", "a bit of it", "sheet"])
def test_what_does_not_fit_any_more_is_drawn_anew(result_folder, report, drawn, what):
    if what == "model":
        fitted = FittedCAE.load(result_folder / "model")
        replace(fitted, provenance={**fitted.provenance, "another": "fit"}).save(result_folder / "model")
    elif what == "kept":
        (report / "report_files/kept.safetensors").write_bytes(b"damaged")
    elif what == "deep":
        save_file({}, report / "report_files/kept.safetensors", {"about": "[" * 100_000})
    elif what == "a bit of it":
        kept = report / "report_files/kept.safetensors"
        content = bytearray(kept.read_bytes())
        content[-1] ^= 1
        kept.write_bytes(content)
    else:
        (report / "report_files/thumbnails/00000.webp").unlink()
    before = by_path(report)
    redraw_report(result_folder, silent)
    assert drawn["maps"] == 1
    assert len(drawn["thumbnails"]) == 30
    assert by_path(report) == before


def test_pictures_found_elsewhere_are_found_there_again(result_folder, picture_folder):
    moved = picture_folder.rename(picture_folder.with_name("moved"))
    write_report(SavedResult.load(result_folder, images=moved), result_folder / "report", silent)
    redraw_report(result_folder, silent)
    assert {tuple(facts["size"]) for facts in by_path(result_folder / "report").values()} == {(24, 20)}


def test_only_a_report_is_drawn_again(result_folder):
    assert redraw_report(result_folder, silent) is None
    (result_folder / "report").mkdir()
    (result_folder / "report/index.html").write_text("<p>my home page</p>")
    assert redraw_report(result_folder, silent) is None
    assert ReportCache.load(result_folder / "report") is None


def test_a_comparison_shows_what_moved(result_folder, tmp_path, monkeypatch):
    other = tmp_path / NASTY.replace("/", "_")
    shutil.copytree(result_folder, other)
    move(result_folder, "red/3.png", NASTY)
    result, before = SavedResult.load(result_folder), SavedResult.load(other)
    write_report(result, result_folder / "report", silent, comparison=compare(before, result))
    facts = by_path(result_folder / "report")
    assert {path for path, of_it in facts.items() if of_it["move"] == 0} == {"red/3.png"}
    assert {of_it["move"] for of_it in facts.values()} == {0, -1}
    home = next(row["name"] for row in before.assignments.to_pylist() if row["path"] == "red/3.png")
    assert page_data(result_folder / "report")["movedFrom"] == [home]
    html = (result_folder / "report/index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<dt>([a-z ]+)</dt><dd>(\d+)</dd>", html)
    assert figures == [("in both", "30"), ("moved", "1"), ("only here", "0"), ("only there", "0")]
    assert "img" not in Elements(html).tags
    assert Elements(html).handlers == []

    # It stays when the page is drawn again, until the other result has gone or has other pictures.
    save_edits([], result_folder)
    redraw_report(result_folder, silent)
    assert "Nothing: every group" in (result_folder / "report/index.html").read_text(encoding="utf-8")
    monkeypatch.setattr("cae.results.compare._same_images", lambda *_: (np.empty(0, np.int64), np.empty(0, np.int64)))
    shutil.copytree(result_folder, tmp_path / "again")
    redraw_report(tmp_path / "again", silent)
    html = (tmp_path / "again/report/index.html").read_text(encoding="utf-8")
    assert "No longer compared with another result" in html
    assert "have no picture in common" in html
    shutil.rmtree(other)
    redraw_report(result_folder, silent)
    html = (result_folder / "report/index.html").read_text(encoding="utf-8")
    assert "No longer compared with another result: no such folder" in html
    assert 'id="compared"' not in html
