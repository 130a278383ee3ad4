"""LoRAs over time: their strengths change from chunk to chunk, so their products are added beside the layers' own.

    layer(x) + strength * (alpha / rank) * up(down(x))

The weights stay as they are: nothing is loaded again for another strength, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class LoraPair(NamedTuple):
    """What a LoRA adds to one layer: `down` (rank, inputs), and `up` (outputs, rank) with alpha / rank in it."""

    down: torch.Tensor
    up: torch.Tensor


class LoraStrength(NamedTuple):
    """A LoRA in a chunk's plan: the name it is known by, what it was read from, and how strongly it acts."""

    name: str
    identity: str
    strength: float


@dataclass(frozen=True)
class Lora:
    """A LoRA as it was read: `pairs` by diffusers' names of the layers, and the `identity` of its file."""

    name: str
    identity: str
    pairs: Mapping[str, LoraPair]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for pair in self.pairs.values() for tensor in pair)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless every pair has a linear layer of its sizes in the model."""
        layers = dict(model.named_modules())
        for name, pair in self.pairs.items():
            layer = layers.get(name)
            sizes = pair.up.shape[0], pair.down.shape[1]
            own = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
            if own != sizes:
                raise ValueError(
                    f"the LoRA {self.name!r} does not fit: for {name} it has {sizes[0]} outputs and {sizes[1]} inputs, "
                    f"and {_own_words(layer, own)}"
                )


def _own_words(layer: nn.Module | None, sizes: tuple[int | None, int | None]) -> str:
    if layer is None:
        return "this Helios has no such layer: it is for another model"
    if None in sizes:
        return "that layer is not linear: it can only be put on the whole video, with a LoRA loader"
    return f"the layer has {sizes[0]} and {sizes[1]}: it is for another model"


class LorasOverTime:
    """Sets the strengths of LoRAs on a model inside `with loras.beside(model):`."""

    def __init__(self, loras: Iterable[Lora]) -> None:
        self.loras = {lora.name: lora for lora in loras}
        self._strengths: dict[str, float] = {}
        self._on_device: dict[tuple[str, str], LoraPair] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that the LoRAs take on the device when all are in use."""
        return sum(lora.nbytes for lora in self.loras.values())

    def check(self, model: nn.Module) -> None:
        """Raise ValueError for a LoRA that does not fit the model."""
        for lora in self.loras.values():
            lora.check(model)

    def set_strengths(self, strengths: Iterable[LoraStrength]) -> None:
        """Those of the next chunk; LoRAs that are not named have none."""
        self._strengths = {planned.name: planned.strength for planned in strengths if planned.strength}
        for name in {name for name, _ in self._on_device} - set(self._strengths):
            self._on_device = {key: pair for key, pair in self._on_device.items() if key[0] != name}

    @contextmanager
    def beside(self, model: nn.Module) -> Iterator[None]:
        """Have the model's layers add what the LoRAs give; at the end the model is as it was.

        Raises ValueError for a LoRA that does not fit the model.
        """
        self.check(model)
        by_layer: dict[str, list[Lora]] = {}
        for lora in self.loras.values():
            for layer in lora.pairs:
                by_layer.setdefault(layer, []).append(lora)
        handles = [
            model.get_submodule(layer).register_forward_hook(self._adding(layer, loras))
            for layer, loras in by_layer.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._strengths, self._on_device = {}, {}

    def _adding(self, layer: str, loras: list[Lora]) -> Callable:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x = inputs[0]
            for lora in loras:
                strength = self._strengths.get(lora.name)
                if strength:
                    pair = self._pair(lora, layer, x)
                    output = output + strength * F.linear(F.linear(x, pair.down), pair.up)
            return output

        return add

    def _pair(self, lora: Lora, layer: str, x: torch.Tensor) -> LoraPair:
        key = lora.name, layer
        held = self._on_device.get(key)
        if held is None or held.down.device != x.device or held.down.dtype != x.dtype:
            held = LoraPair(*(tensor.to(x.device, x.dtype) for tensor in lora.pairs[layer]))
            self._on_device[key] = held
        return held
