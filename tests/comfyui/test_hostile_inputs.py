"""Hostile values for every input of every node: each is accepted or refused in a sentence, before any sampling, and
leaves no file behind."""

import math
import random
import sys

import pytest
import torch
from harness.graph import input_specs, is_widget
from harness.inprocess import GraphRejected
from harness.latents_graph import defaults

NUM_CASES = 300
SEED = 19

HUGE = 2**63
WHOLE = [-1, 0, 1, 3, 100_000, HUGE, 10**30, -HUGE]
REAL = [*map(float, WHOLE), 1.5, math.nan, math.inf, -math.inf]
NO_NUMBERS = ["", "12", "１２", "x", True, {}, None]
TEXTS = ["", " ", "a" * 5000, "../..", "/etc/passwd", "a\x00b", "风" * 300, "%date:hh:mm%", "%Nobody.seed%", "{a|b}"]
TEXTS += ["CON", "a/", "12:30", "2,2", "0,0,0", "9" * 40, "3:77, x", "３：７", "0s: a", "0s: a\n0s: b", "{", "[]"]
TEXTS += ["null", "\ufeff", "\n"]
CHOICES = ["", "nope", "../x"]
BY_WIRE = {"INT": WHOLE, "FLOAT": REAL, "STRING": TEXTS, "BOOLEAN": [False, True], "COMBO": CHOICES}
BY_HAND = {
    "INT": [*REAL, *WHOLE, *NO_NUMBERS],
    "FLOAT": [*REAL, *WHOLE, *NO_NUMBERS],
    "STRING": [*TEXTS, 7, {}, None],
    "BOOLEAN": ["", "yes", 2, -1, math.nan],
    "COMBO": [*CHOICES, 3, 1.5, True, None],
}
REFUSALS = ("ValueError", "StorageError", "FileNotFoundError", "NotADirectoryError", "ScheduleError", "OSError")


def wires() -> dict[str, list]:
    """Values of each type of wire that no other node should give, and some that it may."""
    return {
        "IMAGE": [torch.rand(1, 64, 64, 3), torch.rand(2, 64, 64, 1), torch.rand(64, 64), torch.rand(0, 64, 64, 3),
                  torch.rand(1, 0, 64, 3), torch.full((1, 64, 64, 3), torch.nan),
                  torch.rand(1, 1, 1, 4), torch.zeros(2, 2)],
        "AUDIO": [{"waveform": torch.rand(1, 2, 900), "sample_rate": 8000},
                  {"waveform": torch.rand(1, 0, 9), "sample_rate": 1},
                  {"waveform": torch.rand(3, 5, 9), "sample_rate": 0}, {"waveform": torch.rand(9), "sample_rate": -1}],
        "LATENT": [{"samples": torch.rand(1, 16, 9, 8, 8)}, {"samples": torch.rand(1, 4, 8, 8)},
                   {"samples": torch.full((1, 16, 9, 8, 8), torch.nan)}, {"samples": torch.rand(0, 16, 9, 8, 8)}],
        "CONDITIONING": [[], [[torch.rand(1, 600, 8), {}]], [[torch.rand(3, 8), {}]], [[torch.rand(1, 5, 3), {}]] * 2],
    }  # fmt: skip


class ReachedSampling(Exception):
    pass


@pytest.fixture
def without_sampling(monkeypatch):
    """Whatever is about to sample says so instead."""
    def reached(*_, **__):
        raise ReachedSampling

    for name, module in list(sys.modules.items()):
        if "ComfyUI-Helios.nodes." in name and callable(getattr(module, "sampling_run", None)):
            monkeypatch.setattr(module, "sampling_run", reached)


@pytest.fixture
def make_graph(comfyui, models):
    """make_graph(node type) -> a graph of that node with all that it needs."""
    from nodes import NODE_CLASS_MAPPINGS

    info = comfyui.object_info()
    sources = {
        "MODEL": ("HeliosLoader", {"model_name": "helios_distilled_bf16.safetensors"}),
        "CLIP": ("CLIPLoader", {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"}),
        "VAE": ("VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
        "HELIOS_MEMORY": ("HeliosContext", {"width": 64, "height": 64}),
        "CONDITIONING": ("CLIPTextEncode", {"text": "a fox", "clip": ["CLIP", 0]}),
        "HELIOS_SCHEDULE": ("HeliosScheduleAdd", {"conditioning": ["CONDITIONING", 0]}),
        "IMAGE": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0}),
        "LATENT": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 33, "batch_size": 1}),
        "VIDEO": ("CreateVideo", {"images": ["IMAGE", 0], "fps": 24.0}),
    }

    class Wire:
        RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "make", "tests"
        value = None

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"number": ("INT", {"max": NUM_CASES * 9})}}

        def make(self, number):
            return (type(self).value,)

    NODE_CLASS_MAPPINGS["HostileWire"] = Wire

    def make(kind: str) -> dict:
        inputs = {}
        for name, (type_, options, required) in input_specs(info[kind]).items():
            first = str(type_).split(",")[0]
            if is_widget(type_, options):
                continue
            if (required or (kind, name) == ("HeliosVideoCombine", "images")) and first in sources:
                inputs[name] = [first, 0]
        graph = {"node": {"class_type": kind, "inputs": defaults(info[kind]) | first_choices(info[kind]) | inputs}}
        graph |= {
            name: {"class_type": source, "inputs": defaults(info[source]) | first_choices(info[source]) | given}
            for name, (source, given) in sources.items()
        }
        graph["end"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
        if info[kind].get("output_node") or getattr(NODE_CLASS_MAPPINGS[kind], "OUTPUT_NODE", False):
            del graph["end"]
        return graph

    return make, info, Wire


def first_choices(info: dict) -> dict:
    choices = {}
    for name, (kind, options, required) in input_specs(info).items():
        listed = kind if isinstance(kind, list) else options.get("options")
        if required and listed and "default" not in options:
            choices[name] = listed[0]
    return choices


def cases(info: dict, kinds: list[str]):
    """(node, input, hostile value, whether it comes by a wire), every input at least once."""
    values, all_cases = wires(), []
    for kind in kinds:
        for name, (type_, options, _) in input_specs(info[kind]).items():
            if is_widget(type_, options):
                sort = "COMBO" if isinstance(type_, list) else type_
                all_cases += [(kind, name, value, True) for value in BY_WIRE[sort]]
                all_cases += [(kind, name, value, False) for value in BY_HAND[sort]]
            else:
                for part in str(type_).split(","):
                    all_cases += [(kind, name, value, True) for value in values.get(part, [])]
    chosen = random.Random(SEED)
    chosen.shuffle(all_cases)
    first = {case[:2]: case for case in reversed(all_cases)}
    rest = [case for case in all_cases if case is not first[case[:2]]]
    return [*first.values(), *rest[: max(0, NUM_CASES - len(first))]]


def test_every_input_of_every_node_is_accepted_or_refused_in_a_sentence(comfyui, home, make_graph, without_sampling):
    make, info, wire = make_graph
    kinds = sorted(kind for kind in info if kind.startswith("Helios"))
    faults, before = [], files_in(home)
    graphs = {kind: make(kind) for kind in kinds}
    latest = None
    for number, (kind, name, value, by_wire) in enumerate(sorted(cases(info, kinds), key=lambda case: case[0])):
        graph = {key: {**node, "inputs": dict(node["inputs"])} for key, node in graphs[kind].items()}
        graph["node"]["inputs"][name] = ["hostile", 0] if by_wire else value
        wire.value = value
        graph["hostile"] = {"class_type": "HostileWire", "inputs": {"number": number}}
        if name in ("latents", "images"):
            graph["node"]["inputs"].pop({"latents": "images", "images": "latents"}[name], None)
        said, latest = outcome(comfyui, graph, latest)
        after = files_in(home)
        if said is not None and said.startswith("!"):
            faults.append(f"{kind}.{name} = {str(value)[:60]!r} by {'wire' if by_wire else 'widget'}: {said}")
        elif said is not None and after - before:
            faults.append(f"{kind}.{name} = {str(value)[:60]!r}: refused ({said[:80]}), yet left {after - before}")
        before = after
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def files_in(home) -> set:
    return {path for path in home.output.rglob("*") if path.is_file()}


def outcome(comfyui, graph, latest):
    """(what is said, the run). Nothing is said when it is accepted, and "!..." is what is no refusal in words."""
    try:
        run = comfyui.run_graph(graph, after=latest)  # so that models are loaded once
    except GraphRejected:
        return "by validation", latest
    if run.success:
        return None, run
    (fault,) = [data for name, data in run.events if name == "execution_error"]
    kind, message = fault["exception_type"].rpartition(".")[2], fault["exception_message"].strip()
    if kind == "ReachedSampling":
        return None, run
    is_ours = fault["node_type"] == graph["node"]["class_type"]
    if is_ours and (kind not in REFUSALS or len(message) > 900 or len(message.split()) < 4):
        return f"!{kind}: {message[:200]} {''.join(fault['traceback'][-1:])[:200]}", run
    return message, run
