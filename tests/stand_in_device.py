"""A stand-in for a device without float64 and 3-D pooling, such as an older MPS: its tensors hold a CPU tensor and say
that they are on "lazy", a device that torch knows and never computes on."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")
MISSING = (torch.ops.aten.avg_pool3d.default,)


class DeviceTensor(torch.Tensor):
    """A tensor on the stand-in: `held` is where its numbers are."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        if held.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


class StandInDevice(TorchDispatchMode):
    """While it is on, `torch.ones(1, device=DEVICE)` and the like give tensors of the stand-in too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def call(func, args, kwargs):
    """Do on the CPU what is asked of the stand-in. What is computed from its tensors stays there unless it is asked
    to go elsewhere."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    target = kwargs.get("device", DEVICE if any(isinstance(value, DeviceTensor) for value in given) else None)
    on_stand_in = target is not None and torch.device(target) == DEVICE
    others = [value for value in given if not isinstance(value, DeviceTensor) and value.ndim]
    if on_stand_in and others and "device" not in kwargs:
        raise RuntimeError("tensors of two devices meet")
    if on_stand_in and func in MISSING:
        raise NotImplementedError(f"this device has no {func}")
    kwargs = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs
    args, kwargs = tree_map(lambda value: value.held if isinstance(value, DeviceTensor) else value, (args, kwargs))
    result = func(*args, **kwargs)
    if not on_stand_in:
        return result
    return tree_map(lambda value: DeviceTensor(value) if isinstance(value, torch.Tensor) else value, result)


def to_stand_in(tensor: torch.Tensor) -> DeviceTensor:
    return DeviceTensor(tensor)
