"""Wrong input ends in a message that says what was given, what is allowed and what to do."""

import shutil

import numpy as np
import pytest
from harness.inprocess import GraphRejected
from harness.samples import nodes_of, small_graph, the_node


@pytest.fixture
def graph(comfyui, models):
    """t2v at 64 x 64, one chunk: to be spoilt by the test."""
    graph = small_graph("t2v", comfyui.object_info(), width=64, height=64)
    the_node(graph, "HeliosChunkSampler")[1].update(chunks=1, steps="1,1,1")
    return graph


@pytest.fixture
def error_of(comfyui):
    """error_of(graph): what ComfyUI tells the user, from validation or from the run."""

    def run(graph) -> str:
        try:
            result = comfyui.run_graph(graph)
        except GraphRejected as rejected:
            messages = [error["details"] for node in rejected.node_errors.values() for error in node["errors"]]
            return "\n".join(messages)
        assert not result.success
        return result.error

    return run


def test_a_size_that_no_variant_can_take_is_refused_before_anything_runs(comfyui, graph):
    the_node(graph, "HeliosContext")[1].update(width=600)
    with pytest.raises(GraphRejected, match="width 600 is not a multiple of"):
        comfyui.run_graph(graph)


def test_a_size_that_the_pyramid_cannot_halve_twice_names_the_nearest_that_work(graph, error_of):
    the_node(graph, "HeliosContext")[1].update(width=592)
    error = error_of(graph)
    assert "592" in error
    assert "64" in error
    assert "576 or 640" in error


def test_two_steps_lists_for_three_stages_are_refused_with_both_numbers(graph, error_of):
    the_node(graph, "HeliosChunkSampler")[1].update(steps="2,2")
    error = error_of(graph)
    assert "[2, 2]" in error
    assert "3" in error


@pytest.mark.parametrize("steps", ["two", "2;2;2", "0,1,1", "2,,2", "-1,2,2"])
def test_steps_that_are_not_numbers_are_refused_before_anything_runs(comfyui, graph, steps):
    the_node(graph, "HeliosChunkSampler")[1].update(steps=steps)
    with pytest.raises(GraphRejected, match="whole numbers"):
        comfyui.run_graph(graph)


def test_guidance_without_a_negative_prompt_says_what_to_do(graph, error_of):
    the_node(graph, "HeliosChunkSampler")[1].update(guidance_scale=5.0)
    error = error_of(graph)
    assert "negative" in error
    assert "guidance_scale" in error


def test_two_conditions_are_refused_with_advice_that_works(comfyui, graph, error_of):
    _, inputs = the_node(graph, "HeliosChunkSampler")
    one = inputs["positive"]
    graph["two"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": one, "conditioning_2": one}}
    inputs["positive"] = ["two", 0]
    assert "ConditioningAverage" in error_of(graph)
    average = {"conditioning_to": one, "conditioning_from": one, "conditioning_to_strength": 0.5}
    graph["two"] = {"class_type": "ConditioningAverage", "inputs": average}
    assert comfyui.run_graph(graph).success


def test_joined_prompts_that_are_too_long_are_refused_with_what_to_do(graph, error_of):
    _, inputs = the_node(graph, "HeliosChunkSampler")
    one = inputs["positive"]
    graph["two"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": one, "conditioning_2": one}}
    inputs["positive"] = ["two", 0]
    assert "ConditioningConcat" not in error_of(graph)
    graph["two"] = {"class_type": "ConditioningConcat", "inputs": {"conditioning_to": one, "conditioning_from": one}}
    error = error_of(graph)
    assert "1024 tokens" in error
    assert "write them as one text" in error


def test_every_size_that_base_can_make_can_be_typed(comfyui):
    inputs = comfyui.object_info(["HeliosContext"])["HeliosContext"]["input"]["required"]
    for name in ("width", "height"):
        options = inputs[name][1]
        assert (options["min"] % 16, 16 % options["step"]) == (0, 0)


def test_an_image_without_a_vae_names_the_loader_and_the_file(graph, error_of):
    graph["image"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    the_node(graph, "HeliosContext")[1]["image"] = ["image", 0]
    error = error_of(graph)
    assert "VAELoader" in error
    assert "wan_2.1_vae.safetensors" in error


def test_a_clip_of_fewer_than_33_frames_is_refused_with_its_length(graph, error_of):
    _connect_clip(graph, num_frames=32)
    error = error_of(graph)
    assert "32 frames" in error
    assert "33" in error


def test_image_and_video_at_once_are_refused(graph, error_of):
    _connect_clip(graph, num_frames=33)
    the_node(graph, "HeliosContext")[1]["image"] = ["image", 0]
    assert "image and video" in error_of(graph)


def test_a_batch_of_pictures_is_refused_with_its_count(graph, error_of):
    _connect_clip(graph, num_frames=5)
    context = the_node(graph, "HeliosContext")[1]
    del context["video"]
    context["image"] = ["frames", 0]
    assert "5 pictures" in error_of(graph)


def test_video_combine_with_nothing_connected_says_what_to_connect(comfyui, models, error_of):
    inputs = {"frame_rate": 24.0, "crf": 18, "filename_prefix": "x"}
    error = error_of({"1": {"class_type": "HeliosVideoCombine", "inputs": inputs}})
    assert "latents" in error
    assert "images" in error


def test_latents_without_a_vae_are_distinguished_from_pictures_without_one(graph, error_of):
    del the_node(graph, "HeliosVideoCombine")[1]["vae"]
    assert "no VAE is connected to decode the latents" in error_of(graph)


def test_another_models_file_is_recognised_for_what_it_is(graph, error_of, models, home):
    shutil.copy(home.models / "vae" / "wan_2.1_vae.safetensors", home.models / "diffusion_models" / "stray.safetensors")
    the_node(graph, "HeliosLoader")[1].update(model_name="stray.safetensors")
    error = error_of(graph)
    assert "stray.safetensors" in error
    assert "VAE" in error


def test_a_missing_model_says_what_to_download_and_where_to_put_it(comfyui, graph):
    the_node(graph, "HeliosLoader")[1].update(model_name="nowhere.safetensors")
    with pytest.raises(GraphRejected) as rejected:
        comfyui.run_graph(graph)
    assert "nowhere.safetensors" in str(rejected.value)


def test_latents_of_an_image_model_are_refused_by_video_combine(graph, error_of):
    graph["latents"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    the_node(graph, "HeliosVideoCombine")[1]["latents"] = ["latents", 0]
    assert "(1, 4, 8, 8)" in error_of(graph)


def test_native_samplers_refuse_helios_and_name_the_node_to_use(graph, error_of):
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    latent = {"width": 64, "height": 64, "length": 33, "batch_size": 1}
    graph["empty"] = {"class_type": "EmptyHunyuanLatentVideo", "inputs": latent}
    graph[sampler] = {
        "class_type": "KSampler",
        "inputs": {
            "model": inputs["model"],
            "positive": inputs["positive"],
            "negative": inputs["positive"],
            "latent_image": ["empty", 0],
            "seed": 0,
            "steps": 1,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    }
    assert "Helios Chunk Sampler" in error_of(graph)


def test_a_run_after_a_failed_one_is_as_good_as_new(comfyui, graph, error_of):
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    before = comfyui.run_graph(graph).output(sampler)["samples"]
    inputs.update(guidance_scale=5.0)
    error_of(graph)
    inputs.update(guidance_scale=0.0)
    assert np.array_equal(comfyui.run_graph(graph).output(sampler)["samples"], before)


def _connect_clip(graph, num_frames: int) -> None:
    """A still clip of a picture, and the VAE that the graph has already, into Helios Context."""
    graph["image"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    graph["frames"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["image", 0], "amount": num_frames}}
    graph["clip"] = {"class_type": "CreateVideo", "inputs": {"images": ["frames", 0], "fps": 24.0}}
    (vae, _), *_ = nodes_of(graph, "VAELoader")
    the_node(graph, "HeliosContext")[1].update(video=["clip", 0], vae=[vae, 0])
