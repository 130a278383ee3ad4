"""`python -m benchmarks.comfyui` against a real ComfyUI, at the demo's size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("websocket")

from benchmarks import comfyui as benchmark
from benchmarks import comfyui_graphs
from benchmarks.comfyui import Measured

PACK = Path(__file__).parents[2]


def graph_of(number):
    return {"sampler": {"class_type": "Sampler", "inputs": {"seed": number, "noise_seed": ["other", 0], "steps": 2}}}


def test_seeds_are_changed_and_wires_are_not():
    changed = comfyui_graphs.with_seed(graph_of(3), 8)
    assert changed["sampler"]["inputs"] == {"seed": 8, "noise_seed": ["other", 0], "steps": 2}
    with pytest.raises(ValueError, match="no number named seed or noise_seed"):
        comfyui_graphs.with_seed(graph_of(["other", 0]), 8)


def test_a_workflow_that_is_not_in_the_api_format_is_refused(tmp_path):
    file = tmp_path / "workflow.json"
    file.write_text('{"nodes": [], "links": []}')
    with pytest.raises(ValueError, match=r"Export \(API\)"):
        comfyui_graphs.load(str(file), {}, "cpu")


def test_a_failed_graph_is_reported_beside_one_that_ran():
    ran = Measured("ours", 2, [2.0, 4.0, 3.0], {"Sampler": [1.0, 2.0, 1.5]}, [2**20, 3 * 2**20, 2**20])
    slower = Measured("theirs.json", 0, [4.0, 8.0, 9.0], {}, [2**30] * 3)
    failed = Measured("other.json", error="CUDA out of memory")
    lines = benchmark.graphs_table([ran, slower, failed])
    assert "| ours | 3 (2 to 4) in 3 rounds | 1.5 | 1 | 3 MiB |" in lines
    assert "| theirs | 8 (4 to 9) in 3 rounds |  | 2.00 (2.00 to 3.00) | 1024 MiB |" in lines
    assert "| other | failed: CUDA out of memory |  |  |  |" in lines


def test_a_card_of_six_gib_leaves_the_rest_alone_and_the_allocator_gets_no_more(comfyui, monkeypatch):
    import comfy.model_management
    import torch

    from benchmarks import comfyui_nodes

    gib, fractions = 2**30, []
    before = comfy.model_management.extra_reserved_memory()
    monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", before)  # to be put back
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * gib))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: fractions.append(share))
    comfyui_nodes.limit_memory(6, torch.device("cuda"))
    assert comfy.model_management.extra_reserved_memory() - before == 74 * gib
    assert fractions == [pytest.approx((6 - comfyui_nodes.CONTEXT_GIB) / 80)]


def test_graphs_run_in_turns_and_one_that_fails_stops_no_other(tmp_path):
    """The 14B model's way at a tiny size, beside a graph whose picture is not there."""
    broken = {
        "picture": {"class_type": "ImageFromBatch", "inputs": {"image": ["empty", 0], "batch_index": 0, "length": 1}},
        "empty": {"class_type": "NoSuchNode", "inputs": {"seed": 1}},
    }
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(broken))
    command = [sys.executable, "-m", "benchmarks.comfyui", "--comfyui", os.environ["COMFYUI_PATH"], "--json"]
    command += ["--graph", "random-fp8", "--graph", str(file), "--rounds", "2", "--gib", "6"]
    told = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    tiny, refused = json.loads(told.stdout.splitlines()[-1])
    assert tiny["error"] == ""
    assert len(tiny["seconds"]) == len(tiny["nodes"]["HeliosChunkSampler"]) == 2
    rounds = zip(tiny["seconds"], tiny["nodes"]["HeliosChunkSampler"], strict=True)
    assert all(graph > sampler > 0 for graph, sampler in rounds)  # each round by itself: machines are noisy
    assert "HeliosLoader" not in tiny["nodes"]  # read in the warm-up, and in the cache since
    assert min(tiny["peaks"]) > 2**20
    assert tiny["chunks"] == 1
    assert "NoSuchNode" in refused["error"]
    assert refused["seconds"] == []
