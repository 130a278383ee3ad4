#!/usr/bin/env python3
"""Measure the demo model on scenes that it was never trained on, and write the table of its model card.

    python tools/measure_demo.py --out measured

Everything is read from the decoded pictures by the image-analysis judge, which is itself tried on true videos first.
Each number stands beside what must be reached, and beside the same number with a part of Helios taken away, where it
must fall: else it would not show that the part works.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_latents import has_fast_bf16
from plot_lines import plot_lines

from helios_core.demo import DEMO_SETTINGS, DemoModel
from helios_core.demo.judge import Seen, distance, look
from helios_core.demo.model import encode_prompt
from helios_core.demo.world import SIZE, Scene, all_scenes, is_held_out, random_start, render
from helios_core.geometry import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK
from helios_core.memory.memory import HeliosMemory
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.conditioning import encode_image, encode_video, image_memory, text_memory, video_memory
from helios_core.sampling.drift import AntiDrift
from helios_core.sampling.loop import make_chunks
from helios_core.sampling.noise import Key, SeededNoise
from helios_core.sampling.plan import ChunkPlan, Past
from helios_core.vae.codec import Codec

WORDS = ("colour", "background", "shape", "direction")


@dataclass(frozen=True)
class Result:
    """One measured number: what it is, its value, and the bound that it must keep (`at_least` or else at most)."""

    name: str
    value: float
    bound: float | None = None
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.bound is None or (self.value >= self.bound if self.at_least else self.value <= self.bound)

    def row(self) -> str:
        if self.bound is None:
            return f"| {self.name} | {self.value:.3g} | | |"
        sign = "≥" if self.at_least else "≤"
        return f"| {self.name} | {self.value:.3g} | {sign} {self.bound:g} | {'yes' if self.holds else '**no**'} |"


class Bench:
    """The model with what is needed to make and judge videos; each method makes a batch of them."""

    def __init__(self, model: HeliosTransformer, codec: Codec, seed: int) -> None:
        self.model, self.codec, self.noise = model, codec, SeededNoise(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, frames: torch.Tensor, key: Key = ()) -> torch.Tensor:
        """Frames (T, H, W, 3) in [0, 1] -> latents."""
        with self._quickly():
            return self.codec.encode(rearrange(frames * 2 - 1, "t h w c -> 1 c t h w")).float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, 9n, h, w) -> frames (B, T, H, W, 3) in [0, 1]."""
        with self._quickly():
            # Not one by one: torch's convolution of a single clip in a single thread is several times as slow.
            pixels = torch.cat([self.codec.decode(videos).float() for videos in latents.split(4)])
        return rearrange((pixels.clamp(-1, 1) + 1) / 2, "b c t h w -> b t h w c")

    def _quickly(self):
        """The VAE in bf16 where that is quicker: 57 dB from fp32, far above its own loss."""
        return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16())

    def make(
        self,
        memory: HeliosMemory,
        prompts: list[list[str]],
        settings=DEMO_SETTINGS,
        change: Callable[[HeliosMemory], HeliosMemory] = lambda memory: memory,
    ) -> torch.Tensor:
        """Videos (B, T, H, W, 3), one for each list of prompts, which are those of its chunks. `change` is done to
        the memory before each chunk."""
        negative = torch.cat([encode_prompt("")] * len(prompts))
        chunks = []
        for texts in zip(*prompts, strict=True):
            rows = torch.cat([encode_prompt(text) for text in texts])
            plan = ChunkPlan(rows, settings, self.noise, negative_rows=negative)
            (chunk,) = make_chunks(lambda: self.model, Past(change(memory)), [plan])
            memory = chunk.past.memory
            chunks.append(chunk.latents)
        return self.decode(torch.cat(chunks, dim=2))

    def starts(self, scenes: list[Scene]) -> list[tuple[float, float]]:
        return [random_start(scene, self.generator) for scene in scenes]


def batched(memories: list[HeliosMemory]) -> HeliosMemory:
    """Memories of one video each as one of many."""
    anchors = [memory.anchor for memory in memories]
    frames = torch.cat([memory.frames for memory in memories])
    return replace(memories[0], frames=frames, anchor=None if anchors[0] is None else torch.cat(anchors))


def blank(count: int) -> HeliosMemory:
    return text_memory(width=SIZE, height=SIZE, batch_size=count)


def share(verdicts: list[bool]) -> float:
    """Percent that are true."""
    return 100 * sum(verdicts) / len(verdicts)


def agreement(scenes: list[Scene], seen: list[Seen], word: str) -> float:
    return share([getattr(look.scene, word) == getattr(scene, word) for scene, look in zip(scenes, seen, strict=True)])


# What is measured ----------------------------------------------------------------------------------------------------


def judge_itself(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """The judge on true videos of all scenes, and on those of `scenes` through the VAE."""
    plain = [
        look(render(scene, start, range(FRAMES_PER_CHUNK))).scene == scene
        for scene, start in zip(all_scenes(), bench.starts(all_scenes()), strict=True)
    ]
    coded = [
        look(bench.decode(bench.encode(render(scene, start, range(FRAMES_PER_CHUNK))))[0]).scene == scene
        for scene, start in zip(scenes, bench.starts(scenes), strict=True)
    ]
    return [
        Result("judge right on true videos of all scenes, %", share(plain), 99),
        Result("judge right on true videos through the VAE, %", share(coded), 99),
    ]


def text_to_video(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """Four words of each prompt, in both chunks; and what becomes of them without prompt or with the pyramid's stages
    in the wrong order."""
    videos = bench.make(blank(len(scenes)), [[scene.prompt] * 2 for scene in scenes])
    bounds = {"colour": 95, "background": 95, "shape": 90, "direction": 90}
    results = []
    for place, part in (("first", slice(FRAMES_PER_CHUNK)), ("second", slice(FRAMES_PER_CHUNK, None))):
        seen = [look(video[part]) for video in videos]
        for word in WORDS:
            results.append(Result(f"T2V {word} in the {place} chunk, %", agreement(scenes, seen, word), bounds[word]))
    unguided = replace(DEMO_SETTINGS, guidance_scale=1.0)
    without = [
        look(video[FRAMES_PER_CHUNK:]) for video in bench.make(blank(len(scenes)), [["", ""]] * len(scenes), unguided)
    ]
    results.append(Result("T2V colour without prompt, %", agreement(scenes, without, "colour"), 60, at_least=False))
    shuffled = [look(video[FRAMES_PER_CHUNK:]) for video in shuffled_stages(bench, scenes)]
    return [
        *results,
        Result("T2V shape with the stages swapped, %", agreement(scenes, shuffled, "shape"), 60, at_least=False),
    ]


def shuffled_stages(bench: Bench, scenes: list[Scene]) -> torch.Tensor:
    """Videos whose stages are given the noise levels of each other."""
    model, span = bench.model, 1000.0
    forward = model.forward

    def swapped(latents, timestep, *arguments, **options):
        return forward(latents, (timestep + span / 2) % span, *arguments, **options)

    model.forward = swapped
    try:
        return bench.make(blank(len(scenes)), [[scene.prompt] * 2 for scene in scenes])
    finally:
        del model.forward


def image_to_video(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """The first frame against the picture; then, with an empty prompt, whether colour and shape come through."""
    starts = bench.starts(scenes)
    pictures = [render(scene, start, range(1)) for scene, start in zip(scenes, starts, strict=True)]
    memories = [
        image_memory(*encode_image(picture, bench.encode), SeededNoise(number))
        for number, picture in enumerate(pictures)
    ]
    unguided = replace(DEMO_SETTINGS, guidance_scale=1.0)
    silent = [[""] for _ in scenes]
    prompted = bench.make(batched(memories), [[scene.prompt] for scene in scenes])
    untold = bench.make(batched(memories), silent, unguided)
    without_anchor = bench.make(batched(memories), silent, unguided, unanchored)
    without_memory = bench.make(batched(memories), silent, unguided, zeroed)

    def quality(frames: list[torch.Tensor]) -> float:
        values = [psnr(frame, picture) for frame, picture in zip(frames, pictures, strict=True)]
        return sum(values) / len(values)

    def same(videos: torch.Tensor) -> float:
        pairs = zip(scenes, (look(video).scene for video in videos), strict=True)
        return share([(scene.colour, scene.shape) == (other.colour, other.shape) for scene, other in pairs])

    own = quality([bench.decode(bench.encode(picture))[0] for picture in pictures])

    def loss(videos: torch.Tensor) -> float:
        return own - quality(list(videos[:, :1]))

    return [
        Result("the VAE's own PSNR on a picture, dB", own),
        Result("I2V first frame, dB below the VAE's own", loss(prompted), 1, at_least=False),
        Result("I2V first frame without prompt, dB below the VAE's own", loss(untold)),
        Result("... with the anchor removed", loss(without_anchor), 3),
        Result("I2V without prompt keeps colour and shape, %", same(untold), 90),
        Result("... with the memory zeroed, %", same(without_memory), 30, at_least=False),
    ]


def video_to_video(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """Where the shape is at the end of the chunk that follows two true ones, and the picture at the join."""
    memories, truths = [], []
    for number, (scene, start) in enumerate(zip(scenes, bench.starts(scenes), strict=True)):
        truths.append(render(scene, start, range(3 * FRAMES_PER_CHUNK)))
        memories.append(
            video_memory(*encode_video(truths[-1][: 2 * FRAMES_PER_CHUNK], bench.encode), SeededNoise(number))
        )
    prompts = [[scene.prompt] for scene in scenes]

    def error(videos: torch.Tensor) -> float:
        ends = torch.stack([look(video).positions[-1] for video in videos])
        wanted = torch.stack([look(truth[2 * FRAMES_PER_CHUNK :]).positions[-1] for truth in truths])
        return float(distance(ends, wanted).mean()) / SIZE * 100

    return [
        Result(
            "V2V position error after a chunk, % of the width", error(bench.make(batched(memories), prompts)), 10, False
        ),
        Result("... with the memory zeroed", error(bench.make(batched(memories), prompts, change=zeroed)), 15),
    ]


def joins(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """How much less the first frame of a chunk is like the frame before it than frames within chunks are."""

    def drop(video: torch.Tensor) -> float:
        steps = [psnr(video[frame : frame + 1], video[frame - 1 : frame]) for frame in range(1, len(video))]
        at = [value for frame, value in enumerate(steps, start=1) if frame % FRAMES_PER_CHUNK == 0]
        within = [value for frame, value in enumerate(steps, start=1) if frame % FRAMES_PER_CHUNK]
        return sum(within) / len(within) - sum(at) / len(at)

    made = bench.make(blank(len(scenes)), [[scene.prompt] * 4 for scene in scenes])
    true = []
    for scene, start in zip(scenes, bench.starts(scenes), strict=True):
        chunks = render(scene, start, range(4 * FRAMES_PER_CHUNK)).split(FRAMES_PER_CHUNK)
        true.append(bench.decode(torch.cat([bench.encode(chunk) for chunk in chunks], dim=2))[0])
    ours, theirs = (sum(map(drop, videos)) / len(scenes) for videos in (made, true))
    return [Result("PSNR drop at joins beyond the true video's, dB", ours - theirs, 4, at_least=False)]


def long_run(bench: Bench, scenes: list[Scene], num_chunks: int) -> tuple[list[Result], dict[str, list[float]]]:
    """Drift of the shape's colour over many chunks: as it is, with a part taken away, and with anti-drifting; for the
    plot, chunk by chunk."""
    prompts = [[scene.prompt] * num_chunks for scene in scenes]
    curves, there, acted = {}, {}, {}
    for name, anchored, anti_drift in (
        ("as it is", True, None),
        ("anti-drift", True, AntiDrift()),
        ("anti-drift always", True, AntiDrift(mean_threshold=0, variance_threshold=0)),
        ("no anchor", False, None),
    ):
        watchers = anti_drift and Watchers(anti_drift, len(scenes), bench.noise)

        def change(memory: HeliosMemory, anchored=anchored, watchers=watchers) -> HeliosMemory:
            memory = memory if anchored else unanchored(memory)
            return watchers.watch(memory) if watchers and memory.chunk_index else memory

        drifts, present = [], []
        for video in bench.make(blank(len(scenes)), prompts, change=change):
            seen = [look(chunk) for chunk in video.split(FRAMES_PER_CHUNK)]
            colours = torch.stack([chunk.colours.mean(0) for chunk in seen])
            drifts.append((colours - colours[0]).abs().amax(1))
            present.append(seen[-1].is_there)
        curves[name] = torch.stack(drifts).mean(0).mul(100).tolist()
        there[name] = share(present)
        acted[name] = watchers.times if watchers else 0
    last = {name: curve[-1] for name, curve in curves.items()}
    return [
        Result(f"colour drift over {num_chunks} chunks, % of the range", last["as it is"], 5, at_least=False),
        Result(f"shape still there after {num_chunks} chunks, %", there["as it is"], 100),
        Result("... with anti-drifting: colour drift", last["anti-drift"]),
        Result("... with anti-drifting: times it acted in a video", acted["anti-drift"] / len(scenes)),
        Result("... with anti-drifting at every chunk: colour drift", last["anti-drift always"]),
        Result("... with anti-drifting at every chunk: shape still there, %", there["anti-drift always"]),
        Result("... without the anchor: colour drift", last["no anchor"]),
        Result("... without the anchor: shape still there, %", there["no anchor"]),
    ], curves


class Watchers:
    """Adaptive anti-drifting of each video of a batch, as `long_video` does it for one."""

    def __init__(self, anti_drift: AntiDrift, count: int, noise: SeededNoise) -> None:
        self.anti_drift, self.states, self.noise, self.times = anti_drift, [None] * count, noise, 0

    def watch(self, memory: HeliosMemory) -> HeliosMemory:
        """Look at the latest chunk in the memory, and corrupt it where it has drifted."""
        frames = memory.frames.clone()
        for number in range(len(frames)):
            latest = frames[number : number + 1, :, -LATENT_FRAMES_PER_CHUNK:]
            report, self.states[number] = self.anti_drift.watch(latest, self.states[number])
            if report.has_drifted:
                self.times += 1
                grain = self.noise.normal(tuple(latest.shape), ("drift", memory.chunk_index, number))
                latest += self.anti_drift.strength * grain
        return replace(memory, frames=frames)


def prompt_switch(bench: Bench, scenes: list[Scene]) -> list[Result]:
    """Three chunks of one prompt, then two of another: does the last one show it?"""
    others = scenes[len(scenes) // 2 :] + scenes[: len(scenes) // 2]
    prompts = [[a.prompt] * 3 + [b.prompt] * 2 for a, b in zip(scenes, others, strict=True)]
    seen = [look(video[-FRAMES_PER_CHUNK:]) for video in bench.make(blank(len(scenes)), prompts)]
    return [Result(f"switched {word} within two chunks, %", agreement(others, seen, word), 90) for word in WORDS]


def zeroed(memory: HeliosMemory) -> HeliosMemory:
    """A memory of nothing."""
    return replace(memory, frames=torch.zeros_like(memory.frames), anchor=None)


def unanchored(memory: HeliosMemory) -> HeliosMemory:
    """The memory without its anchor."""
    return replace(memory, anchor=None)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-10))


# What is written -----------------------------------------------------------------------------------------------------


def measure(bench: Bench, num_scenes: int, num_chunks: int) -> tuple[list[Result], dict[str, list[float]]]:
    held_out = [scene for scene in all_scenes() if is_held_out(scene)]
    scenes = held_out[:: max(1, len(held_out) // num_scenes)][:num_scenes]
    results = []
    for part in (judge_itself, text_to_video, image_to_video, video_to_video, joins, prompt_switch):
        measured = part(bench, scenes)
        print("\n".join(result.row() for result in measured), flush=True)
        results += measured
    drift, curves = long_run(bench, scenes[::6], num_chunks)
    return results + drift, curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, table.json and drift.png")
    parser.add_argument("--scenes", type=int, default=36, help="how many of the 36 scenes held out of training")
    parser.add_argument("--chunks", type=int, default=20, help="length of the long run")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    source = DemoModel()
    bench = Bench(source.load_transformer(), source.load_codec(), options.seed)
    with torch.no_grad():
        results, curves = measure(bench, options.scenes, options.chunks)
    table = ["| what | measured | must be | holds |", "|---|---|---|---|", *(result.row() for result in results)]
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    numbers = {result.name: result.value for result in results}
    (options.out / "table.json").write_text(json.dumps({"numbers": numbers, "drift": curves}, indent=1) + "\n")
    plot_lines(
        {name: list(enumerate(curve, start=1)) for name, curve in curves.items()},
        options.out / "drift.png",
        title="Colour of the shape against the first chunk, % of the range",
        x_name="chunk",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
