"""The speed benchmark on a model so small that only its bookkeeping counts."""

import pytest
import torch

from benchmarks import speed
from benchmarks.contestants import Case
from helios_core.config import TransformerConfig
from tests import reference

TINY = Case("tiny", TransformerConfig(**reference.TINY_SHAPE), "distilled", (1, 1, 1), 64, 64)


@pytest.fixture(scope="module")
def result():
    return speed.measure(TINY, torch.device("cpu"), num_pairs=2)


def test_both_make_the_same_chunk(result):
    assert result.difference < 1e-4
    assert min(result.peak.values()) > 0
    assert min(result.ratios) > 0


def test_every_stage_and_the_vae_are_timed_on_both_sides(result):
    parts = {"DiT, stage 1 of 3", "DiT, stage 2 of 3", "DiT, stage 3 of 3", "VAE decode"}
    assert set(result.parts[speed.OURS]) == set(result.parts[speed.THEIRS]) == parts
    assert all(seconds > 0 for split in result.parts.values() for seconds in split.values())


def test_the_tables_replace_what_stood_between_the_marks(result, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed cpu -->\nold\n<!-- end of speed cpu -->\nafter\n")
    speed.write_section(page, "speed cpu", "\n".join([*speed.table([result]), *speed.parts_table([result])]))
    text = page.read_text()
    assert text.startswith("before\n<!-- speed cpu -->\n|")
    assert text.endswith("<!-- end of speed cpu -->\nafter\n")
    assert "in 2 pairs" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="speed cuda"):
        speed.write_section(page, "speed cuda", "")
