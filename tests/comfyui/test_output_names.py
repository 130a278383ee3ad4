"""Where the nodes put their files: one rule for all, as ComfyUI's own save nodes have it, and faults told early."""

import os
import re
import sys
from datetime import datetime
from types import SimpleNamespace

import pytest
from harness.inprocess import GraphRejected
from harness.samples import small_graph, the_node

MOMENT = datetime(2026, 3, 4, 5, 6, 7)
TEMPLATE = "%date:yyyy-MM-dd%_%year%_%Some Sampler.seed%_%width%x%height%"
PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 42, "model": ["1", 0]}, "_meta": {"title": "Some Sampler"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": 'a "fox"/wolf: ' + "long " * 99}},
    "5": {"class_type": "KSampler", "inputs": {"seed": 43}},
}


def module_of(name: str):
    (module,) = [module for path, module in sys.modules.items() if path.endswith(f"ComfyUI-Helios.nodes.{name}")]
    return module


def node_class(kind: str):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[kind]


@pytest.fixture
def expand(comfyui):
    module = module_of("host.file_names")
    return lambda name, pnginfo=None, **sizes: module.expand_name(name, PROMPT, pnginfo, now=MOMENT, **sizes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("%date:yyyy-MM-dd%/a", "2026-03-04/a"),
        ("%date:yy.M.d hh_mm_ss%", "26.3.4 05_06_07"),
        ("%date:hh:mm%", "05_06"),
        ("%year%%month%%day% %hour%%minute%%second%", "20260304 050607"),
        ("%width%x%height%", "640x384"),
        ("s%KSampler.seed%", "s42"),
        ("s%Some Sampler.seed%", "s42"),
        ("100% sure", "100% sure"),
        ("50%-60% done", "50%-60% done"),
        ("%Nobody.seed%", "%Nobody.seed%"),
        ("%KSampler.model%", "%KSampler.model%"),
        ("%Nobody.a:b%", "%Nobody.a_b%"),
    ],
)
def test_what_stands_between_percent_signs_is_put_in_as_comfyuis_page_does(expand, name, expected):
    assert expand(name, width=640, height=384) == expected


def test_a_nodes_own_name_in_the_workflow_comes_before_titles_and_types(expand):
    workflow = {"nodes": [{"id": 5, "properties": {"Node name for S&R": "Mine"}}, {"id": 3, "title": "Mine"}]}
    assert expand("%Mine.seed%", {"workflow": workflow}) == "43"


def test_another_nodes_text_becomes_a_short_name_that_every_system_takes(expand):
    name = expand("%CLIPTextEncode.text%")
    assert name.startswith("a _fox__wolf_ long")
    assert len(name) <= 80


@pytest.fixture
def graph(comfyui, models):
    """long_t2v at its smallest, with its memory saved."""
    graph = small_graph("long_t2v", comfyui.object_info())
    node, inputs = the_node(graph, "HeliosLongVideo")
    inputs.update(seconds=0.0, chunks=1, steps="1,1,1", seed=5, run_name="names")
    graph[node]["_meta"]["title"] = "Some Sampler"
    memory = {"memory": [node, 1], "filename_prefix": "x"}
    graph["save"] = {"class_type": "HeliosSaveMemory", "inputs": memory}
    return graph


def test_films_runs_and_memories_are_named_by_one_rule(comfyui, home, graph):
    node, inputs = the_node(graph, "HeliosLongVideo")
    graph["combine"] = {
        "class_type": "HeliosVideoCombine",
        "inputs": {"frame_rate": 24.0, "crf": 18, "images": [node, 2], "filename_prefix": f"c/{TEMPLATE}"},
    }
    inputs.update(filename_prefix=f"l/{TEMPLATE}", run_name="run %date:yyyy-MM-dd% %Some Sampler.seed%")
    graph["save"]["inputs"]["filename_prefix"] = f"m/{TEMPLATE}"
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    day = r"\d{4}-\d{2}-\d{2}"
    for folder in "lcm":
        (name,) = os.listdir(home.output / folder)
        assert re.match(rf"{day}_\d{{4}}_5_128x64_00001_\.", name), name
    assert any(re.fullmatch(rf"run {day} 5", name) for name in os.listdir(home.output / "helios_runs"))


def test_a_name_that_another_node_makes_is_treated_alike(comfyui, home, graph):
    graph["text"] = {"class_type": "PrimitiveString", "inputs": {"value": "wired/%Some Sampler.seed% %year%"}}
    the_node(graph, "HeliosLongVideo")[1]["filename_prefix"] = ["text", 0]
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    (name,) = os.listdir(home.output / "wired")
    assert re.fullmatch(r"5 \d{4}_00001_\.mp4", name)


NODES = ["HeliosLongVideo", "HeliosSaveMemory", "HeliosVideoCombine"]
BAD = ["../x", "a/../../x", "/elsewhere/x", "a" * 245, "风" * 90, "CON", "a/nul/b", "12:30", "end.", "a/", "", "a\x00b"]


@pytest.mark.parametrize("prefix", BAD)
@pytest.mark.parametrize("kind", NODES)
def test_a_prefix_that_cannot_be_is_refused_in_words_before_anything_runs(comfyui, kind, prefix):
    told = node_class(kind).validate_inputs(filename_prefix=prefix)
    assert isinstance(told, str)
    assert len(told) < 400


@pytest.mark.parametrize("name", ["风" * 100, "CON", "nul.x", "end.", "../x", "a/b", "%a", "x" * 101])
def test_a_run_name_that_cannot_be_is_refused_in_words_before_anything_runs(comfyui, graph, name):
    the_node(graph, "HeliosLongVideo")[1]["run_name"] = name
    with pytest.raises(GraphRejected, match="name"):
        comfyui.run_graph(graph)


GOOD = ["a", "a/b/c", "a\\b", "./a", "a" * 190, "风" * 60, "%date:hh:mm%", "x%KSampler.seed%"]


@pytest.mark.parametrize("prefix", GOOD)
def test_other_prefixes_are_taken(comfyui, home, prefix):
    for kind in NODES:
        assert node_class(kind).validate_inputs(filename_prefix=prefix) is True
    hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo=None)
    path, subfolder = module_of("host.folders").next_path(prefix, ".helios.safetensors", hidden=hidden)
    path.touch()
    assert path.is_relative_to(home.output)
    assert path.parent == home.output / subfolder


def test_a_prefix_with_the_whole_path_of_the_output_folder_is_taken_as_the_rest(comfyui, home):
    path, subfolder = module_of("host.folders").next_path(str(home.output / "whole" / "a"), ".mp4")
    assert path == home.output / "whole" / "a_00001_.mp4"
    assert subfolder == "whole"


def test_links_out_of_the_output_folder_are_taken_or_refused_early_as_comfyui_does(comfyui, home, tmp_path):
    import folder_paths

    (home.output / "Linked").symlink_to(tmp_path, target_is_directory=True)
    told = node_class("HeliosLongVideo").validate_inputs(filename_prefix="Linked/x")
    try:
        folder_paths.get_save_image_path("Linked/x", folder_paths.get_output_directory())
    except Exception:
        assert "leads out of ComfyUI's output folder" in told
    else:
        assert told is True
    (home.output / "Linked").unlink()


def test_memories_in_linked_folders_are_listed_and_loaded(comfyui, home, graph, tmp_path):
    graph["save"]["inputs"]["filename_prefix"] = "to link"
    assert comfyui.run_graph(graph).success
    (saved,) = home.output.glob("to link*")
    saved.rename(tmp_path / "away.helios.safetensors")
    (home.input / "disk").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "back").symlink_to(home.input, target_is_directory=True)  # a circle
    folders = module_of("host.folders")
    folders._listed.clear()
    assert "input/disk/away.helios.safetensors" in folders.list_memories()
    load = {"load": {"class_type": "HeliosLoadMemory", "inputs": {"file": "input/disk/away.helios.safetensors"}}}
    load["save"] = {
        "class_type": "HeliosSaveMemory",
        "inputs": {"memory": ["load", 0], "filename_prefix": "loaded"},
    }
    assert comfyui.run_graph(load).success
    (home.input / "disk").unlink()


NO_MEMORIES = ["output/../x", "input//etc", "elsewhere/a", "", "output", "output/a\x00b", "output/\\a"]


@pytest.mark.parametrize("name", NO_MEMORIES)
def test_no_other_name_loads_a_memory(comfyui, name):
    told = node_class("HeliosLoadMemory").validate_inputs(
        file=f"{name}.helios.safetensors" if "/" in name else name
    )
    assert "there is no memory file" in told


def test_a_validation_walks_the_output_and_input_folders_at_most_once(comfyui, home, monkeypatch):
    folders = module_of("host.folders")
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda root, **options: (walked.append(root), walk(root, **options))[1])
    folders._listed.clear()
    graph = {
        "load": {"class_type": "HeliosLoadMemory", "inputs": {"file": "output/none.helios.safetensors"}},
        "save": {"class_type": "HeliosSaveMemory", "inputs": {"memory": ["load", 0], "filename_prefix": "x"}},
    }
    with pytest.raises(GraphRejected):
        comfyui.run_graph(graph)
    ours = [root for root in walked if root in (str(home.output), str(home.input))]
    assert len(ours) == len(set(ours))


def test_a_fault_in_the_name_costs_no_sampling(comfyui, models):
    graph = small_graph("t2v", comfyui.object_info())
    the_node(graph, "HeliosVideoCombine")[1]["filename_prefix"] = "../x"
    with pytest.raises(GraphRejected, match="leads out"):
        comfyui.run_graph(graph)
