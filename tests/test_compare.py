"""Two results side by side: pictures matched by content, clusters by what they share, and what moved between them."""

import dataclasses
import json
import random

import pyarrow as pa
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cae.results.compare import compare
from cae.results.saved import SavedResult

NAMES = {0: "cat", 1: "dog", 4: "tree"}


def make_result(rows, names=NAMES):
    """A result in memory of (path, hash, cluster)."""
    paths, hashes, labels = zip(*rows, strict=True)
    table = pa.table(
        {
            "path": paths,
            "sha256": pa.array(hashes, pa.string()),
            "cluster": labels,
            "name": [names[k] for k in labels],
        }
    )
    return SavedResult("folder", None, table, [{"id": k, "name": name} for k, name in names.items()], {})


A = [*((f"{i}", f"h{i}", 0) for i in range(6)), *((f"{i}", f"h{i}", 1) for i in range(6, 10)), ("x", "hx", 4)]


def test_a_result_agrees_with_itself():
    found = compare(make_result(A), make_result(A))
    assert (found.n_images, found.only_a, found.only_b) == (11, 0, 0)
    assert found.ari == pytest.approx(100)
    assert found.nmi == pytest.approx(100)
    assert found.moves == []
    assert [(pair.a.name, pair.b.name, pair.shared) for pair in found.pairs] == [
        ("cat", "cat", 6), ("dog", "dog", 4), ("tree", "tree", 1)
    ]  # fmt: skip


def test_other_numbers_and_names_are_no_moves_and_moves_are_told():
    numbers = {0: 7, 1: 3, 4: 5}
    b = [(path, sha256, numbers[k]) for path, sha256, k in A]
    b[1] = ("1", "h1", 3)
    b[6] = ("6", "h6", 9)
    found = compare(make_result(A), make_result(b, {7: "kitten", 3: "wolf", 5: "oak", 9: "fox", 11: "empty"}))
    assert [(p.a and p.a.name, p.b and p.b.name, p.shared) for p in found.pairs] == [
        ("cat", "kitten", 5), ("dog", "wolf", 3), ("tree", "oak", 1), (None, "fox", 0)
    ]  # fmt: skip
    assert [(move.a.name, move.b.name, move.paths) for move in found.moves] == [
        ("cat", "wolf", ["1"]), ("dog", "fox", ["6"])
    ]  # fmt: skip
    assert [(move.rows, move.size) for move in found.moves] == [([1], 1), ([6], 1)]
    assert found.moved == 2
    labels = [k for _, _, k in A], [k for _, _, k in b]
    assert found.ari == pytest.approx(100 * adjusted_rand_score(*labels))
    assert found.nmi == pytest.approx(100 * normalized_mutual_info_score(*labels))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["moves"][0]["paths"] == ["1"]


def test_every_move_holds_the_pictures_that_made_it():
    chance = random.Random(0)
    a = [(f"{i}", f"h{i}", chance.choice([0, 1, 4])) for i in range(300)]
    b = [(path, sha256, chance.choice([0, 1, 4])) for path, sha256, _ in chance.sample(a, 250)]
    before = {path: k for path, _, k in a}
    for move in compare(make_result(a), make_result(b)).moves:
        made_it = [row for row, (path, _, k) in enumerate(b) if (before[path], k) == (move.a.id, move.b.id)]
        assert move.rows == made_it
        assert move.paths == [b[row][0] for row in made_it]


def test_pictures_are_known_by_content_then_by_path():
    a = [
        ("old/1", "h1", 0),
        ("2", "h2", 0),
        ("3", None, 1),
        ("gone", "h4", 1),
        ("copy a", "h5", 0),
        ("copy b", "h5", 0),
    ]
    b = [("new/1", "h1", 0), ("2", "edited", 0), ("3", "h3", 1), ("fresh", "h6", 1), ("copy b", "h5", 0)]
    found = compare(make_result(a), make_result(b))
    assert (found.n_images, found.only_a, found.only_b) == (4, 2, 1)
    assert found.moves == []


def test_results_without_a_common_picture_cannot_be_compared():
    with pytest.raises(ValueError, match="no picture in common"):
        compare(make_result([("1", "h1", 0)]), make_result([("2", "h2", 0)]))
