"""Helios Loader: weights on disk -> MODEL."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..helios_core.config import VARIANTS
from .model import WEIGHT_DTYPES, load_model
from .wires import CATEGORY

FOLDER = "diffusion_models"
_INDEX_SUFFIX = ".safetensors.index.json"


def list_models() -> list[str]:
    """Single files and sharded folders under models/diffusion_models, as relative names."""
    folders = sorted(
        str(index.parent.relative_to(root).as_posix())
        for root in map(Path, folder_paths.get_folder_paths(FOLDER))
        if root.is_dir()
        for index in root.rglob(f"*{_INDEX_SUFFIX}")
        if index.parent != root
    )
    in_folders = tuple(f"{folder}/" for folder in folders)
    files = [
        name
        for name in folder_paths.get_filename_list(FOLDER)
        if name.endswith(".safetensors") and not name.replace("\\", "/").startswith(in_folders)
    ]
    return [*files, *dict.fromkeys(folders)]


def find_model(name: str) -> Path:
    """Path of a listed model. Raises ValueError, telling what to download and where to put it, for another name."""
    if name in list_models():
        for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
            if (root / name).exists():
                return root / name
    raise ValueError(
        f"Helios model {name!r} is not in models/{FOLDER}. Download a Helios transformer (the folder 'transformer' of "
        f"huggingface.co/BestWishYsh/Helios-Distilled, Helios-Mid or Helios-Base, or a single .safetensors file), put "
        f"it there, press R to refresh and choose it in the Helios Loader"
    )


class HeliosLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoader",
            display_name="Helios Loader",
            category=CATEGORY,
            description="Loads a Helios transformer: a single .safetensors file or a folder of shards, in diffusers' "
            "or ComfyUI's naming.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list_models(),
                    tooltip="Helios weights in models/diffusion_models: a file, or a release's folder 'transformer'.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", *VARIANTS],
                    default="auto",
                    tooltip="The three variants have the same tensors and differ in how they are sampled. 'auto' reads "
                    "it from the files beside the weights or from the name.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How the weights are kept. 'default' lets ComfyUI choose for this card; fp8_e4m3fn halves "
                    "the memory of bf16 and loses some precision.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        if model_name is None:  # comes from another node; known only when that has run
            return True
        try:
            find_model(model_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model_name: str, variant: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(find_model(model_name), variant, weight_dtype))
