"""How chunks are denoised. `ScheduleConfig` is the noise schedule (not the prompt schedule of `script.schedule`), and
`SamplingSettings` all that the denoising of a chunk depends on besides model, prompt, seed and memory. The three
published variants are three `SamplingSettings`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..typed import plain


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule, cut into pyramid stages (paper section 3, pyramidal flow matching).

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

    @property
    def is_distilled(self) -> bool:
        """Whether it is the noise schedule of a model distilled to a few steps without guidance (DMD)."""
        return self.solver == "dmd"

    @classmethod
    def with_stages(cls, num_stages: int, **values: Any) -> ScheduleConfig:
        """A noise schedule of `num_stages` stages of equal range."""
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


HISTORY_REUSE = ("off", "stage", "chunk")


@dataclass(frozen=True)
class SamplingSettings:
    """How a chunk is denoised: noise schedule, steps in each stage, and guidance.

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
    history_reuse: str = "off"
    step_cache: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "step_cache", float(self.step_cache))
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be a number, 1 for no guidance")
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

    def overridden(self, steps: str, guidance_scale: float, amplify_first_chunk: bool) -> SamplingSettings:
        """With what a user has chosen instead: `steps` as `parse_steps` reads them, "" and 0 leave the variant's own.

        Raises ValueError when steps and stages do not match.
        """
        return replace(
            self,
            steps=parse_steps(steps) if steps else self.steps,
            guidance_scale=guidance_scale or self.guidance_scale,
            amplify_first_chunk=amplify_first_chunk,
        )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1.0

    def steps_in_chunk(self, chunk_index: int) -> tuple[int, ...]:
        """Steps of each stage in that chunk."""
        amplified = self.amplify_first_chunk and self.schedule.is_distilled and chunk_index == 0
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
    """Name of the published variant that has this kind of noise schedule: "base", "mid" or "distilled"."""
    if settings.schedule.is_distilled:
        return "distilled"
    return "base" if settings.schedule.num_stages == 1 else "mid"


def model_title(settings: SamplingSettings) -> str:
    """What a model with these settings is called in sentences: "Helios Mid", or "Helios" when its pyramid is that of no
    published variant (the demo's)."""
    variant = variant_of(settings)
    is_published = settings.schedule.num_stages == VARIANTS[variant].schedule.num_stages
    return f"Helios {variant.capitalize()}" if is_published else "Helios"


def settings_from_folder(folder: Path) -> SamplingSettings | None:
    """Settings stated by a published model folder, or None when it has no `scheduler/scheduler_config.json`.

    `folder` is the one with `model_index.json`, or its `transformer` subfolder. The variant's own steps and
    guidance are used; the noise schedule is the file's.
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
        steps = tuple(int(part) for part in plain(text).split(","))
    except ValueError:
        steps = ()
    if not steps or not all(1 <= number <= 1000 for number in steps):
        raise ValueError(
            f"steps {text[:80]!r} must be whole numbers from 1 to 1000 separated by commas, one for each pyramid "
            "stage: 2,2,2 for three stages, 50 for Base"
        )
    return steps
