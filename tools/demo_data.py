"""What the demo transformer is trained on: chunks of toy videos with a corrupted past.

A sample is a chunk with what comes before it: nothing (text-to-video), a picture of its first frame (image-to-video),
or one, two or more chunks (video-to-video and its continuation). The past is corrupted frame by frame, since the model
will have to continue from its own mistakes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_latents import LinearCodec
from einops import rearrange
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from helios_core.demo import world
from helios_core.demo.model import DEMO_SETTINGS, encode_prompt
from helios_core.geometry import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK
from helios_core.memory.memory import HeliosMemory
from helios_core.sampling.conditioning import DEFAULT_SIGMA_RANGE

CHUNKS = 4  # of a video: three of past, which is more than the memory holds, and the one to make
# What comes before a chunk, and how often. A picture shows the least of what follows.
PASTS = {"nothing": 0.1, "picture": 0.65, "chunks": 0.25}
# How often the prompt is left out. With it there is no need to look at the picture, so that must be learned without.
PROMPT_DROPOUT = {"nothing": 0.15, "picture": 0.7, "chunks": 0.15}
PICTURE_WEIGHT = 12.0  # in the loss, of the frame that must equal the picture: one of nine
# A pyramid stage hands errors on to the next, most of them of place. Where the past shows the place, a path starts with
# the shape some pixels off (this is the standard deviation) and must come back; else the model would trust its own
# first steps more than the past.
PLACE_ERROR = 0.5

SCENES = [scene for scene in world.all_scenes() if not world.is_held_out(scene)]


@dataclass
class Videos:
    """Latents of N toy videos. `chunks` (N, 4, 16, 9, 8, 8); `stills` (N, 4, 16, 1, 8, 8): the last latent frame of 33
    times the chunk's first picture; `moved` (N, 4, 16, 9, 4, 4): how a chunk's lowest stage changes when the shape is a
    pixel off; `earlier` (N, 16, 1, 8, 8): the first frame of a chunk long before; `scenes` (N, 4) index into SCENES
    and `prompts`: what the chunk shows; `prompts` (S + 1, rows, text_dim), the last one empty."""

    chunks: torch.Tensor
    stills: torch.Tensor
    moved: torch.Tensor
    earlier: torch.Tensor
    scenes: torch.Tensor
    prompts: torch.Tensor


def make_videos(codec: LinearCodec, count: int, seed: int) -> Videos:
    """Draw and encode `count` videos; in a third of them the scene changes at a chunk's begin, the place does not.

    The first half begin with an opening.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    index = {scene: number for number, scene in enumerate(SCENES)}
    rows = [*(encode_prompt(scene.prompt) for scene in SCENES), encode_prompt("")]
    chunks, stills, moved, earlier, named = [], [], [], [], []
    for number in tqdm(range(count), desc="videos"):
        scene = draw.choice(SCENES)
        changes_at = draw.randrange(1, CHUNKS) if draw.random() < 0.35 else CHUNKS
        start = world.random_start(scene, generator, opening=number < count // 2)
        before = draw.randrange(-1000, 0)
        earlier.append(_encode(codec, world.render(scene, start, range(before, before + 1))))
        for chunk in range(CHUNKS):
            if chunk == changes_at:
                scene = draw.choice(SCENES)
            clip = world.render(scene, start, range(FRAMES_PER_CHUNK))
            chunks.append(_encode(codec, clip))
            stills.append(_encode(codec, clip[:1].expand(5, -1, -1, -1))[:, :, -1:])
            angle = draw.uniform(0, 2 * math.pi)
            beside = (start[0] + math.cos(angle), start[1] + math.sin(angle))
            off = _encode(codec, world.render(scene, beside, range(FRAMES_PER_CHUNK)))
            moved.append(lowest_stage(off.float() - chunks[-1].float()).half())
            named.append(index[scene])
            start = world.position(scene, start, FRAMES_PER_CHUNK)
    return Videos(
        torch.cat(chunks).unflatten(0, (count, CHUNKS)),
        torch.cat(stills).unflatten(0, (count, CHUNKS)),
        torch.cat(moved).unflatten(0, (count, CHUNKS)),
        torch.cat(earlier),
        torch.tensor(named).view(count, CHUNKS),
        torch.cat(rows),
    )


def _encode(codec: LinearCodec, frames: torch.Tensor) -> torch.Tensor:
    return codec.encode(rearrange(frames * 2 - 1, "t h w c -> 1 c t h w")).half().contiguous()


@dataclass
class Batch:
    """Chunks (B, 16, 9, 8, 8) to learn, errors of place (B, 16, 9, 4, 4) for the lowest stage of each, the weights
    (B, 1, 9, 1, 1) of their frames in the loss, their past, and prompt rows (B, L, text_dim)."""

    target: torch.Tensor
    place_error: torch.Tensor
    weights: torch.Tensor
    past: HeliosMemory
    prompts: torch.Tensor


def sample_batch(videos: Videos, size: int, light: torch.Tensor, generator: torch.Generator) -> Batch:
    """Random chunks with a random amount of past: T2V, I2V and V2V differ in nothing else."""
    draw = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
    targets, place_errors, pasts, anchors, prompts = [], [], [], [], []
    weights = torch.ones(size, 1, LATENT_FRAMES_PER_CHUNK, 1, 1)
    for sample in range(size):
        (kind,) = draw.choices(list(PASTS), PASTS.values())
        is_told = draw.random() > PROMPT_DROPOUT[kind]
        video, target = draw_chunk(videos, kind, is_told, draw)
        chunks, scenes = videos.chunks[video], videos.scenes[video]
        frames = torch.zeros(16, 19, 8, 8)
        anchor = torch.zeros(16, 1, 8, 8)
        if kind == "picture":
            frames[:, -1:], anchor = videos.stills[video, target], chunks[target, :, :1]
            weights[sample, :, 0] = PICTURE_WEIGHT
        elif kind == "chunks":
            num_past = draw.randint(1, target)
            past = torch.cat(tuple(chunks[target - num_past : target]), dim=1)[:, -19:]
            frames[:, -past.shape[1] :], anchor = past, chunks[target - num_past, :, :1]
            if num_past == 3 and draw.random() < 0.7:
                anchor = videos.earlier[video]
            # A change of scene is not to be guessed without its prompt.
            is_told = is_told or bool(scenes[target - 1] != scenes[target])
        targets.append(chunks[target])
        place_errors.append(videos.moved[video, target] * (0.0 if kind == "nothing" else draw.gauss(0, PLACE_ERROR)))
        pasts.append(frames)
        anchors.append(anchor)
        prompts.append(int(scenes[target]) if is_told else len(videos.prompts) - 1)
    frames, anchor = torch.stack(pasts).float(), torch.stack(anchors).float()
    both = corrupt(torch.cat((anchor, frames), dim=2), light, generator)
    past = HeliosMemory(both[:, :, 1:], anchor=both[:, :, :1])
    target, place_error = torch.stack(targets).float(), torch.stack(place_errors).float()
    return Batch(target, place_error, weights, past, videos.prompts[prompts])


def draw_chunk(videos: Videos, kind: str, is_told: bool, draw: random.Random) -> tuple[int, int]:
    """A chunk to make, as video and place in it, that can have such a past and, unless `is_told`, no prompt."""
    while True:
        video, target = draw.randrange(len(videos.chunks)), draw.randrange(CHUNKS)
        match kind:
            case "nothing":
                return video // 2, 0
            case "chunks":
                return video, draw.choice((1, 2, 3, 3))  # a long video has three chunks of past nearly always
        scene = SCENES[videos.scenes[video, target]]
        if is_told or scene.direction == world.UNTOLD_DIRECTION:
            return video, target


def corrupt(frames: torch.Tensor, light: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Frame-aware corruption of the past (B, 16, T, 8, 8): to each frame noise, another exposure, blur, or nothing.

    What is empty, having no past, stays empty.
    """
    size, _, count = frames.shape[:3]
    shape = (size, 1, count, 1, 1)
    kind = torch.rand(shape, generator=generator)
    low, high = DEFAULT_SIGMA_RANGE  # half the noise is as strong as that of a picture or clip that a video begins with
    usual = torch.rand(shape, generator=generator) < 0.5
    sigma = torch.rand(shape, generator=generator)
    sigma = torch.where(usual, low + sigma * (high - low), sigma * 0.3)
    noisy = (1 - sigma) * frames + sigma * torch.randn(frames.shape, generator=generator)
    gain = 1 + 0.2 * (torch.rand(shape, generator=generator) - 0.5)
    exposed = gain * frames + (gain - 1) * light
    flat = rearrange(frames, "b c t h w -> (b t) c h w")
    blurred = F.interpolate(F.avg_pool2d(flat, 2), scale_factor=2, mode="bilinear")
    blurred = rearrange(blurred, "(b t) c h w -> b c t h w", b=size)
    mixed = torch.where(kind < 0.5, noisy, torch.where(kind < 0.6, exposed, torch.where(kind < 0.7, blurred, frames)))
    return torch.where(frames.abs().amax((1, 3, 4), keepdim=True) > 0, mixed, frames)


def cached_videos(codec: LinearCodec, count: int, seed: int, folder: Path) -> Videos:
    """The videos, from a file when a run before made them."""
    path = folder / f"videos-{count}-{seed}.safetensors"
    if not path.exists():
        unfinished = path.with_suffix(".new")
        save_file(vars(make_videos(codec, count, seed)), unfinished)
        unfinished.replace(path)
    return Videos(**load_file(path))


def lowest_stage(x: torch.Tensor) -> torch.Tensor:
    """Latents at the size of the pyramid's first stage."""
    return shrink(x, DEMO_SETTINGS.schedule.num_stages - 1)


def shrink(x: torch.Tensor, times: int) -> torch.Tensor:
    """Half the height and width of latents, `times` times."""
    for _ in range(times):
        x = F.avg_pool3d(x, (1, 2, 2))
    return x
