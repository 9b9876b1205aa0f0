"""Where things are on the page of `cae open`, for the tests in a browser."""

import re

from cae.results.edits_file import load_edits

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
SAVED = re.compile("^Saved: ")


def card(page, name):
    """The card of a group."""
    return page.locator(".card", has=page.locator("h3", has_text=re.compile(f"^{re.escape(name)}$")))


def names(page):
    """Of all groups, sorted."""
    return sorted(page.locator(".card h3").all_text_contents())


def said(page):
    """The line that says what was done."""
    return page.locator("#said")


def size(page, name):
    """Of a group, as its card says."""
    return int(card(page, name).locator(".facts-line span").first.text_content().split()[0])


def edits(opened):
    """Edits of the fixture `served`, but for those that named the groups."""
    return [str(edit) for edit in load_edits(opened.editor.folder)[3:]]
