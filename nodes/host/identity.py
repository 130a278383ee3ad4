"""Which model is in a MODEL wire, told by its content: the same files and LoRAs give the same name in every session."""

from collections.abc import Iterator
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch

from ...helios_core.fingerprint import fingerprint, model_fingerprint, tensor_samples
from ...helios_core.memory.storage import ModelIdentity
from .model import helios_model


def model_identity(patcher: comfy.model_patcher.ModelPatcher) -> ModelIdentity:
    """Name and fingerprint of the weights together with all LoRAs that were put on them."""
    model = helios_model(patcher)
    patches = {key: [list(_describe(patch)) for patch in patcher.patches[key]] for key in patcher.patches}
    return ModelIdentity(model.name, fingerprint(model.fingerprint, patches) if patches else model.fingerprint)


def vae_identity(vae: comfy.sd.VAE) -> str:
    """The weights of a VAE and, from a Helios Fast VAE, how it decodes."""
    identity = model_fingerprint(vae.first_stage_model)
    decoding = getattr(vae.first_stage_model, "decoding", None)
    return identity if decoding is None else fingerprint(identity, decoding)


def _describe(patch: Any) -> Iterator[Any]:
    """The numbers and tensors in a patch as ComfyUI keeps it: (strength, adapter, strength of the model, ...)."""
    if isinstance(patch, torch.Tensor):
        yield tensor_samples(patch)
    elif isinstance(patch, list | tuple):
        for part in patch:
            yield from _describe(part)
    elif hasattr(patch, "weights"):
        yield type(patch).__name__
        yield from _describe(patch.weights)
    elif patch is None or isinstance(patch, bool | int | float | str):
        yield patch
    else:
        yield type(patch).__name__
