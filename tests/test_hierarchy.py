"""The tree over a fit's clusters: levels that nest, the fit's own among them, and labels that follow from leaves."""

import re
from dataclasses import replace

import numpy
import pytest
import torch
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.method.hierarchy import FEWEST, Hierarchy, grow
from cae.method.partition import partition

KINDS, BREEDS, EACH = 6, 3, 12


def breeds(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (N, 32) of six kinds with three breeds each, kinds in three pairs; and the breed of each row."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    pairs = draw(KINDS // 2, 32).repeat_interleave(2, dim=0)
    kinds = (pairs + 0.7 * draw(KINDS, 32)).repeat_interleave(BREEDS, dim=0)
    rows = (kinds + 0.35 * draw(KINDS * BREEDS, 32)).repeat_interleave(EACH, dim=0)
    return normalize(rows + 0.1 * draw(*rows.shape), dim=1), torch.arange(len(rows)) // EACH


def fitted(clustering: str = "spectral"):
    z, breed = breeds()
    config = CAEConfig(n_clusters=KINDS, clustering=clustering)
    found = partition(z, config)
    return z, breed, found, grow(z, found, config)


@pytest.mark.parametrize("clustering", ["spectral", "kmeans"])
def test_levels_nest_and_the_fit_is_one_of_them(clustering):
    z, _, found, tree = fitted(clustering)
    assert tree.levels[0] == FEWEST
    assert tree.levels[-1] > KINDS
    at_fit, leaf = tree.assign(z, found, KINDS)
    for ours, fits in zip(at_fit, found.assign(z), strict=True):
        assert torch.equal(ours, fits)
    finer = leaf
    for n in reversed(tree.levels):
        labels = tree.assign(z, found, n)[0].labels
        assert torch.equal(labels, tree.cluster_of_leaf(n)[leaf])
        assert len(labels.unique()) == n
        held = torch.from_numpy(tree.contains(tree.leaves)[tree.nodes(n)].toarray())
        assert torch.equal(held, (tree.cluster_of_leaf(n) == torch.arange(n).unsqueeze(1)).double())
        # All images of a finer group are in one coarser group.
        assert all(len(labels[finer == group].unique()) == 1 for group in finer.unique())
        finer = labels


def test_splits_find_breeds_inside_kinds():
    z, breed, found, tree = fitted()
    labels = tree.assign(z, found, KINDS * BREEDS)[0].labels
    pairs = set(zip(labels.tolist(), breed.tolist(), strict=True))
    assert len(pairs) == KINDS * BREEDS


def test_merges_bring_together_what_is_alike():
    z, breed, found, tree = fitted()
    labels = tree.assign(z, found, KINDS - 1)[0].labels
    kinds = {tuple(sorted(set((breed[labels == group] // BREEDS).tolist()))) for group in labels.unique()}
    merged = [kind for kind in kinds if len(kind) > 1]
    assert len(merged) == 1
    assert merged[0][0] // 2 == merged[0][1] // 2


def test_groups_without_parts_are_not_split():
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(4, 16, generator=generator), dim=1).repeat_interleave(5, dim=0)
    config = CAEConfig(n_clusters=4)
    found = partition(centres, config)
    assert grow(centres, found, config).levels == range(FEWEST, 5)


@pytest.mark.parametrize("n", [FEWEST, KINDS - 1, KINDS + 1, KINDS * 2])
def test_confidence_is_of_the_level(n):
    z, _, found, tree = fitted()
    at, leaf = tree.assign(z, found, n)
    assert (at.runner_up != at.labels).all()
    fine = n > KINDS
    parts = tree.prototypes if fine else found.centroids
    metric = tree.metric if fine else found.metric
    of = tree.cluster_of_leaf(n)
    if not fine:
        clusters = tree.cluster_of_leaf(KINDS)
        of = torch.stack([of[clusters == k][0] for k in range(KINDS)])
    away = (((z @ metric).unsqueeze(1) - parts @ metric) ** 2).sum(dim=2)
    for row in range(0, len(z), 7):
        own = min(away[row, of == at.labels[row]])
        other = min(away[row, of != at.labels[row]])
        assert at.confidence[row] == pytest.approx(max(float(1 - own / other), 0), abs=1e-3)
        assert of[away[row] == other] == at.runner_up[row]
    assert len(leaf) == len(z)


@pytest.mark.parametrize("clustering", ["spectral", "kmeans"])
def test_what_is_known_of_all_levels_is_what_each_says(clustering):
    z, _, found, tree = fitted(clustering)
    placed = tree.place(z, found)
    tree.check(placed)
    for n in tree.levels:
        at, leaf = tree.assign(z, found, n)
        assert torch.equal(placed.leaf, leaf)
        for ours, level in zip(tree.at(n, placed), at, strict=True):
            assert torch.equal(ours, level)


@pytest.mark.parametrize("spherical", [True, False])
def test_confidence_without_a_metric_is_in_the_distance_of_the_fit(spherical):
    z, _ = breeds()
    config = CAEConfig(n_clusters=KINDS, clustering="kmeans", spherical=spherical)
    found = partition(z, config)
    tree = grow(z, found, config)
    at, _ = tree.assign(z, found, KINDS - 1)
    away = found.distances(z) if spherical else found.distances(z).square()
    of = tree.cluster_of_leaf(KINDS - 1)
    of = torch.stack([of[tree.cluster_of_leaf(KINDS) == k][0] for k in range(KINDS)])
    other = away.masked_fill(of == at.labels.unsqueeze(1), torch.inf).min(dim=1)
    assert torch.allclose(at.confidence, 1 - away.min(dim=1).values / other.values, atol=1e-4)
    assert torch.equal(at.runner_up, of[other.indices])
    assert torch.allclose(at.similarity, found.assign(z).similarity)


def test_who_crosses_a_border_by_rounding_stays_and_is_not_sure():
    z, _, found, tree = fitted()
    placed = tree.place(z, found)
    elsewhere = z.flip(0)
    crossed = found.assign(elsewhere).labels != found.assign(z).labels
    assert crossed.any()
    moved = tree.place(elsewhere, found, placed.leaf)
    for n in range(FEWEST, KINDS + 1):
        before, after = tree.at(n, placed), tree.at(n, moved)
        assert torch.equal(after.labels, before.labels)
        nearest = tree.assign(elsewhere, found, n)[0].labels
        away = crossed & (nearest != before.labels)
        assert (after.confidence[away] == 0).all()
        assert torch.equal(after.runner_up[away], nearest[away])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda placed: placed._replace(similarity=placed.similarity[:, :1]),
        lambda placed: placed._replace(confidence=placed.confidence[1:]),
        lambda placed: placed._replace(confidence=placed.confidence.double()),
        lambda placed: placed._replace(confidence=placed.confidence / 0),
        lambda placed: placed._replace(runner_up=placed.runner_up + KINDS * BREEDS * EACH),
        lambda placed: placed._replace(runner_up=placed.runner_up - KINDS * BREEDS * EACH),
    ],
)
def test_a_placement_that_is_none_of_the_tree_is_refused(wrong):
    z, _, found, tree = fitted()
    with pytest.raises(ValueError, match=r"in place of numbers|is not one of"):
        tree.check(wrong(tree.place(z, found)))


def test_a_batch_is_labelled_as_the_whole():
    z, _, found, tree = fitted()
    whole, leaf = tree.assign(z, found, KINDS + 2)
    part, some = tree.assign(z[5:9], found, KINDS + 2)
    assert torch.equal(part.labels, whole.labels[5:9])
    assert torch.equal(some, leaf[5:9])


def test_a_level_that_is_not_there_is_named():
    *_, tree = fitted()
    with pytest.raises(ValueError, match=re.escape(f"{FEWEST} to {tree.levels[-1]} groups, not 1")):
        tree.nodes(1)


def test_a_tree_of_one_level_is_no_range():
    tree = Hierarchy(2, 2, (), (0, 1), torch.zeros(2, 4), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="the tree holds 2 groups, not 3"):
        tree.nodes(3)


@pytest.mark.parametrize(
    "wrong",
    [{"splits": (0, 0)}, {"leaves": (0, 1, 2)}, {"roots": 0}, {"roots": 2**40}, {"n_clusters": 99}, {"splits": (7,)}],
)
def test_trees_that_a_file_made_up_are_refused(wrong):
    tree = Hierarchy(2, 2, (0,), (1, 2, 3), torch.zeros(3, 4), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="tree"):
        replace(tree, **wrong)


def test_a_cluster_that_the_sample_missed_is_a_leaf(monkeypatch):
    z, _, found, _ = fitted()
    monkeypatch.setattr("cae.method.hierarchy.SAMPLE", 1)
    monkeypatch.setattr("cae.method.hierarchy.SAMPLE_PER_CLUSTER", 8)
    keep = numpy.flatnonzero(found.assign(z).labels.numpy() != 0)
    rows = torch.cat([z[keep], z[keep] + 1e-3, z[found.assign(z).labels == 0][:1]])
    tree = grow(rows, found, CAEConfig(n_clusters=KINDS, seed=3))
    at, _ = tree.assign(z, found, KINDS)
    assert torch.equal(at.labels, found.assign(z).labels)
    assert tree.prototypes.isfinite().all()
