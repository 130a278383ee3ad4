"""Which chunks of a Helios Long Video run are found again: what changes the picture makes them anew, and the log says
which input differs; what only changes float bits of the VAE and the text encoder leaves them."""

import functools
import itertools
import json
import logging
import re

import pytest
import torch
from harness.latents_graph import LOADER, SAMPLER, TEXT, defaults, latents_graph
from harness.probe import change_model
from harness.weights import VAE
from test_identity import pack_module
from test_lora import random_lora, write_lora

CHUNKS = 2
RUNS = itertools.count()


@pytest.fixture
def graph(comfyui, models):
    """Image-to-video, two small chunks, in a run folder of this test's own."""
    info = comfyui.object_info()
    graph = latents_graph(info)
    name = f"keys {next(RUNS)}"
    settings = {"run_name": name, "chunks": CHUNKS, "steps": "1,1,1", "seed": 5, "vae": ["vae", 0]}
    wires = {input_name: graph[SAMPLER]["inputs"][input_name] for input_name in ("model", "positive", "memory")}
    nodes = {
        SAMPLER: ("HeliosLongVideo", wires | settings),
        "vae": ("VAELoader", {"vae_name": VAE}),
        "picture": ("LoadImage", {"image": "example.png"}),
        "context": ("HeliosContext", {"width": 64, "height": 64, "vae": ["vae", 0], "image": ["picture", 0]}),
    }
    del graph["save"]
    for node_id, (kind, inputs) in nodes.items():
        graph[node_id] = {"class_type": kind, "inputs": defaults(info[kind]) | inputs}
    return graph


@pytest.fixture
def chunks_made(comfyui, home, graph):
    """chunks_made(): runs the graph, and counts the chunks that were sampled for it."""

    def count():
        journal = home.output / "helios_runs" / graph[SAMPLER]["inputs"]["run_name"] / "journal.jsonl"
        before = records(journal)
        run = comfyui.run_graph(graph)
        assert run.success, run.error
        return sum(record["record"] == "chunk" for record in records(journal)[len(before) :])

    return count


def records(journal) -> list[dict]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []


@pytest.fixture
def other_bits(monkeypatch):
    """other_bits(): from now on VAE and text encoder give what they might on another machine."""

    def nudged(function):
        @functools.wraps(function)
        def nudge(*args, **kwargs):
            given = function(*args, **kwargs)
            if torch.is_tensor(given):
                return given + 1e-6
            return [[rows + 1e-6, *rest] for rows, *rest in given]

        return nudge

    def change():
        import comfy.sd

        monkeypatch.setattr(comfy.sd.VAE, "encode", nudged(comfy.sd.VAE.encode))
        encode = comfy.sd.CLIP.encode_from_tokens_scheduled
        monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens_scheduled", nudged(encode))

    return change


# Reused


def test_with_another_number_of_threads_every_chunk_is_reused(chunks_made, other_bits):
    threads = torch.get_num_threads()
    assert chunks_made() == CHUNKS
    torch.set_num_threads(threads + 1)
    try:
        other_bits()
        assert chunks_made() == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("memory_manager")
def test_after_the_vaes_first_load_every_chunk_is_reused(comfyui, graph, home, chunks_made):
    first = comfyui.run_graph(graph)
    assert first.success, first.error
    journal = home.output / "helios_runs" / graph[SAMPLER]["inputs"]["run_name"] / "journal.jsonl"
    before = records(journal)
    # In the same session, with the VAE as it was left; the context is made again as well.
    graph["context"]["inputs"]["noise_seed"] = 1
    other = comfyui.run_graph(graph, after=first)
    graph["context"]["inputs"]["noise_seed"] = 0
    again = comfyui.run_graph(graph, after=other)
    assert again.success, again.error
    assert sum(record["record"] == "chunk" for record in records(journal)) == 2 * sum(
        record["record"] == "chunk" for record in before
    )


def test_on_another_device_every_chunk_is_reused(chunks_made, other_bits, monkeypatch):
    import comfy.model_management

    assert chunks_made() == CHUNKS
    device = torch.device("cpu", 0)
    for name in ("get_torch_device", "vae_device", "unet_offload_device", "text_encoder_device"):
        monkeypatch.setattr(comfy.model_management, name, lambda *_, **__: device)
    other_bits()
    assert chunks_made() == 0


def test_with_a_prompt_schedule_other_bits_leave_every_chunk_too(comfyui, graph, chunks_made, other_bits):
    info = comfyui.object_info()["HeliosPromptSchedule"]
    text = "chunk 0: a lantern\nchunk 1 blend 2 anchor example.png: a lamp\n"
    graph["schedule"] = {
        "class_type": "HeliosPromptSchedule",
        "inputs": defaults(info) | {"clip": ["clip", 0], "text": text},
    }
    graph["add"] = {
        "class_type": "HeliosScheduleAdd",
        "inputs": defaults(comfyui.object_info()["HeliosScheduleAdd"])
        | {"conditioning": [TEXT, 0], "schedule": ["schedule", 0], "start": 2},
    }
    graph[SAMPLER]["inputs"].update(positive=["add", 0], negative=[TEXT, 0], guidance_scale=2.0, chunks=3)
    assert chunks_made() == 3
    other_bits()
    assert chunks_made() == 0
    graph["schedule"]["inputs"]["text"] = text.replace("a lamp", "a candle")
    assert chunks_made() == 1  # chunk 1 is still the old prompt, as the first of a blend


def test_compiled_every_chunk_is_reused(graph, chunks_made):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    assert chunks_made() == CHUNKS

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model, backend="eager", keys=["diffusion_model.blocks.0"])
        return model

    change_model(graph, compiled)
    assert chunks_made() == 0


# Made anew


def half(attention, *args, **kwargs):
    return attention(*args, **kwargs) * 0.5


def put_override(model):
    model.model_options["transformer_options"]["optimized_attention_override"] = half


def put_wrapper(model):
    model.add_wrapper_with_key(
        "diffusion_model", "half", lambda executor, *args, **kwargs: executor(*args, **kwargs) / 2
    )


CHANGES = {
    "an attention override": (put_override, "model (attention)"),
    "a wrapper": (put_wrapper, "model (patches of other nodes)"),
}


@pytest.fixture
def shown(comfyui, monkeypatch):
    """The words that the node shows while it runs."""
    words = []
    monkeypatch.setattr(pack_module("nodes.host.progress"), "show_on_node", lambda said, *_: words.append(said))
    return words


@pytest.mark.parametrize("what", CHANGES)
def test_what_another_node_puts_on_the_model_makes_every_chunk_anew_and_log_and_node_say_so(
    graph, chunks_made, caplog, shown, what
):
    assert chunks_made() == CHUNKS
    assert not any("anew" in words for words in shown)
    put, name = CHANGES[what]

    def change(model):
        model = model.clone()
        put(model)
        return model

    change_model(graph, change)
    with caplog.at_level(logging.INFO):
        assert chunks_made() == CHUNKS
    said = f"chunks from 0 on are made anew, because of other inputs than before: {name}"
    assert said in caplog.text
    assert any(said in words for words in shown)
    assert chunks_made() == 0


@pytest.mark.parametrize(
    ("first", "then", "name"),
    [
        ("bf16", "fp32", "model (dtype)"),
        ("fp8_e4m3fn", "fp8_e4m3fn_fast", "model (weight_dtype)"),
    ],
)
def test_another_weight_dtype_makes_every_chunk_anew(graph, chunks_made, caplog, first, then, name):
    graph[LOADER]["inputs"]["weight_dtype"] = first
    assert chunks_made() == CHUNKS
    graph[LOADER]["inputs"]["weight_dtype"] = then
    with caplog.at_level(logging.INFO):
        assert chunks_made() == CHUNKS
    assert name in caplog.text


@pytest.mark.usefixtures("memory_manager")
@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoaderBypassModelOnly"])
def test_a_lora_and_its_strength_make_every_chunk_anew_and_the_same_one_does_not(
    comfyui, home, graph, chunks_made, loader, caplog
):
    if loader not in comfyui.object_info():
        pytest.skip(f"this ComfyUI has no {loader}")
    assert chunks_made() == CHUNKS
    write_lora(home, "keys.safetensors", random_lora(3))
    graph["lora"] = {
        "class_type": loader,
        "inputs": {"model": [LOADER, 0], "lora_name": "keys.safetensors", "strength_model": 1.0},
    }
    graph[SAMPLER]["inputs"]["model"] = ["lora", 0]
    with caplog.at_level(logging.INFO):
        assert [chunks_made(), chunks_made()] == [CHUNKS, 0]
    assert "model (LoRAs)" in caplog.text
    graph["lora"]["inputs"]["strength_model"] = 0.5
    assert [chunks_made(), chunks_made()] == [CHUNKS, 0]


@pytest.mark.parametrize(
    ("node", "inputs", "made", "name"),
    [
        (TEXT, {"text": "a fox"}, CHUNKS, "prompt"),
        ("picture", {"image": "other.png"}, CHUNKS, "memory"),
        ("context", {"noise_seed": 9}, CHUNKS, "memory"),
        (SAMPLER, {"seed": 6}, CHUNKS, "seed"),
        (SAMPLER, {"reroll": "1:77"}, 1, "seed"),
        (SAMPLER, {"steps": "2,1,1"}, CHUNKS, "steps"),
        (SAMPLER, {"anti_drift": True}, CHUNKS, "anti_drift"),
        (SAMPLER, {"crf": 30}, 0, None),
    ],
)
def test_the_log_names_the_input_that_differs(home, graph, chunks_made, caplog, node, inputs, made, name):
    from PIL import Image

    Image.new("RGB", (64, 64), (9, 90, 200)).save(home.input / "other.png")
    assert chunks_made() == CHUNKS
    graph[node]["inputs"].update(inputs)
    with caplog.at_level(logging.INFO):
        assert chunks_made() == made
    said = re.findall(r"made anew, because of other inputs than before: (.*)", caplog.text)
    assert said == ([] if name is None else [name])
