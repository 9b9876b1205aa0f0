"""The report as people meet it, in a headless Chromium, from disk."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from app_page import DESK, PHONE
from axe_playwright_python.sync_playwright import Axe
from conftest import rewrite_assignments
from playwright.sync_api import expect

from cae.report import write_report
from cae.results import make_edits
from cae.results.compare import compare
from cae.results.edits import Rename
from cae.results.edits_file import save_edits
from cae.results.make_edits import anchors_of
from cae.results.saved import SavedResult
from cae.utils.files import write_json

pytestmark = pytest.mark.browser

NASTY = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


@pytest.fixture
def report(result_folder):
    names = ["harbour", "meadow", "desert"]
    result = SavedResult.load(result_folder)
    edits = [
        Rename(anchors_of(result.view, record["id"]), name) for record, name in zip(result.clusters, names, strict=True)
    ]
    save_edits(edits, result_folder)
    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    return result_folder / "report"


def test_it_shows_groups_and_pictures(view, report):
    page = view(report)
    expect(page.locator("h1")).to_have_text("pictures")
    assert sorted(page.locator(".card h3").all_inner_texts()) == ["desert", "harbour", "meadow"]
    expect(page.locator("#gallery .picture")).to_have_count(30)
    expect(page.locator("#found")).to_have_text("30 pictures")
    page.locator("#gallery .picture").first.scroll_into_view_if_needed()
    expect(page.locator("#gallery .thumbnail").first).to_have_css("background-image", re.compile("url"))


def test_it_is_printed_with_all_pictures(view, report):
    """Also with those that were not looked at yet, and though browsers print no backgrounds unless told."""
    page = view(report)
    page.emulate_media(media="print")
    expect(page.locator(".top")).not_to_be_visible()
    expect(page.locator(".thumbnail").first).to_have_css("print-color-adjust", "exact")
    page.pdf()
    loaded = "(all) => all.map((each) => each.style.backgroundImage)"
    assert all(page.locator(".thumbnail").evaluate_all(loaded))


def test_search_narrows_groups_and_gallery_and_says_when_nothing_fits(view, report):
    page = view(report)
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("harbour")
    expect(page.locator(".card:visible")).to_have_count(1)
    found = page.locator("#gallery .picture").count()
    assert 0 < found < 30
    page.locator("#query").fill("RED/3")
    expect(page.locator("#found")).to_have_text("1 picture")
    expect(page.locator("#hits")).to_have_text("1 picture")
    expect(page.locator("#pictures")).not_to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#gallery .picture")).to_be_in_viewport()
    page.locator("#query").fill("no such thing")
    expect(page.locator("#found")).to_contain_text("No picture fits")
    page.locator("#query").fill("")
    expect(page.locator("#hits")).not_to_be_visible()
    expect(page.locator("#gallery .picture")).to_have_count(30)


def test_a_group_can_be_shown_alone_from_its_card_the_list_and_the_legend(view, report):
    page = view(report)
    card = page.locator(".card").nth(1)
    size = int(card.locator(".facts-line span").first.inner_text().split()[0])
    card.locator(".all").click()
    expect(page.locator("#gallery .picture")).to_have_count(size)
    expect(page.locator("#group")).to_have_value("1")
    expect(page.locator("#legend button").nth(1)).to_have_attribute("aria-pressed", "true")
    page.locator("#legend button").nth(1).click()
    expect(page.locator("#gallery .picture")).to_have_count(30)
    page.locator("#group").select_option("0")
    expect(page.locator("#legend button").nth(0)).to_have_attribute("aria-pressed", "true")


def test_a_jump_past_cards_that_were_not_seen_lands_on_its_section(view, report):
    page = view(report, PHONE)
    page.emulate_media(reduced_motion="no-preference")  # a smooth scroll, past cards that get their heights on the way
    page.evaluate(
        """() => new Promise((done) => {
            const cards = document.querySelector(".cards");
            for (let i = 0; i < 20; i++) cards.append(cards.children[0].cloneNode(true));
            document.addEventListener("scrollend", done, { once: true });
            document.querySelector("nav a[href='#map']").click();
        })"""
    )
    expect(page.locator("#map-title")).to_be_in_viewport()


def test_the_panel_says_why_and_walks_by_keyboard(view, report):
    page = view(report)
    page.locator("#order").select_option("path")
    first = page.locator("#gallery .picture").first
    first.focus()
    page.keyboard.press("Enter")
    panel = page.locator("#panel")
    expect(panel).to_be_visible()
    expect(panel.locator(".panel-path")).to_have_text("blue/0.png")
    expect(panel.locator("dt")).to_have_text(["Group", "Confidence", "Next best", "Nouns", "Caption", "Weights"])
    expect(panel.locator("img")).to_have_js_property("naturalWidth", 24)
    page.keyboard.press("ArrowRight")
    expect(panel.locator(".panel-path")).to_have_text("blue/1.png")
    page.keyboard.press("Escape")
    expect(panel).not_to_be_visible()
    expect(first).to_be_focused()


def mark_outliers(result_folder, paths):
    """As `cae update` does."""
    table = pq.read_table(result_folder / "assignments.parquet")
    outlier = pa.array([each in paths for each in table["path"].to_pylist()])
    rewrite_assignments(result_folder, table.append_column("outlier", outlier))


def test_pictures_that_fit_no_group_are_shown_and_marked(view, result_folder):
    mark_outliers(result_folder, [f"{colour}/{i}.png" for colour in ("red", "green") for i in range(10)])
    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    page = view(result_folder / "report")
    expect(page.locator("#outliers .picture")).to_have_count(18)
    page.locator("#outliers .all").click()
    expect(page.locator("#found")).to_have_text("20 pictures")
    expect(page.locator("#only")).to_be_focused()
    expect(page.locator("#only")).to_have_value("outliers")
    page.locator("#query").fill("red/")
    expect(page.locator("#found")).to_have_text("10 pictures")
    page.locator("#gallery .picture").first.click()
    expect(page.locator("#panel dt").nth(1)).to_have_text("Fit")
    expect(page.locator("#panel .tag")).to_have_text("fits no group")
    page.keyboard.press("Escape")
    page.locator("#query").fill("blue/")
    expect(page.locator("#found")).to_contain_text("No picture fits")
    page.locator("#only").select_option("all")
    expect(page.locator("#found")).to_have_text("10 pictures")
    expect(page.locator("#gallery .outlier")).to_have_count(0)
    page.locator("#gallery .picture").first.click()
    expect(page.locator("#panel .tag")).to_have_count(0)


@pytest.fixture
def compared(result_folder, tmp_path):
    """A report beside an earlier result; since then three pictures have moved, two of them the same way."""
    shutil.copytree(result_folder, tmp_path / "before")
    before = SavedResult.load(result_folder)
    homes = {row["path"]: row["cluster"] for row in before.assignments.to_pylist()}
    names = {record["id"]: record["name"] for record in before.clusters}
    first = [path for path, home in homes.items() if home == 0][:2]
    second = [path for path, home in homes.items() if home == 1][:1]
    edits = [
        Rename(anchors_of(before.view, 2), NASTY),
        *(make_edits.move(before.view, make_edits.find_images(before.view, paths), 2) for paths in (first, second)),
    ]
    save_edits(edits, result_folder)
    after = SavedResult.load(result_folder)
    comparison = compare(SavedResult.load(tmp_path / "before"), after)
    write_report(after, result_folder / "report", lambda _: lambda *_: None, comparison=comparison)
    return result_folder / "report", names[0], first


def test_what_moved_since_another_result_can_be_looked_at(view, compared):
    report, home, moved = compared
    page = view(report)
    expect(page.locator("#compared .figures dt")).to_have_text(
        ["ARI", "NMI", "in both", "moved", "only here", "only there"]
    )
    expect(page.locator("#compared tbody tr")).to_have_count(3)
    moves = page.locator(".moves button")
    expect(moves).to_have_text([f"{home} → {NASTY} 2", re.compile(r"1$")])
    page.locator("#query").fill("no such thing")
    expect(page.locator("#found")).to_contain_text("No picture fits")  # nothing jumps from under the pointer any more
    moves.first.click()
    expect(page.locator("#query")).to_have_value("")
    expect(page.locator("#found")).to_have_text("2 pictures")
    page.locator("#gallery .picture").first.click()
    assert page.locator(".panel-path").inner_text() in moved
    expect(page.locator(".why div", has_text="Moved from").locator("dd")).to_have_text(home)
    page.keyboard.press("Escape")
    page.locator("#compared .all").click()
    expect(page.locator("#found")).to_have_text("3 pictures")
    page.locator(".card .all").first.click()  # all pictures of the group, whether they moved or not
    expect(page.locator("#only")).to_have_value("all")


def test_the_order_of_the_gallery_can_be_chosen(view, result_folder, picture_folder):
    names = {"red/3.png": "red/10.png", "red/4.png": "red/É2.png", "red/5.png": "red/e10.png", "red/6.png": "red/f.png"}
    for old, new in names.items():
        (picture_folder / old).rename(picture_folder / new)
    table = pq.read_table(result_folder / "assignments.parquet")
    renamed = pa.array([names.get(old, old) for old in table["path"].to_pylist()])
    rewrite_assignments(result_folder, table.set_column(table.column_names.index("path"), "path", renamed))
    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    page = view(result_folder / "report")

    def shown(fact):
        return page.locator("#gallery .picture").evaluate_all(
            f"buttons => buttons.map((button) => Number(button.dataset.picture)).map((i) => pictures.{fact}[i])"
        )

    page.locator("#order").select_option("unsure")
    assert shown("confidence") == sorted(shown("confidence"))
    page.locator("#order").select_option("path")
    in_red = [path.removeprefix("red/") for path in shown("path") if path.startswith("red/")]
    assert in_red == [f"{name}.png" for name in ("0", "1", "2", "7", "8", "9", "10", "e10", "É2", "f")]
    assert len(shown("path")) == 30


PIXELS = """(faint) => {
  const pixels = (canvas, width, height) => {
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    if (canvas instanceof HTMLCanvasElement) context.drawImage(canvas, 0, 0);
    else (context.fillStyle = canvas) && context.fillRect(0, 0, width, height);
    return new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  };
  const canvas = document.getElementById("canvas");
  const seen = pixels(canvas, canvas.width, canvas.height);
  const colours = [...pictures.groups.map((_, group) => groupColour(group, theme.dark)), faint];
  const wanted = colours.map((colour) => pixels(colour, 1, 1)[0]);
  return wanted.map((colour) => seen.reduce((count, pixel) => count + (pixel === colour), 0));
}"""
"""How many pixels of the map are in the colour of each group, and in the pale one."""
PALE = "#d5d9d6"


def test_the_map_has_dots_in_the_colours_of_the_groups_and_pale_ones_for_what_is_left_out(view, report):
    page = view(report)
    dots(page)
    coloured = f"() => ({PIXELS})('{PALE}').map(Boolean).join()"
    page.wait_for_function(f"{coloured} === 'true,true,true,false'")
    page.locator("#legend button").nth(1).click()
    page.wait_for_function(f"{coloured} === 'false,true,false,true'")


def test_a_groups_name_does_not_hide_dots_that_lie_in_one_place(view, result_folder, monkeypatch):
    result = SavedResult.load(result_folder)
    places = np.array([[0, 0], [0.5, 1], [1, 0.5]], dtype=np.float32)[result.assignments["cluster"].to_numpy()]
    monkeypatch.setattr("cae.report.page.lay_out", lambda *_, **__: places)
    write_report(result, result_folder / "report", lambda _: lambda *_: None)
    page = view(result_folder / "report")
    dots(page)
    dot = 60  # pixels that one of radius 5 covers wholly
    page.wait_for_function(f"() => ({PIXELS})('{PALE}').slice(0, -1).every((pixels) => pixels >= {dot})")


def dots(page):
    """Where the map shows its pictures, in pixels of the page; the map scrolled into view and drawn."""
    page.locator("#canvas").scroll_into_view_if_needed()
    page.wait_for_function("document.getElementById('canvas').width > 300")
    return page.evaluate(
        """() => {
          const box = document.getElementById("canvas").getBoundingClientRect();
          const scale = (Math.min(box.width, box.height) - 48) / 65535;
          const at = (value, start, length) => start + (length - 65535 * scale) / 2 + value * scale;
          return Array.from({ length: pictures.count }, (_, i) => [
            at(pictures.position[2 * i], box.left, box.width),
            at(pictures.position[2 * i + 1], box.top, box.height),
          ]);
        }"""
    )


def test_the_map_shows_a_picture_under_the_pointer_and_opens_it(view, report):
    page = view(report)
    x, y = dots(page)[7]
    page.mouse.move(x, y)
    expect(page.locator("#hover")).to_be_visible()
    shown = page.locator("#hover .path").inner_text()
    page.mouse.click(x, y)
    expect(page.locator("#panel-title")).to_have_text(shown)
    page.keyboard.press("Escape")
    page.mouse.move(2, 2)
    expect(page.locator("#hover")).to_be_hidden()


def test_the_map_works_by_keyboard_and_keeps_to_what_was_searched_for(view, report):
    page = view(report)
    page.locator("#query").fill("red/")
    expect(page.locator("#found")).to_have_text("10 pictures")
    page.locator("#canvas").focus()
    seen = set()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown", "+", "ArrowRight", "0"):
        page.keyboard.press(key)
        seen.add(page.locator("#map-said").inner_text())
    assert len(seen) > 1
    page.keyboard.press("Enter")
    expect(page.locator(".panel-path")).to_contain_text("red/")


def test_the_theme_turns_and_follows_the_system(view, report):
    page = view(report, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Colours: light")
    assert page.evaluate(background) != dark
    page.reload()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Colours: light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(view, result_folder, compared, viewport, scheme):
    mark_outliers(result_folder, [f"red/{i}.png" for i in range(10)])
    report, after = result_folder / "report", SavedResult.load(result_folder)
    comparison = compare(SavedResult.load(result_folder.with_name("before")), after)
    write_report(after, report, lambda _: lambda *_: None, comparison=comparison)
    page = view(report, viewport, color_scheme=scheme)
    expect(page.locator("#outliers .picture")).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    links = page.locator(".top nav a:visible").all()
    assert len(links) == 5
    right = page.evaluate("document.querySelector('.top nav').getBoundingClientRect().right")
    assert all(link.bounding_box()["x"] + link.bounding_box()["width"] <= right for link in links)
    for part in ("page", "panel"):
        if part == "panel":
            page.locator("#gallery .picture").first.click()
        found = Axe().run(page, options={"preload": False}).response["violations"]  # else it fetches the style sheets
        serious = [
            f"{part}: {each['id']}: {each['nodes'][0]['html']}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_names_that_look_like_markup_are_text(view, result_folder, picture_folder):
    names = [
        f"red/{NASTY.replace('/', '_')}.png",
        "red/new\nline.png",
        "red/日本語 #?%41.png",
        "red/" + "ü" * 125 + "u.png",
    ]
    table = pq.read_table(result_folder / "assignments.parquet")
    files = dict(zip([f"red/{i}.png" for i in range(4)], names, strict=True))
    files["red/4.png"] = os.fsdecode(b"red/caf\xe9.png")
    for old, new in files.items():
        (picture_folder / old).rename(picture_folder / new)
    shown = [os.fsencode(files.get(old, old)).decode("utf-8", "replace") for old in table["path"].to_pylist()]
    rewrite_assignments(result_folder, table.set_column(table.column_names.index("path"), "path", pa.array(shown)))
    clusters = json.loads((result_folder / "clusters.json").read_text(encoding="utf-8"))["clusters"]
    for cluster in clusters:
        cluster |= {"name": NASTY, "gloss": NASTY, "nouns": [NASTY], "captions": [NASTY]}
    write_json({"clusters": clusters}, result_folder / "clusters.json")
    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    page = view(result_folder / "report")
    expect(page.locator(".card h3").first).to_have_text(NASTY)
    page.mouse.move(*dots(page)[0])
    expect(page.locator("#hover strong")).to_have_text(NASTY)
    page.locator("#query").fill("red/")
    expect(page.locator("#found")).to_have_text("10 pictures")
    page.locator("#order").select_option("path")
    page.locator("#gallery .picture").first.click()
    for _ in range(10):
        # The original, not its thumbnail: so the link leads to the file.
        expect(page.locator("#panel img")).to_have_js_property("naturalWidth", 24)
        assert page.locator(".panel-path").text_content() in shown
        page.keyboard.press("ArrowRight")
    assert page.locator("img[src='x']").count() == 0


def test_missing_pictures_are_shown_as_such(view, result_folder, picture_folder):
    (picture_folder / "red/0.png").unlink()
    write_report(SavedResult.load(result_folder), result_folder / "report", lambda _: lambda *_: None)
    page = view(result_folder / "report")
    expect(page.locator(".notice").first).to_contain_text("1 of 30 pictures")
    page.locator("#query").fill("red/0.png")
    expect(page.locator("#found")).to_have_text("1 picture")
    expect(page.locator("#gallery .missing")).to_have_text("missing")
    page.locator("#gallery .picture").click()
    expect(page.locator(".panel-picture")).to_contain_text("missing")


def test_a_report_that_has_moved_away_from_its_pictures_still_shows_thumbnails(view, report, picture_folder, tmp_path):
    moved = report.rename(tmp_path / "moved")
    picture_folder.rename(tmp_path / "gone")
    page = view(moved, expect_missing_files=True)
    page.locator("#gallery .picture").first.click()
    expect(page.locator(".panel-picture .thumbnail")).to_have_css("background-image", re.compile("url"))
