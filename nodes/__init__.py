"""The pack's nodes. They wire ComfyUI to `helios_core`; only this folder imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .combine import HeliosVideoCombine
from .context import HeliosContext
from .demo import HeliosDemoModels
from .fast_vae import HeliosFastVAE
from .finish import HeliosFinishVideo
from .inspector import HeliosDriftReport, HeliosMemoryInspector
from .loader import HeliosLoader
from .long_video import HeliosLongVideo
from .memory import HeliosLoadMemory, HeliosRewindMemory, HeliosSaveMemory
from .pieces import HeliosCutVideo, HeliosJoinVideo
from .sampler import HeliosChunkSampler
from .schedule import HeliosPromptSchedule, HeliosScheduleAdd
from .speed import HeliosSpeed


class HeliosExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            HeliosLoader,
            HeliosContext,
            HeliosChunkSampler,
            HeliosVideoCombine,
            HeliosLongVideo,
            HeliosSaveMemory,
            HeliosLoadMemory,
            HeliosRewindMemory,
            HeliosPromptSchedule,
            HeliosScheduleAdd,
            HeliosMemoryInspector,
            HeliosDriftReport,
            HeliosDemoModels,
            HeliosSpeed,
            HeliosFastVAE,
            HeliosFinishVideo,
            HeliosCutVideo,
            HeliosJoinVideo,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    return HeliosExtension()
