"""A run that cannot continue says where it was and what to do; one that could leaves no trace of the checks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.loop import NonFiniteError, OutOfMemoryError
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import SamplingSettings, ScheduleConfig
from tests import parity, reference
from tests.chunks import chunks_of

PROMPT, NEGATIVE = torch.randn(2, 1, 7, 16, generator=reference.generator(1))
MODEL = parity.our_model(parity.weights(torch.float32))
NUM_BLOCKS = len(MODEL.blocks)
SETTINGS = SamplingSettings(ScheduleConfig(solver="dmd", time_shift_type="linear"), steps=(1, 2, 3), guidance_scale=1.0)
# Of each forward in order: (chunk, stage, step), all counted from 1 as the messages do.
PLACES = [
    (chunk, stage, step) for chunk in (1, 2) for stage, steps in enumerate((1, 2, 3), 1) for step in range(1, steps + 1)
]


def run(settings=SETTINGS, memory=None, prompt=PROMPT, **hooks):
    memory = memory or text_memory(width=64, height=64)
    return list(
        chunks_of(
            MODEL, prompt, memory, 2, SeededNoise(3), settings, negative=NEGATIVE, hooks=Hooks(**hooks)
        )
    )


class Forwards:
    """Stands in the model's place, as a host's `forward` does, and lets `spoil` see the n-th velocity."""

    def __init__(self, number: int, spoil) -> None:
        self.number, self.spoil, self.done = number, spoil, 0

    def __call__(self, *arguments) -> torch.Tensor:
        velocity = MODEL(*arguments)
        self.done += 1
        return self.spoil(velocity) if self.done == self.number else velocity


@pytest.mark.parametrize(("number", "place"), [(number, PLACES[number - 1]) for number in (1, 3, 6, 8)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_one_value_that_is_not_finite_stops_the_run_and_names_chunk_stage_and_step(number, place, value):
    def spoil(velocity):
        velocity = velocity.clone()
        velocity[0, 3, 4, 1, 1] = value
        return velocity

    forward = Forwards(number, spoil)
    chunk, stage, step = place
    expected = rf"chunk {chunk}, stage {stage} of 3, step {step} of {SETTINGS.steps[stage - 1]}"
    with pytest.raises(NonFiniteError, match=expected):
        run(forward=forward)
    # Found at the end of the stage, so no stage runs on numbers that are lost.
    assert PLACES[forward.done - 1][:2] == (chunk, stage)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_the_other_solvers_are_watched_as_well(solver):
    settings = replace(SETTINGS, schedule=ScheduleConfig(solver=solver), steps=(2, 2, 2))
    with pytest.raises(NonFiniteError, match="chunk 1, stage 2 of 3, step 2 of 2"):
        run(settings, forward=Forwards(4, lambda velocity: velocity * float("nan")))


def test_nan_that_came_with_the_memory_or_the_prompt_is_traced_to_it():
    memory = text_memory(width=64, height=64)
    with pytest.raises(NonFiniteError, match="memory that the chunk continues from"):
        run(memory=replace(memory, frames=memory.frames + float("nan")))
    with pytest.raises(NonFiniteError, match="prompt's tokens"):
        run(prompt=PROMPT * float("nan"))


@pytest.mark.parametrize(("number", "place"), [(number, PLACES[number - 1]) for number in (1, 3, 6, 8)])
def test_running_out_of_memory_names_chunk_stage_and_size_and_keeps_the_devices_own_words(number, place):
    calls = []

    def attention(query, key, value):
        calls.append(1)
        if len(calls) == 2 * NUM_BLOCKS * (number - 1) + 1:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 3.00 GiB")
        return F.scaled_dot_product_attention(query, key, value)

    with pytest.raises(OutOfMemoryError) as caught:
        run(attention=attention)
    message = str(caught.value)
    assert f"chunk {place[0]}, stage {place[1]} of 3, at 64x64" in message
    assert "Lower width and height" in message
    assert "Tried to allocate 3.00 GiB" in message
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
    # A host that looks for torch's own error, to free memory, finds it.
    assert isinstance(caught.value, torch.cuda.OutOfMemoryError)


def test_a_forward_handed_in_is_called_in_the_models_place_and_gives_the_same_bits():
    forward = Forwards(0, None)
    replaced, plain = run(forward=forward), run()
    assert forward.done == len(PLACES)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(replaced, plain, strict=True))
