#!/usr/bin/env python3
"""Train the demo's VAE: the Wan architecture at a twelfth of its width.

    python tools/train_demo_vae.py --out training --steps 1500

The encoder learns to give the principal components of `demo_latents`, the decoder to make pictures of them again, also
of slightly wrong ones, as they come out of a transformer. A second run with the same `--out` resumes from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_latents import LATENT_SCALE, LinearCodec, has_fast_bf16
from muon import Muon

from helios_core.demo import world
from helios_core.vae.wan_vae import LATENTS_MEAN, LATENTS_STD, ResidualBlock, WanVAE

DIM = 8
BATCH, FRAMES, CROP = 8, 13, 32
LEARNING_RATE = {"muon": 4e-3, "adamw": 2e-3}
EMA = 0.99


class DemoVAE(WanVAE):
    """A WanVAE that is trained in model space, its latents divided by LATENT_SCALE; `published` has the way from there
    to VAE space in its 1x1 layers."""

    def __init__(self) -> None:
        super().__init__(DIM)
        for layer in (self.conv1, self.conv2):
            torch.nn.init.dirac_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):  # begins as a chain of linear maps, which is nearly what is asked
                torch.nn.init.zeros_(module.residual[6].weight)

    def published(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights whose latents have the statistics that Wan's users expect."""
        weights = {name: value.clone() for name, value in weights.items()}
        mean, std = torch.tensor(LATENTS_MEAN), LATENT_SCALE * torch.tensor(LATENTS_STD)
        weights["conv1.weight"][:16] *= std.view(-1, 1, 1, 1, 1)
        weights["conv1.bias"][:16] = weights["conv1.bias"][:16] * std + mean
        matrix = weights["conv2.weight"].clone()
        weights["conv2.weight"] = matrix / std.view(1, -1, 1, 1, 1)
        weights["conv2.bias"] = weights["conv2.bias"] - (matrix[..., 0, 0, 0] @ (mean / std))
        return weights


def sample_clips(count: int, draw: random.Random) -> torch.Tensor:
    """Random crops of random videos (B, 3, T, 32, 32) in [-1, 1]; some stand still, some are lit differently."""
    generator = torch.Generator().manual_seed(draw.randrange(2**40))
    scenes = [scene for scene in world.all_scenes() if not world.is_held_out(scene)]
    clips = []
    for _ in range(count):
        scene = draw.choice(scenes)
        clip = world.render(scene, world.random_start(scene, generator), range(FRAMES))
        if draw.random() < 0.2:
            clip = clip[:1].expand_as(clip)
        if draw.random() < 0.3:
            clip = (clip * draw.uniform(0.8, 1.15)).clamp(0, 1)
        # At whole blocks, where the components are.
        top, left = (8 * draw.randrange((world.SIZE - CROP) // 8 + 1) for _ in range(2))
        clips.append(clip[:, top : top + CROP, left : left + CROP])
    return rearrange(torch.stack(clips) * 2 - 1, "b t h w c -> b c t h w")


def losses(model: DemoVAE, codec: LinearCodec, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the encoder's latents and of the decoder's pixels."""
    wanted = codec.encode(clips) / LATENT_SCALE
    dtype = model.conv1.weight.dtype
    latents = model.encode(clips.to(dtype)).float()
    # Half the batch sees what the encoder gives, half the components themselves, all a little disturbed.
    half = len(clips) // 2
    given = torch.cat((latents[:half].detach(), wanted[half:]))
    given = given + torch.rand(len(clips), 1, 1, 1, 1) * 0.1 * torch.randn_like(given)
    pixels = model.decode(given.to(dtype)).float()
    return F.mse_loss(latents, wanted), F.mse_loss(pixels, clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the weights")
    parser.add_argument("--steps", type=int, default=1500, help="in all, those of earlier runs included")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)

    codec = LinearCodec.fitted()
    model = DemoVAE().to(torch.bfloat16 if has_fast_bf16() else torch.float32)
    # Muon takes matrices, so a kernel is one: each output channel's weights are a row.
    weights = {
        name: value.detach().float().flatten(1) if value.ndim > 3 else value.detach().float()
        for name, value in model.named_parameters()
    }
    average = {name: value.clone() for name, value in weights.items()}
    is_kernel = {name: value.ndim > 3 and "conv2" not in name for name, value in model.named_parameters()}
    optimisers = {
        "muon": Muon([value for name, value in weights.items() if is_kernel[name]], lr=0.0),
        "adamw": torch.optim.AdamW([value for name, value in weights.items() if not is_kernel[name]], lr=0.0,
                                   betas=(0.9, 0.98), weight_decay=0.0),
    }  # fmt: skip
    checkpoint, first = options.out / "vae-checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for own, saved in ((weights, state["weights"]), (average, state["average"])):
            for name, value in own.items():
                value.copy_(saved[name])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        first = state["step"]

    shown = None
    progress = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="VAE")
    for step in progress:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name].view_as(parameter))
        torch.manual_seed(options.seed * 10**8 + step)
        latent_loss, pixel_loss = losses(model, codec, sample_clips(BATCH, random.Random(step + 10**8 * options.seed)))
        (latent_loss + 10 * pixel_loss).backward()
        for name, parameter in model.named_parameters():
            # The log-variance has no part in the loss.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            weights[name].grad, parameter.grad = gradient.float().view_as(weights[name]), None
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        left = (options.steps - step) / (0.4 * options.steps)
        for name, optimiser in optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE[name] * max(0.0, min(1.0, (step + 1) / 50, left))
            optimiser.step()
        decay = min(EMA, (step + 1) / (step + 11))
        torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
        now = torch.stack((latent_loss, pixel_loss)).detach()
        shown = now if shown is None else shown.lerp(now, 0.02)
        psnr = (4 / shown[1]).log10() * 10
        progress.set_postfix(latents=f"{shown[0]:.4f}", psnr=f"{psnr:.2f}")
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            states = {name: optimiser.state_dict() for name, optimiser in optimisers.items()}
            state = {"step": step + 1, "weights": weights, "average": average, "optimisers": states}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            shaped = {name: average[name].view_as(value) for name, value in model.named_parameters()}
            save_file(model.published(shaped), options.out / "vae.safetensors")


if __name__ == "__main__":
    main()
