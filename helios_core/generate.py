"""From words and files to a video: what the command line asks for, made ready for the engine in `long_video`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from .blending import EncodedSchedule
from .checkpoint import load_transformer, open_checkpoint
from .codec import Codec, WanCodec
from .conditioning import Encode, encode_image, encode_video, image_memory, text_memory, video_memory
from .config import FRAMES_PER_CHUNK, VARIANTS, SamplingSettings, check_size
from .cuda_graphs import check_cuda_graphs, graphed
from .drift import AntiDrift
from .fingerprint import file_fingerprint, fingerprint
from .fp8 import check_fp8_products, fp8_linear
from .lead_in import write_lead_in
from .long_video import ChunkDone, ChunkPlan, LongVideo, make_video
from .memory import HeliosMemory
from .noise import NoiseSource, SeededNoise
from .overlap import SideStream
from .run_folder import RunFolder
from .sampler import Hooks
from .schedule import PromptSchedule, Segment
from .segments import Encoding
from .storage import ModelIdentity, check_memory
from .text import umt5_rows
from .transformer import HeliosTransformer
from .video import Clip, from_pixels, resize_frames, to_pixels
from .wan_vae import Decoding

# The last three chunks of a clip are all that a memory of 19 latent frames can hold.
CLIP_FRAMES = 3 * FRAMES_PER_CHUNK


class ModelSource(Protocol):
    """The parts of a Helios, each loaded when it is needed: together they are larger than most cards."""

    name: str
    device: str  # to compute on
    width: int  # default size of the video in pixels
    height: int
    settings: SamplingSettings

    @property
    def fingerprint(self) -> str:
        """Tells this model from others, as `fingerprint` does; without loading it."""

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        """Text encoder rows (1, L, text_dim) of each prompt."""

    def load_codec(self, decoding: Decoding | None = None) -> Codec:
        """The VAE, which decodes as told (by default exactly)."""

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
                f"{folder} has no scheduler/scheduler_config.json to tell which variant it is; "
                f"give --variant {', '.join(VARIANTS)}"
            )
        self.settings = settings

    @property
    def fingerprint(self) -> str:
        files = sorted({entry.file for entry in self.checkpoint.tensors.values()})
        numbers = [str(self.dtype), "fp8 products"] if self.fp8_matmul else [str(self.dtype)]
        return fingerprint([file_fingerprint(file) for file in files], *numbers)

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        return [rows.to(self.device) for rows in umt5_rows(prompts, self.folder, self.dtype, self.device)]

    def load_codec(self, decoding: Decoding | None = None) -> Codec:
        def posterior_noise(shape: torch.Size) -> torch.Tensor:
            return self.noise.normal(tuple(shape), ("posterior", *shape))

        return WanCodec.from_folder(self.folder, self.device, decoding=decoding, noise=posterior_noise)

    def load_transformer(self) -> HeliosTransformer:
        make_linear = fp8_linear if self.fp8_matmul else None
        return load_transformer(self.checkpoint, dtype=self.dtype, device=self.device, make_linear=make_linear)


@dataclass(frozen=True)
class Job:
    """What to make: `image` (H, W, 3) uint8 makes it image-to-video, `video` video-to-video, `memory` goes on from a
    saved one exactly, none of them text-to-video.

    `later_prompts` are prompts that hold from a chunk on, or `schedule` has them all and takes the place of `prompt`;
    `pictures` are the anchors (H, W, 3) uint8 that it names. `other_noise` is noise for single chunks. Chunks are
    counted from 0 at the start of the video. `lead_in` is a clip to be put before the new chunks, most often the one
    that `video` is the end of.
    """

    prompt: str
    num_chunks: int
    width: int
    height: int
    negative_prompt: str = ""
    later_prompts: Mapping[int, str] = field(default_factory=dict)
    schedule: PromptSchedule | None = None
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    other_noise: Mapping[int, NoiseSource] = field(default_factory=dict)
    image: torch.Tensor | None = None
    video: Clip | None = None
    lead_in: Path | None = None
    memory: HeliosMemory | None = None
    resize: str = "crop"
    anti_drift: AntiDrift | None = None
    encoding: Encoding = field(default_factory=Encoding)

    def check(self, settings: SamplingSettings) -> None:
        """Raise ValueError, before anything heavy is loaded, for what cannot work."""
        check_size(self.width, self.height, settings.schedule.num_stages)
        if self.num_chunks < 1:
            raise ValueError(f"number of chunks is {self.num_chunks}; at least 1 is needed (a chunk is 33 frames)")
        if sum(start is not None for start in (self.image, self.video, self.memory)) > 1:
            raise ValueError("a video starts from an image, a video or a memory; more than one of them is given")
        if self.memory is not None:
            check_memory(self.memory, width=self.width, height=self.height)
        if self.video is not None and len(self.video.frames) < FRAMES_PER_CHUNK:
            raise ValueError(
                f"the clip has {len(self.video.frames)} frames; at least {FRAMES_PER_CHUNK} are needed to go on from"
            )
        chunks = self.chunks
        for chunk in (*self.later_prompts, *self.other_noise):
            if chunk not in chunks:
                raise ValueError(f"chunk {chunk} is not made here; these are chunks {chunks[0]} to {chunks[-1]}")
        if self.schedule is not None and self.later_prompts:
            raise ValueError("both a schedule and later prompts are given; put the prompts into the schedule")

    @property
    def chunks(self) -> range:
        """The chunks to make."""
        first = 0 if self.memory is None else self.memory.chunk_index
        return range(first, first + self.num_chunks)

    def directions(self) -> PromptSchedule:
        """The prompts of all chunks. Later prompts set in at once."""
        if self.schedule is not None:
            return self.schedule
        prompts = sorted({0: self.prompt, **self.later_prompts}.items())
        return PromptSchedule(tuple(Segment(start, prompt) for start, prompt in prompts), shape="step")


def encoder(job: Job, codec: Codec) -> Encode:
    """frames (T, H, W, 3) uint8 of any size -> latents at the job's size."""
    return lambda frames: codec.encode(to_pixels(resize_frames(frames, job.width, job.height, job.resize)))


def first_memory(job: Job, encode: Encode, noise: NoiseSource) -> HeliosMemory:
    """The memory that the first chunk goes on from."""
    if job.memory is not None:
        return job.memory
    if job.image is not None:
        return image_memory(*encode_image(job.image[None], encode), noise)
    if job.video is not None:
        clip = job.video
        return video_memory(*encode_video(clip.frames, encode, first_frame=clip.first_frame[None]), noise)
    return text_memory(width=job.width, height=job.height)


def generate(
    source: ModelSource,
    job: Job,
    settings: SamplingSettings,
    noise: NoiseSource,
    *,
    folder: RunFolder,
    path: Path,
    tell: Callable[[ChunkDone], None] | None = None,
    hooks: Hooks | None = None,
    compile_blocks: bool = False,
    cuda_graphs: bool = False,
    decoding: Decoding | None = None,
    overlap_vae: bool = False,
) -> ChunkDone:
    """Make the video at `path`, chunk by chunk, resuming what is in `folder`: see `make_video`.

    With `compile_blocks` the transformer's blocks are compiled (see `HeliosTransformer.compile_blocks`), with
    `cuda_graphs` its forwards recorded and replayed (see `cuda_graphs`). `decoding` is how the VAE decodes. With
    `overlap_vae` a chunk is decoded while the next one is sampled, on the same GPU (see `overlap`); on a CPU that
    changes nothing.
    """
    job.check(settings)
    if cuda_graphs:
        check_cuda_graphs(source.device, settings)
    directions = job.directions()
    prompts = [segment.prompt for segment in directions.segments]
    texts = [*dict.fromkeys([*prompts, job.negative_prompt])]  # in one go: the text encoder is loaded once
    rows = dict(zip(texts, source.encode_prompts(texts), strict=True))
    script = EncodedSchedule(directions, tuple(rows[prompt] for prompt in prompts), job.pictures)
    decoding = decoding or Decoding()
    codec = source.load_codec(decoding)
    encode = encoder(job, codec)
    anchors = {chunk: encode(picture[None]) for chunk, picture in script.anchors_in(job.chunks).items()}

    def plan(chunk: int) -> ChunkPlan:
        seed = directions.segment_at(chunk).seed
        return ChunkPlan(
            rows=script.rows_for(chunk),
            settings=script.settings_for(chunk, settings),
            noise=job.other_noise.get(chunk, None if seed is None else SeededNoise(seed)),
            anchor=anchors.get(chunk),
        )

    video = LongVideo(
        memory=first_memory(job, encode, noise),
        num_chunks=job.num_chunks,
        plan=plan,
        noise=noise,
        model=ModelIdentity(source.name, source.fingerprint),
        codec=decoding.name,
        negative=rows[job.negative_prompt] if script.most_guided(job.chunks, settings).guided else None,
        anti_drift=job.anti_drift,
        encoding=job.encoding,
        notes={"prompt": prompts[0], "schedule": json.loads(directions.to_json()), "negative": job.negative_prompt},
    )

    @cache
    def load_model() -> HeliosTransformer:
        model = source.load_transformer()
        if compile_blocks:
            model.compile_blocks()
        return model

    lead_in = []
    if job.lead_in is not None:
        lead_in = write_lead_in(
            job.lead_in, folder, width=job.width, height=job.height, resize=job.resize, encoding=job.encoding
        )

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return from_pixels(codec.decode(latents))

    overlapped = overlap_vae and codec.device.type == "cuda"
    about = {"model": source.name, "seed": noise.seed, "settings": asdict(settings), **video.notes}
    hooks = hooks or Hooks()
    with graphed(hooks, load_model) if cuda_graphs else nullcontext(hooks) as hooks:
        return make_video(
            video,
            folder,
            path,
            load_model=load_model,
            decode=SideStream(codec.device).around(decode) if overlapped else decode,
            decode_in_background=overlapped,
            tell=tell,
            hooks=hooks,
            metadata={"helios": json.dumps(about, sort_keys=True)},
            lead_in=lead_in,
        )
