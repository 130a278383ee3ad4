"""Helios Speed in real graphs."""

import numpy as np
import pytest
from harness.inprocess import GraphRejected
from harness.latents_graph import LOADER, SAMPLER, latents_graph


@pytest.fixture
def latents_of(comfyui, models):
    """latents_of(history_reuse, compile, steps, **more): what the sampler gives with a Helios Speed node before it,
    without one for None."""

    def run(history_reuse=None, compile=False, steps="2,2,2", **more):
        graph = latents_graph(comfyui.object_info(), chunks=2, steps=steps)
        if history_reuse is not None:
            inputs = {"model": [LOADER, 0], "history_reuse": history_reuse, "compile": compile, **more}
            graph["speed"] = {"class_type": "HeliosSpeed", "inputs": inputs}
            graph[SAMPLER]["inputs"]["model"] = ["speed", 0]
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        return result.output(SAMPLER)["samples"]

    return run


def test_reused_history_changes_the_latents_a_little_and_off_not_at_all(latents_of):
    plain = np.asarray(latents_of())
    assert np.array_equal(np.asarray(latents_of("off")), plain)
    for mode in ("stage", "chunk"):
        difference = np.abs(np.asarray(latents_of(mode)) - plain).max() / plain.std()
        assert 0 < difference < 1


def test_step_caching_changes_the_latents_and_at_0_or_in_a_graph_made_before_it_not_at_all(latents_of):
    plain = np.asarray(latents_of(steps="6,6,6"))
    assert np.array_equal(np.asarray(latents_of("off", steps="6,6,6")), plain)
    assert np.array_equal(np.asarray(latents_of("off", steps="6,6,6", step_cache=0.0)), plain)
    difference = np.abs(np.asarray(latents_of("off", steps="6,6,6", step_cache=1.0)) - plain).max()
    assert 0 < difference < np.inf


def test_a_run_after_one_with_the_node_is_exact_again(latents_of):
    plain = np.asarray(latents_of())
    latents_of("chunk")
    assert np.array_equal(np.asarray(latents_of()), plain)


def test_an_unknown_way_to_reuse_the_history_is_refused_before_the_run(comfyui, models):
    graph = latents_graph(comfyui.object_info())
    graph["speed"] = {
        "class_type": "HeliosSpeed",
        "inputs": {"model": [LOADER, 0], "history_reuse": "always", "compile": False},
    }
    graph[SAMPLER]["inputs"]["model"] = ["speed", 0]
    try:
        fault = str(comfyui.run_graph(graph).error)  # up to 0.3 ComfyUI leaves it to the node to look at a choice
    except GraphRejected as refusal:
        fault = str(refusal)
    assert "history_reuse" in fault
    assert "always" in fault


def test_compiled_blocks_and_a_reused_history_are_refused_in_words(comfyui, models):
    graph = latents_graph(comfyui.object_info())
    both = {"model": [LOADER, 0], "history_reuse": "stage", "compile": True}
    graph["speed"] = {"class_type": "HeliosSpeed", "inputs": both}
    graph[SAMPLER]["inputs"]["model"] = ["speed", 0]
    with pytest.raises(GraphRejected, match="do not go together"):
        comfyui.run_graph(graph)
    # In two nodes, one after the other.
    graph["speed"]["inputs"] = {**both, "history_reuse": "off"}
    graph["more"] = {"class_type": "HeliosSpeed", "inputs": {**both, "model": ["speed", 0], "compile": False}}
    graph[SAMPLER]["inputs"]["model"] = ["more", 0]
    assert "do not go together" in comfyui.run_graph(graph).error
