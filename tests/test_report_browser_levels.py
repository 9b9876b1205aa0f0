"""The levels of the tree of groups on the report, in a headless Chromium."""

import pytest
from app_page import DESK, PHONE
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from cae.report import write_report
from cae.results.cut import cut
from cae.results.saved import SavedResult

pytestmark = pytest.mark.browser


@pytest.fixture
def tree_report(tree_folder):
    write_report(SavedResult.load(tree_folder), tree_folder / "report", lambda _: lambda *_: None)
    return tree_folder / "report"


def test_the_slider_goes_from_coarse_to_fine_and_back_by_keyboard(view, tree_report):
    levels = SavedResult.load(tree_report.parent).fitted.hierarchy.levels
    page = view(tree_report)
    slider, said, cards = page.locator("#level"), page.locator("#level-said"), page.locator(".card")
    own = sorted(cards.locator("h3").all_inner_texts())
    expect(said).to_have_text("6 groups")
    slider.focus()
    page.keyboard.press("End")
    expect(said).to_have_text(f"{levels[-1]} groups")
    expect(slider).to_have_attribute("aria-valuetext", f"{levels[-1]} groups")
    expect(cards).to_have_count(levels[-1])
    for list_ in ("#legend li", ".sizes li", "#group option:not([value='-1'])"):
        expect(page.locator(list_)).to_have_count(levels[-1])
    page.keyboard.press("Home")
    expect(cards).to_have_count(levels[0])
    sizes = [int(text.split()[0]) for text in cards.locator(".facts-line").all_inner_texts()]
    assert sum(sizes) == 72
    assert sizes == sorted(sizes, reverse=True)
    cards.first.locator(".all").click()
    expect(page.locator("#gallery .picture")).to_have_count(sizes[0])
    page.locator("#gallery .picture").first.click()
    expect(page.locator(".why dd a").first).to_have_text(cards.locator("h3").first.inner_text())
    page.keyboard.press("Escape")
    slider.fill("6")
    expect(said).to_have_text("6 groups")
    assert sorted(cards.locator("h3").all_inner_texts()) == own


def test_a_level_is_what_a_cut_gives(view, tree_report):
    folder = tree_report.parent
    page = view(tree_report)
    for n in (saved := SavedResult.load(folder)).fitted.hierarchy.levels:
        page.locator("#level").fill(str(n))
        cut(saved, n)
        saved = SavedResult.load(folder)
        expected = sorted(f"{record['name']} ({record['size']})" for record in saved.clusters)
        assert sorted(page.locator("#group option:not([value='-1'])").all_inner_texts()) == expected


def test_cards_say_what_they_are_part_of(view, tree_report):
    page = view(tree_report)
    fitted = SavedResult.load(tree_report.parent).fitted
    tree = fitted.hierarchy
    shown = {step for n in tree.levels if n >= 5 for step in tree.nodes(n)}  # fewer groups have names that say little
    page.locator("#level").fill(str(tree.levels[-1]))
    for card in page.locator(".card").all():
        node = next(node for node in fitted.nodes if node.name == card.locator("h3").inner_text())
        above = [fitted.nodes[step].name for step in tree.path(node.id)[:-1] if step in shown]
        expect(card.locator(".crumbs")).to_have_text(" › ".join(above) + " ›" if above else "")


@pytest.mark.parametrize("viewport", [DESK, PHONE])
def test_axe_finds_nothing_on_other_levels(view, tree_report, viewport):
    page = view(tree_report, viewport)
    for n in (5, 6, 8):
        page.locator("#level").fill(str(n))
        found = Axe().run(page, options={"preload": False})  # else it fetches the style sheets
        assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
