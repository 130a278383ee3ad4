#!/usr/bin/env python3
"""Train the demo transformer: Helios' training in small (paper, sections 3 and 4).

    python tools/train_demo.py --out training --steps 4600

Every step takes one batch for each pyramid stage. A sample is a chunk of a toy video with what comes before it: nothing
(text-to-video), a picture of its first frame (image-to-video), or one, two or more chunks (video-to-video and going
on). The past is corrupted frame by frame, since the model will have to go on from its own mistakes. A second run with
the same `--out` goes on from the last checkpoint, also with more steps. A CPU core takes about a second a step; two
share out the stages: `torchrun --nproc-per-node 2 tools/train_demo.py --out training`.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_latents import LinearCodec, has_fast_bf16
from muon import Muon
from plot_lines import plot_lines

from helios_core.checkpoint import load_transformer, open_checkpoint
from helios_core.checkpoint_writing import save_transformer
from helios_core.conditioning import DEFAULT_SIGMA_RANGE
from helios_core.config import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK
from helios_core.demo import world
from helios_core.demo.model import DEMO_CONFIG, DEMO_SETTINGS, encode_prompt
from helios_core.memory import HeliosMemory
from helios_core.pyramid import renoise_scales, stage_ranges
from helios_core.transformer import HeliosTransformer

CHUNKS = 4  # of a video: three of past, which is more than the memory holds, and the one to make
BATCH = (48, 20)  # samples of each stage: the lowest decides most, and is cheapest
LEARNING_RATE = {"muon": 1.5e-3, "adamw": 7e-4}
WARM_UP = 200  # steps in which the learning rate rises; over the whole run it falls to zero
EMA = 0.9985
# What comes before a chunk, and how often. A picture tells the least of what it must be gone on with.
PASTS = {"nothing": 0.1, "picture": 0.65, "chunks": 0.25}
# How often the prompt is left out. With it there is no need to look at the picture, so that must be learned without.
PROMPT_DROPOUT = {"nothing": 0.15, "picture": 0.7, "chunks": 0.15}
PICTURE_WEIGHT = 12.0  # in the loss, of the frame that must equal the picture: one of nine
START_ERROR = 0.3  # up to which standard deviation a stage enters with errors of the one before, as it will in sampling
# Most such errors are of place. Where the past tells the place, each stage also starts with the shape some pixels off
# (this is the standard deviation) and must come back; else it would trust the first steps more than the past.
ASTRAY = 0.5


SCENES = [scene for scene in world.all_scenes() if not world.is_held_out(scene)]


# The data ------------------------------------------------------------------------------------------------------------


@dataclass
class Videos:
    """Latents of N toy videos. `chunks` (N, 4, 16, 9, 8, 8); `stills` (N, 4, 16, 1, 8, 8): the last latent frame of 33
    times the chunk's first picture; `astray` (N, 4, 16, 9, 4, 4): how a chunk's lowest stage changes when the shape is
    a pixel off; `earlier` (N, 16, 1, 8, 8): the first frame of a chunk long before; `scenes` (N, 4) index into SCENES
    and `prompts`: what the chunk shows; `prompts` (S + 1, rows, text_dim), the last one empty."""

    chunks: torch.Tensor
    stills: torch.Tensor
    astray: torch.Tensor
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
    chunks, stills, astray, earlier, told = [], [], [], [], []
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
            moved = _encode(codec, world.render(scene, beside, range(FRAMES_PER_CHUNK)))
            astray.append(lowest_stage(moved.float() - chunks[-1].float()).half())
            told.append(index[scene])
            start = world.position(scene, start, FRAMES_PER_CHUNK)
    return Videos(
        torch.cat(chunks).unflatten(0, (count, CHUNKS)),
        torch.cat(stills).unflatten(0, (count, CHUNKS)),
        torch.cat(astray).unflatten(0, (count, CHUNKS)),
        torch.cat(earlier),
        torch.tensor(told).view(count, CHUNKS),
        torch.cat(rows),
    )


def _encode(codec: LinearCodec, frames: torch.Tensor) -> torch.Tensor:
    return codec.encode(rearrange(frames * 2 - 1, "t h w c -> 1 c t h w")).half().contiguous()


@dataclass
class Batch:
    """Chunks (B, 16, 9, 8, 8) to learn, errors of place (B, 16, 9, 4, 4) for the lowest stage of each, the weights
    (B, 1, 9, 1, 1) of their frames in the loss, their past, and prompt rows (B, L, text_dim)."""

    target: torch.Tensor
    astray: torch.Tensor
    weights: torch.Tensor
    past: HeliosMemory
    prompts: torch.Tensor


def sample_batch(videos: Videos, size: int, light: torch.Tensor, generator: torch.Generator) -> Batch:
    """Random chunks with a random amount of past: T2V, I2V and V2V are told apart by nothing else."""
    draw = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
    targets, astray, pasts, anchors, prompts = [], [], [], [], []
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
        astray.append(videos.astray[video, target] * (0.0 if kind == "nothing" else draw.gauss(0, ASTRAY)))
        pasts.append(frames)
        anchors.append(anchor)
        prompts.append(int(scenes[target]) if is_told else len(videos.prompts) - 1)
    frames, anchor = torch.stack(pasts).float(), torch.stack(anchors).float()
    both = corrupt(torch.cat((anchor, frames), dim=2), light, generator)
    past = HeliosMemory(both[:, :, 1:], anchor=both[:, :, :1])
    return Batch(torch.stack(targets).float(), torch.stack(astray).float(), weights, past, videos.prompts[prompts])


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


# The loss ------------------------------------------------------------------------------------------------------------


def stage_flow(
    data: torch.Tensor, stage: int, noise: torch.Tensor, error: torch.Tensor | float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both ends of a stage's flow for chunks `data` (B, C, T, h, w): what `renoise` enters it with, and what it must
    end with; the noise is the same at both, so that the path between them is straight. The path starts with `error`,
    at the size of the stage before."""
    schedule = DEMO_SETTINGS.schedule
    ranges = stage_ranges(schedule)
    last = schedule.num_stages - 1
    clean = shrink(data, last - stage)
    end_sigma = ranges[stage + 1].start_sigma if stage < last else 0.0
    end = (1 - end_sigma) * clean + end_sigma * noise
    if stage == 0:
        return noise + error, end
    upsampled = F.interpolate(shrink(clean, 1) + error, scale_factor=(1, 2, 2), mode="nearest")
    signal = renoise_scales(schedule, ranges[stage].start_sigma)[0] * (1 - ranges[stage].start_sigma)
    return signal * upsampled + (1 - signal) * noise, end


def lowest_stage(x: torch.Tensor) -> torch.Tensor:
    """Latents at the size of the pyramid's first stage."""
    return shrink(x, DEMO_SETTINGS.schedule.num_stages - 1)


def shrink(x: torch.Tensor, times: int) -> torch.Tensor:
    """Half the height and width of latents, `times` times."""
    for _ in range(times):
        x = F.avg_pool3d(x, (1, 2, 2))
    return x


def stage_loss(model, batch: Batch, stage: int, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity at a random point of the stage's flow (flow matching)."""
    small = shrink(batch.target, DEMO_SETTINGS.schedule.num_stages - 1 - stage)
    error = batch.astray
    if stage > 0:
        spread = START_ERROR * torch.rand(len(small), 1, 1, 1, 1, generator=generator)
        error = error + spread * torch.randn(error.shape, generator=generator)
    start, end = stage_flow(batch.target, stage, torch.randn(small.shape, generator=generator), error)
    sigma = torch.rand(len(small), generator=generator).view(-1, 1, 1, 1, 1)
    span = stage_ranges(DEMO_SETTINGS.schedule)[stage]
    timestep = span.min_timestep + sigma.flatten() * (span.max_timestep - span.min_timestep)
    device = next(model.parameters()).device
    sample = (sigma * start + (1 - sigma) * end).to(device)
    prompt = model.encode_prompt(batch.prompts.to(device))
    memory = model.encode_memory(batch.past.window(device))
    velocity = model(sample, timestep.to(device), prompt, memory, attention=attention)
    wrong = (velocity.float() - (start - end).to(device)).square()
    return (batch.weights.to(device) * wrong).mean()


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Written out: with heads this small its backward pass is several times faster on a CPU than the fused one."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


# The run -------------------------------------------------------------------------------------------------------------


class Trainer:
    """Weights in fp32 with their optimisers and average, and the copy that gradients are computed with, in bf16 where
    that is faster."""

    def __init__(self, device: str, seed: int, start: Path | None = None) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
        self.model = HeliosTransformer(DEMO_CONFIG, dtype=dtype).to(device)
        if start is not None:
            initial = deepened(load_transformer(open_checkpoint(start), dtype=torch.float32))
        else:
            initial = HeliosTransformer(DEMO_CONFIG)
            torch.nn.init.zeros_(initial.proj_out.weight)  # begins by predicting no change
            torch.nn.init.zeros_(initial.proj_out.bias)
        self.weights = {name: value.detach().to(device).float() for name, value in initial.named_parameters()}
        self.average = {name: value.clone() for name, value in self.weights.items()}
        is_matrix = {name: "blocks" in name and value.ndim == 2 for name, value in self.weights.items()}
        self.optimisers = {
            "muon": Muon(
                [value for name, value in self.weights.items() if is_matrix[name]], lr=0.0, weight_decay=0.01
            ),
            "adamw": torch.optim.AdamW(
                [value for name, value in self.weights.items() if not is_matrix[name]], lr=0.0, betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        }  # fmt: skip
        self.step = 0
        self._publish()

    def train_step(self, videos: Videos, light: torch.Tensor, factor: float) -> torch.Tensor:
        """One step on a batch for each stage; gives the loss of each. Processes share out the stages."""
        losses = torch.zeros(len(BATCH))
        for stage in range(dist.get_rank(), len(BATCH), dist.get_world_size()):
            # Drawn from step and stage alone, whoever draws it and however often the run was broken off.
            generator = torch.Generator().manual_seed((self.seed * 10**8 + self.step) * len(BATCH) + stage)
            batch = sample_batch(videos, BATCH[stage], light, generator)
            loss = stage_loss(self.model, batch, stage, generator)
            loss.backward()
            losses[stage] = loss.item()
        dist.all_reduce(losses)
        gradient = torch.cat([parameter.grad.float().flatten() for parameter in self.model.parameters()])
        dist.all_reduce(gradient)
        sizes = [parameter.numel() for parameter in self.model.parameters()]
        for (name, parameter), part in zip(self.model.named_parameters(), gradient.split(sizes), strict=True):
            self.weights[name].grad = part.view_as(parameter)
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = factor * LEARNING_RATE[name]
            optimiser.step()
        self.step += 1
        self._publish()
        decay = min(EMA, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)
        return losses

    @torch.no_grad()
    def _publish(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])

    def save(self, folder: Path) -> None:
        state = {
            "step": self.step,
            "weights": self.weights,
            "average": self.average,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
        }
        torch.save(state, folder / "checkpoint.new")
        (folder / "checkpoint.new").replace(folder / "checkpoint.pt")
        self.publish(folder / "transformer.safetensors")

    @torch.no_grad()
    def publish(self, path: Path) -> None:
        """Write the averaged weights as the demo model has them: bf16, with fp32 where Helios keeps it."""
        published = HeliosTransformer(DEMO_CONFIG, dtype=torch.bfloat16)
        for name, parameter in published.named_parameters():
            parameter.copy_(self.average[name])
        save_transformer(published, path)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.step = state["step"]
        for own, saved in ((self.weights, state["weights"]), (self.average, state["average"])):
            for name, value in own.items():
                value.copy_(saved[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self._publish()


@torch.no_grad()
def deepened(model: HeliosTransformer) -> HeliosTransformer:
    """The same function with as many blocks as DEMO_CONFIG has: the new ones are spread among the old, each a copy of
    the one before it that adds nothing yet."""
    deep = HeliosTransformer(DEMO_CONFIG)
    old, new = len(model.blocks), len(deep.blocks)
    if not old <= new <= 2 * old:
        raise ValueError(f"the weights have {old} blocks; {new // 2 + new % 2} to {new} can be made into {new}")
    blocks = model.blocks
    model.blocks = torch.nn.ModuleList()
    deep.load_state_dict(model.state_dict(), strict=False)
    model.blocks = blocks
    extra = new - old
    targets = iter(deep.blocks)
    for index, block in enumerate(blocks):
        next(targets).load_state_dict(block.state_dict())
        if (index + 1) * extra // old > index * extra // old:
            copy = next(targets)
            copy.load_state_dict(block.state_dict())
            for layer in (copy.attn1.to_out[0], copy.attn2.to_out[0], copy.ffn.net[2]):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
    return deep


def learning_rate_factor(step: int, num_steps: int) -> float:
    """What LEARNING_RATE is multiplied with: linearly down to zero, after a warm-up."""
    return max(0.0, min((step + 1) / WARM_UP, (num_steps - step) / num_steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, weights and the loss table")
    parser.add_argument("--steps", type=int, default=4600, help="in all, those of earlier runs included")
    parser.add_argument("--videos", type=int, default=8000, help="number of toy videos (75 kB each in memory)")
    parser.add_argument("--weights", type=Path, help="weights to begin with, in place of random ones (safetensors)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="29411")
    dist.init_process_group("gloo")
    train(options)
    dist.destroy_process_group()


def train(options: argparse.Namespace) -> None:
    leads = dist.get_rank() == 0
    codec = LinearCodec.fitted()
    if leads:
        cached_videos(codec, options)
    dist.barrier()
    videos = cached_videos(codec, options)
    trainer = Trainer(options.device, options.seed, options.weights)
    if (options.out / "checkpoint.pt").exists():
        trainer.load(options.out)
    trainer.model.compile_blocks()
    recent = []
    steps = range(trainer.step, options.steps)
    progress = tqdm(steps, initial=trainer.step, total=options.steps, desc="steps", disable=not leads)
    for step in progress:
        losses = trainer.train_step(videos, codec.light, learning_rate_factor(step, options.steps))
        if not losses.isfinite().all():
            raise FloatingPointError(f"the loss is {losses.tolist()} at step {step}; the last checkpoint is kept")
        recent.append(losses)
        if leads and (len(recent) == 50 or trainer.step == options.steps):
            means = torch.stack(recent).mean(0).tolist()
            with open(options.out / "loss.csv", "a", newline="") as file:
                csv.writer(file).writerow([trainer.step, *means, round(time.time())])
            progress.set_postfix(loss=" ".join(f"{mean:.4f}" for mean in means))
            recent = []
        if leads and (trainer.step % 250 == 0 or trainer.step == options.steps):
            trainer.save(options.out)
            plot_losses(options.out)


def plot_losses(folder: Path) -> None:
    """`loss.png` of what is in `loss.csv`: (step, loss of each stage, time)."""
    with open(folder / "loss.csv", newline="") as file:
        rows = [[float(value) for value in row] for row in csv.reader(file)]
    curves = {f"stage {stage + 1}": [(row[0], row[1 + stage]) for row in rows] for stage in range(len(BATCH))}
    plot_lines(curves, folder / "loss.png", title="Squared error of the velocity", x_name="step", log=True)


def cached_videos(codec: LinearCodec, options: argparse.Namespace) -> Videos:
    """The videos, from a file when a run before made them."""
    path = options.out / f"videos-{options.videos}-{options.seed}.safetensors"
    if not path.exists():
        save_file(vars(make_videos(codec, options.videos, options.seed)), path)
    return Videos(**load_file(path))


if __name__ == "__main__":
    main()
