#!/usr/bin/env python3
"""Print how far our latents are from diffusers' pipelines, as a Markdown table. Needs the test requirements.

    python tools/parity_table.py

Each row is one video of three chunks (27 latent frames) by a tiny random model: same weights, seed and inputs on both
sides. The cases are those of tests/sampling/test_parity.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parity import BASE, DISTILLED, MID, Case, oracle_latents, our_latents

HEADER = (
    "| variant | task | fp32: max error | bf16: max error | bf16: RMS, ours to diffusers "
    "| bf16: RMS, ours to fp32 | bf16: RMS, diffusers to fp32 |\n"
    "|---|---|---|---|---|---|---|"
)


def rms(difference: torch.Tensor, unit: torch.Tensor) -> float:
    return (difference.square().mean().sqrt() / unit).item()


def row(case: Case) -> str:
    """Measure one case. Errors are in units of the latents' standard deviation."""
    exact = oracle_latents(case)
    unit = exact.std()
    ours = our_latents(case)
    exact_bf16, ours_bf16 = (make(case, torch.bfloat16) for make in (oracle_latents, our_latents))
    cells = [
        case.variant.capitalize(),
        case.task.upper(),
        f"{(ours - exact).abs().max() / unit:.1e}",
        f"{(ours_bf16 - exact_bf16).abs().max() / unit:.1e}",
        f"{rms(ours_bf16 - exact_bf16, unit):.1e}",
        f"{rms(ours_bf16 - exact, unit):.1e}",
        f"{rms(exact_bf16 - exact, unit):.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    versions = f"diffusers {version('diffusers')}, torch {version('torch')}"
    print(f"{versions}; errors in standard deviations of the latents.\n")
    print(HEADER)
    for case in (BASE, MID, DISTILLED):
        for task in ("t2v", "i2v", "v2v"):
            print(row(replace(case, task=task)), flush=True)


if __name__ == "__main__":
    main()
