"""Graphs saved with any release open and validate for ever: node ids, input order and output order are frozen.

ComfyUI stores widget values by position, so inputs may be appended and nothing else. `old_graphs/<version>` holds the
sample workflows and the nodes of that release, written by tools/freeze_graphs.py.
"""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
from harness.checkout import PACK
from harness.graph import input_specs, to_api, widget_names

OLD = Path(__file__).with_name("old_graphs")
WORKFLOWS = sorted(path for path in OLD.glob("*/*.json") if path.name != "nodes.json")
SNAPSHOTS = sorted(OLD.glob("*/nodes.json"))


def version_and_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def info(comfyui):
    return comfyui.object_info()


def test_there_is_a_graph_of_a_release():
    assert WORKFLOWS
    assert SNAPSHOTS


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=version_and_name)
def test_nodes_of_a_release_keep_their_ids_and_the_order_of_inputs_widgets_and_outputs(snapshot, info):
    spec = importlib.util.spec_from_file_location("freeze_graphs", PACK / "tools" / "freeze_graphs.py")
    freeze_graphs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(freeze_graphs)
    for name, old in json.loads(snapshot.read_text()).items():
        assert name in info, f"{name} is gone"
        now = freeze_graphs.describe(info[name])
        # A new optional input comes after the old ones of its kind, required or optional, and needs no value.
        assert [given for given in now["inputs"] if given in old["inputs"]] == old["inputs"], name
        assert now["required"] == old["required"], f"{name}: a new input must be optional"
        assert now["widgets"][: len(old["widgets"])] == old["widgets"], f"{name}: stored widget values would shift"
        assert now["outputs"][: len(old["outputs"])] == old["outputs"], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=version_and_name)
def test_a_saved_graph_of_a_release_still_validates(path, info, models, clip_file, home):
    import execution

    graph = to_api(with_defaults(json.loads(path.read_text(encoding="utf-8")), info), info)
    use_files_at_hand(graph, clip_file)
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("old", graph, None))
    assert valid, (error, node_errors)


def with_defaults(workflow: dict, info: dict) -> dict:
    """The frontend's rule for a graph older than a node's last inputs: these keep their defaults."""
    for node in workflow["nodes"]:
        if node["type"] in info:
            names, values = widget_names(info[node["type"]]), node.get("widgets_values", [])
            specs = input_specs(info[node["type"]])
            missing = [specs[name][1].get("default") if name else "fixed" for name in names[len(values) :]]
            node["widgets_values"] = [*values, *missing]
    return workflow


def use_files_at_hand(graph: dict, clip_file: str) -> None:
    """Pictures and clips that a graph names are the user's; put one of ours in their place."""
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "example.png"
        if node["class_type"] == "LoadVideo":
            node["inputs"]["file"] = clip_file
