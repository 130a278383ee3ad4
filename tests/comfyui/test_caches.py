"""ComfyUI's ways to keep what nodes have made: the same latents with each, and what of a stopped run is used again."""

import numpy as np
import pytest
from harness.inprocess import CACHES
from harness.latents_graph import SAMPLER, latents_graph
from harness.probe import change_model
from harness.samples import small_graph, the_node
from test_cancel import ATTENTIONS_PER_CHUNK, Attention, interrupt
from test_long_video import chunks_made, chunks_on_disk

# With so little free RAM 0.10 tidies up for half a minute in each run; it is not its default cache as it is today's.
KINDS = [pytest.param(name, marks=pytest.mark.newest_only if "ram" in name else ()) for name in CACHES]


@pytest.fixture
def graph(comfyui, models):
    """Two samplers in a row: two chunks of 64 x 64 from the first, one from the second, a step in each stage."""
    graph = latents_graph(comfyui.object_info(), chunks=2)
    graph[SAMPLER]["inputs"]["amplify_first_chunk"] = False
    inputs = graph[SAMPLER]["inputs"] | {"memory": [SAMPLER, 1], "chunks": 1}
    graph["second"] = {"class_type": "HeliosChunkSampler", "inputs": inputs}
    graph["both"] = {"class_type": "LatentBatch", "inputs": {"samples1": [SAMPLER, 0], "samples2": ["second", 0]}}
    graph["save"]["inputs"].update(samples=["both", 0])
    return graph


@pytest.fixture
def attention(graph) -> Attention:
    attention = Attention()
    change_model(graph, attention.put)
    graph["second"]["inputs"]["model"] = graph[SAMPLER]["inputs"]["model"]
    return attention


def saved_latents(run, home):
    """What SaveLatent wrote: a cache may have dropped it."""
    from safetensors.numpy import load_file

    assert run.success, run.error
    newest = max(home.output.glob("latents*.latent"), key=lambda path: path.stat().st_mtime_ns)
    return load_file(newest)["latent_tensor"]


@pytest.mark.parametrize("cache", KINDS)
def test_chained_samplers_give_the_same_latents_with_every_cache_when_made_and_when_queued_again(
    comfyui, graph, home, cache
):
    expected = saved_latents(comfyui.run_graph(graph), home)
    assert expected.shape == (3, 16, 9, 8, 8)
    first = comfyui.run_graph(graph, cache=cache)
    assert np.array_equal(saved_latents(first, home), expected)
    graph["save"]["inputs"]["filename_prefix"] = "latents again"
    assert np.array_equal(saved_latents(comfyui.run_graph(graph, after=first), home), expected)


@pytest.mark.parametrize("cache", KINDS)
def test_a_stopped_run_resumes_after_its_finished_chunks_with_every_cache_that_keeps_the_model(
    comfyui, graph, attention, home, cache
):
    whole = saved_latents(comfyui.run_graph(graph), home)
    attention.done, attention.at, attention.act = 0, ATTENTIONS_PER_CHUNK + 5, interrupt
    stopped = comfyui.run_graph(graph, cache=cache)
    assert not stopped.success
    attention.done, attention.at = 0, None
    again = comfyui.run_graph(graph, after=stopped)
    assert np.array_equal(saved_latents(again, home), whole)
    assert attention.done == ATTENTIONS_PER_CHUNK * (3 if cache == "none" else 2)


@pytest.mark.parametrize("cache", KINDS)
def test_a_long_video_resumes_from_its_folder_with_every_cache(comfyui, models, home, cache):
    graph = small_graph("long_t2v", comfyui.object_info())
    _, inputs = the_node(graph, "HeliosLongVideo")
    # ComfyUI reports progress ten times a second at most: steps enough for a report in the last half.
    inputs.update(
        seconds=0.0, chunks=2, steps="100,1,1", amplify_first_chunk=False, run_name=f"with the cache {cache}"
    )
    stopped = comfyui.run_graph(graph, cache=cache, interrupt_at=0.55)
    assert (stopped.success, stopped.error) == (False, "")
    assert len(chunks_on_disk(home, graph)) == 1
    again = comfyui.run_graph(graph, after=stopped)
    assert again.success, again.error
    assert chunks_made(home, graph) == 2
