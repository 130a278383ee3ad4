"""The smallest graph that samples: loader, prompt, empty memory, sampler, SaveLatent; other inputs at defaults."""

from .graph import input_specs, is_widget
from .weights import TEXT_ENCODER

LOADER, TEXT, SAMPLER = "loader", "text", "sampler"


def latents_graph(object_info: dict, *, width: int = 64, height: int = 64, **sampler) -> dict[str, dict]:
    """An API graph; `sampler` are inputs of Helios Chunk Sampler."""
    kinds = {
        LOADER: ("HeliosLoader", {"model_name": "helios_distilled_bf16.safetensors"}),
        "clip": ("CLIPLoader", {"clip_name": TEXT_ENCODER, "type": "wan"}),
        TEXT: ("CLIPTextEncode", {"clip": ["clip", 0], "text": "a lantern sways over a quiet harbour"}),
        "context": ("HeliosContext", {"width": width, "height": height}),
        SAMPLER: (
            "HeliosChunkSampler",
            {"model": [LOADER, 0], "positive": [TEXT, 0], "memory": ["context", 0], "chunks": 1, "steps": "1,1,1"}
            | sampler,
        ),
        "save": ("SaveLatent", {"samples": [SAMPLER, 0], "filename_prefix": "latents"}),
    }
    return {
        node_id: {"class_type": kind, "inputs": defaults(object_info[kind]) | inputs}
        for node_id, (kind, inputs) in kinds.items()
    }


def defaults(info: dict) -> dict:
    """The required widgets of a node as it is made new."""
    specs = input_specs(info).items()
    return {
        name: options["default"]
        for name, (kind, options, required) in specs
        if required and is_widget(kind, options) and "default" in options
    }
