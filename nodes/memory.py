"""Save, load and rewind memories."""

import logging
import time

from comfy_api.latest import io, ui

from ..helios_core.memory.storage import load_memory, save_memory
from ..helios_core.run.run_folder import RunFolder
from .host.folders import MEMORY_SUFFIX, check_prefix, list_memories, memory_path, next_path, run_path
from .wires import CATEGORY, HeliosMemoryType, said_by

logger = logging.getLogger(__name__)


class HeliosSaveMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosSaveMemory",
            display_name="Helios Save Memory",
            category=CATEGORY,
            description="Writes a memory into the output folder, to continue from it another day, bit for bit.",
            inputs=[
                HeliosMemoryType.Input("memory", tooltip="From Helios Context, a sampler or Helios Long Video."),
                io.String.Input(
                    "filename_prefix",
                    default="Helios/memory",
                    tooltip="Where the file goes below the output folder, and how its name begins.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return said_by(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, memory, filename_prefix) -> io.NodeOutput:
        path, _ = next_path(filename_prefix, MEMORY_SUFFIX, memory.width, memory.height, cls.hidden)
        save_memory(memory, path)
        logger.info("wrote %s", path)
        return io.NodeOutput(ui=ui.PreviewText(f"{path.name}: after chunk {memory.chunk_index}"))


class HeliosLoadMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoadMemory",
            display_name="Helios Load Memory",
            category=CATEGORY,
            description="Reads a memory file, to continue where that video ended.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_memories(),
                    tooltip=f"A *{MEMORY_SUFFIX} file in ComfyUI's output or input folder.",
                ),
            ],
            outputs=[HeliosMemoryType.Output("memory", display_name="memory", tooltip="As it was saved.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return said_by(memory_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        return memory_path(file).stat().st_mtime

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_memory(memory_path(file)))


class HeliosRewindMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosRewindMemory",
            display_name="Helios Rewind Memory",
            category=CATEGORY,
            description="Takes a run of Helios Long Video back to an earlier chunk: its memory as it was then, to "
            "continue differently from there. The run itself stays as it is.",
            inputs=[
                io.String.Input("run_name", default="my_video", tooltip="The run_name of the Helios Long Video node."),
                io.Int.Input(
                    "chunks",
                    default=1,
                    min=1,
                    max=100000,
                    tooltip="How many chunks to keep: the memory after that many chunks of the run.",
                ),
                io.Int.Input(
                    "take",
                    default=-1,
                    min=-100000,
                    max=100000,
                    tooltip="Which version of the video, if it was made several times with other prompts or seeds: "
                    "-1 the latest, 0 the first.",
                ),
            ],
            outputs=[HeliosMemoryType.Output("memory", display_name="memory", tooltip="The past after those chunks.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None = None) -> bool | str:
        return said_by(run_path, run_name)

    @classmethod
    def fingerprint_inputs(cls, run_name: str, chunks: int, take: int) -> str:
        if "%" in run_name:  # which run that is, is known only when the node runs
            return str(time.time_ns())
        takes = RunFolder(run_path(run_name)).takes()
        if not -len(takes) <= take < len(takes):
            return ""
        # The key of a chunk stands for all that it was made from.
        return "".join(takes[take].keys[chunks - 1 : chunks])

    @classmethod
    def execute(cls, run_name, chunks, take) -> io.NodeOutput:
        path = run_path(run_name, cls.hidden)
        if not path.is_dir():
            raise ValueError(f"there is no run {run_name!r} in {path.parent}; make one with Helios Long Video")
        return io.NodeOutput(RunFolder(path).memory_after(chunks, take))
