"""Edits by hand: what each does, that a new fit keeps them, and that those it cannot keep are told."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from cae.results.edits import Anchors, EditedView, EditError, Merge, Move, Pin, Rename, Split
from cae.results.edits_file import load_edits, save_edits
from cae.results.make_edits import anchors_of, find_cluster, find_images, split_into
from cae.results.saved import SavedResult

SIZES = {0: 8, 1: 6, 2: 10}
NAMES = {0: "cat", 1: "harbor", 2: "tree"}


def make_result(labels, names=NAMES, *, hashes=None) -> SavedResult:
    """A result in memory: pictures of cluster 2 lie around two directions, so that it can be split."""
    labels = np.asarray(labels)
    n = len(labels)
    hashes = hashes or [f"h{i}" for i in range(n)]
    noise = 0.05 * torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    axes = torch.tensor([{0: 0, 1: 1}.get(k, 2 + i % 2) for i, k in enumerate(labels.tolist())])
    pairs = zip(labels.tolist(), axes.tolist(), strict=True)
    table = pa.table(
        {
            "path": [f"{i}.jpg" for i in range(n)],
            "cluster": labels,
            "name": [names[k] for k in labels.tolist()],
            "runner_up": (labels + 1) % 3,
            "top_nouns": [[names[k], "oak" if axis == 2 else "pine"] for k, axis in pairs],
            "top_caption": [f"a {names[k]}" for k in labels.tolist()],
            "sha256": hashes,
        }
    )
    clusters = [
        {
            "id": k,
            "name": name,
            "gloss": f"gloss of {name}",
            "size": int((labels == k).sum()),
            "nouns": [name],
            "captions": [f"a {name}"],
            "representatives": [],
        }
        for k, name in names.items()
    ]
    result = SavedResult(None, None, table, clusters, {})
    result.__dict__["embeddings"] = normalize(torch.eye(8)[axes] + noise, dim=1).half()
    return result


@pytest.fixture
def result():
    return make_result([k for k, n in SIZES.items() for _ in range(n)])


def refit(result, permutation, extra=5):
    """The same pictures and some new ones, with other cluster numbers and names."""
    old = [permutation[k] for k in result.assignments["cluster"].to_pylist()]
    new = make_result([*old, *[i % 3 for i in range(extra)]], {0: "dog", 1: "plant", 2: "ship"})
    # Pictures keep their embeddings.
    new.embeddings[: len(old)] = result.embeddings
    return new


def apply_edits(result, edits):
    """The result as people see it with some edits."""
    view = EditedView(result).apply(edits)
    return SimpleNamespace(assignments=view.assignments(), clusters=view.records(), unmatched=view.unmatched)


def members(edited, name):
    return {row["path"] for row in edited.assignments.to_pylist() if row["name"] == name}


def names_of(edited):
    return {record["id"]: record["name"] for record in edited.clusters}


def test_rename_changes_name_and_drops_the_gloss(result):
    edited = apply_edits(result, [Rename(anchors_of(result.view, 1), "boats")])
    assert names_of(edited) == {0: "cat", 1: "boats", 2: "tree"}
    assert edited.clusters[1]["gloss"] == ""
    assert edited.clusters[0] == result.clusters[0]
    assert len(members(edited, "boats")) == SIZES[1]
    assert edited.assignments.drop_columns(["name"]).equals(result.assignments.drop_columns(["name"]))


def test_merge_makes_one_of_several(result):
    edited = apply_edits(result, [Merge((anchors_of(result.view, 0), anchors_of(result.view, 1)), "things")])
    assert names_of(edited) == {0: "things", 2: "tree"}
    record = edited.clusters[0]
    assert record["size"] == SIZES[0] + SIZES[1] == len(members(edited, "things"))
    assert record["nouns"] == ["cat", "harbor"]
    assert record["representatives"]
    rows = edited.assignments.to_pylist()
    assert {row["runner_up"] for row in rows[: SIZES[0]]} == {None}  # it was 1, which is now their own
    assert {row["runner_up"] for row in rows if row["cluster"] == 2} == {0}


def test_a_merge_goes_without_clusters_that_are_gone(result):
    merge = Merge((Anchors("ghosts", ("x",)), anchors_of(result.view, 0), anchors_of(result.view, 1)), "things")
    edited = apply_edits(result, [merge])
    assert edited.unmatched == []
    assert names_of(edited) == {0: "things", 2: "tree"}


def test_split_follows_the_pictures(result):
    parts = split_into(result.view, 2, 2)
    edited = apply_edits(result, [Split(anchors_of(result.view, 2), parts)])
    assert names_of(edited) == {0: "cat", 1: "harbor", 2: parts[0].name, 3: parts[1].name}
    assert {part.name for part in parts} == {"oak", "pine"}
    even = {row["path"] for i, row in enumerate(result.assignments.to_pylist()) if row["cluster"] == 2 and i % 2 == 0}
    assert members(edited, "oak") == even
    assert sum(record["size"] for record in edited.clusters) == sum(SIZES.values())


def test_a_part_keeps_the_pictures_that_it_lists(result):
    # h14 looks like the even ones; a person says otherwise.
    parts = (Anchors("mine", ("h14",)), Anchors("rest", tuple(f"h{i}" for i in range(15, 24))))
    edited = apply_edits(result, [Split(anchors_of(result.view, 2), parts)])
    assert members(edited, "mine") == {"14.jpg"}


def test_a_split_needs_different_pictures(result):
    result.embeddings[result.assignments["cluster"].to_numpy() == 1] = result.embeddings[8].clone()
    with pytest.raises(EditError, match="too few different pictures"):
        split_into(result.view, 1, 2)


def test_moved_pictures_and_their_copies_go_where_they_are_sent():
    hashes = [f"h{i}" for i in range(24)]
    hashes[3] = "h20"  # the same bytes as picture 20
    result = make_result([k for k, n in SIZES.items() for _ in range(n)], hashes=hashes)
    edited = apply_edits(result, [Move(anchors_of(result.view, 1), ("h20",))])
    assert members(edited, "harbor") == {f"{i}.jpg" for i in (3, *range(8, 14), 20)}
    assert [record["size"] for record in edited.clusters] == [7, 8, 9]


def test_clusters_left_empty_are_gone(result):
    edited = apply_edits(result, [Move(anchors_of(result.view, 0), tuple(f"h{i}" for i in range(8, 14)))])
    assert names_of(edited) == {0: "cat", 2: "tree"}


def test_edits_build_on_each_other(result):
    view, edits = EditedView(result), []
    for make in (
        lambda: Split(anchors_of(view, 2), split_into(view, 2, 2)),
        lambda: Merge((anchors_of(view, 1), anchors_of(view, 3)), "mixed"),
        lambda: Rename(anchors_of(view, 1), "odd"),
        lambda: Move(anchors_of(view, 0), ("h8",)),
    ):
        edits.append(make())
        view.apply(edits[-1:])
        edited = apply_edits(result, edits)
        assert edited.unmatched == []
        assert edited.clusters == view.records()
    assert set(names_of(edited).values()) == {"cat", "odd", edited.clusters[-1]["name"]}
    assert len(members(edited, "odd")) == SIZES[1] + 5 - 1
    assert "8.jpg" in members(edited, "cat")


PERMUTATION = {0: 2, 1: 0, 2: 1}


def test_edits_outlive_a_new_fit_that_numbers_and_names_otherwise(result):
    edits = [
        Rename(anchors_of(result.view, 1), "boats"),
        Split(anchors_of(result.view, 2), split_into(result.view, 2, 2)),
        Move(anchors_of(result.view, 0), ("h8",)),
    ]
    edited = apply_edits(refit(result, PERMUTATION), edits)
    assert edited.unmatched == []
    assert {f"{i}.jpg" for i in range(9, 14)} <= members(edited, "boats")
    assert {f"{i}.jpg" for i in range(14, 24, 2)} <= members(edited, "oak")
    # The cluster itself was not renamed, so it has the name of the new fit.
    assert {f"{i}.jpg" for i in range(9)} <= members(edited, "ship")
    assert sum(record["size"] for record in edited.clusters) == 29


def test_clusters_that_a_new_fit_joined_need_no_merging(result):
    merge = Merge((anchors_of(result.view, 0), anchors_of(result.view, 1)), "things")
    joined = refit(result, {0: 0, 1: 0, 2: 1})
    edited = apply_edits(joined, [merge])
    assert edited.unmatched == []
    assert names_of(edited)[0] == "things"


def test_a_pin_keeps_its_pictures_together(result):
    pin = Pin(anchors_of(result.view, 1, every=True))
    now = apply_edits(result, [pin])
    assert now.clusters == result.clusters
    assert now.assignments.equals(result.assignments)

    mostly = refit(result, PERMUTATION, extra=0)
    labels = mostly.assignments["cluster"].to_numpy().copy()
    labels[8:10] = 1  # the new fit takes two of six away
    mostly = dataclasses.replace(mostly, assignments=mostly.assignments.set_column(1, "cluster", pa.array(labels)))
    mostly.__dict__["embeddings"] = result.embeddings
    edited = apply_edits(mostly, [pin])
    assert members(edited, "harbor") == {f"{i}.jpg" for i in range(8, 14)}

    labels[8:14] = [0, 0, 1, 1, 2, 2]  # the new fit scatters them
    scattered = dataclasses.replace(mostly, assignments=mostly.assignments.set_column(1, "cluster", pa.array(labels)))
    scattered.__dict__["embeddings"] = result.embeddings
    edited = apply_edits(scattered, [pin])
    assert edited.unmatched == []
    assert members(edited, "harbor") == {f"{i}.jpg" for i in range(8, 14)}
    assert edited.clusters[-1]["id"] == 3


def test_two_pins_stay_apart_in_one_new_cluster(result):
    pins = [Pin(anchors_of(result.view, k, every=True)) for k in (0, 1)]
    edited = apply_edits(refit(result, {0: 0, 1: 0, 2: 1}, extra=0), pins)
    assert len(members(edited, "cat")) == SIZES[0]
    assert len(members(edited, "harbor")) == SIZES[1]


def test_edits_of_what_is_gone_are_told_and_the_others_applied(result):
    gone = Anchors("ghosts", ("x", "y"))
    spread = Anchors("everything", ("h0", "h8", "h14"))
    edits = [Rename(gone, "a"), Rename(spread, "b"), Move(anchors_of(result.view, 0), ("x",)), Pin(gone)]
    edited = apply_edits(result, [*edits, Rename(anchors_of(result.view, 0), "pets")])
    assert names_of(edited) == {0: "pets", 1: "harbor", 2: "tree"}
    assert [line.split(": ")[1] for line in edited.unmatched] == [
        "the pictures of ghosts are gone",
        "the pictures of everything are spread over several clusters",
        "the pictures are gone",
        "its pictures are gone",
    ]


def test_edits_survive_the_disk(result, tmp_path):
    anchors = anchors_of(result.view, 0)
    edits = (
        Rename(anchors, "größer <b>"),
        Merge((anchors, anchors_of(result.view, 1)), "m"),
        Split(anchors_of(result.view, 2), split_into(result.view, 2, 2)),
        Pin(anchors_of(result.view, 2, every=True)),
        Move(anchors, ("h3",)),
    )
    assert load_edits(tmp_path) == ()
    save_edits(edits, tmp_path)
    assert load_edits(tmp_path) == edits
    document = json.loads((tmp_path / "edits.json").read_text(encoding="utf-8"))
    assert [record["edit"] for record in document["edits"]] == ["rename", "merge", "split", "pin", "move"]


C = {"name": "cat", "pictures": ["h1"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "repair it, or remove it"),
        ("[]", "no format_version"),
        ('{"format_version": 2, "edits": []}', "upgrade cae"),
        ('{"format_version": 1}', "edits"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "explode", "cluster": C}]}), "unknown edit 'explode'"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "rename", "cluster": C}]}), "name"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "rename", "cluster": C, "name": " "}]}), "must be a text"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "merge", "clusters": [C], "name": "a"}]}), "at least two"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "move", "cluster": C, "pictures": "h1"}]}), "list of"),
        (json.dumps({"format_version": 1, "edits": [{"edit": "pin", "cluster": 3}]}), "cannot be read"),
        (
            json.dumps({"format_version": 1, "edits": [{"edit": "rename", "cluster": C, "name": "\ud800"}]}),
            "surrogates",
        ),
        (json.dumps({"format_version": 1, "edits": [], "undone": [{"edit": "explode"}]}), "unknown edit 'explode'"),
    ],
)
def test_damaged_edits_are_named(tmp_path, text, message):
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(EditError, match=message):
        load_edits(tmp_path)


def test_a_saved_result_offers_the_edited_view(result_folder):
    plain = SavedResult.load(result_folder)
    assert plain.edited is plain
    cluster = plain.clusters[0]["id"]
    save_edits([Rename(anchors_of(plain.view, cluster), "mine"), Rename(Anchors("ghosts", ("x",)), "a")], result_folder)
    result = SavedResult.load(result_folder)
    assert result.clusters == plain.clusters  # what the fit found stays to be seen
    assert result.edited.clusters[0]["name"] == "mine"
    assert result.edited.edited is result.edited
    assert result.edited.embeddings is result.embeddings  # once in memory
    assert result.edited.fitted is result.fitted
    assert len(result.unmatched_edits) == 1


def test_a_number_is_that_of_a_cluster_even_if_another_one_is_called_so():
    result = make_result([0, 0, 1, 1, 2, 2], {0: "cat", 1: "2", 2: "tree"})
    assert (find_cluster(result.view, 2), find_cluster(result.view, "2"), find_cluster(result.view, "0")) == (2, 1, 0)


def test_of_many_groups_and_pictures_an_error_names_a_few(tmp_path):
    names = {k: f"group {k}" for k in range(1000)}
    view = EditedView(make_result(range(1000), names))
    view.root = tmp_path
    there = "there are 1,000, as `cae edit RESULT` lists them: "
    with pytest.raises(EditError, match=rf"no group is called 'harbour'; {there}(group \d, ){{8}}…$"):
        find_cluster(view, "harbour")
    with pytest.raises(EditError, match=rf"there is no group 1000; {there}0 \(group 0\), (\d \(group \d\), ){{7}}…$"):
        find_cluster(view, 1000)
    with pytest.raises(EditError, match="no group is called 'grop 7'; did you mean 'group 7' or "):
        find_cluster(view, "grop 7")
    with pytest.raises(EditError, match=r"^500 pictures not in the result: (\d\.png, ){8}…; paths are those of"):
        find_images(view, [f"{i}.png" for i in range(500)])
