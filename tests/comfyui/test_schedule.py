"""Prompt schedules in real graphs."""

import json
import logging

import pytest
import torch
from harness.inprocess import GraphRejected
from harness.samples import WIDTH, read_clip, small_graph, the_node
from PIL import Image

TEXT = "0s: a red fox in the snow\nchunk 1 step seed 9: waves roll in\nchunk 2 step: a lantern sways\nend chunk 3"


@pytest.fixture
def info(comfyui):
    return comfyui.object_info()


@pytest.fixture
def graph(info, models):
    """t2v with a schedule for a prompt; ids of its parts under their own names."""
    graph = small_graph("t2v", info)
    _, inputs = the_node(graph, "CLIPTextEncode")
    _, sampling = the_node(graph, "HeliosChunkSampler")
    graph["schedule"] = {
        "class_type": "HeliosPromptSchedule",
        "inputs": {
            "clip": inputs["clip"], "text": TEXT, "frame_rate": 24.0, "blend": 3, "shape": "linear", "file": "",
        },
    }  # fmt: skip
    sampling.update(positive=["schedule", 0], chunks=["schedule", 1], steps="1,1,1", seed=5)
    return graph


def chain_of_samplers(graph, *, seeds):
    """The same video the long way: a prompt and a sampler for each segment, one chunk each."""
    sampler, sampling = the_node(graph, "HeliosChunkSampler")
    clip = graph["schedule"]["inputs"]["clip"]
    memory = sampling["memory"]
    chained = dict(graph)
    prompts = ["a red fox in the snow", "waves roll in", "a lantern sways"]
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        chained[f"prompt{number}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": prompt}}
        inputs = {**sampling, "positive": [f"prompt{number}", 0], "memory": memory, "seed": seed, "chunks": 1}
        chained[f"sampler{number}"] = {"class_type": "HeliosChunkSampler", "inputs": inputs}
        memory = [f"sampler{number}", 1]
    save = {"samples": [memory[0], 0], "filename_prefix": "chained"}
    chained["save"] = {"class_type": "SaveLatent", "inputs": save}
    return chained, sampler


def test_a_schedule_of_steps_runs_to_a_video_and_equals_a_chain_of_samplers(comfyui, graph, home):
    chained, sampler = chain_of_samplers(graph, seeds=(5, 9, 5))
    run = comfyui.run_graph(chained)
    assert run.success, run.error
    assert run.output("schedule", 1) == 3
    directed = run.output(sampler)["samples"]
    one_by_one = torch.cat([run.output(f"sampler{number}")["samples"] for number in range(3)])
    assert directed.equal(one_by_one)
    videos = [file for file in home.saved_files(run.history) if file.suffix == ".mp4"]
    assert read_clip(videos[0]).frames.shape == (99, 64, WIDTH, 3)


def test_a_schedule_of_conditionings_equals_the_same_text(comfyui, graph):
    clip = graph["schedule"]["inputs"]["clip"]
    sampler, sampling = the_node(graph, "HeliosChunkSampler")
    graph["schedule"]["inputs"]["text"] = "0s: a fox\nchunk 1 blend 3: waves\nend chunk 3"
    previous = {}
    for number, (prompt, start) in enumerate((("a fox", 0), ("waves", 1))):
        graph[f"prompt{number}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": prompt}}
        graph[f"add{number}"] = {
            "class_type": "HeliosScheduleAdd",
            "inputs": {
                "conditioning": [f"prompt{number}", 0], "start": start, "blend": 3, "shape": "linear",
                "segment_seed": -1, "guidance_scale": 0.0, **previous,
            },
        }  # fmt: skip
        previous = {"schedule": [f"add{number}", 0]}
    graph["other"] = {"class_type": "HeliosChunkSampler", "inputs": {**sampling, "positive": ["add1", 0]}}
    graph["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["other", 0], "filename_prefix": "added"}}
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert run.output("add1", 1) == 5  # 4 chunks of the last prompt
    samples = run.output(sampler)["samples"]
    assert samples.equal(run.output("other")["samples"])
    assert not samples[0].equal(samples[1])


def test_a_file_in_the_input_folder_takes_the_place_of_the_text(comfyui, graph, home):
    (home.input / "story.txt").write_text("0s: a fox in a file\nend chunk 1", encoding="utf-8-sig")
    graph["schedule"]["inputs"]["file"] = "story.txt"
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert run.output("schedule").schedule.segments[0].prompt == "a fox in a file"


def test_json_is_taken_as_text(comfyui, graph):
    text = {"segments": [{"start": 0, "prompt": "a fox"}], "num_chunks": 1}
    graph["schedule"]["inputs"]["text"] = json.dumps(text)
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert run.output("schedule", 1) == 1


def test_an_anchor_picture_is_encoded_by_the_vae_and_needs_it(comfyui, graph, home):
    Image.new("RGB", (300, 200), (200, 40, 40)).save(home.input / "my dusk.png")
    graph["schedule"]["inputs"]["text"] = '0s: a fox\nchunk 1 anchor "my dusk.png": waves\nend chunk 2'
    sampler, sampling = the_node(graph, "HeliosChunkSampler")
    refused = comfyui.run_graph(graph)
    assert "connect the Wan 2.1 VAE" in refused.error
    vae, _ = the_node(graph, "VAELoader")
    sampling["vae"] = [vae, 0]
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    first_frame = run.output(sampler)["samples"][0:1, :, :1]
    assert not run.output(sampler, 1).anchor.allclose(first_frame)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": "0s: a\n-3s: b"}, 'line 2, column 1: expected a start such as "5s"'),
        ({"text": "0s: a\n5s: b\n5.1s: c"}, "line 3, column 1: two segments start at chunk 4"),
        ({"text": "0s: " + "x" * 100_000 + "\x00"}, "line 1, column 100005: the character U+0000"),
        ({"text": ""}, "the schedule is empty"),
        ({"shape": "cubic"}, "cubic"),
        ({"file": "../../secret.txt"}, "lies outside ComfyUI's input folder"),
        ({"file": "/etc/hostname"}, "lies outside ComfyUI's input folder"),
        ({"file": "nothing.txt"}, "is not in ComfyUI's input folder"),
        ({"text": "0s anchor ../x.png: a"}, "lies outside ComfyUI's input folder"),
        ({"text": "0s anchor x.png: a"}, "the anchor picture 'x.png' is not in ComfyUI's input folder"),
    ],
)
def test_what_cannot_work_is_reported_at_the_node_before_the_run(comfyui, graph, change, reason):
    graph["schedule"]["inputs"].update(change)
    with pytest.raises(GraphRejected) as refused:
        comfyui.run_graph(graph)
    assert reason in str(refused.value.node_errors["schedule"])


def test_a_prompt_of_markup_is_encoded_as_text(comfyui, graph):
    graph["schedule"]["inputs"]["text"] = "0s: <script>alert(1)</script> (weight:1.2) 狐狸\nend chunk 1"
    run = comfyui.run_graph(graph)
    assert run.success, run.error


def test_a_segment_too_short_for_its_blend_is_reported_in_the_log(comfyui, graph, caplog):
    graph["schedule"]["inputs"]["text"] = "0s: a\nchunk 1: b\nchunk 2: c\nend chunk 3"
    with caplog.at_level(logging.WARNING):
        run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert "segment 2 of the schedule (chunk 1) ends before its blend of 3 chunks does" in caplog.text
