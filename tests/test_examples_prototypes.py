"""docs/examples/prototypes.py: its loss is SwAV's, and it learns."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import unit

CIFAR10 = Path(__file__).parents[1] / "../shared/data/cifar10_test"
EXAMPLE = Path(__file__).parents[1] / "docs/examples/prototypes.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("prototypes", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_is_the_swapped_cross_entropy(example, monkeypatch):
    """Against an (N, K) plan in float64 that autograd follows through the iterations."""
    solver = example.cosine_sinkhorn
    monkeypatch.setattr(example, "cosine_sinkhorn", lambda *args, **options: solver(*args, **options, tol=1e-6))
    inputs = [unit(40, 16, seed=1), unit(40, 16, seed=2), unit(7, 16, seed=3)]

    def dense(z, z_other, prototypes):
        def half(z, z_other):
            scores = z @ prototypes.T / example.EPSILON
            log_v = torch.zeros(7, dtype=z.dtype)
            for _ in range(2000):
                log_v = -torch.logsumexp(scores - torch.logsumexp(scores + log_v, dim=1, keepdim=True), dim=0)
            q = torch.softmax(scores + log_v, dim=1)
            return -(q * torch.log_softmax(z_other @ prototypes.T / example.TEMPERATURE, dim=1)).sum(dim=1).mean()

        return (half(z, z_other) + half(z_other, z)) / 2

    results = []
    for loss, kind in ((example.swapped_loss, torch.float32), (dense, torch.float64)):
        leaves = [value.cpu().to(kind).requires_grad_() for value in inputs]
        value = loss(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-3)


def test_it_learns_without_leaving_a_prototype_out(example):
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(8, 3, 1, 1, generator=generator).repeat_interleave(20, 0)
    images = (colours + 0.1 * torch.randn(160, 3, 32, 32, generator=generator)).clamp(0, 1)
    model, losses = example.train(images, steps=12, batch_size=32)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    z = model(images)
    plan = example.cosine_sinkhorn(z.detach(), model.prototypes.detach(), epsilon=example.EPSILON)
    shares = torch.softmax((z @ model.prototypes.T + plan.g) / example.EPSILON, dim=1).mean(dim=0)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / len(shares)), atol=1e-3, rtol=0)
    assert 0 <= example.neighbour_accuracy(model, images, torch.arange(8).repeat_interleave(20)) <= 1


def test_without_images_it_says_what_to_give(example, tmp_path, monkeypatch):
    missing = tmp_path / "nothing"
    monkeypatch.setattr(sys, "argv", ["prototypes.py", str(missing)])
    with pytest.raises(SystemExit, match=f"no images at {missing}: give a folder"):
        example.main()


@pytest.mark.slow
def test_on_cifar10(example, capsys, monkeypatch):
    if not CIFAR10.is_dir():
        pytest.skip(f"CIFAR-10 is not at {CIFAR10}")
    monkeypatch.setattr(sys, "argv", ["prototypes.py", str(CIFAR10)])
    example.main()
    said = capsys.readouterr().out
    first, last = map(float, re.findall(r"\d\.\d{3}", said))
    assert last < first
    before, after = map(float, re.findall(r"([\d.]+)%", said))
    assert after > before
