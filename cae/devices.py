"""Devices by name."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """The device that a name stands for: `auto` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from error
    return device
