"""Helios Loader reads every layout of the weights, and ComfyUI's own decoder reads our latents."""

import numpy as np
import pytest
import torch
from harness import helios_weights
from harness.samples import read_clip, small_graph, the_node

pytestmark = pytest.mark.usefixtures("memory_manager")


@pytest.fixture(scope="module")
def sample(comfyui, models):
    """sample(model name, **loader settings) -> latents of one chunk made from text."""
    graph = small_graph("t2v", comfyui.object_info(), width=64, height=64)
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    inputs.update(chunks=1, steps="1,1,1")
    _, loader = the_node(graph, "HeliosLoader")
    video, _ = the_node(graph, "HeliosVideoCombine")
    del graph[video]
    graph["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latents"}}

    def run(name: str, weight_dtype: str = "fp32") -> torch.Tensor:
        loader.update(model_name=name, weight_dtype=weight_dtype)
        result = comfyui.run_graph(graph)
        assert result.success, f"{name}: {result.error}"
        return result.output(sampler)["samples"]

    return run


def test_every_layout_is_listed_and_gives_the_same_latents(comfyui, models, sample):
    weights = helios_weights.random_weights()
    names = helios_weights.write_layouts(models / "diffusion_models", weights)
    (listed,) = _model_options(comfyui)
    assert set(names) <= set(listed)
    expected = sample(names[0])
    assert expected.isfinite().all()
    assert expected.std() > 0.1
    for name in names[1:]:
        assert torch.equal(sample(name), expected), name


def test_a_release_folder_is_listed_once_and_not_shard_by_shard(comfyui, models, sample):
    (listed,) = _model_options(comfyui)
    assert [name for name in listed if "Helios-Distilled" in name] == ["Helios-Distilled/transformer"]


def test_an_fp8_file_computes_with_the_values_that_its_numbers_and_scales_stand_for(models, sample):
    twins = helios_weights.write_fp8_layouts(models / "diffusion_models", helios_weights.random_weights())
    for fp8, values in twins.items():
        assert torch.equal(sample(fp8), sample(values)), fp8


def test_weights_kept_in_fp8_stay_close_to_the_full_ones(models, sample):
    name = "diffusers_distilled.safetensors"
    full = sample(name)
    kept = sample(name, weight_dtype="fp8_e4m3fn")
    difference = (kept - full).norm() / full.norm()
    assert 0 < difference < 0.5


def test_native_vae_decode_of_our_latents_gives_the_frames_that_video_combine_writes(comfyui, models, home):
    graph = small_graph("t2v", comfyui.object_info(), width=128, height=64)
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    inputs.update(chunks=2, steps="1,1,1")
    _, ours = the_node(graph, "HeliosVideoCombine")
    graph["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], "vae": ours["vae"]}}
    ours["crf"] = 0  # lossless
    others = {name: value for name, value in ours.items() if name not in ("latents", "vae")}
    native = {**others, "images": ["decode", 0], "filename_prefix": "native"}
    graph["native"] = {"class_type": "HeliosVideoCombine", "inputs": native}
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert run.output("decode").shape == (66, 64, 128, 3)
    files = home.saved_files(run.history)
    assert len(files) == 2
    first, second = (read_clip(path).frames.astype(int) for path in files)
    # Both chunks decoded as one batch, or one after the other: equal up to the rounding of the kernels and of YUV.
    apart = np.abs(first - second)
    assert apart.max() <= 6
    assert apart.mean() < 0.05


def _model_options(comfyui) -> list[list[str]]:
    spec = comfyui.object_info(["HeliosLoader"])["HeliosLoader"]["input"]["required"]["model_name"]
    return [spec[1]["options"] if spec[0] == "COMBO" else spec[0]]
