"""Helios as a ComfyUI MODEL: a ModelPatcher over our transformer, with ComfyUI's layers and attention.

ComfyUI then manages the weights (offloading, partial loading, LoRA) as it does for its own models.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...helios_core.model.attention import AttentionFunction
from ...helios_core.model.transformer import EachBlock, HeliosTransformer, MemoryTokens, PromptContext
from ...helios_core.sampling.settings import SamplingSettings
from .attention import chosen_attention
from .lora import with_lora_names
from .patcher import is_dynamic

logger = logging.getLogger(__name__)

# Among a model's transformer_options: `SamplingSettings.history_reuse` and `.step_cache`.
HISTORY_REUSE_OPTION = "helios_history_reuse"
STEP_CACHE_OPTION = "helios_step_cache"


class HeliosModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's configuration."""

    latent_format = comfy.latent_formats.Wan21
    supported_inference_dtypes = (torch.bfloat16, torch.float16, torch.float32)


class HeliosModel(comfy.model_base.BaseModel):
    """The model inside the MODEL wire: `diffusion_model` is the transformer, `settings` its variant's sampling."""

    def __init__(
        self,
        transformer: HeliosTransformer,
        settings: SamplingSettings,
        name: str,
        manual_cast_dtype: torch.dtype | None,
        made_from: Mapping[str, str],
    ) -> None:
        config = HeliosModelConfig({"disable_unet_model_creation": True})
        config.manual_cast_dtype = manual_cast_dtype
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=None)
        self.diffusion_model = transformer
        self.settings = settings
        self.name = name
        self.made_from = made_from  # name of a part -> what it is; see identity.py
        self.described_adapters = WeakKeyDictionary()  # LoRAs beside the layers; see describe.py
        self.unfinished_run = None  # a stopped run's chunks; see run.py

    def state_dict(self, *args, **kwargs):
        """The weights; when asked for its names only, it also gives those that LoRAs use (see lora.py)."""
        state = super().state_dict(*args, **kwargs)
        # As part of another module it adds to what that module has gathered.
        return state if args or kwargs else with_lora_names(state, len(self.diffusion_model.blocks))

    def apply_model(self, *args, **kwargs):
        """Called by ComfyUI's own samplers, which know neither memory nor pyramid."""
        raise ValueError("Helios is sampled by the Helios Chunk Sampler node; KSampler and its kin cannot drive it")

    def velocity(self, transformer_options: dict, x, timestep, prompt: PromptContext, memory: MemoryTokens):
        """The transformer's velocity (B, C, T, h, w), inside the wrappers of other nodes (torch.compile is one).

        They are called as around ComfyUI's own models, with these arguments; what they wrap gives the velocity.
        """
        wrappers = get_all_wrappers(WrappersMP.APPLY_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._apply_model, self, wrappers)
        return executor.execute(x, timestep, transformer_options=transformer_options, prompt=prompt, memory=memory)

    def _apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *, prompt, memory
    ):
        # Looked up now: a wrapper may have put another module in the transformer's place.
        transformer = self.diffusion_model

        # As ComfyUI does before it calls a model of its own.
        dynamic = self.current_patcher is not None and is_dynamic(self.current_patcher)
        transformer_options = {**transformer_options, "prefetch_dynamic_vbars": dynamic}
        prefetches = dynamic and isinstance(transformer, HeliosTransformer)  # not one that is compiled as a whole

        def forward(x, timestep, prompt, *, transformer_options, memory):
            return transformer(
                x,
                timestep,
                prompt,
                memory,
                attention=comfy_attention(transformer_options),
                each_block=prefetching(transformer_options) if prefetches else None,
            )

        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(forward, transformer, wrappers)
        # One dtype at all steps, so that a compiled transformer has no reason to be compiled again.
        x = x.to(transformer.dtype)
        return executor.execute(x, t, prompt, transformer_options=transformer_options, memory=memory)


def helios_model(patcher: comfy.model_patcher.ModelPatcher) -> HeliosModel:
    """The Helios inside a MODEL. Raises ValueError for another model."""
    if not isinstance(patcher.model, HeliosModel):
        raise ValueError(
            f"the model is a {type(patcher.model).__name__}, not Helios; load one with the Helios Loader node"
        )
    return patcher.model


def model_settings(patcher: comfy.model_patcher.ModelPatcher) -> SamplingSettings:
    """The variant's sampling, with what a Helios Speed node has chosen. Raises ValueError for another model."""
    options = patcher.model_options["transformer_options"]
    return replace(
        helios_model(patcher).settings,
        history_reuse=options.get(HISTORY_REUSE_OPTION, "off"),
        step_cache=options.get(STEP_CACHE_OPTION, 0.0),
    )


def comfy_attention(transformer_options: dict) -> AttentionFunction:
    """ComfyUI's attention (and what the user has put in its place) for q, k, v of (B, heads, N, head_dim).

    It stops a cancelled run, twice in each block. In a compiled transformer there is no place for that, and the run
    stops before the next forward.
    """

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            check_cancelled()
        return chosen_attention(query.device)(
            query,
            key,
            value,
            heads=query.shape[1],
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=transformer_options,
        )

    return attention


def prefetching(transformer_options: dict) -> EachBlock:
    """Brings each block's weights to the device while the block before computes, as ComfyUI's own models do."""
    import comfy.model_prefetch  # there is none without dynamic VRAM

    def each_block(blocks: Sequence[torch.nn.Module], device: torch.device) -> Iterator[torch.nn.Module]:
        queue = comfy.model_prefetch.make_prefetch_queue(list(blocks), device, transformer_options)
        for block in blocks:
            comfy.model_prefetch.prefetch_queue_pop(queue, device, block)
            yield block
        if queue is not None:
            comfy.model_prefetch.prefetch_queue_pop(queue, device, None)

    return each_block


CheckCancelled = Callable[[], None]
check_cancelled: CheckCancelled = comfy.model_management.throw_exception_if_processing_interrupted
