"""Step caching: which forwards are left out, by a closed form; and what it must leave alone in the sampler."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helios_core.cli import apply_sampling_options, main, make_parser
from helios_core.fingerprint import fingerprint
from helios_core.memory.memory import HeliosMemory
from helios_core.options.step_cache import StepCache
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS, SamplingSettings
from tests import parity, reference
from tests.chunks import chunks_of
from tests.sampling.test_invariants import start

MODEL = parity.our_model(parity.weights(torch.float32))
PROMPT, NEGATIVE = torch.randn(2, 1, 7, 16, generator=reference.generator(1))
PLAIN = replace(VARIANTS["distilled"], steps=(7, 7, 7), amplify_first_chunk=False)
GUIDED = replace(VARIANTS["mid"], steps=(7, 7, 7), zero_init=False)


def forwards_made(threshold: float, samples: list[torch.Tensor], *slopes: float) -> list[int]:
    """The steps in which a forward is made for these samples, when velocity number i is 1 + slopes[i] * x."""
    cache, made = StepCache(threshold, len(samples)), []
    for step, x in enumerate(samples):

        def compute(step=step, x=x) -> list[torch.Tensor]:
            made.append(step)
            return [1 + slope * x for slope in slopes]

        velocities = cache.velocities(step, x, compute)
        latest = samples[made[-1]]
        assert all(torch.equal(v, 1 + slope * latest) for v, slope in zip(velocities, slopes, strict=True))
    return made


def ramp(num_steps: int, *heights: float) -> list[torch.Tensor]:
    """Samples (len(heights), 2, 3): that of each video grows by its height in each step."""
    return [torch.tensor(heights)[:, None, None].expand(-1, 2, 3) * step for step in range(num_steps)]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # A step changes the velocity by 1e-3, so 3.5e-3 leaves room for three steps after each forward.
        (0.0035, [0, 1, 5, 9, 11]),
        (0.0015, [0, 1, 3, 5, 7, 9, 11]),
        (0.0005, list(range(12))),
        (1.0, [0, 1, 11]),
    ],
)
def test_forwards_are_left_out_while_the_predicted_change_is_below_the_threshold(threshold, expected):
    assert forwards_made(threshold, ramp(12, 1.0), 0.001) == expected


def test_the_prompts_skip_together_and_the_faster_one_decides():
    assert forwards_made(0.0035, ramp(12, 1.0), 0.0001, 0.001) == [0, 1, 5, 9, 11]
    assert forwards_made(0.0035, ramp(12, 1.0), 0.001, 0.0001) == [0, 1, 5, 9, 11]


def test_no_video_of_a_batch_hides_another():
    assert forwards_made(0.0035, ramp(12, 0.01, 1.0), 0.001) == [0, 1, 5, 9, 11]


def test_a_way_there_and_back_adds_up():
    path = [torch.full((1, 4), value) for value in (0.0, 1.0, 2.0, 1.0, 2.0, 1.5, 2.5, 1.5, 2.0)]
    assert forwards_made(0.0033, path, 0.001) == [0, 1, 5, 8]


def test_a_sample_that_does_not_move_gives_no_rate_so_the_forward_is_made():
    assert forwards_made(1.0, [torch.ones(1, 4)] * 5, 0.001) == [0, 1, 2, 3, 4]


class Watch:
    """Stands in the model's place and counts the forwards at each size and prompt."""

    def __init__(self) -> None:
        self.made: list[tuple[int, bytes]] = []

    def __call__(self, latents, timestep, prompt, memory) -> torch.Tensor:
        self.made.append((latents.shape[-1], prompt.tokens.numpy().tobytes()))
        return MODEL(latents, timestep, prompt, memory)


def sampled(
    settings: SamplingSettings, num_chunks: int = 1, memory: HeliosMemory | None = None
) -> tuple[list[tuple[torch.Tensor, HeliosMemory]], list[tuple[int, bytes]]]:
    """The chunks, and which forwards were made for them."""
    watch = Watch()
    chunks = chunks_of(
        MODEL,
        PROMPT,
        start("i2v") if memory is None else memory,
        num_chunks,
        SeededNoise(3),
        settings,
        negative=NEGATIVE,
        hooks=Hooks(forward=watch),
    )
    return list(chunks), watch.made


@pytest.mark.parametrize("settings", [PLAIN, GUIDED], ids=["distilled", "guided"])
def test_three_forwards_of_each_stage_are_always_made_and_the_prompts_skip_together(settings):
    _, every = sampled(settings)
    _, made = sampled(replace(settings, step_cache=1.0))
    prompts = {prompt for _, prompt in every}
    for width in (2, 4, 8):
        for prompt in prompts:
            assert every.count((width, prompt)) == 7
            assert 3 <= made.count((width, prompt)) < 7
    counts = {(width, made.count((width, prompt))) for width in (2, 4, 8) for prompt in prompts}
    assert len(counts) == 3, "the prompts did not skip together"


def test_two_steps_a_stage_leave_nothing_out():
    settings = replace(PLAIN, steps=(2, 2, 2))
    ((exact, _),), _ = sampled(settings)
    ((cached, _),), made = sampled(replace(settings, step_cache=1.0))
    assert torch.equal(cached, exact)
    assert len(made) == 6


def test_the_picture_changes_a_little_at_a_small_threshold_and_more_at_a_large_one():
    ((exact, _),), _ = sampled(GUIDED)
    errors, counts = [], []
    for threshold in (0.02, 0.2, 1.0):
        ((cached, _),), made = sampled(replace(GUIDED, step_cache=threshold))
        errors.append(((cached - exact).norm() / exact.norm()).item())
        counts.append(len(made))
    assert errors == sorted(errors)
    assert counts == sorted(counts, reverse=True)
    assert errors[-1] > 0
    assert counts[-1] < 42


def test_a_chunk_is_the_same_whether_chunks_were_made_before_it_or_not():
    settings = replace(GUIDED, step_cache=0.3)
    (first, second), _ = sampled(settings, num_chunks=2)
    (alone,), _ = sampled(settings, memory=first[1])
    assert torch.equal(alone[0], second[0])


def test_steps_that_zero_init_makes_without_the_model_stay_zero():
    _, exact = sampled(replace(GUIDED, zero_init=True))
    _, cached = sampled(replace(GUIDED, zero_init=True, step_cache=1.0))
    lowest = [sum(width == 2 for width, _ in made) for made in (exact, cached)]
    assert lowest[0] == 2 * 5  # of 7 steps the first two are zero
    assert 2 * 3 <= lowest[1] < lowest[0]


class Asked(TorchDispatchMode):
    """Counts how often the host asks the device for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asks = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        self.count += func in asks or func.name() in ("aten::nonzero", "aten::masked_select")
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_only_with_the_option_and_then_once_a_step():
    counts = []
    for settings in (GUIDED, replace(GUIDED, step_cache=0.01)):
        with Asked() as asked:
            sampled(settings)
        counts.append(asked.count)
    assert counts[0] == 0
    assert counts[1] == 3 * (7 - 3)  # of each stage's steps all but the first two and the last


@pytest.mark.parametrize("threshold", [-0.01, 1.5, float("nan"), float("inf")])
def test_a_threshold_that_makes_no_sense_is_refused(threshold):
    with pytest.raises(ValueError, match=r"step_cache is .*allowed: 0 \(off\) to 1"):
        replace(PLAIN, step_cache=threshold)


def test_a_run_with_the_option_is_another_run():
    keys = {fingerprint(replace(PLAIN, step_cache=threshold)) for threshold in (0.0, 0.05, 0.1)}
    assert len(keys) == 3
    assert fingerprint(replace(PLAIN, step_cache=0)) == fingerprint(PLAIN)


def test_the_command_line_hands_the_threshold_on_and_refuses_one_that_makes_no_sense(tmp_path, caplog):
    arguments = ["generate", "--prompt", "a red ball", "--out", str(tmp_path / "video.mp4"), "--step-cache"]
    options = make_parser().parse_args([*arguments, "0.05"])
    assert apply_sampling_options(PLAIN, options) == replace(PLAIN, step_cache=0.05)
    assert main([*arguments, "2"]) == 2
    assert "step_cache is 2; allowed: 0 (off) to 1" in caplog.text
    assert list(tmp_path.iterdir()) == []
