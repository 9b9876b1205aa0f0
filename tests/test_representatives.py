"""Images that stand for a cluster: each once, and the original before its copies."""

import shutil

import pyarrow as pa
import pytest
from conftest import clustered_folder

from cae.report.data import describe_groups, fused
from cae.results.cut import cut
from cae.results.duplicates import find_duplicates
from cae.results.edits import Merge
from cae.results.edits_file import save_edits
from cae.results.make_edits import anchors_of
from cae.results.representatives import representatives
from cae.results.saved import SavedResult


@pytest.fixture
def copied(tree_folder, text_files, tmp_path):
    """A result of 72 pictures, most of them also there under a name that comes first in the alphabet."""
    for place in sorted((tmp_path / "colours").rglob("*.png")):
        if place.stem < "6":
            shutil.copy(place, place.with_name(f"(copy) {place.name}"))
    return clustered_folder(tmp_path / "colours", 6, text_files, tmp_path / "copied-result")


def assert_originals(records, result):
    hashes = dict(zip(*(result.assignments[name].to_pylist() for name in ("path", "sha256")), strict=True))
    for record in records:
        shown = record["representatives"]
        assert not any("copy" in path for path in shown)
        different = {hashes[row["path"]] for row in result.assignments.to_pylist() if row["cluster"] == record["id"]}
        assert len(shown) == len({hashes[path] for path in shown}) == min(9, len(different))


def test_a_fit_a_cut_and_an_edit_show_originals_once(copied):
    result = SavedResult.load(copied)
    assert_originals(result.clusters, result)
    save_edits([Merge(tuple(anchors_of(result.view, record["id"]) for record in result.clusters[:2]), "both")], copied)
    edited = SavedResult.load(copied).edited
    assert len(edited.clusters) == 5
    assert_originals(edited.clusters, edited)
    cut(SavedResult.load(copied), result.fitted.hierarchy.levels[0])
    at_top = SavedResult.load(copied)
    assert len(at_top.clusters) < 6
    assert_originals(at_top.clusters, at_top)


def test_the_page_shows_originals_once(copied):
    result = SavedResult.load(copied)
    groups, order = describe_groups(result, fused(result))
    assert sorted(order) == list(range(len(result.assignments)))
    table = result.assignments.take(pa.array(order)).to_pylist()
    assert_originals(
        [{"id": group.id, "representatives": [table[i]["path"] for i in group.representatives]} for group in groups],
        result,
    )
    for group in groups:
        shown = {table[i]["sha256"] for i in group.representatives}
        assert not shown & {table[i]["sha256"] for i in (*group.borderline, *group.odd)}


def test_the_best_of_equal_files_is_the_original(copied):
    found = find_duplicates(SavedResult.load(copied), near=None)
    assert len(found.groups) == 48
    for group in found.groups:
        assert [("copy" in copy.path) for copy in group.copies] == [False, True]


def test_images_of_unknown_content_are_no_copies():
    assert representatives([1, 0, 2], ["aa", "bb", "c"], [None, None, None], 2) == [1, 0]
