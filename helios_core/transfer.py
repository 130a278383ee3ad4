"""Bringing tensors to the device that shall work on them."""

from __future__ import annotations

from functools import lru_cache

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device`, without making the host wait.

    A copy from the host's ordinary memory to a GPU makes the host wait for all that the GPU has yet to do; one from
    pinned memory is queued like any other work.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64, on its own device, or on the CPU when that device has no float64 (MPS, some Intel cards)."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


@lru_cache
def has_float64(device: torch.device) -> bool:
    """Whether `device` computes in float64."""
    try:
        torch.ones(1, device=device).double().add(1)
    except (RuntimeError, TypeError):  # what torch raises differs from device to device
        return False
    return True
