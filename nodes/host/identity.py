"""Which model and which VAE is on a wire, known by what they were made from: the same files, settings, LoRAs and
options give the same name in every session, on every card, and loaded or not."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.sd
from comfy.cli_args import args
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...helios_core.fingerprint import fingerprint, tensor_samples
from ...helios_core.memory.storage import ModelIdentity
from .describe import Description
from .file_content import file_content
from .model import HISTORY_REUSE_OPTION, STEP_CACHE_OPTION, HeliosModel, helios_model

logger = logging.getLogger(__name__)

# Attention that gives the same numbers but for rounding. ComfyUI chooses among them by the card.
EXACT_ATTENTION = ("basic", "sub_quad", "split", "pytorch", "xformers", "flash")
# `--fast` and these of its parts round otherwise; the others only take time.
FAST_FEATURES = ("fp16_accumulation", "fp8_matrix_mult", "cublas_ops")
VAE_PRECISIONS = ("fp16_vae", "fp32_vae", "bf16_vae")
# In settings of their own, or for ComfyUI's samplers alone, which never run here.
UNUSED_OPTIONS = (
    "transformer_options",
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "disable_cfg1_optimization",
    "torch_compile_kwargs",
    "multigpu_options",
)
OWN_OPTIONS = (HISTORY_REUSE_OPTION, STEP_CACHE_OPTION, "optimized_attention_override", "wrappers", "callbacks")
UNUSED_OBJECT_PATCHES = ("model_sampling",)
USED_WRAPPERS = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
# Called when a patcher is copied, put away or taken off: they leave the numbers alone.
UNUSED_CALLBACKS = tuple(
    getattr(CallbacksMP, name, None)
    for name in ("ON_CLONE", "ON_DEEPCLONE_MULTIGPU", "ON_MATCH_MULTIGPU_CLONES", "ON_DETACH", "ON_CLEANUP",
                 "ON_EJECT_MODEL")
)  # fmt: skip
COMPILED = "torch.compile"  # the key of ComfyUI's wrapper that compiles


def model_identity(patcher: comfy.model_patcher.ModelPatcher) -> ModelIdentity:
    """Name and fingerprint of a Helios with all that was put on it, and of each `part` a fingerprint of its own.

    To be asked before the model is loaded. Where an object of another node cannot be described, the fingerprint is of
    this session, and a warning says so.
    """
    model = helios_model(patcher)
    describe = Description(dict(_parts_of(model)), model.described_adapters)
    options = patcher.model_options["transformer_options"]
    parts = {
        **model.made_from,
        "LoRAs": _loras(patcher, describe),
        "attention": [describe.of(options.get("optimized_attention_override")), global_attention()],
        "options of ComfyUI": fast_features(),
        "patches of other nodes": _changes(patcher, describe),
    }
    if describe.unknown:
        logger.warning(
            "Finished chunks of this model can be used again in this session only: it carries %s from another node, "
            "of which the content cannot be read",
            ", ".join(sorted(set(describe.unknown))),
        )
    return ModelIdentity.of_parts(model.name, {name: fingerprint(part) for name, part in parts.items()})


def vae_identity(vae: comfy.sd.VAE, wire: str = "") -> str:
    """A VAE: its file if that is known, else what its `wire` is made from (see `wire_identity`), else its values. Also
    the precision that ComfyUI was started with, and from a Helios Fast VAE how it decodes."""
    model = vae.first_stage_model
    weights = vae_file(vae) or wire or _values(vae.patcher)
    decoding = getattr(model, "decoding", None)
    precisions = [name for name in VAE_PRECISIONS if getattr(args, name, False)]
    return fingerprint(weights, "" if decoding is None else decoding, precisions)


def global_attention() -> str:
    """The attention that ComfyUI uses, if its numbers differ by more than rounding (sage, int8), else ""."""
    name = comfy.ldm.modules.attention.optimized_attention.__name__.removeprefix("attention_")
    return "" if name in EXACT_ATTENTION else name


def fast_features() -> list[str]:
    """What of `--fast` is on and changes numbers."""
    features = getattr(args, "fast", None) or ()
    return sorted(feature.value for feature in features if feature.value in FAST_FEATURES)


def _parts_of(model: HeliosModel) -> Iterator[tuple[int, str]]:
    for name, module in model.named_modules():
        yield id(module), name
    for name, parameter in model.named_parameters():
        yield id(parameter), name


def _loras(patcher: comfy.model_patcher.ModelPatcher, describe: Description) -> Any:
    """All that changes weights: patches, LoRAs beside the layers (injections), LoRAs of hooks, weight wrappers."""
    injections = [
        describe.of([injection.inject for injection in patcher.injections[key]]) for key in patcher.injections
    ]
    return [
        describe.of(patcher.patches),
        injections,
        # Their keys are objects without content.
        [describe.of(patches) for patches in patcher.hook_patches.values()],
        describe.of(patcher.weight_wrapper_patches),
    ]


def _changes(patcher: comfy.model_patcher.ModelPatcher, describe: Description) -> Any:
    """Object patches, options, wrappers and callbacks. Compiling, and clones for other devices, are none."""
    options = patcher.model_options
    transformer_options = options["transformer_options"]
    objects = [
        [name, described]
        for name, described in ((name, describe.of(patch)) for name, patch in sorted(patcher.object_patches.items()))
        # A layer that was compiled is still that layer.
        if name not in UNUSED_OBJECT_PATCHES and described != ["part of the model", name]
    ]
    return [
        objects,
        describe.of({key: value for key, value in options.items() if key not in UNUSED_OPTIONS and value}),
        describe.of({key: value for key, value in transformer_options.items() if key not in OWN_OPTIONS and value}),
        [
            [kind, describe.of(function)]
            for own in (patcher.wrappers, transformer_options.get("wrappers", {}))
            for kind in USED_WRAPPERS
            for key, functions in own.get(kind, {}).items()
            if key != COMPILED
            for function in functions
        ],
        [
            [kind, describe.of(function)]
            for own in (patcher.callbacks, transformer_options.get("callbacks", {}))
            for kind in sorted(own)
            if kind not in UNUSED_CALLBACKS
            for functions in own[kind].values()
            for function in functions
        ],
    ]


def vae_file(vae: comfy.sd.VAE) -> str:
    """The content of the file that the VAE was loaded from, where ComfyUI (0.33 and later) says so; else ""."""
    made_from = getattr(vae.first_stage_model, "made_from", "")
    if made_from:
        return made_from
    factory = getattr(vae.patcher, "cached_patcher_init", None)
    path = factory[1][0] if factory and factory[1] else None
    if not isinstance(path, str) or not Path(path).is_file() or vae.patcher.patches:
        return ""
    return file_content(Path(path))


def _values(patcher: comfy.model_patcher.ModelPatcher) -> str:
    """Values spread over all parameters, as they were before ComfyUI loaded them: then it may cast them."""
    originals = {name: kept.weight for name, kept in patcher.backup.items()}
    return fingerprint(
        {
            name: tensor_samples(originals.get(name, parameter).detach())
            for name, parameter in patcher.model.named_parameters()
        }
    )
