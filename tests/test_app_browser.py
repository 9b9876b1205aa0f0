"""`cae open` as people meet it, in a headless Chromium: every change by mouse and by keyboard, and what is refused."""

import json
import re
from functools import partial

import pytest
from app_page import SAVED, card, edits, names, said, size
from conftest import FakeEncoder, run_cae
from playwright.sync_api import expect

from cae.api import Result
from cae.app import OpenResult, serving
from cae.results.edits import Anchors, Rename
from cae.results.edits_file import load_edits, save_edits
from cae.results.saved import SavedResult

pytestmark = pytest.mark.browser


def test_a_group_is_renamed_in_place(visit, served, opened):
    page = visit(served, expect_failures=True)
    card(page, "meadow").get_by_role("button", name="Rename meadow", exact=True).click()
    box = page.get_by_label("New name of meadow")
    expect(box).to_be_focused()
    expect(page.locator(".rename .hint")).to_contain_text("Not saved yet")
    page.get_by_role("button", name="Rename meadow").click()
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Rename meadow")).to_be_focused()
    assert edits(opened) == []
    page.keyboard.press("Enter")
    box.fill("lawn")
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text("Saved: the group is called lawn.")
    expect(page.get_by_role("button", name="Rename lawn")).to_be_focused()
    assert names(page) == ["desert", "harbour", "lawn"]
    assert edits(opened) == ["rename meadow to lawn"]
    for place in ("#legend", ".sizes", "#group", "#move-to"):
        expect(page.locator(place)).to_contain_text("lawn")
    page.reload()
    assert names(page) == ["desert", "harbour", "lawn"]
    card(page, "lawn").get_by_role("button", name="Rename").click()
    page.get_by_label("New name of lawn").fill("desert")
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text(re.compile("^Not saved: another group is called 'desert' already"))
    expect(page.locator(".rename input")).to_have_value("desert")  # what was typed is not lost


def test_groups_are_merged_by_choice_and_by_dragging(visit, served, opened):
    page = visit(served)
    n = size(page, "harbour") + size(page, "desert")
    for name in ("harbour", "desert"):
        page.get_by_label(f"Choose {name} to merge it").check()
    expect(page.locator("#chosen-groups")).to_contain_text("2 groups to merge as harbour")
    page.locator("#merge").click()
    expect(said(page)).to_have_text("Saved: desert now part of harbour.")
    assert (names(page), size(page, "harbour")) == (["harbour", "meadow"], n)
    expect(page.locator("#chosen-groups")).to_be_hidden()
    card(page, "meadow").locator("header").drag_to(card(page, "harbour").locator("header"))
    expect(said(page)).to_have_text("Saved: meadow now part of harbour.")
    assert names(page) == ["harbour"]
    expect(page.locator(".lead")).to_have_text("30 pictures in 1 group")
    expect(page).to_have_title("pictures: 30 pictures in 1 group")
    assert edits(opened) == ["merge harbour and desert as harbour", "merge harbour and meadow as harbour"]


def test_text_that_is_selected_on_a_card_and_dragged_merges_nothing(visit, served, opened):
    page = visit(served)
    start = card(page, "harbour").locator(".chips li").first
    start.evaluate("(each) => getSelection().selectAllChildren(each)")
    card(page, "meadow").scroll_into_view_if_needed()
    (x, y), (to_x, to_y) = (
        (box["x"] + min(box["width"] / 2, 20), box["y"] + box["height"] / 2)
        for box in (start.bounding_box(), card(page, "meadow").bounding_box())
    )
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(x + (to_x - x) * step / 10, y + (to_y - y) * step / 10)
    expect(page.locator(".drop")).to_have_count(0)
    page.mouse.up()
    assert names(page) == ["desert", "harbour", "meadow"]
    assert edits(opened) == []


def test_a_split_is_looked_at_before_it_is_made(visit, served, opened):
    page = visit(served)
    page.get_by_role("button", name="Split meadow", exact=True).click()
    dialog = page.locator("#split")
    page.locator("#split-title").evaluate("(title) => (title.textContent = 'a'.repeat(200))")
    assert dialog.evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")  # however long a name is
    expect(dialog.locator("#parts > li")).to_have_count(2)
    dialog.get_by_label("Number of parts").fill("3")
    expect(dialog.locator("#parts > li")).to_have_count(3)  # already while it is typed
    expect(dialog.locator(".said")).to_have_text("3 parts. Nothing is changed yet.")
    assert edits(opened) == []
    parts = dialog.locator("#parts h3").all_inner_texts()
    dialog.get_by_role("button", name="Split").click()
    expect(said(page)).to_have_text("Saved: meadow split in 3.")
    shown = [f"{name} {size(page, name)} pictures".replace(" 1 pictures", " 1 picture") for name in names(page)]
    assert set(parts) <= set(shown)
    page.locator("#undo").click()
    expect(said(page)).to_have_text("Taken back, and saved.")
    assert names(page) == ["desert", "harbour", "meadow"]
    page.get_by_role("button", name="Split meadow", exact=True).click()
    dialog.get_by_label("Number of parts").fill("10")
    page.keyboard.press("Tab")
    dialog.get_by_role("button", name="Cancel").click()
    assert names(page) == ["desert", "harbour", "meadow"]


def test_parts_of_a_group_that_was_left_are_not_shown_for_another(visit, served):
    page, held = visit(served), []
    page.route("**/api/split", lambda route: held.append((route, route.fetch())))
    with page.expect_request("**/api/split"):
        page.get_by_role("button", name="Split meadow", exact=True).click()
    page.locator("#split").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Split desert", exact=True).click()
    expect(page.locator("#split-title")).to_have_text("Split desert")
    while len(held) < 2:
        page.wait_for_timeout(10)
    told = ("Looking for parts …", "2 parts. Nothing is changed yet.")
    for (route, answer), now in zip(held, told, strict=True):
        with page.expect_response("**/api/split"):
            route.fulfill(response=answer)
        page.evaluate("new Promise(requestAnimationFrame)")
        expect(page.locator("#split .said")).to_have_text(now)
    expect(page.locator("#split-do")).to_be_enabled()


def test_a_split_of_a_group_that_is_gone_by_then_is_refused(visit, served, opened):
    page = visit(served, expect_failures=True)
    card(page, "meadow").get_by_role("button", name="Split").click()
    expect(page.locator("#parts > li")).to_have_count(2)
    Result(opened.editor.folder).merge(["harbour", "meadow"])
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(card(page, "meadow")).to_have_count(0)
    page.locator("#split-do").click()
    there = "there is no group 1; they are 0 (harbour), 2 (desert)"
    expect(page.locator("#split .said")).to_have_text(f"Not saved: {there}")
    assert edits(opened) == ["merge harbour and meadow as harbour"]


def test_pictures_are_chosen_moved_and_moved_back(visit, served, opened):
    page = visit(served)
    page.locator("#order").select_option("path")
    before = size(page, "harbour")
    boxes = page.locator("#gallery .pick")
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])
    expect(page.locator("#picked-said")).to_have_text("4 pictures chosen")
    page.locator("#gallery .picture").nth(6).click(modifiers=["Shift"])
    expect(page.locator("#picked-said")).to_have_text("6 pictures chosen")
    page.locator("#gallery .picture").nth(6).click(modifiers=["Control"])
    expect(page.locator("#picked-said")).to_have_text("5 pictures chosen")
    expect(page.locator("#panel")).to_be_hidden()
    home = page.evaluate("pictures.groups[pictures.group[picks.numbers[0]]].name")
    to = next(name for name in ("harbour", "meadow") if name != home)
    expect(page.locator("#move")).to_be_disabled()
    page.get_by_label("Move to").select_option(label=to)
    there = size(page, to)
    page.locator("#move").click()
    expect(said(page)).to_have_text(f"Saved: 5 pictures now in {to}.")
    expect(page.locator("#picked")).to_be_hidden()
    assert size(page, to) == there + 5
    page.keyboard.press("Control+z")
    expect(said(page)).to_have_text("Taken back, and saved.")
    assert (size(page, to), size(page, "harbour")) == (there, before)
    page.keyboard.press("Control+Shift+z")
    expect(said(page)).to_have_text("Made again, and saved.")
    assert size(page, to) == there + 5
    page.locator("#pick-all").click()
    expect(page.locator("#picked-said")).to_have_text("30 pictures chosen")
    page.locator("#pin").click()
    expect(said(page)).to_have_text("Saved: 30 pictures pinned where they are.")
    expect(page.get_by_role("button", name=f"Pinned: {to}")).to_be_disabled()


def test_all_found_can_be_chosen_where_something_is_found(visit, served):
    page = visit(served)
    page.locator("#query").fill("nothing is called so")
    expect(page.locator("#found")).to_contain_text("No picture fits")
    expect(page.locator("#pick-all")).to_be_disabled()
    page.locator("#query").fill("")
    page.locator("#pick-all").click()
    expect(page.locator("#picked-said")).to_have_text("30 pictures chosen")


def test_pictures_are_chosen_on_the_map(visit, served):
    page = visit(served, {"width": 1280, "height": 1200})  # all of the map is in sight
    page.locator("#canvas").evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    page.wait_for_function("page.map.width > 300")
    page.get_by_role("button", name="Choose with a lasso").click()
    box = page.locator("#canvas").bounding_box()
    left, top, right, bottom = box["x"] + 12, box["y"] + 12, box["x"] + box["width"] - 60, box["y"] + box["height"] - 12
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=3)
    page.mouse.up()
    expect(said(page)).to_have_text("30 pictures inside the line.")
    expect(page.locator("#picked-said")).to_have_text("30 pictures chosen")
    page.locator("#clear-picks").click()
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    expect(page.locator("#picked-said")).to_have_text("1 picture chosen")
    expect(page.locator("#map-said")).to_have_text(re.compile(", chosen$"))
    page.keyboard.press(" ")
    expect(page.locator("#picked")).to_be_hidden()


def test_two_tabs_do_not_overwrite_each_other(visit, served, opened):
    one = visit(served, expect_failures=True)
    two = visit(served, expect_failures=True, context=one.context)
    card(one, "meadow").get_by_role("button", name="Rename").click()
    one.get_by_label("New name of meadow").fill("first")
    one.keyboard.press("Enter")
    expect(said(one)).to_have_text(SAVED)
    card(two, "meadow").get_by_role("button", name="Rename").click()
    two.get_by_label("New name of meadow").fill("second")
    two.keyboard.press("Enter")
    expect(said(two)).to_contain_text("in another tab or by another program. The page shows that now")
    expect(two.locator(".rename input")).to_have_value("second")
    assert edits(opened) == ["rename meadow to first"]
    two.keyboard.press("Enter")
    expect(said(two)).to_have_text(SAVED)
    assert edits(opened) == ["rename meadow to first", "rename first to second"]
    one.evaluate("dispatchEvent(new Event('focus'))")
    expect(card(one, "second")).to_be_visible()


def test_what_was_clicked_in_haste_takes_nothing_of_another_tab_back(visit, served, opened):
    page = visit(served, expect_failures=True)
    Result(opened.editor.folder).rename("meadow", "lawn")
    page.evaluate("Promise.all([stepBack('undo'), stepBack('undo')])")
    expect(said(page)).to_have_text(re.compile("^Not saved: the result has been changed since.* try again.$"))
    assert names(page) == ["desert", "harbour", "lawn"]
    assert edits(opened) == ["rename meadow to lawn"]
    page.locator("#undo").click()
    expect(said(page)).to_have_text("Taken back, and saved.")
    assert names(page) == ["desert", "harbour", "meadow"]


def test_an_answer_that_comes_after_that_of_a_later_edit_is_left(visit, served, opened):
    page = visit(served)
    held = []
    page.route("**/api/state", lambda route: held.append((route, route.fetch())))
    with page.expect_request("**/api/state"):
        page.evaluate("dispatchEvent(new Event('focus'))")
    for before, after in (("meadow", "field"), ("field", "grass")):
        card(page, before).get_by_role("button", name="Rename").click()
        page.locator(".rename input").fill(after)
        page.keyboard.press("Enter")
        expect(said(page)).to_have_text(f"Saved: the group is called {after}.")
        for route, answer in held:
            with page.expect_response("**/api/state"):
                route.fulfill(response=answer)
            page.evaluate("new Promise(requestAnimationFrame)")
        held.clear()
    assert edits(opened) == ["rename meadow to field", "rename field to grass"]


def test_an_edit_that_is_made_again_but_cannot_be_applied_is_told(visit, served, opened):
    folder = opened.editor.folder
    save_edits(load_edits(folder), folder, [Rename(Anchors("meadow", ("0" * 64,)), "field")])
    page = visit(served)
    page.locator("#redo").click()
    expect(said(page)).to_have_text("Saved, but not applied: rename meadow to field: the pictures of meadow are gone.")


def test_what_is_being_typed_outlives_a_change_in_another_tab(visit, served, opened):
    page = visit(served)
    card(page, "meadow").get_by_role("button", name="Rename").click()
    page.locator(".rename input").fill("half a na")
    Result(opened.editor.folder).rename("meadow", "field")
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page.get_by_label("New name of field")).to_have_value("half a na")
    expect(page.get_by_label("New name of field")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Rename field")).to_be_focused()


def test_the_keyboard_stays_where_it_was(visit, served):
    page = visit(served)
    page.get_by_role("button", name="Pin meadow").focus()
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text("Saved: meadow keeps its pictures and its name.")
    expect(page.get_by_role("button", name="Rename meadow")).to_be_focused()  # as Pinned can be pressed no more
    page.get_by_role("button", name="Split meadow").press("Enter")
    expect(page.locator("#parts > li")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Split meadow")).to_be_focused()
    page.locator("#gallery .pick").first.press("Space")
    page.get_by_label("Move to").select_option(label="meadow")
    page.locator("#move").press("Enter")
    expect(page.locator("#dock")).to_be_focused()


@pytest.mark.parametrize("when", ["looked at", "changed"])
def test_another_fit_in_the_folder_loads_the_page_again(visit, served, opened, result_folder, when):
    page = visit(served, expect_failures=True)
    run = json.loads((result_folder / "run.json").read_text())
    (result_folder / "run.json").write_text(json.dumps({**run, "beta_mean": {**run["beta_mean"], "image": 1.0}}))
    with page.expect_navigation():
        if when == "looked at":
            page.evaluate("dispatchEvent(new Event('focus'))")
        else:
            page.locator("#undo").click()
    expect(page.locator("#dock")).to_be_visible()
    assert names(page) == ["desert", "harbour", "meadow"]


def test_after_the_end_of_the_server_nothing_is_saved_and_that_is_said(visit, opened):
    with serving(opened, progress=False) as address:
        page = visit(address, expect_failures=True)
    name = page.locator(".card h3").first.inner_text()
    card(page, name).get_by_role("button", name="Rename").click()
    page.locator(".rename input").fill("lost?")
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text(re.compile("^Not saved: `cae open` has ended"))
    expect(page.locator(".rename input")).to_have_value("lost?")


def test_everything_is_done_by_keyboard(visit, served, opened):
    page = visit(served)
    page.get_by_label("Choose harbour to merge it").focus()
    page.keyboard.press("Space")
    page.get_by_label("Choose desert to merge it").focus()
    page.keyboard.press("Space")
    page.locator("#merge").focus()
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text("Saved: desert now part of harbour.")
    expect(page.get_by_role("button", name="Rename harbour")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Split harbour")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#parts > li")).to_have_count(2)
    page.keyboard.press("Enter")  # in the field for the number
    expect(said(page)).to_have_text("Saved: harbour split in 2.")
    page.locator("#gallery .pick").nth(0).focus()
    page.keyboard.press("Space")
    page.locator("#gallery .pick").nth(2).focus()
    page.keyboard.press("Shift+Space")
    expect(page.locator("#picked-said")).to_have_text("3 pictures chosen")
    page.locator("#pin").focus()
    page.keyboard.press("Enter")
    expect(said(page)).to_have_text("Saved: 3 pictures pinned where they are.")
    page.locator("#undo").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
        expect(said(page)).to_have_text("Taken back, and saved.")
    expect(page.locator("#redo")).to_be_enabled()
    assert len(edits(opened)) < 3


def test_edits_outlive_the_next_clustering(visit, monkeypatch, capfd, picture_folder, text_files, tmp_path):
    """Edit in the browser, close, `cae cluster` again, open: the edits hold."""
    for home in ("cae.models.embedder", "cae.encoders.deferred"):
        monkeypatch.setattr(f"{home}.load_encoder", lambda *_, **__: FakeEncoder())
    run, out = partial(run_cae, monkeypatch, capfd), tmp_path / "clustered"
    texts = ["--nouns", text_files["nouns"], "--captions", text_files["captions"]]
    cluster = ["cluster", picture_folder, "-k", 3, "--out", out, "--workers", 0, "--quiet", *texts]
    assert run(*cluster)[0] == 0
    with serving(OpenResult(out, tmp_path / "exports"), progress=False) as address:
        page = visit(address)
        first = page.locator(".card h3").first.inner_text()
        card(page, first).get_by_role("button", name="Rename").click()
        page.locator(".rename input").fill("my pictures")
        page.keyboard.press("Enter")
        expect(said(page)).to_have_text(SAVED)
        moved = page.evaluate(
            "pictures.path.findLast((_, i) => pictures.groups[pictures.group[i]].name !== 'my pictures')"
        )
        page.locator("#query").fill(moved)
        expect(page.locator("#found")).to_have_text("1 picture")
        page.locator("#gallery .pick").check()
        page.get_by_label("Move to").select_option(label="my pictures")
        page.locator("#move").click()
        expect(said(page)).to_have_text("Saved: 1 picture now in my pictures.")
        page.context.close()
    assert "my pictures" in (out / "report/index.html").read_text(encoding="utf-8")
    assert run(*cluster, "--seed", 3)[0] == 0
    with serving(OpenResult(out, tmp_path / "exports"), progress=False) as address:
        page = visit(address)
        page.locator("#query").fill(moved)
        expect(page.locator("#found")).to_have_text("1 picture")
        assert page.evaluate("pictures.groups[pictures.group[page.state.found[0]]].name") == "my pictures"
    assert SavedResult.load(out).unmatched_edits == []
