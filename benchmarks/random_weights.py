"""Files of the published shapes with random weights, for what is measured through ComfyUI's loaders."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from helios_core.checkpoint.config import make_metadata
from helios_core.checkpoint.loading import parameter_dtypes
from helios_core.checkpoint.writing import CONVERT_DTYPES, Planned, write_safetensors
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.vae.wan_vae import WanVAE


def write_transformer(
    path: Path, config: TransformerConfig, dtype: str, variant: str = "distilled", device: str = "cpu"
) -> None:
    """A checkpoint of `config`, its blocks' matrices in `dtype` (one of CONVERT_DTYPES), unless it is there already.
    The numbers are drawn on `device`.

    One tensor is in memory at a time; the 14B model takes 28 GB of disk in bf16 and some minutes.
    """
    if path.is_file():
        return
    weight_dtype, other_dtype = CONVERT_DTYPES[dtype]
    model = HeliosTransformer(config, dtype=other_dtype, device="meta")
    dtypes = parameter_dtypes(model, weight_dtype)
    plan = {name: Planned(dtypes[name], tuple(tensor.shape)) for name, tensor in model.named_parameters()}
    generator = torch.Generator(device).manual_seed(0)

    def random(name: str) -> torch.Tensor:
        dtype, shape = plan[name]
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape, dtype=dtype)
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (torch.randn(shape, generator=generator, device=device) * scale).to("cpu", dtype)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, plan, random, make_metadata(config, variant))


def write_vae(path: Path) -> None:
    """A Wan VAE of the published width, as torch sets it up, unless it is there already."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in WanVAE().state_dict().items()}, path)
