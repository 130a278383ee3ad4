"""The sample workflows as API graphs, made small enough for a CPU, and what came out of a run."""

import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from .checkout import PACK
from .graph import to_api

WORKFLOWS = PACK / "workflows"
NAMES = (
    "t2v",
    "i2v",
    "v2v",
    "i2v_then_prompts",
    "prompt_timeline",
    "long_t2v",
    "directed_minute",
    "extend_video",
    "branching",
    "demo_t2v",
    "demo_i2v",
    "demo_v2v",
    "demo_prompts",
    "finish",
)
VIDEO_NODES = ("HeliosVideoCombine", "HeliosLongVideo", "HeliosFinishVideo")
WIDTH, HEIGHT = 128, 64


class Clip(NamedTuple):
    frames: np.ndarray  # (T, H, W, 3) uint8
    rate: Fraction  # frames per second
    metadata: dict[str, str]


def read_workflow(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def small_graph(name: str, object_info: dict, *, width: int = WIDTH, height: int = HEIGHT) -> dict[str, dict]:
    """A sample workflow in API format. Only the size differs from the file."""
    graph = to_api(read_workflow(name), object_info)
    for _, inputs in nodes_of(graph, "HeliosContext"):
        inputs.update(width=width, height=height)
    return graph


def nodes_of(graph: dict[str, dict], kind: str) -> list[tuple[str, dict]]:
    """(node id, inputs) of each node of a type, in the order of the file."""
    return [(node_id, node["inputs"]) for node_id, node in graph.items() if node["class_type"] == kind]


def the_node(graph: dict[str, dict], kind: str) -> tuple[str, dict]:
    """(node id, inputs) of the only node of a type."""
    (only,) = nodes_of(graph, kind)
    return only


def read_clip(path: Path) -> Clip:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, metadata = stream.average_rate, dict(container.metadata)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return Clip(np.stack(frames), rate, metadata)
