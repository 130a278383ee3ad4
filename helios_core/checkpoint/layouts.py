"""Under which names the Helios weights are stored, and what the other tensors in such files are.

The names of the published diffusers checkpoint are the canonical ones, used by the model itself. The ComfyUI layout
(the weights of ComfyUI's draft of Helios) names the embedders and the feed-forward after Wan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

Layout = Literal["diffusers", "comfyui"]

# What a host puts before every name; the empty one first, so that it wins when none fits.
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")

_DIFFUSERS_TO_COMFYUI = (
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
)
_DIFFUSERS_TO_COMFYUI_IN_BLOCK = (("ffn.net.0.proj.", "ffn.0."), ("ffn.net.2.", "ffn.2."))
_COMFYUI_TO_DIFFUSERS = tuple((new, old) for old, new in _DIFFUSERS_TO_COMFYUI)
_COMFYUI_TO_DIFFUSERS_IN_BLOCK = tuple((new, old) for old, new in _DIFFUSERS_TO_COMFYUI_IN_BLOCK)
_BLOCK = re.compile(r"blocks\.\d+\.")

_TOP_MODULES = (
    *("patch_embedding", "patch_short", "patch_mid", "patch_long", "blocks", "norm_out", "proj_out"),
    *("condition_embedder", "text_embedding", "time_embedding", "time_projection"),
)

# A scaled fp8 or int8 weight is stored divided by its scale: `<layer>.scale_weight` in the older ComfyUI files (with a
# `scaled_fp8` marker in the file), `<layer>.weight_scale` in the newer (with `<layer>.comfy_quant`, a small JSON).
WEIGHT_SCALES = ("scale_weight", "weight_scale")
QUANT_MARKER = "comfy_quant"
# What else formats of ComfyUI store beside a weight. Scales of activations serve matrix products in few bits.
WEIGHT_PARTS = (
    *("weight_scale_2", "input_scale", "scale_input", "pre_quant_scale"),
    *("weight_s_rel", "weight_s_channel", "weight_codebook"),
)
# The marker says what the tensors' dtypes say as well.
_NOT_WEIGHTS = ("scaled_fp8",)
# Other models in an all-in-one ComfyUI checkpoint.
_OTHER_MODELS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")

# Part of a key -> what a file with such a key is. The first that fits is taken.
_STRANGERS = (
    ("lora_", "a LoRA, which goes on top of a model (LoRA loader)"),
    (".self_attn.q.weight", "a Wan model"),
    ("input_blocks.", "a Stable Diffusion model (1.5, 2 or XL)"),
    ("down_blocks.", "a Stable Diffusion model in diffusers layout, or a VAE"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("double_blocks.", "a Flux or Hunyuan Video model"),
    ("adaln_single.", "an LTX Video or PixArt model"),
    ("encoder.block.0.layer.", "a T5 text encoder"),
    ("shared.weight", "a T5 text encoder"),
    ("decoder.conv_in.", "a VAE"),
    ("decoder.middle.", "a VAE"),
    ("condition_embedder.", "a Wan model in diffusers layout"),
)


def canonical_name(name: str) -> str:
    """The diffusers name for a name in either layout; prefix already taken off. Others come back unchanged."""
    return _rename(name, _COMFYUI_TO_DIFFUSERS, _COMFYUI_TO_DIFFUSERS_IN_BLOCK)


def _rename(name: str, top: Iterable[tuple[str, str]], in_block: Iterable[tuple[str, str]]) -> str:
    block = _BLOCK.match(name)
    head, tail = (name[: block.end()], name[block.end() :]) if block else ("", name)
    for old, new in in_block if block else top:
        if tail.startswith(old):
            return head + new + tail.removeprefix(old)
    return name


def find_prefix(keys: Collection[str]) -> str:
    """The one of PREFIXES that makes the most keys names of Helios modules."""

    def num_fitting(prefix: str) -> int:
        return sum(key.startswith(prefix) and key.removeprefix(prefix).split(".")[0] in _TOP_MODULES for key in keys)

    return max(PREFIXES, key=num_fitting)


def is_beside_the_point(key: str) -> bool:
    """Whether a key holds no weight of the transformer and can be passed over."""
    return key.rpartition(".")[2] in _NOT_WEIGHTS or key.startswith(_OTHER_MODELS)


def what_it_looks_like(keys: Collection[str]) -> str | None:
    """What a file with these keys is, when it is not Helios; None if they say nothing, or are Helios'."""
    if any("patch_long." in key for key in keys) and not any("lora_" in key for key in keys):
        return None
    return next((what for part, what in _STRANGERS if any(part in key for key in keys)), None)
