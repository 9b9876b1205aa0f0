"""Layers by oneDNN, where it multiplies at twice the speed of MKL (`cae.kernels.exact.onednn_is_faster`).

The activation is part of the layer, done while its input is still in the processor's cache. torch keeps these operators
for what it compiles (`torch.compile`).

Factors in bfloat16 would take 39% less time than float32 for the texts of the lite encoder, with cosines of over 0.9999
to these. But names depend on near ties: 2 of the 24 groups of demo, scenes and drawings get another, so float32 it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cae.kernels.exact import onednn_is_faster


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear`, then GELU if asked for; without a gradient.

    Args:
        x: (…, D).
        weight: (E, D).
        bias: (E,).
        gelu: whether GELU follows.

    Returns:
        (…, E).

    Examples:
        >>> with torch.inference_mode():
        ...     linear(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1))
        tensor([[4.],
                [4.]])
    """
    if _gains(x):
        return _OPERATORS._linear_pointwise(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))
    out = functional.linear(x, weight, bias)
    return functional.gelu(out) if gelu else out


def convolution(x: Tensor, layer: nn.Conv2d, *, relu6: bool = False) -> Tensor:
    """A convolution that pads with zeros, then ReLU6 if asked for; without a gradient.

    Args:
        x: (B, C, H, W).
        layer: the convolution.
        relu6: whether ReLU6 follows.

    Returns:
        (B, C', H', W').

    Examples:
        >>> with torch.inference_mode():
        ...     convolution(torch.ones(1, 3, 8, 8), nn.Conv2d(3, 5, 3, stride=2), relu6=True).shape
        torch.Size([1, 5, 3, 3])
    """
    if _gains(x):
        geometry = layer.padding, layer.stride, layer.dilation, layer.groups
        after = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        return _OPERATORS._convolution_pointwise(x, layer.weight, layer.bias, *geometry, *after)
    out = functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.relu6(out, inplace=True) if relu6 else out


_OPERATORS = torch.ops.mkldnn


def _gains(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and _able()


def _able() -> bool:
    there = all(hasattr(_OPERATORS, name) for name in ("_linear_pointwise", "_convolution_pointwise"))
    return there and onednn_is_faster()
