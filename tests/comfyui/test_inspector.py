"""The memory inspector and the drift report in real graphs."""

import json

import pytest
import torch
from harness.samples import small_graph, the_node

from helios_core.media.writer import VideoWriter


@pytest.fixture
def graph(comfyui, models):
    """t2v of three chunks."""
    graph = small_graph("t2v", comfyui.object_info())
    the_node(graph, "HeliosChunkSampler")[1].update(chunks=3, steps="1,1,1")
    return graph


def test_a_memory_is_shown_as_a_picture_and_in_numbers(comfyui, graph):
    sampler, _ = the_node(graph, "HeliosChunkSampler")
    loader, _ = the_node(graph, "HeliosLoader")
    vae, _ = the_node(graph, "VAELoader")
    graph["rough"] = {"class_type": "HeliosMemoryInspector", "inputs": {"memory": [sampler, 1]}}
    inputs = {"memory": [sampler, 1], "vae": [vae, 0], "model": [loader, 0]}
    graph["exact"] = {"class_type": "HeliosMemoryInspector", "inputs": inputs}
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    for node in ("rough", "exact"):
        assert run.output(node).shape[0] == 1
        assert run.output(node).shape[-1] == 3
        assert run.history["outputs"][node]["images"], "the node shows no preview"
        report = json.loads(run.output(node, 1))
        assert (report["width"], report["height"], report["chunks_made"]) == (128, 64, 3)
        assert report["provenance"]["task"] == "t2v"
    weights = [json.loads(run.output(node, 1))["bytes"]["weights"] for node in ("rough", "exact")]
    assert weights[0] > 2**34 > weights[1] > 0, "the 14B model's, and the tiny one's"


def test_an_empty_memory_can_be_looked_at_too(comfyui, graph):
    context, _ = the_node(graph, "HeliosContext")
    graph["look"] = {"class_type": "HeliosMemoryInspector", "inputs": {"memory": [context, 0]}}
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert json.loads(run.output("look", 1))["has_anchor"] is False


def test_drift_of_latents_of_their_frames_and_of_the_file_agree(comfyui, graph):
    sampler, _ = the_node(graph, "HeliosChunkSampler")
    vae, _ = the_node(graph, "VAELoader")
    combine, _ = the_node(graph, "HeliosVideoCombine")
    graph["frames"] = {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], "vae": [vae, 0]}}
    sources = {
        "latents": {"latents": [sampler, 0], "vae": [vae, 0]},
        "images": {"images": ["frames", 0]},
        "video": {"video": [combine, 0]},
    }
    for name, inputs in sources.items():
        graph[name] = {"class_type": "HeliosDriftReport", "inputs": inputs}
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    reports = {name: json.loads(run.output(name, 1)) for name in sources}
    assert run.output("latents").shape[-1] == 3
    for report in reports.values():
        assert report["num_frames"] == 99
        assert len(report["chunks"]) == 3
    for latents, images in zip(reports["latents"]["chunks"], reports["images"]["chunks"], strict=True):
        assert latents == pytest.approx(images, abs=0.01, rel=0.01)
    lightness = [report["first"]["lightness"] for report in reports.values()]
    # The picture of random weights is coloured noise, of which the file's halved colour resolution loses some.
    assert lightness[2] == pytest.approx(lightness[0], abs=4)


def test_a_report_needs_one_source(comfyui, graph):
    graph["report"] = {"class_type": "HeliosDriftReport", "inputs": {}}
    assert "connect one of latents (with the VAE), images and video" in comfyui.run_graph(graph).error
    sampler, _ = the_node(graph, "HeliosChunkSampler")
    graph["report"]["inputs"] = {"latents": [sampler, 0]}
    assert "VAE" in comfyui.run_graph(graph).error


def test_a_video_file_is_measured_without_having_all_of_it_in_memory(comfyui, home, monkeypatch):
    from comfy_api.latest import InputImpl

    frames = torch.linspace(0, 1, 70).view(-1, 1, 1, 1).expand(-1, 32, 48, 3)
    with VideoWriter(home.input / "brighter.mp4", width=48, height=32, frame_rate=12.5) as writer:
        writer.write(frames)
    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", lambda video: pytest.fail("all frames are loaded"))
    graph = {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "brighter.mp4"}},
        "report": {"class_type": "HeliosDriftReport", "inputs": {"video": ["video", 0]}},
    }
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    report = json.loads(run.output("report", 1))
    assert report["num_frames"] == 70
    assert len(report["chunks"]) == 3  # of 33, 33 and 4 frames
    assert report["first"]["lightness"] < 20
    assert report["last"]["lightness"] > 80
