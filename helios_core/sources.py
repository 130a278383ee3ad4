"""The parts of a Helios, each loaded when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from .checkpoint.checkpoint import open_checkpoint
from .checkpoint.loading import load_transformer
from .fingerprint import file_fingerprint, fingerprint, folder_fingerprint
from .model.transformer import HeliosTransformer
from .options.fp8 import check_fp8_products, fp8_linear
from .sampling.noise import Key, NoiseSource
from .sampling.settings import VARIANTS, SamplingSettings
from .script.text_encoder import umt5_rows
from .vae.codec import Codec, WanCodec
from .vae.wan_vae import Decoding
from .vae.wan_vae_file import vae_folder


class ModelSource(Protocol):
    """The parts of a Helios, each loaded when it is needed: together they are larger than most cards."""

    name: str
    device: str  # to compute on
    width: int  # default size of the video in pixels
    height: int
    settings: SamplingSettings

    @property
    def fingerprint(self) -> str:
        """Distinguishes this model from others, as `fingerprint` does; without loading it."""

    @property
    def text_fingerprint(self) -> str:
        """Distinguishes the text encoder from others, likewise."""

    @property
    def codec_fingerprint(self) -> str:
        """Distinguishes the encoding of pictures from others, likewise."""

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        """Text encoder rows (1, L, text_dim) of each prompt."""

    def load_codec(self, decoding: Decoding | None = None) -> Codec:
        """The VAE, which decodes as asked (by default exactly)."""

    def load_transformer(self) -> HeliosTransformer:
        """The transformer, ready to sample."""


class PublishedModel:
    """A published Helios folder (`transformer`, `scheduler`, `vae`, `text_encoder`, `tokenizer`) as a `ModelSource`.

    With `fp8_matmul` the blocks' linear layers multiply in fp8 (see `fp8`). Raises CheckpointError when the transformer
    is incomplete, and ValueError when its variant is not known or the device cannot multiply in fp8.
    """

    width, height = 640, 384

    def __init__(
        self,
        folder: Path,
        *,
        variant: str | None,
        dtype: torch.dtype,
        device: str,
        noise: NoiseSource,
        fp8_matmul: bool = False,
    ) -> None:
        self.folder, self.dtype, self.device, self.noise, self.fp8_matmul = folder, dtype, device, noise, fp8_matmul
        self.name = folder.name
        self.checkpoint = open_checkpoint(folder)
        if fp8_matmul:
            check_fp8_products(device, self.checkpoint.config)
        settings = VARIANTS[variant] if variant else self.checkpoint.settings
        if settings is None:
            raise ValueError(
                f"{folder} has no scheduler/scheduler_config.json to say which variant it is; "
                f"give --variant {', '.join(VARIANTS)}"
            )
        self.settings = settings

    @property
    def fingerprint(self) -> str:
        files = sorted({entry.file for entry in self.checkpoint.tensors.values()})
        numbers = [str(self.dtype), "fp8 products"] if self.fp8_matmul else [str(self.dtype)]
        return fingerprint([file_fingerprint(file) for file in files], *numbers)

    @property
    def text_fingerprint(self) -> str:
        folders = (self.folder / "tokenizer", self.folder / "text_encoder")
        return fingerprint(str(self.dtype), *(folder_fingerprint(folder) for folder in folders))

    @property
    def codec_fingerprint(self) -> str:
        noise = self.noise  # of a sample of the posterior
        return fingerprint(folder_fingerprint(vae_folder(self.folder)), type(noise).__name__, noise.seed)

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        return [rows.to(self.device) for rows in umt5_rows(prompts, self.folder, self.dtype, self.device)]

    def load_codec(self, decoding: Decoding | None = None) -> Codec:
        def posterior_noise(shape: torch.Size, key: Key) -> torch.Tensor:
            return self.noise.normal(tuple(shape), ("posterior", *shape, *key))

        return WanCodec.from_folder(self.folder, self.device, decoding=decoding, noise=posterior_noise)

    def load_transformer(self) -> HeliosTransformer:
        make_linear = fp8_linear if self.fp8_matmul else None
        return load_transformer(self.checkpoint, dtype=self.dtype, device=self.device, make_linear=make_linear)
