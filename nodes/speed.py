"""Helios Speed: MODEL -> MODEL with the ways to go faster that are off by default."""

from dataclasses import replace

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ..helios_core.options.compiling import check_compile
from ..helios_core.sampling.settings import HISTORY_REUSE, SamplingSettings
from .host.model import HISTORY_REUSE_OPTION, STEP_CACHE_OPTION, helios_model
from .wires import CATEGORY


class HeliosSpeed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosSpeed",
            display_name="Helios Speed",
            category=CATEGORY,
            description="Ways to make a chunk faster that are off by default, because they change the picture a little "
            "or take time at the start. Connect it last, just before the sampler.",
            inputs=[
                io.Model.Input("model", tooltip="A Helios model."),
                io.Combo.Input(
                    "history_reuse",
                    options=list(HISTORY_REUSE),
                    default="off",
                    tooltip="Compute the tokens of the past once, instead of in every step: once in each stage (helps "
                    "with two or more steps a stage) or once in each chunk (fastest). The picture changes; needs 2 GB "
                    "more for the 14B model at 640x384, twice that with guidance. off: exact.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    tooltip="Compile the transformer's blocks with torch.compile, once for each stage, in the first "
                    "chunk. Needs a GPU with Triton, or a C++ compiler on a CPU. Not together with history_reuse.",
                ),
                io.Float.Input(
                    "step_cache",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Leave out steps of the model in which its output would change by less than this fraction, "
                    "as EasyCache does. Try 0.02 to 0.1. For Mid and Base: the first two steps and the last of each "
                    "stage are always made, so of Distilled's 2,2,2 steps it can leave out hardly any. The picture "
                    "changes. 0: off, exact.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model for the Helios sampler.")],
        )

    @classmethod
    def validate_inputs(cls, history_reuse: str | None = None, compile: bool | None = None) -> bool | str:
        if compile and history_reuse in HISTORY_REUSE:  # None: comes from another node; checked in execute
            try:
                check_compile(SamplingSettings(history_reuse=history_reuse))
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, model, history_reuse, compile, step_cache=0.0) -> io.NodeOutput:
        helios = helios_model(model)
        settings = replace(helios.settings, history_reuse=history_reuse, step_cache=step_cache)  # which checks them
        if compile or model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):  # of an earlier node like this
            check_compile(settings)
        model = model.clone()
        options = model.model_options["transformer_options"]
        options[HISTORY_REUSE_OPTION], options[STEP_CACHE_OPTION] = settings.history_reuse, settings.step_cache
        if compile:
            blocks = [f"diffusion_model.blocks.{index}" for index in range(len(helios.diffusion_model.blocks))]
            set_torch_compile_wrapper(model, backend="inductor", keys=blocks)
        return io.NodeOutput(model)
