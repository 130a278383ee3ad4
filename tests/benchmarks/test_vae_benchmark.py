"""The VAE's benchmark on a VAE so small that only its bookkeeping counts."""

import math

import pytest
import torch

from benchmarks import vae
from helios_core.vae.wan_vae import WanVAE

NAMES = [vae.THEIRS, "ours fp32", "fp32, channels last"]


def tiny():
    torch.manual_seed(0)
    return WanVAE(dim=4)


CASE = vae.Case("tiny", tiny, 16, 16)


@pytest.fixture(scope="module")
def results():
    return vae.measure(CASE, NAMES, torch.device("cpu"), rounds=2)


def test_every_way_is_timed_and_decodes_the_same_frames(results):
    assert list(results) == NAMES
    assert all(len(result.milliseconds) == 2 and min(result.milliseconds) > 0 for result in results.values())
    assert math.isinf(results[vae.THEIRS].psnr)
    assert all(result.psnr > 100 for result in results.values())
    assert 0 < results["ours fp32"].peak < results[vae.THEIRS].peak


def test_the_table_has_a_line_for_each_way(results):
    lines = vae.table(CASE, results)
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in NAMES]
    assert "| exact |" in lines[2]
    assert "1.00x" in lines[2]


def test_the_page_has_the_marks_to_write_between():
    page = vae.PAGE.read_text(encoding="utf-8")
    for device in ("cpu", "cuda"):
        assert f"<!-- vae {device} -->" in page
        assert f"<!-- end of vae {device} -->" in page
