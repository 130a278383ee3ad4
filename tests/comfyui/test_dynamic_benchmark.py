"""`python -m benchmarks.dynamic_vram` against a real ComfyUI, at tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.checkout import find_checkout

pytest.importorskip("websocket")

from benchmarks.dynamic_vram import Measured, lines_of, ways

PACK = Path(__file__).parents[2]
CHECKOUT, _ = find_checkout()


def test_on_a_gpu_each_dtype_runs_on_the_whole_card_and_on_twelve_gib_of_it():
    found = ways("cuda", 80.0)
    assert [way.options for way in found[:3]] == [("--disable-dynamic-vram",), (), ("--reserve-vram", "68.0")]
    assert [way.dynamic for way in found] == [False, True, True] * 2
    assert {way.weight_dtype for way in found[3:]} == {"fp8_e4m3fn"}


def test_a_way_that_failed_stands_beside_one_that_ran():
    ran = Measured("dynamic", 2.0, 1.0, 2**31, 2**30, 2**29, "weights 1 GiB", difference=0.0)
    lines = lines_of([ran, Measured("12 GiB of it", error="out of memory")])
    assert lines[2] == "| dynamic | 2.00 | 1.00 | 2.00 | 1.00 | 0.50 | the same bits | weights 1 GiB |"
    assert "out of memory" in lines[3]


@pytest.mark.skipif(
    CHECKOUT is None or not (CHECKOUT / "comfy" / "model_prefetch.py").is_file(), reason="has no dynamic VRAM"
)
def test_at_tiny_size_all_ways_give_the_static_ways_latents(comfyui):
    command = [sys.executable, "-m", "benchmarks.dynamic_vram", "--comfyui", str(CHECKOUT), "--json"]
    done = subprocess.run(command, check=False, cwd=PACK, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [result["difference"] for result in results] == [None, 0.0, None, 0.0]
    assert all(result["seconds_per_chunk"] > 0 and result["own_memory"] > 0 for result in results)
    assert all("host RAM" in result["estimate"] for result in results)
