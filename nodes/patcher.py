"""Helios' ModelPatcher: ComfyUI's own, which also tells when a LoRA does not fit instead of leaving it out."""

from typing import Any

import comfy.model_patcher
import comfy.utils
import comfy.weight_adapter


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
