"""Helios Long Video and the memory nodes: on disk chunk by chunk, resumed, re-rolled, taken back, continued from."""

import json
import re
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from harness.samples import HEIGHT, WIDTH, read_clip, small_graph, the_node

from helios_core.media.reader import read_video

pytestmark = pytest.mark.usefixtures("memory_manager")

FRAMES_PER_CHUNK = 33


@pytest.fixture
def graph(comfyui, models, request):
    """long_t2v, small and short, with a run folder of this test's own and its memory saved."""
    graph = small_graph("long_t2v", comfyui.object_info())
    long_video, inputs = the_node(graph, "HeliosLongVideo")
    name = re.sub(r"\W+", " ", request.node.name)[-80:].strip()
    inputs.update(seconds=0.0, chunks=3, steps="1,1,1", seed=5, run_name=name)
    graph["save"] = {
        "class_type": "HeliosSaveMemory",
        "inputs": {"memory": [long_video, 1], "filename_prefix": f"{name}/memory"},
    }
    return graph


@pytest.fixture
def module(comfyui):
    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.long_video")]
    return module


def inputs_of(graph) -> dict:
    return the_node(graph, "HeliosLongVideo")[1]


def video_of(run, graph, home):
    """Path of the video that the Long Video node wrote."""
    node, _ = the_node(graph, "HeliosLongVideo")
    return home.saved_files({"outputs": {node: run.history["outputs"][node]}})[0]


def run_folder(home, graph):
    return home.output / "helios_runs" / inputs_of(graph)["run_name"]


def chunks_on_disk(home, graph) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run_folder(home, graph) / "chunks").glob("*.safetensors"))}


def chunks_made(home, graph) -> int:
    """How many chunks were sampled for the run so far, by its journal."""
    lines = (run_folder(home, graph) / "journal.jsonl").read_text().splitlines()
    return sum(json.loads(line)["record"] == "chunk" for line in lines)


def good(run):
    assert run.success, run.error
    return run


def test_a_long_video_has_every_chunk_in_the_file_and_on_disk_and_gives_its_last_frame(comfyui, home, graph):
    run = good(comfyui.run_graph(graph))
    clip = read_clip(video_of(run, graph, home))
    assert clip.frames.shape == (3 * FRAMES_PER_CHUNK, HEIGHT, WIDTH, 3)
    assert clip.rate == 24
    assert json.loads(clip.metadata["prompt"]) == graph
    assert len(chunks_on_disk(home, graph)) == 3
    node, _ = the_node(graph, "HeliosLongVideo")
    last_frame = run.output(node, 2)
    assert last_frame.shape == (1, HEIGHT, WIDTH, 3)
    assert torch.equal(last_frame, read_video(video_of(run, graph, home)).frames[-1:] / 255)
    assert run.output(node, 1).chunk_index == 3


def test_seconds_are_rounded_up_to_whole_chunks(comfyui, home, graph):
    inputs_of(graph).update(seconds=1.5)
    run = good(comfyui.run_graph(graph))
    assert len(read_clip(video_of(run, graph, home)).frames) == 2 * FRAMES_PER_CHUNK


def test_the_sampler_and_the_long_video_make_the_same_latents(comfyui, home, graph):
    node, inputs = the_node(graph, "HeliosLongVideo")
    shared = ("model", "positive", "memory", "seed", "chunks", "steps", "guidance_scale", "amplify_first_chunk")
    graph["sampler"] = {
        "class_type": "HeliosChunkSampler",
        "inputs": {name: inputs[name] for name in shared} | {"noise": "seeded"},
    }
    graph["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "same"}}
    run = good(comfyui.run_graph(graph))
    assert torch.equal(run.output("sampler", 1).frames, run.output(node, 1).frames)


def test_queueing_again_makes_nothing_again_and_gives_the_same_bytes(comfyui, home, graph):
    first = video_of(good(comfyui.run_graph(graph)), graph, home).read_bytes()
    num_made = chunks_made(home, graph)
    again = good(comfyui.run_graph(graph))
    assert chunks_made(home, graph) == num_made == 3
    assert video_of(again, graph, home).read_bytes() == first


def test_a_cancelled_run_keeps_its_chunks_and_resumes_to_the_bytes_of_an_unbroken_one(comfyui, home, graph):
    # ComfyUI reports progress ten times a second at most: steps enough for a report in the last third.
    inputs_of(graph).update(steps="100,1,1", amplify_first_chunk=False)
    unbroken = video_of(good(comfyui.run_graph(graph)), graph, home).read_bytes()
    inputs_of(graph)["run_name"] += " broken"
    stopped = comfyui.run_graph(graph, interrupt_at=0.67)
    assert (stopped.success, stopped.error) == (False, "")  # interrupted, no fault
    assert len(chunks_on_disk(home, graph)) == 2
    preview = read_clip(run_folder(home, graph) / "preview.mp4")
    assert len(preview.frames) in (FRAMES_PER_CHUNK, 2 * FRAMES_PER_CHUNK)

    resumed = good(comfyui.run_graph(graph))
    assert chunks_made(home, graph) == 3
    assert metadata_aside(video_of(resumed, graph, home)) == metadata_aside_bytes(unbroken, home)


def metadata_aside(path):
    """The frames: the graph in the file names the run folder, which differs."""
    return read_clip(path).frames.tobytes()


def metadata_aside_bytes(content: bytes, home):
    path = home.root / "temp" / "unbroken.mp4"
    path.write_bytes(content)
    return metadata_aside(path)


def test_a_reroll_makes_again_only_from_its_chunk_and_leaves_the_first_line_alone(comfyui, home, graph):
    good(comfyui.run_graph(graph))
    before = chunks_on_disk(home, graph)
    inputs_of(graph)["reroll"] = "1:99"
    good(comfyui.run_graph(graph))
    after = chunks_on_disk(home, graph)
    assert before.items() <= after.items()
    assert len(after) == chunks_made(home, graph) == 3 + 2


def test_a_rewound_memory_continues_as_the_run_did(comfyui, home, graph):
    node, inputs = the_node(graph, "HeliosLongVideo")
    whole = good(comfyui.run_graph(graph)).output(node, 1)
    graph["rewind"] = {
        "class_type": "HeliosRewindMemory",
        "inputs": {"run_name": inputs["run_name"], "chunks": 2, "take": 0},
    }
    inputs.update(memory=["rewind", 0], chunks=1)
    again = good(comfyui.run_graph(graph)).output(node, 1)
    assert again.chunk_index == 3
    assert torch.equal(again.frames, whole.frames)


def test_a_saved_memory_loads_bit_for_bit_and_continues(comfyui, home, graph):
    node, inputs = the_node(graph, "HeliosLongVideo")
    inputs["chunks"] = 1
    made = good(comfyui.run_graph(graph)).output(node, 1)
    (file,) = (home.output / graph["save"]["inputs"]["filename_prefix"]).parent.glob("*.helios.safetensors")
    graph["load"] = {
        "class_type": "HeliosLoadMemory",
        "inputs": {"file": f"output/{file.relative_to(home.output).as_posix()}"},
    }
    inputs.update(memory=["load", 0])
    run = good(comfyui.run_graph(graph))
    loaded = run.output("load")
    assert torch.equal(loaded.frames, made.frames)
    assert torch.equal(loaded.anchor, made.anchor)
    assert (loaded.chunk_index, loaded.provenance) == (1, made.provenance)
    assert run.output(node, 1).chunk_index == 2


@pytest.mark.parametrize(
    ("vae", "model", "elsewhere"), [("cpu", "cpu", False), ("cuda:0", "cuda:0", False), ("cpu", "cuda:0", True)]
)
def test_a_vae_on_another_device_decodes_beside_the_sampling(module, vae, model, elsewhere):
    vae, model = SimpleNamespace(device=torch.device(vae)), SimpleNamespace(load_device=torch.device(model))
    assert module.decodes_elsewhere(vae, model) is elsewhere


@pytest.fixture
def beside(module, monkeypatch):
    """As with a VAE on another device; gives the names of the threads that decoded."""
    threads, decode = [], module.decode

    def watched(*inputs):
        threads.append(threading.current_thread().name)
        return decode(*inputs)

    monkeypatch.setattr(module, "decodes_elsewhere", lambda vae, model: True)
    monkeypatch.setattr(module, "decode", watched)
    return threads


def test_decoding_beside_the_sampling_gives_the_same_bytes(comfyui, home, graph, request):
    expected = video_of(good(comfyui.run_graph(graph)), graph, home).read_bytes()
    folder = run_folder(home, graph)
    folder.rename(folder.with_name(f"{folder.name} before"))
    threads = request.getfixturevalue("beside")
    assert video_of(good(comfyui.run_graph(graph)), graph, home).read_bytes() == expected
    assert len(threads) == 3
    assert all(name.startswith("helios-encode") for name in threads)


def test_cancelling_while_it_decodes_beside_keeps_the_chunks_and_resumes(comfyui, home, graph, beside):
    inputs_of(graph).update(steps="100,1,1", amplify_first_chunk=False)
    stopped = comfyui.run_graph(graph, interrupt_at=0.67)
    assert (stopped.success, stopped.error) == (False, "")
    assert len(chunks_on_disk(home, graph)) == 2
    assert encoders() == []
    good(comfyui.run_graph(graph))
    assert chunks_made(home, graph) == 3


def test_a_fault_of_the_vae_beside_the_sampling_is_reported_as_it_is(comfyui, home, graph, beside, module, monkeypatch):
    def fail(*inputs):
        raise ArithmeticError("the VAE is broken")

    monkeypatch.setattr(module, "decode", fail)
    stopped = comfyui.run_graph(graph)
    assert "the VAE is broken" in stopped.error
    assert encoders() == []
    assert 1 <= len(chunks_on_disk(home, graph)) <= 2


def encoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("helios-encode")]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "/etc", "x" * 101])
def test_a_run_name_cannot_leave_the_folder_of_runs(comfyui, graph, name):
    inputs_of(graph)["run_name"] = name
    with pytest.raises(Exception, match="run name"):
        comfyui.run_graph(graph)


@pytest.mark.parametrize("text", ["1", "1=2", "a:b", "1:-2"])
def test_a_reroll_that_is_no_chunk_and_seed_is_refused_before_anything_runs(comfyui, graph, text):
    inputs_of(graph)["reroll"] = text
    with pytest.raises(Exception, match="must be chunk:seed"):
        comfyui.run_graph(graph)


def test_a_reroll_of_a_chunk_that_is_not_made_says_which_are(comfyui, graph):
    inputs_of(graph)["reroll"] = "7:1"
    run = comfyui.run_graph(graph)
    assert "this run makes chunks 0 to 2" in run.error
