"""The buffers of CUDA graphs, on a CPU: what is recorded here runs the model again on the very tensors that it was
recorded with, as a graph does."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from helios_core.cli import main
from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory
from helios_core.options.cuda_graphs import GraphedForward, check_cuda_graphs, graphed
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS
from helios_core.script.blending import EncodedSchedule
from helios_core.script.schedule import PromptSchedule, Segment
from tests import parity, reference
from tests.chunks import chunks_of, chunks_of_script
from tests.sampling.test_invariants import latent_frames, start

MODEL = parity.our_model(parity.weights(torch.float32))
ROWS = torch.randn(4, 1, 7, 16, generator=reference.generator(1)).unbind()
PLAIN = replace(VARIANTS["distilled"], steps=(1, 2, 2), amplify_first_chunk=False)
GUIDED = replace(VARIANTS["mid"], steps=(1, 2, 2), zero_init=False)


class Recorder:
    """Stands in for CUDA's recording: it runs the function once to record it, and again for each replay, into the same
    output. It sees which tensors the model is given, and refuses others than those it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0
        self.given: tuple | None = None

    def __call__(self, run, device):
        self.recorded += 1
        output = run().clone()
        recorded_with = self.given

        def replay():
            self.replayed += 1
            output.copy_(run())
            assert self.given == recorded_with
            return output

        return replay

    def watch(self, latents, timestep, prompt, memory, **options):
        key_values = (tensor for pair in prompt.key_values.values() for tensor in pair)
        self.given = tuple(tensor.data_ptr() for tensor in (latents, timestep, memory.tokens, *key_values))
        assert len(self.given) == 3 + 2 * len(MODEL.blocks), "keys and values were not made before the recording"
        return MODEL(latents, timestep, prompt, memory, **options)


class WatchedModel:
    """The model, as the graphs use it."""

    dtype, blocks = MODEL.dtype, MODEL.blocks

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, *arguments, **options):
        return self.recorder.watch(*arguments, **options)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def forward(recorder):
    return GraphedForward(lambda: WatchedModel(recorder), new_capture=lambda: recorder)


def directed(settings, num_chunks: int, **hooks) -> list[torch.Tensor]:
    """Chunks with a new prompt in each, which continue from a picture."""
    script = EncodedSchedule(PromptSchedule(tuple(Segment(i, str(i)) for i in range(3)), shape="step"), ROWS[:3])
    chunks = chunks_of_script(
        MODEL,
        script,
        start("i2v"),
        num_chunks,
        SeededNoise(3),
        SeededNoise,
        settings,
        negative=ROWS[3],
        hooks=Hooks(**hooks),
    )
    return [latents for latents, _ in chunks]


@pytest.mark.parametrize(("settings", "num_prompts"), [(PLAIN, 1), (GUIDED, 2)], ids=["distilled", "guided"])
def test_chunks_of_other_memories_and_prompts_are_the_same_to_the_bit_and_nothing_is_recorded_twice(
    recorder, forward, settings, num_prompts
):
    exact, replayed = directed(settings, 3), directed(settings, 3, forward=forward)
    assert not torch.equal(exact[0], exact[1])
    assert all(torch.equal(*pair) for pair in zip(exact, replayed, strict=True))
    assert recorder.recorded == 3 * num_prompts
    assert recorder.replayed == 3 * (1 + 2 + 2) * num_prompts


def velocity(forward, *, prompt, memory, latents=None, timestep=500.0):
    latents = torch.ones(1, 16, 9, 4, 4) if latents is None else latents
    return forward(latents, torch.full((1,), timestep), prompt, memory)


@pytest.fixture
def prompts():
    return [MODEL.encode_prompt(rows) for rows in ROWS]


@pytest.fixture
def memory():
    return MODEL.encode_memory(start("i2v").window())


@torch.no_grad()
def test_a_velocity_outlives_the_next_replay(forward, prompts, memory):
    first = velocity(forward, prompt=prompts[0], memory=memory)
    kept = first.clone()
    velocity(forward, prompt=prompts[0], memory=memory, timestep=100.0)
    assert torch.equal(first, kept)


@torch.no_grad()
def test_prompts_that_stay_alive_share_two_slots_and_the_one_used_last_keeps_its_own(
    recorder, forward, prompts, memory, monkeypatch
):
    filled = []
    monkeypatch.setattr(forward, "_fill", lambda *a, fill=forward._fill: (filled.append(id(a[1])), fill(*a))[1])
    for index in (0, 1, 0, 1, 2, 1, 2, 1, 0):
        expected = MODEL(torch.ones(1, 16, 9, 4, 4), torch.tensor([500.0]), prompts[index], memory)
        assert torch.equal(velocity(forward, prompt=prompts[index], memory=memory), expected)
    assert filled == [id(prompts[index]) for index in (0, 1, 2, 0)]
    assert recorder.recorded == 2


@torch.no_grad()
def test_a_prompt_of_another_length_is_recorded_anew(recorder, forward, prompts, memory):
    longer = MODEL.encode_prompt(torch.cat((ROWS[0], ROWS[1]), dim=1))
    for prompt in (prompts[0], prompts[1], longer, prompts[0]):
        expected = MODEL(torch.ones(1, 16, 9, 4, 4), torch.tensor([500.0]), prompt, memory)
        assert torch.equal(velocity(forward, prompt=prompt, memory=memory), expected)
    assert recorder.recorded == 3  # the last one takes the buffers of the second, of its own length


@torch.no_grad()
@pytest.mark.parametrize(
    "other",
    [
        HeliosMemory(latent_frames(20, 5), config=MemoryConfig(keep_first_frame=False)),
        text_memory(width=96, height=64),
    ],
    ids=["positions", "size"],
)
def test_a_memory_of_another_size_or_with_other_positions_is_recorded_anew(recorder, forward, prompts, memory, other):
    tokens = MODEL.encode_memory(other.window())
    for own in (memory, tokens):
        expected = MODEL(torch.ones(1, 16, 9, 4, 4), torch.tensor([500.0]), prompts[0], own)
        assert torch.equal(velocity(forward, prompt=prompts[0], memory=own), expected)
    assert recorder.recorded == 2


@torch.no_grad()
def test_at_the_end_all_buffers_are_let_go(recorder, prompts, memory):
    hooks = Hooks(check_cancelled=lambda: None)
    with graphed(hooks, lambda: WatchedModel(recorder)) as own:
        own.forward._new_capture = lambda: recorder
        velocity(own.forward, prompt=prompts[0], memory=memory)
        held = weakref.ref(own.forward._memory.tokens)
        assert own.check_cancelled is hooks.check_cancelled
    gc.collect()
    assert held() is None
    assert torch.equal(
        velocity(own.forward, prompt=prompts[1], memory=memory), velocity(MODEL, prompt=prompts[1], memory=memory)
    )


def test_step_caching_goes_with_graphs(forward):
    settings = replace(GUIDED, steps=(5, 5, 5), step_cache=1.0)
    exact, replayed = directed(settings, 2), directed(settings, 2, forward=forward)
    assert all(torch.equal(*pair) for pair in zip(exact, replayed, strict=True))


def test_a_run_that_graphs_cannot_serve_is_refused(forward):
    with pytest.raises(ValueError, match="need a CUDA device, and the run is on 'cpu'"):
        check_cuda_graphs("cpu", PLAIN)
    with pytest.raises(ValueError, match="history_reuse 'stage'"):
        check_cuda_graphs("cuda", replace(PLAIN, history_reuse="stage"))
    check_cuda_graphs("cuda:1", replace(PLAIN, step_cache=0.1))
    chunks = chunks_of(
        MODEL,
        ROWS[0],
        text_memory(width=64, height=64),
        1,
        SeededNoise(3),
        replace(PLAIN, history_reuse="chunk"),
        hooks=Hooks(forward=forward),
    )
    with pytest.raises(ValueError, match="history_reuse"):
        next(chunks)


def test_on_a_cpu_the_command_says_so_before_it_loads_anything(tmp_path, caplog):
    arguments = ["generate", "--prompt", "a red ball", "--cuda-graphs", "--out", str(tmp_path / "video.mp4")]
    assert main(arguments) == 2
    assert "CUDA graphs need a CUDA device, and the run is on 'cpu'" in caplog.text
    assert list(tmp_path.iterdir()) == []
