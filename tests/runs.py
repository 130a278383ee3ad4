"""A tiny long video for tests: the demo model, one step a chunk, 32x32 pixels; and processes that die in its midst."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from functools import cache
from pathlib import Path

import torch

from helios_core.demo import DemoModel
from helios_core.media.frames import from_pixels
from helios_core.memory.storage import ModelIdentity
from helios_core.run.job import ChunkDone, LongVideo
from helios_core.run.long_video import make_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.plan import ChunkPlan
from helios_core.sampling.settings import SamplingSettings, ScheduleConfig

SIZE = 32
SETTINGS = SamplingSettings(ScheduleConfig.with_stages(1), steps=(1,), guidance_scale=1.0)
MODEL = ModelIdentity("demo", "demo-fingerprint")
# What a process does when it touches the disk, by the names of the C functions.
DISK_CALLS = {"open", "write", "flush", "fsync", "replace", "unlink", "mkdir", "remove", "rename", "close", "truncate"}


@cache
def parts():
    torch.set_num_threads(1)
    source = DemoModel()
    return source.load_transformer(), source.load_codec()


@cache
def rows_of(prompt: str) -> torch.Tensor:
    return DemoModel().encode_prompts([prompt])[0]


def decode(latents: torch.Tensor) -> torch.Tensor:
    return from_pixels(parts()[1].decode(latents))


def video(num_chunks: int = 3, *, seed: int = 1, prompts: dict | None = None, seeds: dict | None = None, **options):
    """A job; `prompts` and `seeds` are {chunk: other prompt from there on} and {chunk: its own seed}."""
    prompts, seeds = prompts or {}, seeds or {}

    noise = options.pop("noise", None) or SeededNoise(seed)

    def plan(chunk: int) -> ChunkPlan:
        latest = max((start for start in prompts if start <= chunk), default=None)
        own = SeededNoise(seeds[chunk]) if chunk in seeds else noise
        return ChunkPlan(rows_of(prompts.get(latest, "a fox")), SETTINGS, own)

    values = {
        "memory": text_memory(width=SIZE, height=SIZE),
        "noise": noise,
        "model": MODEL,
        "plan": plan,
        **options,
    }
    return LongVideo(num_chunks=num_chunks, **values)


def make(job: LongVideo, folder: Path, out: Path, *, hooks: Hooks | None = None, **options) -> list[ChunkDone]:
    """Make it to the end; returns what was told of each chunk."""
    told = []
    options = {"load_model": lambda: parts()[0], "decode": decode, **options}
    make_video(job, RunFolder(folder), out, on_chunk=told.append, hooks=hooks, metadata={"about": "a test"}, **options)
    return told


# Processes that die

_processes = multiprocessing.get_context("forkserver") if os.name == "posix" else None
if _processes is not None:
    # torch is imported once, in the server that the others are forked from.
    _processes.set_forkserver_preload(["tests.runs"])


def in_child(task, *arguments) -> int:
    """Run a function of this module in a process of its own; returns the exit code, negative for a signal."""
    process = _processes.Process(target=task, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def make_and_die(folder: Path, out: Path, moment: int, only_disk_calls: bool) -> None:
    """Make the video, and be killed before function call number `moment`, counted over both threads."""
    count = 0

    def count_calls(frame, event, function) -> None:
        nonlocal count
        if event == "c_call" and (not only_disk_calls or function.__name__ in DISK_CALLS):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    job = video()
    parts()
    threading.setprofile(count_calls)
    sys.setprofile(count_calls)
    make(job, folder, out)
    sys.setprofile(None)
    (out.parent / "calls").write_text(str(count))


def make_and_die_writing(folder: Path, out: Path, byte: int) -> None:
    """Make the video, and be killed by the system in the midst of writing that byte of whichever file gets there."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
    make(video(), folder, out)


def make_as_nobody(folder: Path, out: Path) -> None:
    """Make the video as a user without rights; exits with 13 (EACCES) when the system refuses."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        make(video(), folder, out)
    except PermissionError as fault:
        sys.exit(fault.errno)


def hold_lock(folder: Path, held: Path) -> None:
    """Take the folder's lock, say so by making the file `held`, and wait to be killed."""
    with RunFolder(folder).locked():
        held.touch()
        signal.pause()
