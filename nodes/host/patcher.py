"""Helios' ModelPatcher: ComfyUI's own, which also patches GGUF weights and takes LoRAs of every naming.

There are two kinds, as in ComfyUI: one that moves weights to the device as a whole or in part, and, for dynamic VRAM
(ComfyUI from 0.16 on), one whose weights stay in their file and are brought when they are used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.model_patcher import LowVramPatch

from .layers import BlockLinear
from .lora import LoraPatches


def is_dynamic(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether ComfyUI brings this model's weights when they are used, and not before."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def takes_dynamic(load_device: torch.device) -> bool:
    """Whether ComfyUI now makes dynamic patchers for the models of that device."""
    dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
    if dynamic is None or comfy.model_management.is_device_cpu(load_device):
        return False
    return issubclass(comfy.model_patcher.CoreModelPatcher, dynamic)  # looked up now: main.py sets it late


def weight_sizes(patcher: comfy.model_patcher.ModelPatcher) -> tuple[int, int]:
    """Bytes of the weights on the device, once all are there, and in host RAM beside the system's page cache."""
    if not is_dynamic(patcher):
        return patcher.model_size(), patcher.model_size()
    on_device = in_ram = 0
    for layer in patcher.model.modules():
        for name, weight in layer.named_parameters(recurse=False):
            stored = getattr(weight, "_qdata", weight)
            dtype = getattr(layer, f"{name}_comfy_model_dtype", None)
            on_device += stored.nbytes if dtype is None else weight.numel() * dtype.itemsize
            in_ram += 0 if hasattr(stored.untyped_storage(), "_comfy_tensor_file_slice") else stored.nbytes
    return on_device, in_ram


class HeliosPatching(LoraPatches):
    """What both kinds do otherwise than ComfyUI's."""

    def state_dict_for_saving(self, *arguments, **options) -> dict:
        """Called by ModelSave. Raises ValueError for weights in GGUF blocks, which a safetensors file cannot hold."""
        if next(self._block_weights(), None) is not None:
            raise ValueError(
                "this Helios is kept in GGUF blocks, which a safetensors file cannot hold. To save it (with its LoRAs) "
                "choose another weight_dtype than 'default' in the Helios Loader, for example bf16"
            )
        return super().state_dict_for_saving(*arguments, **options)

    # Weights in GGUF blocks: ComfyUI would write patched numbers in their place. They are patched when used instead,
    # as ComfyUI does with weights that stay on the CPU.

    def _patch_when_used(self) -> None:
        for key, layer in self._block_weights():
            patch = [LowVramPatch(key, self.patches)] if key in self.patches else []
            layer.number_functions = patch + self.weight_wrapper_patches.get(key, [])
            layer.weight_function = []

    def _block_weights(self) -> Iterator[tuple[str, BlockLinear]]:
        for name, layer in self.model.named_modules():
            if isinstance(layer, BlockLinear):
                yield f"{name}.weight", layer


class HeliosPatcher(HeliosPatching, comfy.model_patcher.ModelPatcher):
    """What the MODEL wire carries where weights are moved to the device beforehand."""

    def patch_weight_to_device(self, key: str, *arguments, **options) -> Any:
        """Called for each weight that is moved to the device, to add the LoRAs to it."""
        layer_name, _, name = key.rpartition(".")
        if name == "weight" and isinstance(comfy.utils.get_attr(self.model, layer_name), BlockLinear):
            return None
        return super().patch_weight_to_device(key, *arguments, **options)

    def load(self, *arguments, **options) -> None:
        """Move weights to the device and patch all."""
        super().load(*arguments, **options)
        self._patch_when_used()

    def partially_unload(self, *arguments, **options) -> int:
        """Move some weights off the device; returns how many bytes."""
        freed = super().partially_unload(*arguments, **options)
        self._patch_when_used()
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights: bool = True) -> None:
        """Restore the weights."""
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, layer in self._block_weights():
                layer.number_functions, layer.weight_function = [], []


if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):

    class HeliosDynamicPatcher(HeliosPatching, comfy.model_patcher.ModelPatcherDynamic):
        """What the MODEL wire carries under dynamic VRAM. Not for a CPU, where ComfyUI has none."""

        def load(self, *arguments, **options) -> None:
            """Make the weights ready to be brought to the device, and their patches."""
            with self._without_patches_of_blocks():
                super().load(*arguments, **options)
            self._patch_when_used()

        def clone(self, disable_dynamic: bool = False, *arguments, **options) -> comfy.model_patcher.ModelPatcher:
            """With `disable_dynamic` the clone has weights of its own and is a HeliosPatcher."""
            clone = super().clone(disable_dynamic, *arguments, **options)
            if disable_dynamic:
                # ComfyUI makes a plain ModelPatcher here, whatever class it is asked by.
                clone.__class__ = HeliosPatcher
                load, *rest = clone.cached_patcher_init
                clone.cached_patcher_init = (partial(load, disable_dynamic=True), *rest)
            return clone

        @contextmanager
        def _without_patches_of_blocks(self) -> Iterator[None]:
            """ComfyUI must not see the patches of bytes. The dict stays the same one: ComfyUI's patches read it."""
            hidden = {key: self.patches.pop(key) for key, _ in self._block_weights() if key in self.patches}
            try:
                yield
            finally:
                self.patches.update(hidden)


def patcher_class(dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """The kind for a model that was loaded as `takes_dynamic` says."""
    return HeliosDynamicPatcher if dynamic else HeliosPatcher
