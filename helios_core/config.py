"""What a Helios model and a Helios run are made of, as frozen dataclasses.

`TransformerConfig` is the shape of the network, `ScheduleConfig` the noise schedule of the pyramid,
`MemoryConfig` the window into the past, and `SamplingSettings` everything a chunk's denoising depends on
besides model, prompt, seed and memory. The three published variants are three `SamplingSettings`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

# The Wan VAE squeezes 8x8 pixels and, after the first frame, 4 frames into one latent position.
VAE_SPATIAL_STRIDE = 8
VAE_TEMPORAL_STRIDE = 4
LATENT_CHANNELS = 16
LATENT_FRAMES_PER_CHUNK = 9
FRAMES_PER_CHUNK = (LATENT_FRAMES_PER_CHUNK - 1) * VAE_TEMPORAL_STRIDE + 1  # 33
FRAME_RATE = 24  # frames per second, the rate Helios was trained at
MAX_PROMPT_TOKENS = 512  # rows of text embedding; padding rows are attended to, so the count matters

# head_dim 128 is the only one published; its split over (t, y, x) cannot be read off tensor shapes.
_HEAD_DIM = 128


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the Helios transformer. The defaults are the published 14B model.

    `rope_dim` is the split of a head's channels over the axes (t, y, x); all even, their sum is
    `attention_head_dim`. `is_amplify_history` adds one learned key scale for the history rows, per head
    or as one scalar (`history_scale_mode`). Raises ValueError for shapes that contradict each other.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    eps: float = 1e-6
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    is_amplify_history: bool = False
    history_scale_mode: Literal["per_head", "scalar"] = "per_head"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        object.__setattr__(self, "rope_dim", tuple(self.rope_dim))
        if sum(self.rope_dim) != self.attention_head_dim or any(dim % 2 for dim in self.rope_dim):
            raise ValueError(
                f"rope_dim {self.rope_dim} must be even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        if self.history_scale_mode not in ("per_head", "scalar"):
            raise ValueError(f"history_scale_mode is {self.history_scale_mode!r}; allowed: 'per_head' or 'scalar'")

    @property
    def inner_dim(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Read the `config.json` that diffusers writes beside the weights.

        Raises ValueError when the file describes a network without one of the parts that make Helios
        (memory patches, history at t=0, guidance attention), which this code does not build.
        """
        required = {
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
            "has_multi_term_memory_patch": True,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
        }
        for name, value in required.items():
            if config.get(name, value) != value:
                raise ValueError(f"transformer config has {name}={config[name]!r}; Helios needs {name}={value!r}")
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in config.items() if name in known}
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", cls.in_channels)
        return cls(**values)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TransformerConfig:
        """Infer the config from tensor shapes under the diffusers names (checkpoint layouts are renamed first).

        The head size and its RoPE split leave no trace in the shapes: 128 and (44, 42, 42) are assumed.
        Raises ValueError when the width is no multiple of 128; such a model needs its `config.json`.
        """
        inner_dim, in_channels, *patch_size = shapes["patch_embedding.weight"]
        if inner_dim % _HEAD_DIM:
            raise ValueError(
                f"cannot infer the number of heads: width {inner_dim} is not a multiple of {_HEAD_DIM}. "
                "Put the model's config.json beside the weights"
            )
        history_key_scale = shapes.get("blocks.0.attn1.history_key_scale")
        num_heads = inner_dim // _HEAD_DIM
        return cls(
            patch_size=tuple(patch_size),
            num_attention_heads=num_heads,
            attention_head_dim=_HEAD_DIM,
            in_channels=in_channels,
            out_channels=shapes["proj_out.weight"][0] // math.prod(patch_size),
            text_dim=shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            freq_dim=shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            ffn_dim=shapes["blocks.0.ffn.net.0.proj.weight"][0],
            num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            is_amplify_history=history_key_scale is not None,
            history_scale_mode="scalar" if history_key_scale == (1,) and num_heads > 1 else "per_head",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The flow schedule, cut into pyramid stages (paper section 3, pyramidal flow matching).

    `stage_range` are the cuts of the noise level, from 0 (pure noise) to 1, `num_stages + 1` values.
    `gamma` sets the negative correlation of the noise added between stages. With `use_dynamic_shifting`
    the steps move towards high noise as the token count grows: shift mu goes linearly from `base_shift` at
    `base_image_seq_len` tokens to `max_shift` at `max_image_seq_len`.
    """

    solver: Literal["unipc", "euler", "dmd"] = "unipc"
    num_stages: int = 3
    stage_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = 1 / 3
    use_dynamic_shifting: bool = True
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    num_train_timesteps: int = 1000
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage_range", tuple(self.stage_range))
        for name, allowed in (
            ("solver", ("unipc", "euler", "dmd")),
            ("time_shift_type", ("exponential", "linear")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        cuts = self.stage_range
        if len(cuts) != self.num_stages + 1 or cuts[0] != 0 or cuts[-1] != 1 or list(cuts) != sorted(set(cuts)):
            raise ValueError(
                f"stage_range {cuts} must rise from 0 to 1 in num_stages + 1 = {self.num_stages + 1} values"
            )
        if not 0 < self.gamma <= 1 / 3:
            raise ValueError(
                f"gamma {self.gamma} must lie in (0, 1/3]: more negative correlation than -1/3 cannot hold "
                "between all four pixels of a block"
            )

    @classmethod
    def with_stages(cls, num_stages: int, **values: Any) -> ScheduleConfig:
        """A schedule of `num_stages` stages of equal range."""
        return cls(
            num_stages=num_stages,
            stage_range=tuple(stage / num_stages for stage in range(num_stages + 1)),
            **values,
        )

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> ScheduleConfig:
        """Read a diffusers `scheduler_config.json` (HeliosScheduler or HeliosDMDScheduler).

        Raises ValueError for a setting that no published Helios uses and this code does not follow.
        """
        is_dmd = config.get("_class_name") == "HeliosDMDScheduler"
        required = {
            "shift": 1.0,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "thresholding": False,
            "disable_corrector": [],
        }
        for name, value in required.items():
            if config.get(name, value) != value:
                raise ValueError(f"scheduler config has {name}={config[name]!r}; supported: {value!r}")
        num_stages = config.get("stages", 3)
        known = {f.name for f in fields(cls)} - {"stage_range"}
        values = {name: value for name, value in config.items() if name in known}
        stage_range = config.get("stage_range", (0.0, 1 / 3, 2 / 3, 1.0)) if num_stages > 1 else (0.0, 1.0)
        return cls(
            **{
                "use_dynamic_shifting": False,
                "time_shift_type": "linear" if is_dmd else "exponential",
                **values,
                "solver": "dmd" if is_dmd else config.get("scheduler_type", "unipc"),
                "num_stages": num_stages,
                "stage_range": tuple(stage_range),
            }
        )


@dataclass(frozen=True)
class MemoryConfig:
    """The window into the past: how many latent frames the long, mid and short memory hold.

    With `keep_first_frame` the short memory is the anchor (first frame of the video) and the last frame;
    without, the short memory takes one more of the latest frames in the anchor's place.
    `reanchor_on_second_chunk` replaces the anchor by the first latent frame of chunk 1, for chunks 2 and on
    (diffusers calls this `is_skip_first_chunk`, though no chunk is skipped). Raises ValueError for an empty part.
    """

    history_sizes: tuple[int, int, int] = (16, 2, 1)
    keep_first_frame: bool = True
    reanchor_on_second_chunk: bool = False

    def __post_init__(self) -> None:
        sizes = tuple(sorted(self.history_sizes, reverse=True))
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(
                f"history_sizes {self.history_sizes} must be three numbers of at least 1 (long, mid, short memory)"
            )
        object.__setattr__(self, "history_sizes", sizes)

    @property
    def window_sizes(self) -> tuple[int, int, int]:
        """Latent frames of the past that (long, mid, short) memory take, the anchor not counted."""
        long, mid, short = self.history_sizes
        return long, mid, short if self.keep_first_frame else short + 1

    @property
    def num_latent_frames(self) -> int:
        """Latent frames of the past that a chunk can see, the anchor not counted: 19 in the published model."""
        return sum(self.window_sizes)


HISTORY_REUSE = ("off", "stage", "chunk")


@dataclass(frozen=True)
class SamplingSettings:
    """How a chunk is denoised: schedule, steps in each stage, and guidance.

    Classifier-free guidance runs when `guidance_scale` > 1. With `cfg_zero_star` the unconditional velocity
    is rescaled to best fit the conditional one (CFG-Zero*, arXiv 2503.18886) and, with `zero_init`, the first
    `zero_steps + 1` steps of the first stage have velocity zero. `amplify_first_chunk` doubles the steps of
    chunk 0 (DMD only). With `history_reuse` the history rows are computed in the first forward of each stage, or of
    the chunk, and not again: faster, and no longer exact. So is `step_cache`: forwards that would change the velocity
    by less than this part of its size are left out (see `step_cache.StepCache`); 0 leaves out none. Raises ValueError
    when steps and stages do not match, and for options that are not allowed.
    """

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    steps: tuple[int, ...] = (20, 20, 20)
    guidance_scale: float = 5.0
    cfg_zero_star: bool = False
    zero_init: bool = True
    zero_steps: int = 1
    amplify_first_chunk: bool = False
    history_reuse: Literal["off", "stage", "chunk"] = "off"
    step_cache: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "step_cache", float(self.step_cache))
        if not 0 <= self.step_cache <= 1:
            raise ValueError(
                f"step_cache is {self.step_cache:g}; allowed: 0 (off) to 1, the part of its size that the velocity may "
                "change by before the model is run again; usual are 0.02 to 0.1"
            )
        if self.history_reuse not in HISTORY_REUSE:
            raise ValueError(f"history_reuse is {self.history_reuse!r}; allowed: {', '.join(HISTORY_REUSE)}")
        if len(self.steps) != self.schedule.num_stages or min(self.steps, default=0) < 1:
            raise ValueError(
                f"steps {list(self.steps)} must be {self.schedule.num_stages} whole numbers of at least 1, "
                f"one for each pyramid stage"
            )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1.0

    def steps_in_chunk(self, chunk_index: int) -> tuple[int, ...]:
        """Steps of each stage in that chunk."""
        amplified = self.amplify_first_chunk and self.schedule.solver == "dmd" and chunk_index == 0
        return tuple(2 * steps for steps in self.steps) if amplified else self.steps


VARIANTS: Mapping[str, SamplingSettings] = {
    "base": SamplingSettings(ScheduleConfig.with_stages(1), steps=(50,)),
    "mid": SamplingSettings(ScheduleConfig(), steps=(20, 20, 20), cfg_zero_star=True),
    "distilled": SamplingSettings(
        ScheduleConfig(solver="dmd", time_shift_type="linear"),
        steps=(2, 2, 2),
        guidance_scale=1.0,
        amplify_first_chunk=True,
    ),
}


def variant_of(settings: SamplingSettings) -> str:
    """Name of the published variant that has this kind of schedule: "base", "mid" or "distilled"."""
    if settings.schedule.solver == "dmd":
        return "distilled"
    return "base" if settings.schedule.num_stages == 1 else "mid"


def settings_from_folder(folder: Path) -> SamplingSettings | None:
    """Settings told by a published model folder, or None when it has no `scheduler/scheduler_config.json`.

    `folder` is the one with `model_index.json`, or its `transformer` subfolder. The variant's own steps and
    guidance are used; the schedule is the file's.
    """
    for root in (folder, folder.parent):
        scheduler_file = root / "scheduler" / "scheduler_config.json"
        if scheduler_file.is_file():
            break
    else:
        return None
    schedule = ScheduleConfig.from_diffusers(json.loads(scheduler_file.read_text()))
    index_file = root / "model_index.json"
    index = json.loads(index_file.read_text()) if index_file.is_file() else {}
    preset = VARIANTS[variant_of(SamplingSettings(schedule, steps=(1,) * schedule.num_stages))]
    steps = (preset.steps * schedule.num_stages)[: schedule.num_stages]
    return SamplingSettings(
        schedule,
        steps=steps,
        guidance_scale=1.0 if index.get("is_distilled") else preset.guidance_scale,
        cfg_zero_star=index.get("is_cfg_zero_star", preset.cfg_zero_star),
        amplify_first_chunk=preset.amplify_first_chunk,
    )


def parse_steps(text: str) -> tuple[int, ...]:
    """ "2,2,2" -> (2, 2, 2). Raises ValueError for anything but whole numbers from 1 to 1000."""
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(1 <= number <= 1000 for number in steps):
        raise ValueError(
            f"steps {text!r} must be whole numbers from 1 to 1000 separated by commas, one for each pyramid stage: "
            "2,2,2 for three stages, 50 for Base"
        )
    return steps


def size_multiple(num_stages: int, patch_size: tuple[int, int, int] = (1, 2, 2)) -> int:
    """Height and width in pixels must be multiples of this: 16 for one stage, 64 for three."""
    return VAE_SPATIAL_STRIDE * patch_size[1] * 2 ** (num_stages - 1)


def check_size(width: int, height: int, num_stages: int) -> None:
    """Raise ValueError, naming the nearest sizes that work, unless the pyramid fits width and height (pixels)."""
    multiple = size_multiple(num_stages)
    for name, value in (("width", width), ("height", height)):
        if value < multiple or value % multiple:
            below = max(multiple, value // multiple * multiple)
            nearest = f"{below} or {below + multiple}" if value > multiple else f"{multiple}"
            raise ValueError(
                f"{name} {value} is not a multiple of {multiple} "
                f"(needed by {num_stages} pyramid stage{'s' if num_stages > 1 else ''}); nearest: {nearest}"
            )
