"""What `convert` to few bits loses: weights and layers of random blocks of the published width, and the demo's frames.

    python -m benchmarks.quantised            print the tables
    python -m benchmarks.quantised --write    and put them into BENCHMARKS.md

The random weights are normal numbers as large as a trained layer's, 1/sqrt(inputs), in bf16, with one column in 128
eight times that, as trained layers have them. A layer's output is of random tokens, in float32. The demo is converted
whole (no block kept) and with its first and last block kept, and makes one chunk of the same noise in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from helios_core.checkpoint.checkpoint import open_checkpoint
from helios_core.checkpoint.loading import load_transformer
from helios_core.checkpoint.quantising import Quantiser
from helios_core.checkpoint.writing import QUANTISED_DTYPES, convert_checkpoint
from helios_core.demo import DemoModel
from helios_core.demo.model import TRANSFORMER_FILE
from helios_core.model.config import TransformerConfig

from .options import Job, psnr, relative_error, subject_of
from .page import PAGE, command_line, facts, marks, table, write_section

PROMPT = "a red circle moving right on a black background"
NUM_TOKENS = 256
CONFIG = TransformerConfig()
LAYERS = {
    "attention, 5120 to 5120": (CONFIG.inner_dim, CONFIG.inner_dim),
    "feed-forward, 5120 to 13824": (CONFIG.ffn_dim, CONFIG.inner_dim),
    "feed-forward, 13824 to 5120": (CONFIG.inner_dim, CONFIG.ffn_dim),
}


def random_weight(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) in bf16."""
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    weight[:, ::128] *= 8
    return weight.bfloat16()


def layer_rows() -> Iterator[list[str]]:
    for name, shape in LAYERS.items():
        weight = random_weight(*shape).float()
        tokens = torch.randn(NUM_TOKENS, shape[1], generator=torch.Generator().manual_seed(0))
        exact = tokens @ weight.T
        for number, (dtype, quantiser) in enumerate(QUANTISED_DTYPES.items()):
            rounded = _rounded(weight, quantiser)
            yield [
                "" if number else name,
                f"`{dtype}`",
                f"{relative_error(rounded, weight):.2%}",
                f"{relative_error(tokens @ rounded.T, exact):.2%}",
            ]


def _rounded(weight: torch.Tensor, quantiser: Quantiser) -> torch.Tensor:
    data, scale = quantiser.quantise(weight)
    return data.float() * scale


def demo_rows(folder: Path) -> Iterator[list[str]]:
    subject = subject_of("demo", DemoModel(), PROMPT)
    job = Job(range(2), 1)
    source = open_checkpoint(TRANSFORMER_FILE)
    frames, exact = None, None
    for dtype in ("fp32", "bf16", *QUANTISED_DTYPES):
        for kept in (0, 1) if dtype in QUANTISED_DTYPES else (0,):
            target = folder / f"{dtype}_{kept}.safetensors"
            convert_checkpoint(source, target, dtype, kept_blocks=kept)
            made = job.make(subject, load_transformer(open_checkpoint(target), dtype=torch.float32), subject.settings)
            decoded = torch.cat([subject.codec.decode(video).clamp(-1, 1) for video in made.latents.split(1)])
            if exact is None:
                frames, exact = decoded, made.latents
                continue
            blocks = "" if dtype == "bf16" else ("all blocks" if kept == 0 else "first and last block kept")
            yield [
                f"`{dtype}`",
                blocks,
                f"{relative_error(made.latents, exact):.2%}",
                f"{psnr(decoded, frames):.1f} dB",
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    if options.write:
        marks(PAGE, "quantised")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        lines = [
            f"`{command_line('quantised', sys.argv[1:])}` – {facts(torch.device('cpu'))}. Errors are relative.",
            "",
            *table(["random layer", "convert --dtype", "error against bf16", "of its output"], layer_rows()),
            "",
            *table(
                ["demo, convert --dtype", "", "error of the latents, against fp32", "frames"], demo_rows(Path(folder))
            ),
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.write:
        write_section(PAGE, "quantised", "\n".join(lines))


if __name__ == "__main__":
    main()
