"""A sampling run inside ComfyUI: room on the device, the wrappers and options of other nodes, and a clean end."""

import logging
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP, copy_nested_dicts, merge_nested_dicts

from ...helios_core.memory.memory import HeliosMemory
from ...helios_core.model.transformer import HeliosTransformer
from ...helios_core.options.approximations import with_approximations
from ...helios_core.report.cost import estimate_memory
from ...helios_core.report.eta import step_costs
from ...helios_core.sampling.hooks import Forward, Hooks, Predict
from ...helios_core.sampling.loop import OutOfMemoryError
from ...helios_core.sampling.loras import Lora, LorasOverTime, LoraStrength
from ...helios_core.sampling.settings import SamplingSettings, model_title
from ...helios_core.sampling.variant import sampling_advice
from .model import check_cancelled, helios_model
from .multigpu import copies_of, split_forwards
from .patcher import weight_sizes
from .progress import Progress

logger = logging.getLogger(__name__)

# Wrappers around the parts of ComfyUI's own samplers, none of which runs for Helios.
SAMPLER_WRAPPERS = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREPARE_SAMPLING,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
)
# What other nodes leave on a model that only ComfyUI's own samplers and models look at.
UNUSED_OPTIONS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
)
UNUSED_TRANSFORMER_OPTIONS = ("patches", "patches_replace")
COMFYUI_VAE = 1.22  # what ComfyUI's Wan VAE takes to decode, against our own that the estimate is of


@dataclass(frozen=True)
class SamplingRun:
    """What a node samples with. `load()` brings the weights to the device, as far as they fit, when something else has
    run there since (a VAE), and gives the transformer. `activations` are the bytes that sampling takes besides them.
    `notice(sentence)` shows a sentence on the node while it runs."""

    hooks: Hooks
    load: Callable[[], HeliosTransformer]
    activations: int
    notice: Callable[[str], None]


@contextmanager
def sampling_run(
    patcher: comfy.model_patcher.ModelPatcher,
    memory: HeliosMemory,
    settings: Sequence[SamplingSettings],
    node_id: str | None,
    loras: Collection[Lora] = (),
) -> Iterator[SamplingRun]:
    """Load the model with room for the chunks that follow `memory`, one for each of `settings`. `node_id` is the node
    that shows the progress, and a warning for settings that the variant was not trained for. `loras` are those of a
    schedule, whose strengths change.

    Raises ValueError for a model that carries a part of a sampler from another node or a LoRA that does not fit, and
    OutOfMemoryError, with what to do about it in ComfyUI, when the device has too little memory.
    """
    helios = helios_model(patcher)
    LorasOverTime(loras).check(helios.diffusion_model)
    options = transformer_options(patcher)
    refuse_sampler_parts(options)
    tell_unused_options(patcher)

    config, device = helios.diffusion_model.config, patcher.load_device
    costliest = max(settings, key=lambda own: own.guided)
    on_device, in_ram = weight_sizes(patcher)
    estimate = estimate_memory(
        config,
        costliest,
        memory.width,
        memory.height,
        dtype=helios.diffusion_model.dtype,
        weight_bytes=on_device,
        vae_dtype=comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float16, torch.float32]),
    )
    estimate = replace(estimate, vae=round(COMFYUI_VAE * estimate.vae), host=in_ram)
    logger.info(
        "%s at %dx%d, %d chunks: %s",
        model_title(costliest), memory.width, memory.height, len(settings), estimate,
    )  # fmt: skip

    copies = copies_of(patcher)
    over_time = [LorasOverTime(loras) for _ in (patcher, *copies)]

    def load() -> HeliosTransformer:
        memory_required = estimate.activations + over_time[0].nbytes
        comfy.model_management.load_models_gpu([patcher, *copies], memory_required=memory_required)
        return helios.diffusion_model

    def set_loras(strengths: Sequence[LoraStrength]) -> None:
        for own in over_time:
            own.set_strengths(strengths)

    load()
    advice = list(dict.fromkeys(sentence for own in settings for sentence in sampling_advice(helios.settings, own)))
    for sentence in advice:
        logger.warning(sentence)
    costs = [
        step_costs(config, own, memory.width, memory.height, chunk_index)
        for chunk_index, own in enumerate(settings, start=memory.chunk_index)
    ]
    for each in (patcher, *copies):
        each.pre_run()
    try:
        with current_device(device), predict_of(patcher, copies) as predict, ExitStack() as beside:
            for each, own in zip((patcher, *copies), over_time, strict=True):
                beside.enter_context(own.beside(helios_model(each).diffusion_model))
            hooks = Hooks(
                progress=Progress(node_id, costs, memory.chunk_index, device, advice),
                check_cancelled=check_cancelled,
                forward=forward_of(patcher),
                predict=predict,
                set_loras=set_loras,
            )
            yield SamplingRun(with_approximations(hooks, costliest), load, estimate.activations, advice.append)
    except OutOfMemoryError as fault:
        raise OutOfMemoryError(
            f"{fault}. In ComfyUI: choose fp8_e4m3fn in the Helios Loader, or start with --reserve-vram 4 (or more) to "
            f"keep that many GB free of weights; beside the weights the run was expected to need "
            f"{estimate.activations / 2**30:.1f} GiB"
        ) from fault
    finally:
        for each in (patcher, *copies):
            each.cleanup()


def current_device(device: torch.device) -> AbstractContextManager:
    """Within the `with` block the device is the current one, which some kernels ask for (Select Model Device)."""
    return getattr(comfy.model_management, "cuda_device_context", nullcontext)(device)


def forward_of(patcher: comfy.model_patcher.ModelPatcher) -> Forward:
    """The forward of a loaded Helios, on its device, inside the wrappers of other nodes."""
    return partial(helios_model(patcher).velocity, transformer_options(patcher))


@contextmanager
def predict_of(
    patcher: comfy.model_patcher.ModelPatcher, copies: Sequence[comfy.model_patcher.ModelPatcher]
) -> Iterator[Predict | None]:
    """Within the `with` block, what spreads the forwards of a step over the model's copies; None without copies."""
    if not copies:
        yield None
        return
    forwards = {each.load_device: forward_of(each) for each in (patcher, *copies)}
    with split_forwards(forwards, check_cancelled) as predict:
        yield predict


def transformer_options(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """The model's transformer_options, with its wrappers and callbacks among them, as ComfyUI's samplers hand them
    to a model."""
    options = copy_nested_dicts(patcher.model_options["transformer_options"])
    merge_nested_dicts(options.setdefault("wrappers", {}), patcher.wrappers, copy_dict1=False)
    merge_nested_dicts(options.setdefault("callbacks", {}), patcher.callbacks, copy_dict1=False)
    return options


def refuse_sampler_parts(options: dict[str, Any]) -> None:
    """Raise ValueError when another node has put a wrapper around a part of ComfyUI's sampler."""
    found = sorted(
        str(key) for kind in SAMPLER_WRAPPERS for key, funcs in options["wrappers"].get(kind, {}).items() if funcs
    )
    if found:
        raise ValueError(
            f"the model carries {', '.join(found)}, put there by another node to work inside KSampler; Helios has a "
            "sampler of its own, where it has no effect. Take that node out of the wire to the Helios sampler"
        )


def tell_unused_options(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Warn of what other nodes have put on the model and Helios does not use."""
    options = patcher.model_options
    found = [name for name in UNUSED_OPTIONS if options.get(name)]
    found += [name for name in UNUSED_TRANSFORMER_OPTIONS if options["transformer_options"].get(name)]
    found += [name for name in patcher.object_patches if name == "model_sampling"]
    if found:
        logger.warning(
            "The model carries %s from another node (a sampling shift, CFG or block patch); Helios does not use it",
            ", ".join(found),
        )


class UnfinishedRun:
    """The chunks that a run has finished, for the same run to resume after them if it is stopped and queued again.

    ComfyUI drops what a node has made when it is stopped. The model that runs keeps one of these at most: latents
    and memories, in host RAM. The same run is one with the very same objects on its wires (ComfyUI hands them out
    again from its cache) and equal settings.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, wires: tuple, settings: tuple) -> None:
        self._patcher = weakref.ref(patcher)  # which holds the model that holds this
        self._wires = wires
        self._settings = settings
        self.chunks: list[tuple[torch.Tensor, HeliosMemory]] = []

    def is_of(self, patcher: comfy.model_patcher.ModelPatcher, wires: tuple, settings: tuple) -> bool:
        same_wires = all(mine is theirs for mine, theirs in zip(self._wires, wires, strict=True))
        return self._patcher() is patcher and same_wires and self._settings == settings


def unfinished_run(patcher: comfy.model_patcher.ModelPatcher, wires: tuple, settings: tuple) -> UnfinishedRun:
    """The run that the model keeps, if it is the same; else a new one, kept in its place."""
    helios = helios_model(patcher)
    kept = helios.unfinished_run
    if kept is None or not kept.is_of(patcher, wires, settings):
        helios.unfinished_run = UnfinishedRun(patcher, wires, settings)
    elif kept.chunks:
        logger.info("Resuming after chunk %d of the run that was stopped", len(kept.chunks))
    return helios.unfinished_run
