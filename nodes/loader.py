"""Helios Loader: weights on disk -> MODEL."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..helios_core.sampling.settings import VARIANTS
from .host.loading import WEIGHT_DTYPES, load_model
from .wires import CATEGORY

FOLDER = "diffusion_models"
_INDEX_SUFFIX = ".safetensors.index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".gguf")


def list_models() -> dict[str, Path]:
    """Single files, then sharded folders, under models/diffusion_models: relative name -> path. Links are followed."""
    files: dict[str, Path] = {}
    folders: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        names, _ = folder_paths.recursive_search(str(root), excluded_dir_names=[".git"])
        shard_folders = {Path(name).parent for name in names if name.endswith(_INDEX_SUFFIX)}
        # An index that lies in the root itself makes no folder: there, any of its shards stands for all.
        shard_folders.discard(Path())
        for name in sorted(names):
            if name.endswith(_WEIGHT_SUFFIXES) and shard_folders.isdisjoint(Path(name).parents):
                files.setdefault(name, root / name)
        for folder in sorted(shard_folders):
            folders.setdefault(folder.as_posix(), root / folder)
    return files | folders


def find_model(name: str) -> Path:
    """Path of a listed model. Raises ValueError, saying what to download and where to put it, for another name."""
    # Only what is listed is opened: a name like "../../secrets" leads nowhere.
    path = list_models().get(name)
    if path is not None:
        return path
    raise ValueError(
        f"Helios model {name!r} is not in models/{FOLDER}. Download a Helios transformer (the folder 'transformer' of "
        f"huggingface.co/BestWishYsh/Helios-Distilled, Helios-Mid or Helios-Base, or a single .safetensors or .gguf "
        f"file), put it there, press R to refresh and choose it in the Helios Loader"
    )


class HeliosLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoader",
            display_name="Helios Loader",
            category=CATEGORY,
            description="Loads a Helios transformer: a single .safetensors or .gguf file or a folder of shards, in "
            "diffusers' or ComfyUI's naming.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list(list_models()),
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
                    tooltip="How the weights are kept. 'default': as ComfyUI chooses for this card; weights that are "
                    "stored quantised (GGUF, scaled fp8) stay so. fp8_e4m3fn takes half the bytes of bf16 and loses "
                    "some precision; fp8_e4m3fn_fast also multiplies in fp8 where the card can, and loses more.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Helios, for the Helios samplers.")],
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
