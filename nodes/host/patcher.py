"""Helios' ModelPatcher: ComfyUI's own, which also patches GGUF weights and tells when a LoRA does not fit."""

from collections.abc import Iterator
from typing import Any

import comfy.model_patcher
import comfy.utils
import comfy.weight_adapter
from comfy.model_patcher import LowVramPatch

from .layers import BlockLinear


class HeliosPatcher(comfy.model_patcher.ModelPatcher):
    """What the MODEL wire carries."""

    def add_patches(self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Called by ComfyUI's LoRA loaders with what they recognised. Raises ValueError when it is for another model.

        ComfyUI itself logs a line for each tensor that is left out and goes on with a LoRA that does nothing.
        """
        if not patches:
            raise ValueError(
                "nothing in this LoRA fits Helios: it is for another model, or its names are not understood. Known are "
                "names that start with 'transformer.blocks.' or 'diffusion_model.blocks.' and end with 'lora_A.weight' "
                "or 'lora_down.weight', and kohya's 'lora_unet_blocks_'."
            )
        for key, patch in patches.items():
            self._check_shape(key if isinstance(key, str) else key[0], patch)
        return super().add_patches(patches, strength_patch, strength_model)

    def _check_shape(self, key: str, patch: Any) -> None:
        if not isinstance(patch, comfy.weight_adapter.LoRAAdapter):
            return
        layer = comfy.utils.get_attr(self.model, key.removesuffix(".weight"))
        up, down = patch.weights[:2]
        sizes = up.shape[0], down[0].numel()
        if hasattr(layer, "in_features") and sizes != (layer.out_features, layer.in_features):
            raise ValueError(
                f"this LoRA is for another model: for {key} it has {sizes[0]} outputs and {sizes[1]} inputs; "
                f"the layer of this Helios has {layer.out_features} and {layer.in_features}"
            )

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
