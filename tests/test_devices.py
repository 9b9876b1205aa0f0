"""Devices by name: what `auto` takes, and what cannot be used."""

import pytest
import torch

from cae.utils.devices import find_device, float64_device


def test_a_device_that_is_not_there_is_named():
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device 'abacus' cannot be used here .*; try device='cpu' \(--device cpu\)"):
        find_device("abacus")


@pytest.mark.parametrize(("accelerator", "found"), [("cuda", "cuda"), ("mps", "cpu"), (None, "cpu")])
def test_auto_takes_no_accelerator_without_float64(monkeypatch, accelerator, found):
    device = accelerator and torch.device(accelerator)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: device is not None)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: device)
    assert find_device("auto") == torch.device(found)


def test_a_device_without_float64_is_refused(monkeypatch):
    def empty(*_, dtype=torch.float32, **__):
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")  # as on Apple's GPUs

    monkeypatch.setattr("torch.empty", empty)
    with pytest.raises(ValueError, match="float64 dtype"):
        find_device("cpu")


def test_a_device_without_float64_leaves_the_method_to_the_cpu():
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
