"""What chunks were made from: other float bits of text encoder and VAE find them again, other inputs are named."""

from dataclasses import replace

import pytest
import torch

from helios_core.demo.model import DEMO_SETTINGS, DemoModel
from helios_core.generate import Job, generate
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.noise import SeededNoise
from helios_core.script.schedule import PromptSchedule, Segment

QUICK = replace(DEMO_SETTINGS, steps=(1, 1))


class OtherMachine(DemoModel):
    """The demo with the bits that another machine might give."""

    def encode_prompts(self, prompts):
        return [rows + 1e-6 for rows in super().encode_prompts(prompts)]

    def load_codec(self, decoding=None):
        codec = super().load_codec(decoding)
        encode = codec.encode
        codec.encode = lambda *args: encode(*args) + 1e-6
        return codec


@pytest.fixture
def job():
    picture = (torch.arange(64 * 64 * 3) % 251).reshape(64, 64, 3).byte()
    segments = (Segment(0, "a red circle"), Segment(1, "a blue circle", blend=2, anchor="picture"))
    return Job(
        prompt="", num_chunks=2, width=64, height=64, image=picture, pictures={"picture": picture},
        schedule=PromptSchedule(segments),
    )  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """made(source, job, ...): chunks that `generate` sampled, and what it said of chunks made anew."""
    folder = RunFolder(tmp_path / "run")

    def run(source, job, settings=QUICK, seed=3):
        done = []
        noise = SeededNoise(seed)
        generate(source, job, settings, noise, folder=folder, path=tmp_path / "v.mp4", on_chunk=done.append)
        return [chunk.chunk for chunk in done if not chunk.reused]

    return run


def test_a_script_on_another_machine_finds_every_chunk_again(made, job):
    assert made(DemoModel(), job) == [0, 1]
    assert made(OtherMachine(), job) == []


def changed(job, **segment):
    first, second = job.schedule.segments
    return replace(job, schedule=PromptSchedule((first, replace(second, **segment))))


@pytest.mark.parametrize(
    ("change", "chunks", "names"),
    [
        (lambda job: {"seed": 4}, [0, 1], "memory, seed"),
        (lambda job: {"settings": replace(QUICK, steps=(2, 1))}, [0, 1], "steps"),
        (lambda job: {"job": replace(job, image=job.image + 1)}, [0, 1], "memory"),
        (lambda job: {"job": replace(job, negative_prompt="grey")}, [0, 1], "negative prompt"),
        (lambda job: {"job": changed(job, prompt="a green circle", blend=0)}, [1], "prompt"),
        (lambda job: {"job": changed(job, guidance_scale=2.0)}, [1], "guidance_scale"),
        (lambda job: {"job": replace(job, pictures={"picture": job.image + 1})}, [1], "anchor picture"),
        (lambda job: {"source": DemoModel(fp8_matmul=True)}, [0, 1], "model"),
    ],
)
def test_the_log_names_the_input_that_makes_chunks_anew(made, job, caplog, change, chunks, names):
    assert made(DemoModel(), job) == [0, 1]
    with caplog.at_level("INFO"):
        assert made(**{"source": DemoModel(), "job": job} | change(job)) == chunks
    said = f"chunks from {chunks[0]} on are made anew, because of other inputs than before: {names}"
    assert [record.message for record in caplog.records if "anew" in record.message] == [f"run: {said}"]


def test_nothing_is_said_of_a_run_that_is_only_resumed(made, job, caplog):
    assert made(DemoModel(), replace(job, num_chunks=1)) == [0]
    with caplog.at_level("INFO"):
        assert made(DemoModel(), job) == [1]
    assert "anew" not in caplog.text
