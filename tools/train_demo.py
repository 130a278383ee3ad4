#!/usr/bin/env python3
"""Train the demo transformer: Helios' training in small (paper, sections 3 and 4).

    python tools/train_demo.py --out training --steps 4600

Every step takes one batch of `demo_data` for each pyramid stage. A second run with the same `--out` resumes from the
last checkpoint, also with more steps. The weights in the repository are of four runs, which their model card describes.
A CPU core takes about a second a step; two share out the stages:
`torchrun --nproc-per-node 2 tools/train_demo.py --out training`.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_data import Batch, Videos, cached_videos, sample_batch, shrink
from demo_latents import LinearCodec, has_fast_bf16
from muon import Muon
from plot_lines import plot_lines

from helios_core.checkpoint.checkpoint import open_checkpoint
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.writing import save_transformer
from helios_core.demo.model import DEMO_CONFIG, DEMO_SETTINGS
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.pyramid import renoise_scales, stage_ranges

BATCH = (48, 20)  # samples of each stage: the lowest decides most, and is cheapest
LEARNING_RATE = {"muon": 1.5e-3, "adamw": 7e-4}
WARM_UP = 200  # steps in which the learning rate rises; over the whole run it falls to zero
EMA = 0.9985
START_ERROR = 0.3  # up to which standard deviation a stage enters with errors of the one before, as it will in sampling


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


def stage_loss(model, batch: Batch, stage: int, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity at a random point of the stage's flow (flow matching)."""
    small = shrink(batch.target, DEMO_SETTINGS.schedule.num_stages - 1 - stage)
    error = batch.place_error
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
    old, new = len(model.blocks), DEMO_CONFIG.num_layers
    if old > new:
        raise ValueError(f"the weights have {old} blocks; give weights with at most {new}, which DEMO_CONFIG has")
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.")}
    sources = [((place + 1) * old - 1) // new for place in range(new)]
    for place, source in enumerate(sources):
        for name, value in model.blocks[source].state_dict().items():
            adds = name.startswith(("attn1.to_out.", "attn2.to_out.", "ffn.net.2."))
            state[f"blocks.{place}.{name}"] = torch.zeros_like(value) if adds and source in sources[:place] else value
    deep = HeliosTransformer(DEMO_CONFIG)
    deep.load_state_dict(state)
    return deep


def learning_rate_factor(step: int, num_steps: int) -> float:
    """What LEARNING_RATE is multiplied with: linearly down to zero, after a warm-up."""
    return max(0.0, min((step + 1) / WARM_UP, (num_steps - step) / num_steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, weights and the loss table")
    parser.add_argument("--steps", type=int, default=4600, help="in all, those of earlier runs included")
    parser.add_argument("--videos", type=int, default=8000, help="number of toy videos (100 kB each in memory)")
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
        cached_videos(codec, options.videos, options.seed, options.out)
    dist.barrier()
    videos = cached_videos(codec, options.videos, options.seed, options.out)
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


if __name__ == "__main__":
    main()
