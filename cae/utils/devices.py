"""Devices by name. The method sums in float64, which Apple's GPUs lack."""

from __future__ import annotations

import torch


def float64_device(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one without float64 (Apple's GPUs)."""
    return torch.device("cpu") if device.type == "mps" else device


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is the accelerator if there is one with float64, else the CPU.

    Raises:
        ValueError: no such device here, or one without float64.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else float64_device(accelerator)
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try device='cpu' (--device cpu)") from error
    return device
