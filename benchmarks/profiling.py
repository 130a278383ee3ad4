"""Where the time of our side goes: shares of each kind of work in each part, and the distance to the device's peak.

Kinds are known by the name of torch's operation. The peak is what this device does in one large matrix product,
measured here; the operations of a stage are counted by `helios_core.report.cost`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from helios_core.report.cost import chunk_forwards, stage_costs

from .cases import Case
from .contestants import CONTESTANTS, OURS, Parts, stage_name, watched
from .page import table
from .stopwatch import synchronise

# The first kind with a word in the operation's name is taken.
KINDS = {
    "attention": ("attention", "flash", "fmha", "sdpa", "softmax"),
    "convolution": ("conv", "slow_conv", "thnn"),
    "matmul": ("addmm", "::mm", "bmm", "matmul", "scaled_mm", "gemm", "::linear"),
    "copies": ("copy", "::cat", "clone", "memcpy", "memset", "fill", "pad", "upsample", "stack", "::to"),
}
REST = "norm and elementwise"
OTHER_PART = "between the parts"
MOST_STEPS = 3  # a stage's steps are alike, and a few are enough to see what they are made of
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
MATRIX_RUNS = 10


def kind_of(operation: str) -> str:
    """One of KINDS or REST."""
    for kind, words in KINDS.items():
        if any(word in operation for word in words):
            return kind
    return REST


def kinds_of_parts(case: Case, parts: Parts) -> dict[str, dict[str, float]]:
    """Seconds of each kind in each part of one chunk: the GPU's, or the processor's on a CPU."""
    short = replace(case, num_chunks=1, steps=tuple(min(steps, MOST_STEPS) for steps in case.steps))
    activities = [ProfilerActivity.CPU]
    if parts.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with watched(short, parts), profile(activities=activities) as profiler:
        CONTESTANTS[OURS].chunks(short, parts)
        parts.synchronise()
    names = {"VAE decode", *(stage_name(stage, len(case.steps)) for stage in range(len(case.steps)))}
    total: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in profiler.events():
        if event.device_type == DeviceType.CPU and event.name not in names:
            part = _part_around(event, names)
            for kind, microseconds in own_work(event, parts.device):
                total[part][kind] += microseconds / 1e6
    return {part: dict(kinds) for part, kinds in sorted(total.items())}


def _part_around(event, names: set[str]) -> str:
    while event is not None:
        if event.name in names:
            return event.name
        event = event.cpu_parent
    return OTHER_PART


def own_work(event, device: torch.device) -> Iterable[tuple[str, float]]:
    """(kind, microseconds) of what an operation did itself: on a GPU the kernels that it started."""
    if device.type != "cuda":
        yield kind_of(event.name), event.self_cpu_time_total
        return
    for kernel in event.kernels:
        if kernel.name != event.name:  # a named region has a twin on the GPU that spans its kernels
            yield kind_of(event.name if "::" in event.name else kernel.name), kernel.duration


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product, the best of some."""
    size = MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(MATRIX_RUNS):
        synchronise(device)
        start = time.perf_counter()
        left @ right
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def stage_rates(case: Case, seconds: Mapping[str, float]) -> dict[str, float]:
    """Operations per second in each stage that has a forward, by the stage's `seconds` per chunk."""
    num_stages = len(case.steps)
    costs = stage_costs(case.config, case.width, case.height, num_stages)
    rates = {}
    for stage, (cost, forwards) in enumerate(zip(costs, chunk_forwards(case.settings), strict=True)):
        name = stage_name(stage, num_stages)
        if forwards and seconds.get(name):
            rates[name] = cost.flops * forwards / seconds[name]
    return rates


def kinds_table(kinds: Mapping[str, Mapping[str, float]]) -> list[str]:
    """For each part its share of all time, and in it the share of each kind."""
    everything = sum(sum(part.values()) for part in kinds.values()) or 1
    columns = [*KINDS, REST]
    rows = []
    for part, own in kinds.items():
        whole = sum(own.values())
        shares = [f"{own.get(kind, 0) / (whole or 1):.0%}" for kind in columns]
        rows.append([part, f"{whole / everything:.0%}", *shares])
    return table(["part of one chunk", "of all", *columns], rows)


def rates_table(case: Case, rates: Mapping[str, float], peak: float) -> list[str]:
    rows = [[f"{case.name}: {part}", f"{rate / 1e12:.3g}", f"{rate / peak:.0%}"] for part, rate in rates.items()]
    return table(["part", "TFLOP/s", f"of the {peak / 1e12:.3g} TFLOP/s of a large matrix product"], rows)


def profile_lines(case: Case, parts: Parts, seconds: Mapping[str, float]) -> list[str]:
    """Both tables; `seconds` per chunk of each part come from a run without the profiler."""
    rates = stage_rates(case, seconds)
    peak = matmul_peak(parts.device, parts.ours.dtype)
    return [*rates_table(case, rates, peak), "", *kinds_table(kinds_of_parts(case, parts))]
