"""Learn features and prototypes from unlabelled images, as SwAV does, with the gradients of the kernels.

    python docs/examples/prototypes.py FOLDER        # a sub-folder of images per class, such as CIFAR-10's

Each image is seen in two views. Transport with equal shares assigns each view of a batch softly to all prototypes, so
that none is left out, and the other view has to predict that assignment (Caron et al. 2020). SwAV stops the gradient at
the assignments; here it goes on through them, since the potentials of `cosine_sinkhorn` have one.

The classes serve only to say in the end how many of a test image's nearest neighbours are of its class.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cae.kernels import cosine_sinkhorn, counterparts, nearest

EPSILON, TEMPERATURE = 0.05, 0.1
VIEW = v2.Compose(
    [
        v2.RandomResizedCrop(32, scale=(0.3, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4),
    ]
)


class Model(nn.Module):
    """A small convolutional network with unit features, and unit prototypes."""

    def __init__(self, n_prototypes: int = 50, width: int = 64) -> None:
        super().__init__()
        channels = (3, width // 2, width, 2 * width)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(channels)
        ]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * width, width)
        self.directions = nn.Parameter(torch.randn(n_prototypes, width))

    def forward(self, images: Tensor) -> Tensor:
        """(N, width) unit features of (N, 3, 32, 32) images."""
        return normalize(self.head(self.trunk(images)), dim=1)

    @property
    def prototypes(self) -> Tensor:
        """(n_prototypes, width) with unit rows."""
        return normalize(self.directions, dim=1)


def swapped_loss(z: Tensor, z_other: Tensor, prototypes: Tensor) -> Tensor:
    """Each view predicts the other's assignment: the mean cross-entropy of both.

    Args:
        z: (N, D) unit features of one view.
        z_other: (N, D) of the other.
        prototypes: (K, D) with unit rows.
    """
    return (_cross_entropy(z, z_other, prototypes) + _cross_entropy(z_other, z, prototypes)) / 2


def _cross_entropy(z: Tensor, z_other: Tensor, prototypes: Tensor) -> Tensor:
    """Of softmax(z_other·c / TEMPERATURE) from the rows q of the transport plan between z and the prototypes c.

    -sum_k q_ik log p_ik = logsumexp_k(z_i·c_k / T) - z_i·(sum_k q_ik c_k) / T: what q is needed for is a counterpart.
    """
    plan = cosine_sinkhorn(z, prototypes, epsilon=EPSILON)
    assigned = counterparts(z, prototypes, plan.g, epsilon=EPSILON, normalize=False, similarity_weight=False)
    log_z = torch.logsumexp(z_other @ prototypes.T / TEMPERATURE, dim=1)
    return (log_z - (z_other * assigned).sum(dim=1) / TEMPERATURE).mean()


def train(images: Tensor, *, steps: int, batch_size: int = 256, seed: int = 0) -> tuple[Model, list[float]]:
    """The model after so many steps, and the loss at each.

    Args:
        images: (N, 3, 32, 32) float32 in [0, 1].
        steps: batches to train on.
        batch_size: images in each.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    model = Model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        z, z_other = (model(torch.stack([VIEW(image) for image in batch])) for _ in range(2))
        loss = swapped_loss(z, z_other, model.prototypes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


@torch.no_grad()
def neighbour_accuracy(model: Model, images: Tensor, labels: Tensor, k: int = 10) -> float:
    """Share of every second image's k nearest neighbours, among the other half, that are of its class."""
    z = torch.cat([model(batch) for batch in images.split(512)])
    found = nearest(z[::2], z[1::2], k=k).labels
    return float((labels[1::2][found] == labels[::2, None]).float().mean())


def main() -> None:
    folder = Path(*sys.argv[1:2])
    if len(sys.argv) != 2 or not folder.is_dir():
        sys.exit(f"no images at {folder}: give a folder with a sub-folder of images per class")
    to_tensor = v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = ImageFolder(folder, to_tensor)
    images, labels = torch.stack([image for image, _ in data]), torch.tensor(data.targets)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    untrained, _ = train(images, steps=0)
    model, losses = train(images, steps=300)
    print(f"loss {sum(losses[:20]) / 20:.3f} in the first 20 steps, {sum(losses[-20:]) / 20:.3f} in the last 20")
    for name, each in (("untrained", untrained), ("trained", model)):
        print(f"{name}: {neighbour_accuracy(each, images, labels):.1%} of neighbours are of the same class")


if __name__ == "__main__":
    main()
