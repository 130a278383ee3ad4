"""A tiny video to finish, in pieces of four frames; and processes that die in the midst of finishing it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from helios_core.finish import film
from helios_core.finish.pieces import PieceFolder
from helios_core.finish.recipe import Recipe
from helios_core.finish.source import Source, frames_source
from helios_core.media.audio import Sound, waveform_sound
from helios_core.run.run_folder import RunFolder

from .runs import DISK_CALLS

PIECE = 4
RATE = 24

_processes = multiprocessing.get_context("forkserver") if os.name == "posix" else None


class Doubling:
    """An upscaler that repeats pixels."""

    scale = 2
    fingerprint = "repeats pixels"

    def __call__(self, frame: torch.Tensor) -> torch.Tensor:
        return frame.repeat_interleave(2, 0).repeat_interleave(2, 1)


class Mixing:
    """An interpolator that cross-fades."""

    fingerprint = "cross-fades"

    def __call__(self, before, after, positions) -> torch.Tensor:
        return torch.stack([before + (after - before) * position for position in positions])


def clip(num_frames: int, width: int = 32, height: int = 24) -> torch.Tensor:
    """A smooth picture that slides to the left, the same for every length."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 8, (width + 256) // 8, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")[0].movedim(0, -1)
    return torch.stack([wide[:, number : number + width] for number in range(num_frames)])


def sound(seconds: float) -> Sound:
    generator = torch.Generator().manual_seed(1)
    return waveform_sound(torch.rand(2, round(44100 * seconds), generator=generator) * 0.1, 44100)


def source(num_frames: int = 10, **size: int) -> Source:
    return frames_source(clip(num_frames, **size), RATE, sound(num_frames / RATE))


def recipe(**values) -> Recipe:
    return Recipe(**{"upscaler": Doubling(), "interpolator": Mixing(), "factor": 2, "grain": 0.01, **values})


def finish(given: Source, wanted: Recipe, folder: Path, path: Path, **options) -> film.Film:
    """Finish in pieces of four frames; `said` takes the sentences."""
    said = options.pop("said", [])
    finisher = film.Finisher(given, wanted, say=said.append, progress=options.pop("progress", lambda *done: None))
    pieces, film.PIECE_FRAMES = film.PIECE_FRAMES, PIECE
    try:
        return film.finish_video(finisher, PieceFolder(RunFolder(folder)), path, **options)
    finally:
        film.PIECE_FRAMES = pieces


# Processes that die


def in_child(task, *arguments) -> int:
    """Run a function of this module in a process of its own; returns the exit code, negative for a signal."""
    process = _processes.Process(target=task, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def finish_and_die(folder: Path, path: Path, moment: int) -> None:
    """Finish the video, and be killed before the disk call of that number, counted over all threads."""
    count = 0

    def count_calls(frame, event, function) -> None:
        nonlocal count
        if event == "c_call" and function.__name__ in DISK_CALLS:
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    torch.set_num_threads(1)
    threading.setprofile(count_calls)
    sys.setprofile(count_calls)
    finish(source(), recipe(), folder, path)
    sys.setprofile(None)
    (path.parent / "calls").write_text(str(count))
