"""Searches, duplicates and exports in the browser, and the page as a whole: axe, names like markup, from disk."""

import json
import re

import pytest
from app_page import DESK, PHONE, card, said, size
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from cae.app import OpenResult, serving

pytestmark = pytest.mark.browser

NASTY = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


def test_pictures_are_searched_by_what_they_show_and_by_what_they_are_like(visit, served, opened):
    page = visit(served)
    page.get_by_label("What they show").fill("red car on snow")
    page.keyboard.press("Enter")
    expect(page.locator("#ranked-said")).to_have_text("The pictures nearest to “red car on snow”, the best first")
    expect(said(page)).to_have_text("30 pictures found, the best first.")
    expected = [hit.row for hit in opened.search("red car on snow", None)]
    rows = "() => [...page.state.found].map((i) => pictures.row[i])"
    assert page.evaluate(rows) == expected
    page.locator("#gallery .picture").first.click()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.locator("#ranked-said")).to_contain_text("The pictures most like")
    assert page.evaluate(rows) == [hit.row for hit in opened.search(None, expected[0])]
    page.locator("#query").fill("red/")  # the search in names goes on among them
    expect(page.locator("#found")).to_have_text(re.compile("^(9|10) pictures$"))
    page.get_by_role("button", name="Back to all pictures").click()
    expect(page.locator("#found")).to_have_text("30 pictures")
    expect(page.get_by_label("What they show")).to_be_focused()


def test_without_an_encoder_the_search_in_names_goes_on(visit, served, monkeypatch):
    from cae.encoders.base import EncoderError

    def fail(*_, **__):
        raise EncoderError("no hub can be reached")

    monkeypatch.setattr("cae.encoders.deferred.load_encoder", fail)
    page = visit(served, expect_failures=True)
    page.get_by_label("What they show").fill("red car on snow")
    page.get_by_role("button", name="Find").click()
    expect(said(page)).to_contain_text("no hub can be reached")
    page.locator("#query").fill("red/3")
    expect(page.locator("#found")).to_have_text("1 picture")


def test_duplicates_are_looked_for_chosen_and_listed(visit, result_folder, picture_folder, opened, tmp_path):
    (picture_folder / "red/1.png").write_bytes((picture_folder / "red/0.png").read_bytes())
    with serving(opened, progress=False) as address:
        page = visit(address)
        page.get_by_role("button", name="Look for duplicates").click()
        found = opened.duplicates()
        expect(page.locator("#copies-list > li")).to_have_count(min(len(found.groups), 20))
        expect(page.locator("#copies-list .path").first).to_have_text(found.groups[0].copies[0].path)
        page.get_by_role("button", name="Choose all but the best").click()
        expect(page.locator("#picked-said")).to_have_text(re.compile(f"^{len(found.rows)} picture"))
        page.get_by_role("button", name="Write a list").click()
        expect(said(page)).to_have_text(f"Written: {tmp_path}/exports/duplicates.csv")
    assert (picture_folder / "red/1.png").exists()


def test_a_group_a_selection_and_a_search_are_taken_away(visit, served, tmp_path):
    page = visit(served)
    n = size(page, "meadow")
    page.get_by_role("button", name="Take away meadow").click()
    dialog = page.locator("#take")
    dialog.get_by_role("button", name="Take away").click()
    expect(dialog.locator(".said")).to_have_text(f"{n} files in {tmp_path}/exports/meadow folders.")
    assert len(list((tmp_path / "exports/meadow folders/meadow").iterdir())) == n
    dialog.get_by_role("button", name="Close").click()
    page.locator("#gallery .pick").first.check()
    page.locator("#picked [data-take]").click()
    expect(dialog.get_by_label("What")).to_have_value("picks")
    dialog.get_by_label("As").select_option("json")
    dialog.get_by_role("button", name="Take away").click()
    expect(dialog.locator(".said")).to_have_text(f"1 file in {tmp_path}/exports/chosen json.")
    taken = json.loads((tmp_path / "exports/chosen json/result.json").read_text())
    assert len(taken["pictures"] if "pictures" in taken else taken["images"]) == 1
    page.keyboard.press("Escape")
    page.locator("#query").fill("red/")
    expect(page.locator("#found")).to_have_text("10 pictures")
    page.locator(".dock-line [data-take='all']").click()
    dialog.get_by_label("What").select_option("found")
    dialog.get_by_label("As").select_option("folders")
    dialog.get_by_label("Pictures get there by").select_option("symlink")
    dialog.get_by_role("button", name="Take away").click()
    expect(dialog.locator(".said")).to_contain_text("10 files in ")


def test_other_levels_are_looked_at_and_not_changed(visit, tree_folder, tmp_path):
    opened = OpenResult(tree_folder, tmp_path / "exports")
    with serving(opened, progress=False) as address:
        page = visit(address)
        level = page.locator("#level")
        own = level.input_value()
        level.fill(level.get_attribute("min"))
        expect(page.locator(".card")).to_have_count(int(level.get_attribute("min")))
        expect(page.locator(".card [data-do]")).to_have_count(0)
        level.fill(own)
        expect(page.locator(".card [data-do='rename']")).to_have_count(int(own))


def test_names_that_look_like_markup_are_text(visit, served):
    page = visit(served, expect_failures=True)
    card(page, "meadow").get_by_role("button", name="Rename").click()
    page.locator(".rename input").fill(NASTY)
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text(f"Saved: the group is called {NASTY}.")
    page.get_by_label("What they show").fill(NASTY)
    page.keyboard.press("Enter")
    expect(page.locator("#ranked-said")).to_contain_text(NASTY)
    page.get_by_role("button", name=f"Split {NASTY}").click()
    expect(page.locator("#split-title")).to_have_text(f"Split {NASTY}")
    page.keyboard.press("Escape")
    page.reload()
    expect(card(page, NASTY)).to_be_visible()
    assert page.locator("img[src='x'], .card script").count() == 0


@pytest.mark.parametrize(("viewport", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_and_nothing_is_cut_off(visit, served, viewport, scheme):
    page = visit(served, viewport, color_scheme=scheme)
    page.locator("#gallery .pick").first.check()
    page.get_by_label("Choose harbour to merge it").check()
    page.get_by_role("button", name="Look for duplicates").click()
    page.get_by_role("button", name="Rename meadow", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def violations(part):
        found = Axe().run(page, options={"preload": False}).response["violations"]
        return [f"{part}: {each['id']}: {each['nodes'][0]['html']}" for each in found]

    found = violations("page")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Split meadow", exact=True).click()
    expect(page.locator("#parts > li")).to_have_count(2)
    found += violations("split")
    page.keyboard.press("Escape")
    page.locator(".dock-line [data-take='all']").click()
    found += violations("take")
    page.keyboard.press("Escape")
    page.locator("#gallery .picture").first.click()
    found += violations("panel")
    assert found == []


def test_from_disk_nothing_can_be_changed(browser, served, opened):
    page = browser.new_page()
    page.goto(opened.page().as_uri())
    expect(page.locator("#gallery .picture")).to_have_count(30)
    expect(page.locator("[data-served]:visible, [data-do], .pick, .choose")).to_have_count(0)
    page.close()
