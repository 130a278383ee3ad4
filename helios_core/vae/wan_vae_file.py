"""Reading a Wan VAE: one safetensors file, or the folder `vae` of a published model, with diffusers' names in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checkpoint.safetensors_file import CheckpointError
from .wan_vae import LATENTS_MEAN, LATENTS_STD, WanVAE

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"

# diffusers' names -> the published ones, for each part of a name.
_PARTS = {
    r"^quant_conv\.": "conv1.",
    r"^post_quant_conv\.": "conv2.",
    r"\.conv_in\.": ".conv1.",
    r"\.norm_out\.": ".head.0.",
    r"\.conv_out\.": ".head.2.",
    r"\.mid_block\.attentions\.0\.": ".middle.1.",
    r"\.mid_block\.resnets\.0\.": ".middle.0.",
    r"\.mid_block\.resnets\.1\.": ".middle.2.",
    r"\.down_blocks\.": ".downsamples.",
    r"\.norm1\.": ".residual.0.",
    r"(?<=\d)\.conv1\.": ".residual.2.",
    r"\.norm2\.": ".residual.3.",
    r"(?<=\d)\.conv2\.": ".residual.6.",
    r"\.conv_shortcut\.": ".shortcut.",
}
# A level of the decoder: three residual blocks and the upsampling.
_LEVEL = re.compile(r"\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.")


def load_wan_vae(path: Path, *, piece: int | None = None) -> WanVAE:
    """The VAE in a file or folder, as wide as its weights are, in float32 on the CPU. `piece`: see `WanVAE`.

    Raises FileNotFoundError when there is none, CheckpointError for another kind of VAE.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        if path.is_dir():
            _check_statistics(json.loads((path / CONFIG).read_text(encoding="utf-8")))
        weights = {published_name(name): value.float() for name, value in load_file(file).items()}
        with torch.device("meta"):
            vae = WanVAE(dim=weights["decoder.head.0.gamma"].shape[0], piece=piece)
        vae.load_state_dict(weights, assign=True)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a Wan VAE with the published names or diffusers': {error}") from error
    return vae


def vae_folder(path: Path) -> Path:
    """The folder of the VAE: `path` or, in a whole model's folder, `vae`. Raises FileNotFoundError."""
    for folder in (path / "vae", path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    raise FileNotFoundError(f"no VAE in {path}: expected {CONFIG} and {WEIGHTS} there or in its folder vae")


def published_name(name: str) -> str:
    """The published name of a tensor that diffusers calls `name`; published names stay."""
    name = _LEVEL.sub(_flat_block, name)
    if name.startswith(("encoder.middle", "decoder.middle")) or ".residual." in name:
        return name
    for theirs, published in _PARTS.items():
        name = re.sub(theirs, published, name, count=1)
    return name


def _flat_block(match: re.Match) -> str:
    level, kind, number = match.groups()
    return f".upsamples.{4 * int(level) + (3 if kind == 'upsamplers' else int(number))}."


def _check_statistics(config: dict) -> None:
    """The mean and standard deviation of the latents are written into this code."""
    own = {"latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD}
    for name, values in own.items():
        if name in config and config[name] != list(values):
            raise ValueError(f"its {name} are not those of Wan 2.1")
