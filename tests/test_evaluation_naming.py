"""The measure of names, on a hierarchy small enough to read: animal > cat > siamese > blue point."""

import pytest
import torch

from cae.evaluation import naming


class Sense:
    def __init__(self, name, *above):
        self.name, self.above = name, above

    def hypernyms(self):
        return list(self.above)

    def instance_hypernyms(self):
        return []

    def min_depth(self):
        return min((above.min_depth() + 1 for above in self.above), default=0)


ANIMAL = Sense("animal")
CAT = Sense("cat", ANIMAL)
SIAMESE = Sense("siamese", CAT)
POINT = Sense("blue point", SIAMESE)
WORDS = {"animal": ANIMAL, "cat": CAT, "true cat": CAT, "siamese": SIAMESE, "blue point": POINT, "cats": CAT}


@pytest.fixture(autouse=True)
def hierarchy(monkeypatch):
    monkeypatch.setattr(naming, "_senses", lambda text: (WORDS[text],) if text in WORDS else ())
    monkeypatch.setattr(naming, "ensure_wordnet", lambda: None)


@pytest.mark.parametrize(
    ("noun", "steps", "fits"),
    [("true cat", 0, True), ("siamese", 0, False), ("siamese", 1, True), ("blue point", 2, True),
     ("blue point", 1, False), ("animal", 2, False), ("no such word", 2, False)],
)  # fmt: skip
def test_a_noun_fits_a_class_that_it_is_or_lies_below(noun, steps, fits):
    assert naming.is_a(noun, "cats", steps) == fits


def test_the_name_of_a_mixed_cluster_fits_no_class(monkeypatch):
    monkeypatch.setattr(naming, "_senses", lambda text: (CAT,))
    (mixed,) = naming.name_clusters(torch.tensor([0]), torch.tensor([0]), ["cats"], ["mixed: cat, dog"], [[]])
    assert not (mixed.exact or mixed.fits or mixed.among or mixed.true)
    assert mixed.depth == -1


@pytest.mark.parametrize(("noun", "depth"), [("animal", 0), ("cats", 1), ("blue point", 3), ("no such word", -1)])
def test_the_depth_of_a_name_is_the_number_of_hypernyms_above(noun, depth):
    assert naming.name_depth(noun) == depth


def test_a_name_is_true_of_the_images_whose_class_is_a_kind_of_it():
    labels, classes = torch.tensor([0, 0, 1, 2, 2]), ["blue point", "siamese", "animal"]
    assert naming.true_share("animal", labels, classes) == 1
    assert naming.true_share("cats", labels, classes) == pytest.approx(3 / 5)
    assert naming.true_share("blue point", labels, classes) == pytest.approx(2 / 5)
    assert naming.true_share("no such word", labels, classes) == 0


def test_clusters_are_compared_with_the_class_that_most_of_their_images_have():
    clusters = torch.tensor([0, 0, 0, 1, 1, 3])
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    table = naming.name_clusters(
        clusters,
        labels,
        ["cats", "animal"],
        ["siamese", "siamese", "empty", "fish"],
        [["siamese"], ["fish", "animal"], [], ["true cat"]],
    )
    assert [(row.label, row.exact, row.special, row.general, row.among) for row in table] == [
        ("cats", False, True, False, True),
        ("animal", False, True, False, True),
        ("cats", False, False, False, True),
    ]
    assert table[0].purity == pytest.approx(2 / 3)
