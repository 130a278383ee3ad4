"""The graphs that `benchmarks.comfyui` runs: files in the API format, and some of our own that need no download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from helios_core.model.config import TransformerConfig
from tests.comfyui.harness.latents_graph import defaults
from tests.comfyui.harness.samples import small_graph

from . import random_weights

SEEDS = ("seed", "noise_seed")
RANDOM = {"random-bf16": "bf16", "random-fp8": "fp8_e4m3fn"}
BUILT_IN = ("demo", *RANDOM)
VAE = "random_wan_vae.safetensors"
TINY = TransformerConfig(num_attention_heads=2, num_layers=2, ffn_dim=64)
Graph = dict[str, dict]


def is_tiny(device: str) -> bool:
    """On a CPU the random model is so small that only the way is tried."""
    return device == "cpu"


def prepare(name: str, models: Path, device: str) -> None:
    """Write the weights that a built-in graph names into a folder of ComfyUI's models."""
    if name in RANDOM:
        config = TINY if is_tiny(device) else TransformerConfig()
        random_weights.write_transformer(models / "diffusion_models" / _file_of(name, device), config, RANDOM[name])
        if not is_tiny(device):
            random_weights.write_vae(models / "vae" / VAE)


def load(name: str, object_info: Mapping[str, dict], device: str) -> Graph:
    """A built-in graph, or the file of that name. Raises ValueError for a file that is no graph of the API format."""
    if name == "demo":
        return small_graph("demo_t2v", object_info, width=64, height=64)
    if name in RANDOM:
        return random_graph(name, object_info, device)
    graph = json.loads(Path(name).read_text(encoding="utf-8"))
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise ValueError(
            f"{name} is not a graph in the API format (in ComfyUI: Workflow, Export (API)); "
            f"built-in ones are {', '.join(BUILT_IN)}"
        )
    return graph


def random_graph(name: str, object_info: Mapping[str, dict], device: str) -> Graph:
    """Four chunks of 640x384 in [2,2,2] steps; on a CPU one of 64x64 in [1,1,1], with the demo's VAE."""
    tiny = is_tiny(device)
    size = {"width": 64, "height": 64} if tiny else {"width": 640, "height": 384}
    job = {"chunks": 1, "steps": "1,1,1"} if tiny else {"chunks": 4, "steps": "2,2,2"}
    wires = {"model": ["model", 0], "positive": ["prompt", 0], "memory": ["memory", 0]}
    kinds = {
        "model": ("HeliosLoader", {"model_name": _file_of(name, device), "variant": "distilled"}),
        "prompt": ("BenchmarkPrompt", {}),
        "memory": ("HeliosContext", size),
        "sampler": ("HeliosChunkSampler", {**wires, **job, "amplify_first_chunk": False}),
        "vae": ("HeliosDemoModels", {}) if tiny else ("VAELoader", {"vae_name": VAE}),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 2 if tiny else 0]}),
        "picture": ("ImageFromBatch", {"image": ["decode", 0], "batch_index": 0, "length": 1}),
        "show": ("PreviewImage", {"images": ["picture", 0]}),
    }
    return {
        node: {"class_type": kind, "inputs": defaults(object_info[kind]) | inputs}
        for node, (kind, inputs) in kinds.items()
    }


def _file_of(name: str, device: str) -> str:
    return f"{'tiny' if is_tiny(device) else '14b'}_{name.replace('-', '_')}_distilled.safetensors"


def with_seed(graph: Graph, seed: int) -> Graph:
    """The graph with every seed changed, so that ComfyUI's cache has no answer. Raises ValueError without a seed."""
    graph = deepcopy(graph)
    inputs = [(node["inputs"], name) for node in graph.values() for name in SEEDS if name in node["inputs"]]
    literal = [(values, name) for values, name in inputs if isinstance(values[name], int)]
    if not literal:
        raise ValueError(
            f"the graph has no number named {' or '.join(SEEDS)}, so every round after the first would come from "
            "ComfyUI's cache; give the sampler's seed as a number"
        )
    for values, name in literal:
        values[name] = seed
    return graph


def chunks_in(graph: Graph) -> int:
    """Chunks that our samplers in it make; 0 if there are none, as in another pack's graph."""
    ours = ("HeliosChunkSampler", "HeliosLongVideo")
    chunks = [node["inputs"].get("chunks") for node in graph.values() if node["class_type"] in ours]
    return sum(count for count in chunks if isinstance(count, int))
