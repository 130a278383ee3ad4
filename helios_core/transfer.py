"""Bringing tensors to the device without making the host wait."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device`.

    A copy from the host's ordinary memory to a GPU makes the host wait for all that the GPU has yet to do; one from
    pinned memory is queued like any other work.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
