"""What a client of a real server sees: progress, previews, cancellation, files."""

import re
from itertools import pairwise

import pytest
from harness.samples import read_clip, small_graph, the_node
from harness.server import Server


@pytest.fixture(scope="module")
def graph(server):
    """t2v at 128 x 64, to be changed by the test."""
    return small_graph("t2v", server.object_info())


def test_one_progress_bar_covers_all_chunks_stages_and_steps_and_never_goes_back(server, graph, home):
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    inputs.update(chunks=2, steps="2,1,3")
    run = server.run_graph(graph)
    assert run.outcome == "execution_success"
    progress = [(data["value"], data["max"]) for data in run.named("progress") if data["node"] == sampler]
    values, totals = zip(*progress, strict=True)
    # The first chunk of Distilled has twice the steps. Steps count by what they cost, so the bar's unit is not a step.
    assert len(values) == 2 * 6 + 6
    assert len(set(totals)) == 1
    assert all(earlier < later for earlier, later in pairwise(values))
    assert values[-1] == totals[0]
    assert run.named("preview"), "no preview while sampling"
    assert read_clip(home.saved_files(run.history)[0]).frames.shape == (66, 64, 128, 3)


def test_an_interrupt_over_http_ends_the_run_while_it_samples(server, graph):
    sampler, inputs = the_node(graph, "HeliosChunkSampler")
    # At the size Helios is made for, so that a step takes long; 500 steps to interrupt.
    _, context = the_node(graph, "HeliosContext")
    context.update(width=640, height=384)
    inputs.update(chunks=1, steps="500,1,1", seed=1)
    steps_seen = []

    def interrupt_at_the_fifth_step(name, data):
        if name == "progress" and data["node"] == sampler:
            steps_seen.append(data["value"])
            if len(steps_seen) == 5:
                server.interrupt()

    run = server.run_graph(graph, on_event=interrupt_at_the_fifth_step)
    context.update(width=128, height=64)
    assert run.outcome == "execution_interrupted"
    # A busy machine is late with its messages. That no further attention begins: test_cancel, in one process.
    assert len(steps_seen) < 50


def test_the_server_keeps_working_after_an_interrupt(server, graph):
    _, inputs = the_node(graph, "HeliosChunkSampler")
    inputs.update(chunks=1, steps="1,1,1", seed=2)
    assert server.run_graph(graph).outcome == "execution_success"


def test_a_rejected_graph_gets_the_reason_over_http(server, graph):
    import urllib.error

    _, context = the_node(graph, "HeliosContext")
    context["width"] = 600
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.run_graph(graph)
    context["width"] = 128
    assert "width 600 is not a multiple of" in refused.value.read().decode()


def test_the_server_log_has_no_word_of_the_pack_failing(server: Server):
    lines = [line for line in server.log_text().splitlines() if "helios" in line.lower()]
    # Newer versions put its level before each line, also where they list the nodes of a graph that a test had refused.
    lines = [line for line in lines if not re.search(r"\* Helios\w+ \d+:$", line)]
    assert not [line for line in lines if any(word in line.lower() for word in ("fail", "error", "cannot"))], lines
