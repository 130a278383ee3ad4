"""Every sample workflow runs as it is, from the picture or clip it names to a video file."""

import importlib.util
import json

import numpy as np
import pytest
from harness.checkout import PACK
from harness.samples import (
    HEIGHT,
    NAMES,
    VIDEO_NODES,
    WIDTH,
    WORKFLOWS,
    nodes_of,
    read_clip,
    small_graph,
    the_node,
)

FRAMES_PER_CHUNK = 33
SCALES = {"finish": 4}  # of the last video's size
# Chunks of the last video when every sampler makes one.
CHUNKS = {"i2v_then_prompts": 3, "prompt_timeline": 2, "directed_minute": 2, "demo_prompts": 2}


@pytest.fixture(scope="module")
def info(comfyui):
    return comfyui.object_info()


@pytest.fixture(scope="module")
def make_workflows():
    spec = importlib.util.spec_from_file_location("make_workflows", PACK / "tools" / "make_workflows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_tool_makes_of_the_nodes_as_they_are_now(make_workflows, info):
    made = {name: json.loads(text) for name, text in make_workflows.build(info).items()}
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS.glob("*.json")}
    assert files.keys() == made.keys()
    for name, workflow in made.items():
        for node, in_file in zip(workflow["nodes"], files[name]["nodes"], strict=True):
            drop_outputs_newer_than_the_file(node, in_file)
    assert files == made


def drop_outputs_newer_than_the_file(node: dict, in_file: dict) -> None:
    """Newer versions of ComfyUI append outputs to their nodes (PreviewImage); the files are read by older ones too."""
    if not node["type"].startswith("Helios"):
        known = len(in_file["outputs"])
        node["outputs"][known:] = [output for output in node["outputs"][known:] if output["links"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_workflow_runs_to_a_video_of_the_right_length_size_and_rate(name, comfyui, models, home, info):
    graph = small_graph(name, info)
    for _, inputs in nodes_of(graph, "HeliosPromptSchedule"):  # tells its sampler how many chunks
        inputs["text"] = "chunk 0: a fox\nchunk 1 blend 0: it looks up\nend 2.75s"
    for _, inputs in nodes_of(graph, "HeliosLongVideo"):
        inputs.update(seconds=0.0, run_name=f"{name} test")
    for kind in ("HeliosChunkSampler", "HeliosLongVideo"):
        for _, inputs in nodes_of(graph, kind):
            if not isinstance(inputs["chunks"], list):
                inputs["chunks"] = 1
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    last, _ = [item for kind in VIDEO_NODES for item in nodes_of(graph, kind)][-1]
    (file,) = home.saved_files({"outputs": {last: run.history["outputs"][last]}})
    clip = read_clip(file)
    scale = SCALES.get(name, 1)
    assert clip.frames.shape == (FRAMES_PER_CHUNK * CHUNKS.get(name, 1), scale * HEIGHT, scale * WIDTH, 3)
    assert clip.rate == 24
    assert json.loads(clip.metadata["prompt"]) == graph


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_a_sample_workflow_do_not_overlap_in_the_file(name):
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in workflow["nodes"]]
    title = 30
    for i, (first, x, y, w, h) in enumerate(boxes):
        for second, x2, y2, w2, h2 in boxes[i + 1 :]:
            apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 - title or y2 + h2 <= y - title
            assert apart, f"{first} and {second}"


def test_image_to_video_takes_a_photo_of_any_size(comfyui, models, home, info):
    skimage_data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    from PIL import Image

    Image.fromarray(skimage_data.astronaut()).save(home.input / "astronaut.png")  # 512 x 512
    graph = small_graph("i2v", info)
    the_node(graph, "LoadImage")[1]["image"] = "astronaut.png"
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    inputs.update(chunks=1, steps="1,1,1")
    video, _ = the_node(graph, "HeliosVideoCombine")
    del graph[video]
    graph["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latents"}}
    astronaut = comfyui.run_graph(graph)
    the_node(graph, "LoadImage")[1]["image"] = "example.png"
    example = comfyui.run_graph(graph)
    assert astronaut.success, astronaut.error
    latents = astronaut.output(sampler)["samples"]
    assert latents.shape == (1, 16, 9, HEIGHT // 8, WIDTH // 8)
    assert not np.allclose(latents, example.output(sampler)["samples"]), "the picture makes no difference"


def test_video_to_video_continues_a_clip_that_native_load_video_reads(comfyui, models, home, info, clip_file):
    graph = small_graph("v2v", info)
    context, inputs = next(item for item in nodes_of(graph, "HeliosContext") if "video" in item[1])
    graph["clip"] = {"class_type": "LoadVideo", "inputs": {"file": clip_file}}
    inputs["video"] = ["clip", 0]
    nodes_of(graph, "HeliosChunkSampler")[-1][1].update(chunks=1, steps="1,1,1")
    run = comfyui.run_graph(_only_downstream_of(graph, context))
    assert run.success, run.error
    memory = run.output(context)
    assert (memory.provenance.task, memory.chunk_index) == ("v2v", 0)
    saved = read_clip(home.saved_files(run.history)[-1])
    assert saved.frames.shape == (FRAMES_PER_CHUNK, HEIGHT, WIDTH, 3)


def _only_downstream_of(graph, wanted):
    """The graph without the output nodes that do not depend on a node: here the clip that v2v makes for itself."""

    def sources(node_id):
        links = [value for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
        return {node_id}.union(*(sources(link[0]) for link in links))

    outputs = [node_id for node_id, _ in nodes_of(graph, "HeliosVideoCombine") if wanted in sources(node_id)]
    keep = set().union(*(sources(node_id) for node_id in outputs))
    return {node_id: node for node_id, node in graph.items() if node_id in keep}
