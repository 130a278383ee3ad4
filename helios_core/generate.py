"""From words and files to a video: what the command line asks for, made ready for `make_video`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .fingerprint import fingerprint
from .geometry import FRAMES_PER_CHUNK, check_num_chunks, check_size
from .media.frames import from_pixels, resize_frames, to_pixels
from .media.parts import Encoding
from .media.reader import Clip
from .memory.memory import HeliosMemory
from .memory.storage import ModelIdentity, check_memory
from .model.transformer import HeliosTransformer
from .options.approximations import with_approximations
from .options.cuda_graphs import check_cuda_graphs, graphed
from .run.job import ChunkDone, LongVideo
from .run.lead_in import lead_in_sound, write_lead_in
from .run.long_video import make_video
from .run.run_folder import RunFolder
from .sampling.conditioning import Encode, encode_image, encode_video, image_memory, text_memory, video_memory
from .sampling.drift import AntiDrift
from .sampling.hooks import Hooks
from .sampling.loras import Lora, LorasOverTime
from .sampling.noise import NoiseSource, stream_state
from .sampling.settings import SamplingSettings
from .script.blending import EncodedSchedule
from .script.plans import ScriptedPlans
from .script.schedule import PromptSchedule, Segment
from .sources import ModelSource
from .vae.codec import Codec
from .vae.side_stream import SideStream
from .vae.wan_vae import Decoding

# The last three chunks of a clip are all that a memory of 19 latent frames can hold.
CLIP_FRAMES = 3 * FRAMES_PER_CHUNK


@dataclass(frozen=True)
class Job:
    """What to make: `image` (H, W, 3) uint8 makes it image-to-video, `video` video-to-video, `memory` continues from a
    saved one exactly, none of them text-to-video.

    `later_prompts` are prompts that hold from a chunk on, or `schedule` has them all and takes the place of `prompt`;
    `pictures` are the anchors (H, W, 3) uint8 and `loras` the LoRAs that it names. `rerolls` are other seeds for single
    chunks. Chunks are counted from 0 at the start of the video. `lead_in` is a clip to be put before the new chunks,
    most often the one that `video` is the end of.
    """

    prompt: str
    num_chunks: int
    width: int
    height: int
    negative_prompt: str = ""
    later_prompts: Mapping[int, str] = field(default_factory=dict)
    schedule: PromptSchedule | None = None
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    loras: Mapping[str, Lora] = field(default_factory=dict)
    rerolls: Mapping[int, int] = field(default_factory=dict)
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
        check_num_chunks(self.num_chunks)
        if sum(start is not None for start in (self.image, self.video, self.memory)) > 1:
            raise ValueError("a video starts from an image, a video or a memory; more than one of them is given")
        if self.memory is not None:
            check_memory(self.memory, width=self.width, height=self.height)
        if self.video is not None and len(self.video.frames) < FRAMES_PER_CHUNK:
            raise ValueError(
                f"the clip has {len(self.video.frames)} frames; at least {FRAMES_PER_CHUNK} are needed to continue it"
            )
        chunks = self.chunks
        for chunk in (*self.later_prompts, *self.rerolls):
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
    return lambda frames, key: codec.encode(to_pixels(resize_frames(frames, job.width, job.height, job.resize)), key)


def first_memory(job: Job, encode: Encode, noise: NoiseSource) -> HeliosMemory:
    """The memory that the first chunk continues from."""
    if job.memory is not None:
        return job.memory
    if job.image is not None:
        return image_memory(*encode_image(job.image[None], encode), noise)
    if job.video is not None:
        clip = job.video
        return video_memory(*encode_video(clip.frames, encode, first_frame=clip.first_frame[None]), noise)
    return text_memory(width=job.width, height=job.height)


def identified(memory: HeliosMemory, job: Job, source: ModelSource, noise: NoiseSource) -> HeliosMemory:
    """The first memory with what it was made from: not the values, which differ from machine to machine."""
    if job.image is not None:
        return replace(memory, identity=encoding_identity(job, source, noise, "image", job.image))
    if job.video is not None:
        clip = job.video
        return replace(memory, identity=encoding_identity(job, source, noise, "video", clip.frames, clip.first_frame))
    return memory


def encoding_identity(job: Job, source: ModelSource, noise: NoiseSource, *what: Any) -> str:
    """What the latents of pictures are made from; "" with noise that is drawn in order, so that they depend on more."""
    if stream_state(noise) is not None:
        return ""
    return fingerprint(
        *what, (job.width, job.height), job.resize, source.codec_fingerprint, type(noise).__name__, noise.seed
    )


@dataclass(frozen=True)
class Words:
    """The texts of a job, encoded: the script, and the rows of the negative prompt with their identity."""

    script: EncodedSchedule
    negative_rows: torch.Tensor
    negative_identity: str


def encode_words(source: ModelSource, job: Job) -> Words:
    """Encode all texts of a job in one go: the text encoder is loaded once."""
    directions = job.directions()
    prompts = [segment.prompt for segment in directions.segments]
    texts = [*dict.fromkeys([*prompts, job.negative_prompt])]
    rows = dict(zip(texts, source.encode_prompts(texts), strict=True))
    identities = {text: fingerprint(source.text_fingerprint, text) for text in texts}
    script = EncodedSchedule(
        directions,
        tuple(rows[prompt] for prompt in prompts),
        job.pictures,
        loras=job.loras,
        identities=tuple(identities[prompt] for prompt in prompts),
    )
    return Words(script, rows[job.negative_prompt], identities[job.negative_prompt])


def planned_video(
    source: ModelSource,
    job: Job,
    settings: SamplingSettings,
    noise: NoiseSource,
    words: Words,
    encode: Encode,
    decoding: Decoding,
) -> LongVideo:
    """The video of a job: its first memory, and the plans of its chunks."""
    script = words.script
    pictures = script.anchors_in(job.chunks)
    plans = ScriptedPlans(
        script,
        settings,
        noise,
        negative_rows=words.negative_rows if script.is_guided(job.chunks, settings) else None,
        negative_identity=words.negative_identity,
        anchors={chunk: encode(picture[None], ("anchor", chunk)) for chunk, picture in pictures.items()},
        anchor_identities={
            chunk: encoding_identity(job, source, noise, "anchor", chunk, picture)
            for chunk, picture in pictures.items()
        },
        rerolls=job.rerolls,
    )
    schedule = script.schedule
    return LongVideo(
        memory=identified(first_memory(job, encode, noise), job, source, noise),
        num_chunks=job.num_chunks,
        plan=plans,
        noise=noise,
        model=ModelIdentity(source.name, source.fingerprint),
        codec=decoding.name,
        anti_drift=job.anti_drift,
        encoding=job.encoding,
        notes={
            "prompt": schedule.segments[0].prompt,
            "schedule": json.loads(schedule.to_json()),
            "negative": job.negative_prompt,
        },
    )


def check_options(
    source: ModelSource, job: Job, settings: SamplingSettings, *, compile_blocks: bool, cuda_graphs: bool
) -> None:
    """Raise ValueError, before anything heavy is loaded, for options that do not go together."""
    if cuda_graphs:
        check_cuda_graphs(source.device, settings)
    if job.loras and (compile_blocks or cuda_graphs):
        raise ValueError(
            "LoRAs whose strength changes over time do not go with compile or cuda_graphs, which would be made anew "
            "for each strength. Leave those out, or take the LoRAs out of the schedule"
        )


def generate(
    source: ModelSource,
    job: Job,
    settings: SamplingSettings,
    noise: NoiseSource,
    *,
    folder: RunFolder,
    path: Path,
    on_chunk: Callable[[ChunkDone], None] | None = None,
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
    check_options(source, job, settings, compile_blocks=compile_blocks, cuda_graphs=cuda_graphs)
    decoding = decoding or Decoding()
    words = encode_words(source, job)
    codec = source.load_codec(decoding)
    video = planned_video(source, job, settings, noise, words, encoder(job, codec), decoding)
    over_time = LorasOverTime(job.loras.values())
    at_the_end = ExitStack()

    @cache
    def load_model() -> HeliosTransformer:
        model = source.load_transformer()
        at_the_end.enter_context(over_time.beside(model))
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
    hooks = replace(with_approximations(hooks or Hooks(), settings), set_loras=over_time.set_strengths)
    with at_the_end, graphed(hooks, load_model) if cuda_graphs else nullcontext(hooks) as hooks:
        return make_video(
            video,
            folder,
            path,
            load_model=load_model,
            decode=SideStream(codec.device).around(decode) if overlapped else decode,
            decode_in_background=overlapped,
            on_chunk=on_chunk,
            hooks=hooks,
            metadata={"helios": json.dumps(about, sort_keys=True)},
            lead_in=lead_in,
            sound=None if job.lead_in is None else lead_in_sound(job.lead_in),
        )
