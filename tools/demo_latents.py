"""The latent space that the demo's VAE and transformer are both trained for: principal components of small blocks.

The best 16 numbers that a linear map can keep of an 8x8 block of the first frame, or of a 4x8x8 block later, with the
first 12 the same in both: a still picture then has the same latents in every frame but for the last four. As the
components are known before either network is, the two can be trained at the same time.
"""

from __future__ import annotations

import torch
from einops import rearrange

from helios_core.demo import world

# Gives latents about unit spread, as Wan's have: the noise that Helios mixes into pictures and clips is meant for that.
LATENT_SCALE = 2.0
NUM_SHARED = 12  # components of a picture; the other four are more detail in the first frame, and change in later ones


class LinearCodec:
    """Pixels (B, 3, 33, H, W) in [-1, 1] -> latents (B, 16, 9, H/8, W/8), as one matrix for each kind of block."""

    def __init__(self, first: torch.Tensor, group: torch.Tensor, mean: torch.Tensor) -> None:
        self.first, self.group, self.mean = first, group, mean  # (16, 192), (16, 768), (192,)

    @classmethod
    def fitted(cls, num_clips: int = 600, seed: int = 0) -> LinearCodec:
        """The principal components of random clips of the world."""
        generator = torch.Generator().manual_seed(seed)
        scenes = [scene for scene in world.all_scenes() if not world.is_held_out(scene)]
        pictures, groups = [], []
        for index in torch.randint(len(scenes), (num_clips,), generator=generator).tolist():
            clip = world.render(scenes[index], world.random_start(scenes[index], generator), range(4))
            pictures.append(_blocks(clip[:1]))
            groups.append(_blocks(clip))
        pictures, groups = torch.cat(pictures), torch.cat(groups)
        mean = pictures.mean(0)
        pictures, still = pictures - mean, groups.unflatten(1, (4, -1)) - mean
        first = _components(pictures, 16)
        shared = first[:NUM_SHARED]
        average = still.mean(1)
        change = (groups - mean.repeat(4)) - ((average @ shared.T) @ shared).repeat(1, 4)
        motion = _components(change, 16 - NUM_SHARED)
        group = torch.cat((shared.repeat(1, 4) / 4, motion))
        # Not quite to the same spread: faint components stay faint, but can be distinguished from noise.
        spread = (pictures @ first.T).std(0)
        group_spread = torch.cat((spread[:NUM_SHARED], ((groups - mean.repeat(4)) @ group.T).std(0)[NUM_SHARED:]))
        first, group = (
            LATENT_SCALE * matrix / (own**0.7 * own[0] ** 0.3)[:, None]
            for matrix, own in ((first, spread), (group, group_spread))
        )
        return cls(first, group, mean)

    @property
    def light(self) -> torch.Tensor:
        """What exposure adds: g times the brightness makes latents z into g z + (g - 1) light; (1, 16, 1, 1, 1).

        Of later frames; in the first frame the last four differ a little.
        """
        return (self.group @ (1 + self.mean).repeat(4)).view(1, -1, 1, 1, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        first, rest = pixels[:, :, :1], pixels[:, :, 1:]
        first = _project(first, self.first, self.mean, 1)
        return torch.cat((first, _project(rest, self.group, self.mean.repeat(4), 4)), dim=2) if rest.shape[2] else first


def has_fast_bf16(device: str = "cpu") -> bool:
    """Whether networks are faster in bf16 there; a CPU without instructions for it takes several times as long."""
    return device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def _project(pixels: torch.Tensor, matrix: torch.Tensor, mean: torch.Tensor, num_frames: int) -> torch.Tensor:
    pattern = "b c (t q) (h y) (w x) -> b t h w (q c y x)"
    blocks = rearrange(pixels, pattern, q=num_frames, y=8, x=8)
    return rearrange((blocks - mean) @ matrix.T, "b t h w n -> b n t h w")


def _blocks(frames: torch.Tensor) -> torch.Tensor:
    """Frames (T, H, W, 3) in [0, 1] -> blocks (N, T * 192) in [-1, 1]."""
    return rearrange(frames * 2 - 1, "t (h y) (w x) c -> (h w) (t c y x)", y=8, x=8)


def _components(data: torch.Tensor, count: int) -> torch.Tensor:
    """The leading principal directions (count, D) of centred data (N, D)."""
    found = torch.linalg.eigh(data.T @ data)[1].flip(1)[:, :count].T
    # A direction and its opposite are as good, and which is found depends on the machine and even on its threads. So
    # they are turned to one side: of a plane that lies near none of them.
    side = torch.randn(data.shape[1], generator=torch.Generator().manual_seed(28)).to(found)
    return found * (found @ side).sign()[:, None]
