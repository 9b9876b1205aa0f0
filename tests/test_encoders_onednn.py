"""Layers by oneDNN: as exact as torch's, with their activation, and only where they gain."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from cae.encoders import onednn
from cae.encoders.onednn import convolution, linear


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"])
def operators(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(onednn, "_able", lambda: request.param)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("bias", [None, draw(200)])
@pytest.mark.parametrize("gelu", [False, True])
@torch.inference_mode()
def test_linear_layers_are_those_of_float32(operators, bias, gelu):
    x, weight = draw(7, 43, 384), draw(200, 384) / 20
    expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = functional.gelu(expected) if gelu else expected
    torch.testing.assert_close(linear(x, weight, bias, gelu=gelu).double(), expected, atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_linear_layers_take_a_transposed_weight(operators):
    x, weight = draw(70, 384), draw(384, 200) / 20
    torch.testing.assert_close(linear(x, weight.T), x @ weight, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize("groups", [1, 8])
@torch.inference_mode()
def test_convolutions_are_those_of_float32(operators, relu6, groups):
    layer = nn.Conv2d(16, 24, 3, stride=2, padding=(1, 0), groups=groups)
    x = 4 * draw(2, 16, 21, 20).contiguous(memory_format=torch.channels_last)
    found, expected = convolution(x, layer, relu6=relu6).double(), layer.double()(x.double())
    torch.testing.assert_close(found, expected.clamp(0, 6) if relu6 else expected, atol=2e-6, rtol=1e-5)


def test_torch_does_the_layers_if_it_lacks_the_operators(monkeypatch):
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(onednn, "_OPERATORS", SimpleNamespace())
    assert linear(torch.ones(2, 3), torch.ones(1, 3)).tolist() == [[3], [3]]
