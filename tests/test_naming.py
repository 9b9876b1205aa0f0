"""Names: typical here and not elsewhere, distinct, and with the sense that the images show."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from cae.config import CAEConfig
from cae.method.fitted import SelectedTexts
from cae.method.hierarchy import Hierarchy
from cae.method.kmeans import cluster_sums
from cae.method.names import (
    CANDIDATES,
    HOLDS,
    NameScores,
    choose,
    cluster_names,
    commonness,
    kind_typicality,
    name_groups,
    name_scores,
    parts_of_group,
    rarer_synonyms,
)
from cae.method.naming import (
    describe_clusters,
    describe_tree,
    fitting_glosses,
    kinds_of_names,
    texts_of_groups,
    tree_names,
)
from cae.method.pipeline import predict
from cae.method.typicality import NEAREST, PERPLEXITY, spread, spread_mass, transport_mass, typicality
from cae.results.saved import SavedResult
from cae.text import Corpus, TextBank


def bank(kind, texts, vectors, glosses=None):
    corpus = Corpus(kind, "toy", texts, glosses, source_rows=len(texts))
    return TextBank(corpus, torch.tensor(vectors).half(), prompt="{}", encoder="toy", fingerprint="0")


def texts(names):
    return [str(name) for name in names]


def test_transport_mass_is_the_mean_plan_of_a_cluster():
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (600, 9))
    g, labels = 0.1 * torch.randn(9, generator=generator), torch.arange(600) % 2
    mass = transport_mass(x, labels, SelectedTexts([""] * 9, u, g), CAEConfig(n_clusters=3, epsilon=0.1))
    plan = ((x.double() @ u.double().T + g) / 0.1).softmax(dim=1)
    torch.testing.assert_close(mass[0], plan[labels == 0].mean(dim=0).float())
    assert mass[2].eq(0).all()


@pytest.mark.parametrize("n_texts", [200, 2_000])
@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_images_spread_over_as_many_texts_however_many_there_are_and_however_alike(n_texts, scale):
    scores = scale * torch.randn(50, n_texts, generator=torch.Generator().manual_seed(0))
    rows = spread(scores)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(50))
    perplexity = torch.special.entr(rows).sum(dim=1).exp()
    torch.testing.assert_close(perplexity, torch.full((50,), float(PERPLEXITY)), rtol=1e-3, atol=0)
    assert rows.argmax(dim=1).equal(scores.argmax(dim=1))


def test_among_few_texts_images_spread_over_a_third_of_them():
    scores = 0.01 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    perplexity = torch.special.entr(spread(scores)).sum(dim=1).exp()
    torch.testing.assert_close(perplexity, torch.full((50,), 12 / NEAREST), rtol=1e-3, atol=0)
    assert spread(scores[:, :2]).amax(dim=1).gt(0.99).float().mean() > 0.9
    assert spread(scores[:, :1]).eq(1).all()
    assert spread(torch.zeros(1, 4)).eq(0.25).all(), "nothing tells them apart"


def test_the_mass_of_a_cluster_is_the_mean_spread_of_its_images():
    x, u = (
        torch.nn.functional.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), dim=1)
        for n in (600, 90)
    )
    g, labels = torch.linspace(0, 0.1, 90), torch.arange(600) % 2
    mass = spread_mass(x, labels, SelectedTexts([""] * 90, u, g), 3)
    torch.testing.assert_close(mass[0], spread(x[labels == 0] @ u.T + g).mean(dim=0))
    assert mass[2].eq(0).all()


def test_descriptions_are_the_same_however_far_the_transport_spreads():
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (60, 90))
    banks = {"noun": bank("noun", [f"noun {i}" for i in range(90)], u.tolist())}
    selected = {"noun": SelectedTexts(banks["noun"].texts, u, torch.zeros(90))}
    labels, sharp = torch.arange(60) % 3, CAEConfig(n_clusters=3, epsilon=0.001, modalities=("noun",))
    assert describe_clusters(x, labels, selected, banks, sharp) == describe_clusters(
        x, labels, selected, banks, replace(sharp, epsilon=1.0)
    )


def test_what_all_clusters_share_is_not_typical_of_any():
    mass = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.0, 0.4]])
    score = typicality(mass)
    assert score.argmax(dim=1).tolist() == [1, 2]
    torch.testing.assert_close(score[:, 0], torch.zeros(2))
    assert score.isfinite().all()


def test_names_are_distinct_even_where_clusters_want_the_same():
    score = torch.tensor([[0.9, 0.8, 0.0], [1.0, 0.1, 0.0]])
    assert choose(score).tolist() == [1, 0]


def test_clusters_beyond_the_nouns_are_called_after_their_number():
    scores = NameScores(torch.tensor([[0.1], [0.9]]), torch.ones(2, 1))
    assert texts(cluster_names(scores, ["dog"])) == ["cluster 0", "dog"]


def test_a_noun_that_hardly_holds_is_no_name_however_alike():
    nouns = ["fabric", "flower", "dog", "cat", "car"]
    scores = NameScores(torch.tensor([[9.0, 1, 0, 0, 0], [9, 0, 3, 2, 1]]), torch.full((2, 5), 0.01))
    scores.share[0, 1] = HOLDS
    scores.share[1, 2:] = 0.1
    assert texts(cluster_names(scores, nouns)) == ["flower", "mixed: dog, cat, car"]
    assert name_groups(scores, nouns, taken={"flower"}) == [None, None]
    scores.share[1] = torch.tensor([0, 0, 0.1, 0, 0])
    assert texts(cluster_names(scores, nouns)) == ["flower", "mixed: dog, …"], "no word holds for the rest of it"
    scores.share[1] = 0
    assert texts(cluster_names(scores, nouns)) == ["flower", "cluster 1"]


def test_a_noun_that_two_groups_have_alone_goes_to_the_one_that_it_fits_better():
    scores = NameScores(torch.tensor([[3.0, 2, 1], [7, 2, 1]]), torch.tensor([[0.3, 0.1, 0.1]] * 2))
    assert texts(cluster_names(scores, ["face", "brain", "car"])) == ["mixed: brain, car", "face"]


def test_a_noun_that_holds_and_is_the_best_left_is_the_name_of_a_group_that_is_not_mixed():
    scores = NameScores(torch.tensor([[5.0, -3, -1], [4, -2, -1]]), torch.tensor([[0.9, 0.0, 0.0], [0.9, 0.0, 0.9]]))
    assert texts(cluster_names(scores, ["dog", "car", "briard"])) == ["dog", "briard"]


def test_parts_of_a_mixed_group_are_no_kinds_of_each_other_and_nothing_that_another_is_called():
    nouns = ["dog", "briard", "tabby", "cat", "tulip", "car", "Samoyed"]
    scores = NameScores(torch.arange(7.0, 0, -1), torch.full((7,), 0.1))
    assert parts_of_group(scores, nouns, taken=()) == ("dog", "tabby", "tulip")
    assert parts_of_group(scores, nouns, taken={"dog", "tulip"}) == ("briard", "tabby", "car")
    scores.share[:] = torch.tensor([0.1, 0.01, 0.01, 0, 0, 0, 0])
    assert parts_of_group(scores, nouns, taken=()) == ("dog", "tabby"), "two parts at least, if there are any"
    scores.share[:] = torch.tensor([0.1, 0.001, 0.001, 0, 0, 0, 0])
    assert parts_of_group(scores, nouns, taken=()) == ("dog",), "hardly an image is a tabby"


def test_where_shares_are_not_known_every_group_has_a_noun_as_long_as_there_is_one():
    scores = NameScores(torch.tensor([[3.0, 2, 1], [-3, -2, -1]]), torch.ones(2, 3))
    assert texts(cluster_names(scores, ["Hund", "Katze", "Baum"])) == ["Hund", "Baum"]


def test_of_synonyms_the_commonest_alone_is_a_name():
    nouns = ["artefact", "artifact", "Artifact", "dog", "blue jay", "not in WordNet", "nor this"]
    assert sorted(rarer_synonyms(nouns, torch.tensor([1, 3, 2, 9, 2, 0, 0]))) == [0, 2]
    # Two groups of artifacts: the second is not called by another word for the same.
    toy = bank("noun", nouns[:5], torch.eye(5).tolist())
    mass = torch.tensor([[0.5, 0.5, 0], [0.4, 0.5, 0.1]])
    selected = SelectedTexts(["artefact", "artifact", "dog"], torch.eye(5)[[0, 1, 3]], torch.zeros(3))
    scores = name_scores(torch.eye(5)[:2], toy, None, mass, selected)
    assert scores.share[:, [0, 2]].eq(0).all()
    assert scores.share[:, 1].gt(0.8).all()


def test_two_mixed_groups_have_different_names():
    scores = NameScores(torch.tensor([[4.0, 3, 2, 1, 0, -1]] * 2), torch.full((2, 6), 0.1))
    names = cluster_names(scores, ["dog", "cat", "car", "tulip", "house", "ship"])
    assert texts(names) == ["mixed: dog, cat, car", "mixed: tulip, house, ship"]


NOUNS = ["dog", "cat", "car", "tulip", "house"]


def test_a_tree_with_nothing_above_its_clusters_has_names():
    tree = Hierarchy(2, 2, (0,), (2, 3, 1), torch.zeros(3, 4), torch.zeros(4, 2))
    scores = NameScores(torch.eye(4, 5), torch.full((4, 5), HOLDS))
    assert tree_names(tree, scores, NOUNS, [2, 1, 1, 1]) == NOUNS[:4]


def test_a_group_above_clusters_is_called_after_the_whole_names_of_them():
    tree = Hierarchy(2, 1, (0,), (1, 2), torch.zeros(2, 4), torch.zeros(4, 2))
    share = torch.tensor([[HOLDS, HOLDS], [HOLDS, HOLDS], [0, 0]])
    names = tree_names(
        tree, NameScores(torch.tensor([[2.0, 1], [1, 2], [0, 0]]), share), ["Rome, Italy", "dog"], [2, 1, 3]
    )
    assert names[2] == "mixed: Rome, Italy, dog"


def test_a_group_above_is_called_after_what_holds_in_all_its_clusters():
    tree = Hierarchy(3, 1, (0, 1), (3, 4, 2), torch.zeros(3, 4), torch.zeros(4, 2))
    nouns = ["kitten", "puppy", "house", "pet", "mammal"]
    kittens, puppies, houses = [0.5, 0, 0, 0.5, 0.5], [0, 0.5, 0, 0.5, 0.5], [0, 0, 0.5, 0, 0]
    share = torch.tensor([kittens, puppies, houses, [0.2, 0.2, 0.2, 0.4, 0.4], [0.3, 0.3, 0, 0.5, 0.5]])
    score = torch.where(share > 0, torch.tensor([1.0, 1, 1, 0.9, 0.8]), 0)
    names = tree_names(tree, NameScores(score, share), nouns, [1, 1, 1, 3, 2])
    assert names == ["kitten", "puppy", "house", "mixed: kitten, puppy, house", "pet"]


def test_parts_of_a_mixed_group_are_called_after_the_whole_of_its_first_noun():
    tree = Hierarchy(2, 2, (0,), (2, 3, 1), torch.zeros(3, 4), torch.zeros(4, 2))
    share = torch.tensor([[0.1, 0.1, 0], [0, 0, HOLDS], [0, 0, 0], [0, 0, 0]])
    names = tree_names(
        tree,
        NameScores(torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 0, 0], [0, 0, 0]]), share),
        ["Rome, Italy", "dog", "car"],
        [2, 1, 1, 1],
    )
    assert names == ["mixed: Rome, Italy, dog", "car", "mixed: Rome, Italy, … 1", "mixed: Rome, Italy, … 2"]


def test_of_nouns_alike_the_common_one_is_the_name_and_what_all_clusters_share_is_none():
    nouns = bank("noun", ["barnacle goose", "bird", "thing", "car"], [[0.9, 0.1], [0.88, 0.12], [0.7, 0.7], [0, 1.0]])
    captions = bank("caption", ["a bird sings", "two birds fly", "some thing", "one more thing"], [[1.0, 0.0]] * 4)
    score = name_scores(torch.tensor([[1.0, 0.2], [0.2, 1.0]]), nouns, captions).score
    assert score.argmax(dim=1).tolist() == [1, 3]
    without = name_scores(torch.tensor([[1.0, 0.2], [0.2, 1.0]]), nouns, bank("caption", ["x"], [[1.0, 0.0]])).score
    assert without.argmax(dim=1).tolist() == [0, 3]


BREEDS = ["briard", "Samoyed", "keeshond"]


@pytest.fixture
def breeds():
    """Nouns at one place, so that only kinds tell them apart, and the selected ones among them."""
    nouns = ["briard", "Samoyed", "keeshond", "dog", "tabby", "cat", "frobnicator"]
    return bank("noun", nouns, [[1.0, 0.0]] * 7), SelectedTexts([*BREEDS, "tabby"], torch.eye(4), torch.zeros(4))


def test_a_group_of_many_breeds_has_the_name_of_the_kind_and_one_of_a_breed_its_own(breeds):
    nouns, selected = breeds
    many = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0, 1.0]])
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], *[[0.0, 0.0, 0.0, 1.0]] * 3])
    for mass, best in ((many, ["dog"]), (one, ["briard", "dog"])):
        nothing_common = bank("caption", ["x"], [[1.0, 0.0]])
        scores = name_scores(torch.zeros(len(mass), 2), nouns, nothing_common, mass, selected).score
        assert [nouns.texts[j] for j in scores.argmax(dim=1)[: len(best)]] == best


def test_kinds_are_summed_and_words_outside_of_the_taxonomy_have_none(breeds):
    nouns, selected = breeds
    mass = torch.tensor([[0.2, 0.3, 0.4, 0.1], [0.0, 0.0, 0.0, 1.0]])
    found, share = kind_typicality(mass, selected, nouns)
    dogs, half = torch.tensor([0.9, 0.0]), torch.tensor([0.45, 0.45])
    torch.testing.assert_close(found[:, 3], torch.special.xlogy(dogs, dogs / half))
    torch.testing.assert_close(share[:, [0, 3]], torch.tensor([[0.2, 0.9], [0.0, 0.0]]))
    assert not found[:, 6].any() and not share[:, 6].any()
    unknown = bank("noun", ["x1", "x2"], [[1.0, 0.0]] * 2)
    assert not torch.cat(kind_typicality(mass, selected, unknown)).any()


def test_what_the_average_group_has_as_much_of_holds_for_none(breeds):
    nouns, selected = breeds
    mass = torch.tensor([[0.3, 0.1, 0.0, 0.6], [0.1, 0.3, 0.0, 0.6]])
    share = kind_typicality(mass, selected, nouns)[1]
    torch.testing.assert_close(share[:, :4], torch.tensor([[0.3, 0, 0, 0], [0, 0.3, 0, 0]]))
    none = torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2)
    share = kind_typicality(torch.cat([mass, none]), selected, nouns, n=4)[1]
    torch.testing.assert_close(share[:, 3], torch.tensor([0.4, 0.4, 0, 0]))


def test_what_most_of_a_group_is_holds_even_if_all_groups_are(breeds):
    nouns, selected = breeds
    mass = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.3, 0.3, 0.3, 0.1]])
    share = kind_typicality(mass, selected, nouns)[1]
    torch.testing.assert_close(share[:, 3], torch.tensor([1.0, 0.9]))


def test_a_selected_noun_that_the_taxonomy_does_not_know_holds_by_its_own_mass():
    nouns = bank("noun", ["dog", "frobnicator"], [[1.0, 0.0]] * 2)
    selected = SelectedTexts(["frobnicator", "briard"], torch.eye(2), torch.zeros(2))
    mass = torch.tensor([[0.75, 0.25], [0.0, 0.0]])
    torch.testing.assert_close(kind_typicality(mass, selected, nouns)[1], torch.tensor([[0.25, 0.75], [0.0, 0.0]]))
    unknown = SelectedTexts(["frobnicator", "Hund"], torch.eye(2), torch.zeros(2))
    assert kind_typicality(mass, unknown, nouns)[1].eq(1).all(), "nothing is known of kinds in another language"


def test_an_empty_cluster_takes_no_name_from_the_others():
    nouns = bank("noun", ["bird", "car"], [[1.0, 0.0], [0.0, 1.0]])
    scores = name_scores(torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, torch.nan]]), nouns, None)
    assert texts(cluster_names(scores, nouns.texts)) == ["bird", "car", "cluster 2"]


def test_where_there_is_nothing_to_count_in_the_glosses_of_imagenet_say_what_is_common():
    nouns = bank("noun", ["dog", "Dog (animal)", "komondor", "frobnicator"], [[1.0, 0.0]] * 4)
    dog, explained, komondor, unknown = commonness(nouns, None).tolist()
    assert dog == explained > 100 > komondor >= unknown == 0


def test_a_noun_is_counted_once_a_text_as_a_word_of_its_own():
    nouns = bank(
        "noun",
        ["bird", "Street Sign", "a", "art"],
        [[1.0, 0.0]] * 4,
        [("a bird, a bird",), ("street signs",), (), ("party",)],
    )
    assert commonness(nouns, None).tolist() == [1, 1, 0, 0]
    assert commonness(nouns, bank("caption", ["A street sign.", "birds"], [[1.0, 0.0]] * 2)).tolist() == [1, 1, 0, 0]


def test_the_choice_among_many_nouns_is_the_best_one():
    score = torch.randn(CANDIDATES // 2, 40 * CANDIDATES, generator=torch.Generator().manual_seed(0))
    _, nouns = linear_sum_assignment(score.numpy(), maximize=True)
    assert choose(score).tolist() == nouns.tolist()


@pytest.mark.parametrize(("image", "sense"), [([1.0, 0.0], "a bird"), ([0.0, 1.0], "a machine")])
def test_images_choose_the_sense_of_an_ambiguous_name(image, sense):
    nouns = bank("noun", ["crane"], [[1.0, 0.0]], [("a bird", "a machine")])
    captions = bank("caption", ["a bird", "a machine"], [[1.0, 0.0], [0.0, 1.0]])
    assert fitting_glosses(["crane"], torch.tensor([image]), nouns, captions) == [sense]


def test_a_sense_that_other_images_show_is_no_definition():
    nouns = bank("noun", ["bark", "coast"], [[1.0, 0.0], [0.0, 1.0]], [("a sailing ship",), ("the shore of a sea",)])
    captions = bank("caption", ["a sailing ship", "the shore of a sea"], [[0.1, 0.9], [0.0, 1.0]])
    images = torch.tensor([[1.0, 0.1], [0.1, 1.0]])  # forests and coasts
    assert fitting_glosses(["bark", "coast"], images, nouns, captions) == ["", "the shore of a sea"]


def test_without_embedded_glosses_the_first_sense_is_taken():
    nouns = bank("noun", ["crane"], [[1.0, 0.0]], [("a bird", "a machine")])
    images = torch.tensor([[0.0, 1.0]] * 2)
    assert fitting_glosses(["crane", "cluster 1"], images, nouns, None) == ["a bird", ""]
    assert fitting_glosses(["crane"], images[:1], bank("noun", ["crane"], [[1.0, 0.0]]), None) == [""]


@pytest.mark.parametrize(("n_nouns", "named_by_nouns"), [(200, True), (7, False)])
def test_every_group_of_a_tree_has_a_name_of_its_own(tree_folder, n_nouns, named_by_nouns):
    fitted = SavedResult.load(tree_folder).fitted
    x, tree = SavedResult.load(tree_folder).embeddings.float(), fitted.hierarchy
    nouns = [f"noun {i}" for i in range(n_nouns)]
    rows = torch.nn.functional.normalize(torch.randn(n_nouns, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    banks = {kind: bank(kind, nouns, rows.tolist()) for kind in ("noun", "caption")}
    leaf = predict(x, fitted).leaf
    clusters, nodes = describe_tree(x, leaf, tree, banks, fitted.config)
    selected = texts_of_groups(*cluster_sums(x, leaf, len(tree.leaves)), banks, fitted.config)
    alone = describe_clusters(x, predict(x, fitted).cluster, selected, banks, fitted.config)
    assert clusters == alone  # the tree changes nothing
    assert len({node.name for node in nodes}) == tree.n_nodes
    assert [node.id for node in nodes] == list(range(tree.n_nodes))
    assert (set(nouns) >= {node.name for node in nodes}) == named_by_nouns
    for i, node in enumerate(tree.nodes(6)):
        assert nodes[node].name == clusters[i].name


def test_groups_whose_images_cancel_out_select_texts():
    banks = {"noun": bank("noun", ["up", "down"], [[0, 1], [0, -1]])}
    config = CAEConfig(n_clusters=2, modalities=("noun",))
    found = texts_of_groups(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([2, 0, 4]), banks, config)["noun"]
    assert found.texts == ["up", "down"]
    assert found.g.isfinite().all()


def test_kinds_of_names_are_found_in_any_sense_and_the_names_themselves_are_not():
    names, nouns = ["device", "Dog"], ["computer", "artifact", "device", "not in WordNet", "dog", "briard", "animal"]
    kinds, wider = (
        {(names[name], nouns[noun]) for name, noun in zip(*pairs.nonzero(), strict=True)}
        for pairs in kinds_of_names(names, nouns)
    )
    # A dog is also an andiron, and that a device.
    assert kinds == {("device", "computer"), ("device", "dog"), ("Dog", "briard")}
    assert wider == {("device", "artifact"), ("Dog", "artifact"), ("Dog", "device"), ("Dog", "animal")}


def test_a_part_is_not_called_after_a_kind_of_the_whole():
    tree = Hierarchy(2, 2, (0,), (2, 3, 1), torch.zeros(3, 4), torch.zeros(4, 2))
    score = torch.tensor([[9.0, 1, 0, 0], [0, 0, 9, 0], [0, 5, 0, 3], [0, 4, 0, 5]])  # dog, car, and two parts of dog
    scores = NameScores(score, torch.full((4, 4), HOLDS))
    assert tree_names(tree, scores, ["dog", "animal", "car", "briard"], [2, 1, 1, 1]) == [
        "dog",
        "car",
        "dog 1",
        "briard",
    ]


def test_no_group_is_called_after_a_kind_of_what_is_inside(tree_folder):
    fitted = SavedResult.load(tree_folder).fitted
    x, tree = SavedResult.load(tree_folder).embeddings.float(), fitted.hierarchy
    leaf = predict(x, fitted).leaf
    clusters = tree.nodes(6)
    (coarse,) = set(tree.nodes(5)) - set(clusters)
    groups = [[k for k, node in enumerate(clusters) if step in tree.path(node)] for step in (*clusters, coarse, coarse)]
    label = tree.cluster_of_leaf(6)[leaf]
    rows = torch.stack([x[torch.isin(label, torch.tensor(group))].mean(dim=0) for group in groups])
    rows = torch.nn.functional.normalize(rows - torch.stack([x[label == k].mean(dim=0) for k in range(6)]).mean(dim=0))
    rows[-1] *= 0.9
    nouns = [f"noun {k}" for k in range(6)] + ["computer", "second best"]
    nouns[groups[-1][0]] = "device"
    left = [f"left {i}" for i in range(tree.n_nodes)]  # for all other groups of the tree
    vectors = [*rows.tolist(), *(-rows[-1:]).tolist() * len(left)]
    banks = {kind: bank(kind, [*nouns, *left], vectors) for kind in ("noun", "caption")}
    named, nodes = describe_tree(x, leaf, tree, banks, fitted.config)
    assert [cluster.name for cluster in named] == nouns[:6]
    assert nodes[coarse].name == "second best"
