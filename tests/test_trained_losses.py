"""The losses against float64 formulas written a second time, finite differences, and what may not change them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from cae.models.trained import losses
from cae.models.trained.heads import Adapter, cluster_head
from cae.models.trained.mca import pseudo_label_loss, text_prototypes

B, K, M, T = 12, 4, 7, 0.5


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def predictions(generator):
    """p, q and the neighbours' p', q' as they come out of a softmax, (B, K) float64."""
    return [(2 * torch.randn(B, K, generator=generator, dtype=torch.float64)).softmax(dim=1) for _ in range(4)]


def distillation(p, q, temperature):
    """By loops over the 2K columns."""
    columns = [p[:, k] for k in range(K)] + [q[:, k] for k in range(K)]
    columns = [column / np.sqrt((column**2).sum()) for column in columns]
    total = 0.0
    for a in range(2 * K):
        partner = a + K if a < K else a - K
        others = [np.exp(columns[a] @ columns[b] / temperature) for b in range(2 * K) if b != a]
        total -= np.log(np.exp(columns[a] @ columns[partner] / temperature) / sum(others))
    return total / (2 * K)


def entropy(p):
    mean = p.mean(axis=0)
    return -(mean * np.log(mean)).sum()


def consistency(p, q):
    return -np.mean([np.log(p[i] @ q[i]) for i in range(len(p))])


def test_terms_equal_the_formulas(predictions):
    p, q = predictions[:2]
    for temperature in (0.1, T, 5.0):
        expected = distillation(p.numpy(), q.numpy(), temperature)
        assert float(losses.distillation(p, q, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.consistency(p, q)) == pytest.approx(consistency(p.numpy(), q.numpy()), rel=1e-12)
    assert float(losses.balance(p)) == pytest.approx(entropy(p.numpy()), rel=1e-12)


def test_mutual_distillation_puts_the_terms_together(predictions):
    p, q, p_neighbour, q_neighbour = (each.numpy() for each in predictions)
    found = losses.mutual_distillation(*predictions, temperature=T, balance_weight=5.0)
    expected = distillation(p, q_neighbour, T) + distillation(q, p_neighbour, T) + consistency(p, q)
    assert float(found["loss"]) == pytest.approx(expected - 5 * (entropy(p) + entropy(q)), rel=1e-12)


def test_alignments_equal_the_formulas(generator):
    logits = torch.randn(B, M, generator=generator, dtype=torch.float64)
    best = torch.stack([torch.randperm(M, generator=generator)[:3] for _ in range(B)])
    target = torch.randn(B, M, generator=generator, dtype=torch.float64).softmax(dim=1)
    q = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    instance = -np.mean([np.log(q[i, best[i]].sum()) for i in range(B)])
    assert float(losses.instance_alignment(logits, best)) == pytest.approx(instance, rel=1e-12)
    semantic = -(target.numpy() * np.log(q)).sum(axis=1).mean()
    assert float(losses.semantic_alignment(logits, target)) == pytest.approx(semantic, rel=1e-12)


def test_pseudo_labels_count_where_the_guess_is_surest():
    guess = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    p = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    assert float(pseudo_label_loss(p, guess)) == pytest.approx(-(np.log(0.7) + np.log(0.4)) / 2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, q: losses.distillation(p, q, T),
        losses.consistency,
        lambda p, q: losses.balance(p) + losses.balance(q),
        lambda p, q: losses.mutual_distillation(p, q, q.flip(0), p.flip(0), temperature=T, balance_weight=5.0)["loss"],
        lambda p, q: losses.instance_alignment(p, torch.arange(B)[:, None] % K),
        lambda p, q: losses.semantic_alignment(p, q),
        lambda p, q: pseudo_label_loss(p, q.detach()),
    ],
    ids=["distillation", "consistency", "balance", "mutual", "instance", "semantic", "pseudo_label"],
)
def test_gradients_are_those_of_finite_differences(loss, predictions):
    p, q = (each.clone().requires_grad_() for each in predictions[:2])
    assert torch.autograd.gradcheck(lambda p: loss(p, q), (p,))


def test_semantic_targets_get_no_gradient(predictions):
    logits, target = (each.clone().requires_grad_() for each in predictions[:2])
    losses.semantic_alignment(logits, target).backward()
    assert target.grad is None


@pytest.mark.parametrize("axis", [0, 1], ids=["images", "clusters"])
def test_order_of_images_and_of_clusters_is_of_no_account(predictions, axis, generator):
    order = torch.randperm(predictions[0].shape[axis], generator=generator)
    shuffled = [each.index_select(axis, order) for each in predictions]
    options = {"temperature": T, "balance_weight": 5.0}
    expected = losses.mutual_distillation(*predictions, **options)["loss"]
    torch.testing.assert_close(losses.mutual_distillation(*shuffled, **options)["loss"], expected)


def test_heads_that_call_clusters_by_other_numbers_pay_for_it(predictions):
    p = predictions[0]
    assert losses.distillation(p, p, T) < losses.distillation(p, p.roll(1, dims=1), T)
    assert losses.consistency(p, p) < losses.consistency(p, p.roll(1, dims=1))


def test_certain_predictions_give_finite_losses_and_gradients():
    p = one_hot(torch.arange(B) % 2, K).float().requires_grad_()  # two clusters empty
    q = one_hot(torch.arange(B) % 3, K).float().requires_grad_()
    loss = losses.mutual_distillation(p, q, p.flip(0), q.flip(0), temperature=T, balance_weight=5.0)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()
    assert float(losses.balance(p.detach())) == pytest.approx(np.log(2), rel=1e-6)


def test_heads_are_seeded_and_adapters_start_as_the_identity(generator):
    x = torch.nn.functional.normalize(torch.randn(B, 8, generator=generator), dim=1)
    first, again, other = (cluster_head(8, K, seed) for seed in (0, 0, 1))
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    torch.testing.assert_close(first(x).sum(dim=1), torch.ones(B))
    assert float(first[0].weight.detach().abs().max()) < 0.1
    torch.testing.assert_close(Adapter(8)(x), x)


def test_text_prototypes_are_the_mass_weighted_means():
    u = torch.eye(3)
    found = text_prototypes(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 2.0]]), u)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5, 0.0], [0.0, 0.0, 1.0]]))
