"""The long-video engine: same numbers as the sampler, resumed, changed midway, re-rolled, and flat however long."""

import ctypes
import gc
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch

from helios_core.cli import main
from helios_core.media.parts import Encoding, write_part
from helios_core.media.reader import read_video
from helios_core.memory.memory import Provenance
from helios_core.memory.storage import ModelIdentity
from helios_core.run.long_video import make_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.drift import AntiDrift
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import DiffusersNoise, SeededNoise
from tests import runs
from tests.chunks import chunks_of


@pytest.fixture
def make(tmp_path):
    """Make a job in one run folder; the finished file's name tells the takes apart."""

    def make(job, name="out", **options):
        return runs.make(job, tmp_path / "run", tmp_path / f"{name}.mp4", **options)

    return make


def contents(tmp_path):
    """Bytes of every chunk and part in the run folder."""
    return {path: path.read_bytes() for part in ("chunks", "segments") for path in (tmp_path / "run" / part).iterdir()}


# The same numbers


def test_a_long_video_is_the_samplers_chunks_decoded(tmp_path, make):
    done = make(runs.video(3))
    memory = text_memory(width=runs.SIZE, height=runs.SIZE)
    rows = runs.rows_of("a fox")
    expected = list(chunks_of(runs.parts()[0], rows, memory, 3, SeededNoise(1), runs.SETTINGS))
    for event, (latents, next_memory) in zip(done, expected, strict=True):
        assert torch.equal(event.latents(), latents)
        assert torch.equal(event.memory().frames, next_memory.frames)
        assert torch.equal(event.memory().anchor, next_memory.anchor)
    shown = read_video(tmp_path / "out.mp4")
    assert shown.num_frames == 99
    assert torch.equal(shown.frames, torch.cat([event.frames() for event in done]))
    for event, (latents, _) in zip(done, expected, strict=True):
        write_part(tmp_path / "part.mp4", runs.decode(latents), Encoding())
        assert event.part.read_bytes() == (tmp_path / "part.mp4").read_bytes()


def test_decoding_in_the_background_gives_the_same_file(tmp_path, make):
    make(runs.video(3), "front")
    runs.make(runs.video(3), tmp_path / "other", tmp_path / "back.mp4", decode_in_background=True)
    assert (tmp_path / "front.mp4").read_bytes() == (tmp_path / "back.mp4").read_bytes()


def test_events_report_what_was_made_and_how_far_it_is(make):
    make(runs.video(1))
    done = make(runs.video(3))
    assert [(event.chunk, event.num_done, event.num_chunks) for event in done] == [(0, 1, 3), (1, 2, 3), (2, 3, 3)]
    assert [event.reused for event in done] == [True, False, False]
    assert [event.seconds_of_video for event in done] == [33 / 24, 66 / 24, 99 / 24]
    assert all(event.frames_per_second > 0 for event in done[1:])
    assert done[-1].eta_seconds == 0
    assert done[-1].memory().provenance == Provenance("t2v", "demo", 1, "demo-fingerprint")


def test_a_chunk_is_reported_while_the_next_one_is_sampled_and_the_last_is_returned(tmp_path):
    settings = replace(runs.SETTINGS, steps=(50,))
    job = runs.video(3)
    order = []
    last = make_video(
        replace(job, plan=lambda chunk: replace(job.plan(chunk), settings=settings)),
        RunFolder(tmp_path / "run"),
        tmp_path / "out.mp4",
        load_model=lambda: runs.parts()[0],
        decode=runs.decode,
        on_chunk=lambda done: order.append(("told", done.chunk)),
        hooks=Hooks(
            progress=lambda step: order.append(("step", step.chunk_index)),
            check_cancelled=lambda: time.sleep(0.02),  # a second a chunk: encoding takes less
        ),
    )
    for chunk in (0, 1):
        assert ("step", chunk + 1) in order[order.index(("told", chunk)) :]
    assert order[-1] == ("told", last.chunk) == ("told", 2)


def test_the_finished_file_carries_the_metadata_and_the_journal_the_job(tmp_path, make):
    make(runs.video(2, notes={"prompt": "a fox"}))
    take, *chunks, finished = RunFolder(tmp_path / "run").journal()
    assert take["record"] == "take"
    assert take["notes"] == {"prompt": "a fox"}
    assert (take["seeds"], take["size"], take["model"]["name"]) == ([1, 1], [32, 32], "demo")
    assert [chunk["key"] for chunk in chunks] == take["keys"]
    assert (finished["record"], finished["last_key"]) == ("finished", take["keys"][-1])
    assert not (tmp_path / "run" / "preview.mp4").exists()


# Resume, change, re-roll, branch


def test_making_the_same_video_again_makes_nothing(tmp_path, make):
    make(runs.video(3))
    first, before = (tmp_path / "out.mp4").read_bytes(), contents(tmp_path)

    def no_model():
        raise AssertionError("nothing is left to sample")

    done = make(runs.video(3), "again", load_model=no_model, decode=None)
    assert all(event.reused for event in done)
    assert (tmp_path / "again.mp4").read_bytes() == first
    assert contents(tmp_path) == before


def test_more_chunks_only_add_to_the_video(make):
    make(runs.video(2))
    assert [event.reused for event in make(runs.video(4))] == [True, True, False, False]


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_a_changed_prompt_remakes_from_its_chunk_on(tmp_path, make, chunk):
    make(runs.video(4))
    before = contents(tmp_path)
    done = make(runs.video(4, prompts={chunk: "a storm"}), "changed")
    assert [event.reused for event in done] == [position < chunk for position in range(4)]
    assert before.items() <= contents(tmp_path).items()


def test_a_reroll_makes_its_chunk_and_what_follows_and_the_first_line_stays(tmp_path, make):
    first = make(runs.video(4), "first")
    before, file_before = contents(tmp_path), (tmp_path / "first.mp4").read_bytes()
    done = make(runs.video(4, seeds={2: 7}), "rerolled")
    assert [event.reused for event in done] == [True, True, False, False]
    assert not torch.equal(done[2].latents(), first[2].latents())
    assert before.items() <= contents(tmp_path).items()
    # The first line is all there: making it again gives its very bytes, and samples nothing.
    assert all(event.reused for event in make(runs.video(4), "first_again"))
    assert (tmp_path / "first_again.mp4").read_bytes() == file_before


def test_two_branches_share_their_beginning_and_each_equals_a_run_of_its_own(tmp_path, make):
    make(runs.video(3, prompts={1: "rain"}), "rain")
    make(runs.video(3, prompts={1: "snow"}), "snow")
    for ending in ("rain", "snow"):
        runs.make(runs.video(3, prompts={1: ending}), tmp_path / f"{ending}_alone", tmp_path / f"{ending}_alone.mp4")
        assert (tmp_path / f"{ending}.mp4").read_bytes() == (tmp_path / f"{ending}_alone.mp4").read_bytes()
    assert len(list((tmp_path / "run" / "chunks").iterdir())) == 1 + 2 + 2


def test_continuing_from_a_rewound_memory_equals_the_branch(tmp_path, make):
    branch = make(runs.video(3, prompts={1: "rain"}))
    memory = RunFolder(tmp_path / "run").memory_after(1)
    job = runs.video(2, memory=memory, prompts={0: "rain"})
    alone = runs.make(job, tmp_path / "alone", tmp_path / "alone.mp4")
    assert torch.equal(alone[1].latents(), branch[2].latents())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"model": ModelIdentity("demo", "other")},
        {"memory": text_memory(width=48, height=32)},
        {"memory": replace(text_memory(width=32, height=32), chunk_index=5)},
        {"noise": DiffusersNoise(torch.Generator().manual_seed(1))},
        {"anti_drift": AntiDrift()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_latents_depend_on_makes_other_chunks(make, change):
    make(runs.video(1))
    assert [event.reused for event in make(runs.video(1, **change))] == [False]


@pytest.mark.parametrize(
    "change", [{"encoding": Encoding(30)}, {"encoding": Encoding(crf=30)}, {"codec": "another VAE"}]
)
def test_another_encoding_keeps_the_latents_and_makes_the_parts_anew(tmp_path, make, change):
    make(runs.video(2))
    chunks = set((tmp_path / "run" / "chunks").iterdir())
    done = make(runs.video(2, **change), "other", load_model=None)
    assert all(event.reused for event in done)
    assert set((tmp_path / "run" / "chunks").iterdir()) == chunks
    assert len(list((tmp_path / "run" / "segments").iterdir())) == 4


def test_an_anchor_given_for_a_chunk_holds_from_there_on(make):
    anchor = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    job = runs.video(3)

    def plan(chunk):
        return replace(job.plan(chunk), anchor=anchor if chunk == 1 else None)

    plain = make(job)
    anchored = make(replace(job, plan=plan))
    assert [event.reused for event in anchored] == [True, False, False]
    assert torch.equal(anchored[2].memory().anchor, anchor)
    assert not torch.equal(anchored[1].latents(), plain[1].latents())


def test_noise_drawn_in_order_resumes_to_the_same_bits_too(tmp_path, make):
    def job(num_chunks, **options):
        return runs.video(num_chunks, noise=DiffusersNoise(torch.Generator().manual_seed(4)), **options)

    make(job(4), "whole")
    for num_chunks in (1, 3, 4):
        runs.make(job(num_chunks), tmp_path / "parts", tmp_path / "parts.mp4")
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    # A re-rolled chunk draws from its own seed and leaves the common stream where it was.
    runs.make(job(4, seeds={1: 9}), tmp_path / "a", tmp_path / "a.mp4")
    for num_chunks in (2, 4):
        runs.make(job(num_chunks, seeds={1: 9}), tmp_path / "b", tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


# Faults


def test_what_cannot_work_is_reported_before_anything_is_made(tmp_path, make):
    guided = replace(runs.SETTINGS, guidance_scale=3.0)
    job = runs.video(2)
    ordered = DiffusersNoise(torch.Generator())
    faulty = {
        "number of chunks is 0": runs.video(0),
        "of 2 videos": runs.video(memory=text_memory(width=32, height=32, batch_size=2)),
        "width 40 is not a multiple of 16": runs.video(memory=text_memory(width=40, height=32)),
        r"guidance_scale 3.0 in chunk 1 needs a negative prompt": replace(
            job, plan=lambda chunk: replace(job.plan(chunk), settings=guided if chunk else runs.SETTINGS)
        ),
        "must be seeded": replace(job, plan=lambda chunk: replace(job.plan(chunk), noise=ordered)),
    }
    for message, faulty_job in faulty.items():
        with pytest.raises(ValueError, match=message):
            make(faulty_job)
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        runs.make(job, tmp_path / "run", tmp_path / "out.webm")
    assert not (tmp_path / "run").exists()


def test_a_fault_while_encoding_stops_the_sampling_of_the_next_chunk(tmp_path, make):
    """The background's error comes out at the next forward, with its own type, and not after the whole run."""
    sampled = []

    def broken_decode(latents):
        raise ArithmeticError("the VAE is broken")

    def wait_a_little():
        sampled.append(1)
        time.sleep(0.2)  # enough for the background to fail

    with pytest.raises(ArithmeticError, match="the VAE is broken"):
        make(runs.video(5), decode=broken_decode, decode_in_background=True, hooks=Hooks(check_cancelled=wait_a_little))
    assert len(list((tmp_path / "run" / "chunks").iterdir())) == 1
    assert all(event.reused == (event.chunk == 0) for event in make(runs.video(2)))


def test_a_fault_in_on_chunk_stops_the_run_and_what_was_finished_stays(tmp_path, make):
    def fail(done):
        raise ConnectionError(f"nobody wants chunk {done.chunk}")

    with pytest.raises(ConnectionError, match="chunk 0"):
        make_video(
            runs.video(3),
            RunFolder(tmp_path / "run"),
            tmp_path / "out.mp4",
            load_model=lambda: runs.parts()[0],
            decode=runs.decode,
            on_chunk=fail,
        )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("helios-encode")]
    frames = read_video(tmp_path / "run" / "preview.mp4").num_frames
    assert frames >= 33
    assert sum(event.reused for event in make(runs.video(3))) >= 1


# Flat


def test_memory_stays_flat_from_chunk_5_to_chunk_40(make):
    """Resident memory grows by no more than 2 %, and living tensors by no more than one chunk being encoded holds."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def tensor_bytes():
        storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is torch.Tensor]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux to ask for the resident memory")
    # Else what earlier tests have let go counts at chunk 5, and hides as much growth when it goes back to the system.
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
    seen = {}

    def watch(step):
        if step.chunk_index in (5, 40):
            gc.collect()
            give_back(0)
            seen[step.chunk_index] = (resident(), tensor_bytes())

    make(runs.video(41), hooks=Hooks(progress=watch))
    assert seen[40][0] <= 1.02 * seen[5][0]
    frames_of_a_chunk = 4 * 33 * runs.SIZE * runs.SIZE * 3
    assert seen[40][1] <= seen[5][1] + frames_of_a_chunk


# Command line


def run_cli(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_line_resumes_extends_and_cleans_up(tmp_path, capsys):
    size = ["--width", 64, "--height", 64, "--steps", "1,1", "--guidance-scale", 1, "--prompt", "a fox"]
    out, memory = tmp_path / "a.mp4", tmp_path / "m.safetensors"
    assert run_cli("generate", *size, "--chunks", 1, "--out", out, "--save-memory", memory) == 0
    assert run_cli("generate", *size, "--chunks", 2, "--out", out, "--then", "1:a storm", "--reroll", "1:5") == 0
    assert read_video(out).num_frames == 66
    extended = tmp_path / "b.mp4"
    steps = ["--steps", "1,1", "--guidance-scale", 1, "--prompt", "a fox"]
    assert run_cli("generate", *steps, "--memory", memory, "--chunks", 1, "--out", extended) == 0
    assert RunFolder(tmp_path / "b.run").memory_after(1).chunk_index == 2

    assert run_cli("runs", tmp_path) == 0
    listed = capsys.readouterr().out
    assert "a.run: 2 takes, 2 chunks" in listed
    assert run_cli("runs", tmp_path, "--remove", "a.run") == 0
    assert run_cli("runs", tmp_path, "--remove", "a.run") == 2
    assert not (tmp_path / "a.run").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--then", "storm", "not a chunk number, a colon and a value"),
        ("--reroll", "1:x", "not a chunk number, a colon and a value"),
        ("--reroll", "9:1", "chunk 9 is not made here; these are chunks 0 to 1"),
    ],
)
def test_options_that_cannot_be_read_are_reported(tmp_path, caplog, option, value, message):
    arguments = ["--prompt", "a fox", "--chunks", 2, "--out", tmp_path / "a.mp4", option, value]
    assert run_cli("generate", *arguments) == 2
    assert message in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_finished_file_says_how_it_was_made(tmp_path):
    run_cli("generate", "--prompt", "a fox", "--chunks", 1, "--out", tmp_path / "a.mp4", "--width", 64, "--height", 64)
    with av.open(str(tmp_path / "a.mp4")) as file:
        about = json.loads(file.metadata["helios"])
    assert (about["seed"], about["settings"]["steps"]) == (0, [8, 8])
    assert "a fox" in json.dumps(about)


def test_a_run_folder_of_version_0_1_0_is_resumed_with_its_chunks(tmp_path, make):
    """Made by that version with `runs.video(2, prompts={1: "a hare"})`."""
    shutil.copytree(Path(__file__).with_name("run_of_0.1.0"), tmp_path / "run")
    before = contents(tmp_path)
    done = make(runs.video(3, prompts={1: "a hare"}))
    assert [event.reused for event in done] == [True, True, False]
    kept = contents(tmp_path)
    assert all(kept[path] == content for path, content in before.items())
    for old, event in zip(sorted((Path(__file__).parent / "run_of_0.1.0/chunks").iterdir()), done, strict=False):
        assert event.folder.chunk_path(event.key).read_bytes() == old.read_bytes()
    assert [event.reused for event in make(runs.video(3, prompts={1: "a wolf"}))] == [True, False, False]
