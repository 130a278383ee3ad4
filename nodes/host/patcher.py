"""Helios' ModelPatcher: ComfyUI's own, which also patches GGUF weights and takes LoRAs of every naming."""

from collections.abc import Iterator

import comfy.model_patcher
import comfy.utils
from comfy.model_patcher import LowVramPatch

from .layers import BlockLinear
from .lora import LoraPatches


class HeliosPatcher(LoraPatches, comfy.model_patcher.ModelPatcher):
    """What the MODEL wire carries."""

    # Weights in GGUF blocks: ComfyUI would write patched numbers in their place. They are patched when used instead,
    # as ComfyUI does with weights that stay on the CPU.

    def patch_weight_to_device(self, key: str, *arguments, **options) -> None:
        """Called for each weight that is moved to the device, to add the LoRAs to it."""
        layer_name, _, name = key.rpartition(".")
        if name != "weight" or not isinstance(comfy.utils.get_attr(self.model, layer_name), BlockLinear):
            super().patch_weight_to_device(key, *arguments, **options)

    def load(self, *arguments, **options) -> None:
        """Move weights to the device and patch all."""
        super().load(*arguments, **options)
        self._patch_when_used()

    def partially_unload(self, *arguments, **options) -> int:
        """Move some weights off the device; tells how many bytes."""
        freed = super().partially_unload(*arguments, **options)
        self._patch_when_used()
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights: bool = True) -> None:
        """Restore the weights."""
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, layer in self._block_weights():
                layer.weight_function = []

    def _patch_when_used(self) -> None:
        for key, layer in self._block_weights():
            patch = [LowVramPatch(key, self.patches)] if key in self.patches else []
            layer.weight_function = patch + self.weight_wrapper_patches.get(key, [])

    def _block_weights(self) -> Iterator[tuple[str, BlockLinear]]:
        for name, layer in self.model.named_modules():
            if isinstance(layer, BlockLinear):
                yield f"{name}.weight", layer
