"""What the server reports of each chunk of a Helios Long Video run, and that reporting changes nothing."""

import base64
import json
import re
import sys
import threading
import time
from io import BytesIO

import pytest
from harness.checkout import PACK
from harness.samples import small_graph, the_node
from PIL import Image

SECONDS_OF_A_CHUNK = 33 / 24


@pytest.fixture
def graph(comfyui, models, request):
    """long_t2v, three chunks, small, with a run folder of this test's own."""
    graph = small_graph("long_t2v", comfyui.object_info())
    _, inputs = the_node(graph, "HeliosLongVideo")
    name = re.sub(r"\W+", " ", request.node.name)[:80].strip()
    inputs.update(seconds=0.0, chunks=3, steps="1,1,1", seed=5, run_name=name, filename_prefix=f"{name}/video")
    return graph


@pytest.fixture
def module(comfyui):
    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.host.chunk_strip")]
    return module


def inputs_of(graph) -> dict:
    return the_node(graph, "HeliosLongVideo")[1]


def told(run) -> list[dict]:
    return [data for name, data in run.events if name == "helios.chunk"]


def states(run) -> list[tuple[int, str]]:
    """Changes of state in order, without the news of thumbnails."""
    known, changes = {}, []
    for data in told(run):
        if known.get(data["chunk"]) != data["state"]:
            known[data["chunk"]] = data["state"]
            changes.append((data["chunk"], data["state"]))
    return changes


def last_told(run, graph) -> dict:
    node, _ = the_node(graph, "HeliosLongVideo")
    (payload,) = run.history["outputs"][node]["helios_run"]
    return payload


def video_bytes(run, graph, home) -> bytes:
    node, _ = the_node(graph, "HeliosLongVideo")
    return home.saved_files({"outputs": {node: run.history["outputs"][node]}})[0].read_bytes()


def picture(thumbnail: str) -> Image.Image:
    head, _, content = thumbnail.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(content)))


def test_every_chunk_is_reported_as_running_then_done_in_order_with_its_file_and_thumbnail(comfyui, home, graph):
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    changes = states(run)
    assert [chunk for chunk, state in changes if state == "running"] == [0, 1, 2]
    assert [chunk for chunk, state in changes if state == "done"] == [0, 1, 2]
    assert all(changes.index((chunk, "running")) < changes.index((chunk, "done")) for chunk in range(3))
    final = {data["chunk"]: data for data in told(run)}
    for chunk, data in final.items():
        assert (home.output / data["subfolder"] / data["filename"]).is_file()
        assert data["type"] == "output"
        assert data["seconds_of_video"] == pytest.approx((chunk + 1) * SECONDS_OF_A_CHUNK)
        assert picture(data["thumbnail"]).size == (128, 64)
    assert last_told(run, graph)["chunks"] == list(final.values())
    json.dumps(last_told(run, graph))  # plain data


def test_a_chunk_is_reported_as_done_while_the_next_one_is_sampled(comfyui, graph):
    inputs_of(graph).update(steps="100,1,1", amplify_first_chunk=False)
    run = comfyui.run_graph(graph)
    events = [(name, data["value"] if name == "progress" else data.get("state")) for name, data in run.events
              if name == "progress" or (name == "helios.chunk" and data["chunk"] == 0)]  # fmt: skip
    after = events[events.index(("helios.chunk", "done")) :]
    assert any(name == "progress" and value < 2000 for name, value in after)  # a chunk is 1000


def test_a_run_begins_with_the_list_of_its_chunks_and_what_they_are_made_from(comfyui, graph):
    run = comfyui.run_graph(graph)
    (start,) = [data for name, data in run.events if name == "helios.run"]
    names = [name for name, _ in run.events if name.startswith("helios.")]
    assert names[0] == "helios.run"
    node, inputs = the_node(graph, "HeliosLongVideo")
    assert (start["node"], start["run_name"], start["first_chunk"], start["take"]) == (node, inputs["run_name"], 0, 0)
    assert [(data["chunk"], data["state"]) for data in start["chunks"]] == [(0, "queued"), (1, "queued"), (2, "queued")]
    prompt, text = the_node(graph, "CLIPTextEncode")
    assert start["inputs"][prompt] == {"text": text["text"]}
    assert start["inputs"][node]["seed"] == 5
    assert "memory" not in start["inputs"][node]


def test_chunks_found_on_disk_are_reported_as_reused_and_a_reroll_makes_only_later_ones(comfyui, graph):
    comfyui.run_graph(graph)
    inputs_of(graph)["reroll"] = "1:99"
    run = comfyui.run_graph(graph)
    final = {data["chunk"]: data for data in told(run)}
    assert [final[chunk]["reused"] for chunk in range(3)] == [True, False, False]
    assert [chunk for chunk, state in states(run) if state == "running"] == [1, 2]
    assert final[0]["take"] == 1
    assert all(data["thumbnail"] for data in final.values())


def test_a_cancelled_run_reports_which_chunk_was_stopped(comfyui, graph, module, monkeypatch):
    from comfy import model_management

    send = module._send

    def cancel_in_the_third_chunk(event, payload):
        send(event, payload)
        if (payload.get("chunk"), payload.get("state")) == (2, "running"):
            model_management.interrupt_current_processing()

    monkeypatch.setattr(module, "_send", cancel_in_the_third_chunk)
    run = comfyui.run_graph(graph)
    assert (run.success, run.error) == (False, "")
    assert states(run)[-1] == (2, "stopped")
    assert {data["chunk"]: data["state"] for data in told(run)}[0] == "done"
    assert threads("helios-thumbnail") == []


def test_with_and_without_a_client_the_file_has_the_same_bytes(comfyui, home, graph, module, monkeypatch):
    watched = comfyui.run_graph(graph)
    assert told(watched)
    expected = video_bytes(watched, graph, home)
    chunks = home.output / "helios_runs" / inputs_of(graph)["run_name"]
    chunks.rename(chunks.with_name(chunks.name + " watched"))
    monkeypatch.setattr(module, "_send", lambda event, payload: None)  # as without a client
    alone = comfyui.run_graph(graph)
    assert not told(alone)
    assert not any(chunk["reused"] for chunk in last_told(alone, graph)["chunks"])
    assert video_bytes(alone, graph, home) == expected


def test_without_a_client_id_nothing_is_sent(comfyui, module, monkeypatch):
    from server import PromptServer

    sent = []
    monkeypatch.setattr(PromptServer.instance, "send_sync", lambda *event: sent.append(event))
    monkeypatch.setattr(PromptServer.instance, "client_id", None)
    module._send("helios.run", {})
    assert sent == []
    monkeypatch.setattr(PromptServer.instance, "client_id", "page")
    module._send("helios.run", {})
    assert sent == [("helios.run", {}, "page")]


def test_thumbnails_that_never_finish_do_not_hold_up_the_chunks(comfyui, graph, module, monkeypatch):
    release = threading.Event()

    def never(part):
        release.wait(60)
        return "data:image/jpeg;base64,"

    monkeypatch.setattr(module, "make_thumbnail", never)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.1)
    run = comfyui.run_graph(graph)
    count = len(told(run))
    release.set()
    assert run.success, run.error
    assert states(run)[-1] == (2, "done")
    time.sleep(0.2)
    assert len(told(run)) == count  # a thumbnail that is late is let go
    assert all(data["thumbnail"] is None for data in told(run))


def test_offering_a_thumbnail_never_waits_and_those_put_off_are_made_up_for(module, monkeypatch):
    release, made = threading.Event(), []
    monkeypatch.setattr(module, "make_thumbnail", lambda part: release.wait(30) and str(part))
    thumbnails = module.Thumbnails(lambda chunk, thumbnail: made.append(chunk))
    started = time.monotonic()
    for chunk in range(12):
        thumbnails.offer(chunk, chunk)
    assert time.monotonic() - started < 1
    assert len(thumbnails.waiting) == module.MAX_WAITING
    release.set()
    module.wait(thumbnails.waiting)
    thumbnails.offer(12, 12)
    thumbnails.close(10)
    assert sorted(made) == list(range(13))
    assert threads("helios-thumbnail") == []


def threads(prefix: str) -> list[str]:
    time.sleep(0.2)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_a_thumbnail_that_cannot_be_made_is_logged_and_the_run_continues(comfyui, graph, module, monkeypatch, caplog):
    def fail(part):
        raise OSError("no picture today")

    monkeypatch.setattr(module, "make_thumbnail", fail)
    run = comfyui.run_graph(graph)
    assert run.success, run.error
    assert caplog.text.count("A thumbnail could not be made: no picture today") == 3


def test_a_websocket_client_gets_the_events_and_can_play_each_chunk(server, graph):
    run = server.run_graph(graph)
    assert run.outcome == "execution_success"
    assert len(run.named("helios.run")) == 1
    final = {data["chunk"]: data for data in run.named("helios.chunk")}
    assert sorted(final) == [0, 1, 2]
    from urllib.parse import urlencode
    from urllib.request import urlopen

    for data in final.values():
        place = urlencode({name: data[name] for name in ("filename", "subfolder", "type")})
        with urlopen(f"{server.url}/view?{place}") as response:
            assert response.read()[4:8] == b"ftyp"


def test_the_strip_knows_of_each_input_of_the_node_which_chunks_a_change_of_it_concerns(comfyui):
    """A new input has to be put in its place here and, if it concerns all chunks, into the page's list."""
    inputs = comfyui.object_info(["HeliosLongVideo"])["HeliosLongVideo"]["input"]
    widgets = {
        name
        for section in inputs.values()
        for name, (kind, *_) in section.items()
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
    }
    script = (PACK / "web" / "strip" / "model.js").read_text(encoding="utf-8")
    for_all_chunks = set(json.loads(re.search(r"FOR_ALL_CHUNKS = (\[.*?\]);", script, re.DOTALL)[1]))
    by_chunk, length, for_no_chunk = {"seed", "reroll"}, {"chunks", "seconds"}, {"filename_prefix", "overlap_vae"}
    assert widgets == for_all_chunks | by_chunk | length | for_no_chunk


def test_a_strip_that_a_killed_server_left_is_read_from_disk(comfyui, tmp_path):
    import os
    import sys

    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.host.strip_file")]
    about = {"node": "7", "run_name": "x", "take": 0, "first_chunk": 3, "num_chunks": 3, "inputs": {"7": {"seed": 1}}}
    file = module.StripFile(tmp_path, about)
    assert module.read_strip(tmp_path) is None
    file.add({**about, "chunk": 3, "state": "running"})
    file.add({**about, "chunk": 3, "state": "done", "filename": "a.mp4"})
    file.add({**about, "chunk": 4, "state": "running"})
    with (tmp_path / "strip.jsonl").open("a") as stream:
        stream.write('{"chunk": 4, "sta')
    run = module.read_strip(tmp_path)
    assert {key: run[key] for key in about} == about
    assert [(chunk["chunk"], chunk["state"]) for chunk in run["chunks"]] == [(3, "done"), (4, "running"), (5, "queued")]
    assert run["chunks"][0]["filename"] == "a.mp4"
    os.utime(tmp_path / "strip.jsonl", (1, 1))  # written before this server was started
    assert [chunk["state"] for chunk in module.read_strip(tmp_path)["chunks"]] == ["done", "stopped", "queued"]


NO_STRIPS = ["", "null", "[]\n3", '{"first_chunk": 0}', '{"first_chunk": 0, "num_chunks": "x"}', "\ud800"]


@pytest.mark.parametrize("content", NO_STRIPS)
def test_a_strip_file_of_anything_else_is_no_strip(comfyui, tmp_path, content):
    import sys

    (module,) = [m for name, m in sys.modules.items() if name.endswith("ComfyUI-Helios.nodes.host.strip_file")]
    (tmp_path / "strip.jsonl").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert module.read_strip(tmp_path) is None
