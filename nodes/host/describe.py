"""What a Python object is made of, as plain values: wrappers, overrides and LoRAs that other nodes put on a model.

A function is known by its module, name and code, and by all that it holds: defaults, closure cells, a bound self, the
arguments of a partial. So two overrides of one pack with other settings differ, and one of them is the same in the
next session. What cannot be distinguished this way is described by this process: it equals nothing of another session.
"""

import functools
import inspect
import logging
import re
import types
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import comfy.model_patcher
import comfy.weight_adapter
import numpy as np
import torch
from torch import nn

from ...helios_core.fingerprint import tensor_samples

MAX_DEPTH = 12
MAX_PARTS = 200_000
_PROCESS = uuid.uuid4().hex
# What differs from session to session and never changes a picture.
_NO_CONTENT = (torch.device, uuid.UUID, logging.Logger, type(NotImplemented), type(Ellipsis))
# Modules of nodes are named by their path; where ComfyUI is installed does not matter.
_INSTALLED_AT = re.compile(r".*[\\/](?=(?:custom_nodes|comfy_extras)[\\/])")
_PLAIN = (bool, int, float, str, bytes, Fraction, type(None))


@dataclass
class Description:
    """Describes the objects on one model.

    `modules`: name of each part of the model, by the id of the part: a wrapper that holds the model or a layer of it
    says which, not what is in it. `adapters`: what was said of LoRA weights when they were first seen, since ComfyUI
    casts some of them when they are loaded. `unknown` collects what only this session knows.
    """

    modules: Mapping[int, str] = field(default_factory=dict)
    adapters: WeakKeyDictionary = field(default_factory=WeakKeyDictionary)
    unknown: list[str] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)
    _num_parts: int = 0

    def of(self, value: Any) -> Any:
        """Plain values for `fingerprint`: equal for objects made alike, in every session."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, _NO_CONTENT):
            return type(value).__name__
        if id(value) in self.modules:
            return ["part of the model", self.modules[id(value)]]
        if id(value) in self._path:
            return ["holds itself", len(self._path) - self._path.index(id(value))]
        self._num_parts += 1
        if len(self._path) >= MAX_DEPTH or self._num_parts > MAX_PARTS:
            return self._only_here(value)
        self._path.append(id(value))
        try:
            return self._inside(value)
        finally:
            self._path.pop()

    def _inside(self, value: Any) -> Any:
        """What is in a value that is not plain."""
        for kind in (self._numbers, self._container, self._function):
            described = kind(value)
            if described is not None:
                return described
        return self._object(_name(type(value)), value)

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return ["tensor", *tensor_samples(value.detach())]
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["array", str(value.dtype), list(value.shape), value.tobytes()]
        if isinstance(value, torch.dtype | Path | np.generic | torch.Size | range | slice | complex):
            return [_name(type(value)), str(value)]
        if isinstance(value, Enum):
            return [_name(type(value)), value.name]
        return None

    def _container(self, value: Any) -> Any:
        if isinstance(value, list | tuple | deque):
            return ["row", *map(self.of, value)]
        if isinstance(value, Mapping):
            items = ([self.of(key), self.of(item)] for key, item in value.items())
            return ["mapping", *sorted(items, key=lambda item: repr(item[0]))]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(map(self.of, value), key=repr)]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, ReferenceType):
            return ["reference", self.of(value())]
        return None

    def _function(self, value: Any) -> Any:
        """A function or class, with all that it holds; None for other objects."""
        if isinstance(value, type):
            return ["class", _name(value)]
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if inspect.ismethod(value):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            return ["built-in", value.__qualname__, None if owner is None else self.of(owner)]
        if not inspect.isfunction(value):
            return None
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        defaults = [value.__defaults__, value.__kwdefaults__]
        wrapped = getattr(value, "__wrapped__", None)
        return ["function", _name(value), list(_code(value.__code__)), *map(self.of, [*held, *defaults, wrapped])]

    def _object(self, kind: str, value: Any) -> Any:
        if isinstance(value, comfy.weight_adapter.WeightAdapterBase):
            return self._adapter(kind, value)
        if kind.endswith("weight_adapter.bypass.BypassForwardHook"):
            # Its other attributes show whether it is in place now.
            return ["bypass", *map(self.of, (value.module, value.adapter, value.multiplier))]
        if isinstance(value, comfy.model_patcher.ModelPatcher):
            return ["model", self.of(value.model), self.of(value.patches), self.of(value.object_patches)]
        if isinstance(value, nn.Module):
            return self._module(kind, value)
        held = dict(_attributes(value))
        if not held and not hasattr(value, "__dict__") and type(value) is not object:
            return self._only_here(value)  # a class of C, as a lock or a generator: nothing to be seen in it
        return ["object", kind, self.of(held)]

    def _adapter(self, kind: str, adapter: comfy.weight_adapter.WeightAdapterBase) -> Any:
        if adapter not in self.adapters:
            self.adapters[adapter] = ["adapter", kind, self.of(adapter.weights)]
        return self.adapters[adapter]

    def _module(self, kind: str, module: nn.Module) -> Any:
        compiled = getattr(module, "_orig_mod", None)
        if compiled is not None:
            return self.of(compiled)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        settings = {name: held for name, held in vars(module).items() if not name.startswith("_")}
        children = [[name, self.of(child)] for name, child in module.named_children()]
        return ["module", kind, [[name, self.of(tensor)] for name, tensor in tensors], self.of(settings), children]

    def _only_here(self, value: Any) -> Any:
        self.unknown.append(_name(type(value)))
        return ["only in this session", _PROCESS, _name(type(value)), id(value)]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, name)


def _code(code: types.CodeType) -> Iterator[Any]:
    """What a function does, without where it is written."""
    yield code.co_code
    yield list(code.co_names)
    for constant in code.co_consts:
        yield list(_code(constant)) if isinstance(constant, types.CodeType) else _constant(constant)


def _constant(value: Any) -> str:
    # A set of texts is written in another order in each session.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
    except ValueError:
        return False
    return True


def _name(value: Any) -> str:
    module = _INSTALLED_AT.sub("", str(getattr(value, "__module__", "")))
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
