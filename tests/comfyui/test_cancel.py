"""Stopping a run acts at once, frees what it held, and what was finished is used when it is queued again."""

import time

import numpy as np
import pytest
from harness.latents_graph import LOADER, SAMPLER, latents_graph
from harness.probe import change_model
from harness.server import Server
from test_memory import live_objects

ATTENTIONS_PER_CHUNK = 3 * 2 * 2  # steps, blocks, attentions in a block


@pytest.fixture
def graph(comfyui, models):
    """Three chunks of 64 x 64, a step in each stage."""
    graph = latents_graph(comfyui.object_info(), chunks=3)
    graph[SAMPLER]["inputs"]["amplify_first_chunk"] = False
    return graph


class Attention:
    """Counts attentions, and at one of them, if wanted, does something before it."""

    def __init__(self) -> None:
        self.done, self.at, self.act = 0, None, None

    def __call__(self, attention, *args, **kwargs):
        self.done += 1
        if self.done == self.at:
            self.act()
        return attention(*args, **kwargs)

    def put(self, model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = self
        return model


@pytest.fixture
def attention(graph) -> Attention:
    attention = Attention()
    change_model(graph, attention.put)
    return attention


def interrupt() -> None:
    from comfy import model_management

    model_management.interrupt_current_processing()


@pytest.mark.parametrize("number", [1, 2, 5, ATTENTIONS_PER_CHUNK + 7])
def test_interrupt_acts_before_the_next_attention_and_frees_the_memory(comfyui, graph, attention, number):
    attention.at, attention.act = number, interrupt
    result = comfyui.run_graph(graph)
    assert not result.success
    assert "execution_interrupted" in [name for name, _ in result.events]
    assert attention.done == number
    assert live_objects("PromptContext", "MemoryTokens", "Rotary", "SolverState") == []


def test_a_stopped_run_queued_again_makes_only_the_chunks_that_were_not_finished(comfyui, graph, attention):
    whole = comfyui.run_graph(graph).output(SAMPLER)["samples"]
    attention.done, attention.at, attention.act = 0, 2 * ATTENTIONS_PER_CHUNK + 5, interrupt
    stopped = comfyui.run_graph(graph)
    assert not stopped.success
    attention.done, attention.at = 0, None
    again = comfyui.run_graph(graph, after=stopped)
    assert again.success, again.error
    assert attention.done == ATTENTIONS_PER_CHUNK
    assert np.array_equal(again.output(SAMPLER)["samples"], whole)
    assert again.output(SAMPLER, 1).chunk_index == 3
    values = [data["value"] for data in again.progress]
    assert 2000 < values[0] < values[-1] == 3000, "the bar is that of the whole job"
    assert live_objects("UnfinishedRun") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"chunks": 2}, 1, id="fewer chunks: the last is made anew"),
        pytest.param({"chunks": 5}, 3, id="more chunks"),
        pytest.param({"seed": 7}, 3, id="another seed"),
        pytest.param({"steps": "1,1,2"}, None, id="other steps"),
        pytest.param({"noise": "diffusers"}, 3, id="noise of one stream"),
    ],
)
def test_finished_chunks_are_used_only_where_they_are_what_would_be_made(comfyui, graph, attention, change, expected):
    attention.at, attention.act = 2 * ATTENTIONS_PER_CHUNK + 5, interrupt
    stopped = comfyui.run_graph(graph)
    graph[SAMPLER]["inputs"].update(change)
    attention.done, attention.at = 0, None
    again = comfyui.run_graph(graph, after=stopped)
    assert again.success, again.error
    made_anew = attention.done
    fresh = comfyui.run_graph(graph)
    assert np.array_equal(again.output(SAMPLER)["samples"], fresh.output(SAMPLER)["samples"])
    assert made_anew == (attention.done - made_anew if expected is None else expected * ATTENTIONS_PER_CHUNK)


def test_running_out_of_memory_names_chunk_and_stage_and_what_to_lower(comfyui, graph, attention):
    import torch
    from comfy import model_management

    def run_out():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    assert issubclass(torch.cuda.OutOfMemoryError, model_management.OOM_EXCEPTION)
    attention.at, attention.act = ATTENTIONS_PER_CHUNK + 5, run_out
    error = comfyui.run_graph(graph).error
    assert "chunk 2, stage 2 of 3, at 64x64" in error
    assert "Lower width and height" in error
    assert "--reserve-vram" in error
    assert "Tried to allocate 3.00 GiB" in error
    # Only for its own error ComfyUI adds its advice and unloads all models.
    assert "This error means you ran out of memory on your GPU" in error


def test_over_http_an_interrupt_ends_the_run_at_once_and_the_next_resumes_after_the_finished_chunks(
    server: Server, record_property
):
    # Few steps that take long: the interrupt comes in chunk 2 even where messages are late.
    graph = latents_graph(server.object_info(), chunks=2, width=256, height=256, steps="1,1,20")
    graph[SAMPLER]["inputs"]["amplify_first_chunk"] = False
    graph[LOADER]["inputs"]["variant"] = "distilled"
    seen, asked = [], []

    def interrupt_in_the_second_chunk(name, data):
        if name == "progress" and data["node"] == SAMPLER:
            seen.append(data["value"])
            if data["value"] > 1000 and not asked:
                server.interrupt()
                asked.append(time.monotonic())

    stopped = server.run_graph(graph, on_event=interrupt_in_the_second_chunk)
    assert stopped.outcome == "execution_interrupted"
    (ended,) = [moment for moment, name, _ in stopped.events if name == "execution_interrupted"]
    record_property("seconds to the end", ended - asked[0])
    assert max(seen) < 2000  # the end of chunk 2 was not waited for
    again = server.run_graph(graph)
    assert again.outcome == "execution_success"
    steps = [data for data in again.named("progress") if data["node"] == SAMPLER]
    assert len(steps) == 22, "both chunks were made again"
