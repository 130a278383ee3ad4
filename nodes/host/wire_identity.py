"""What a wire carries, known by the graph that makes it: node types, settings, texts and the content of files.

Another machine, card or number of threads gives other float bits from the same VAE or text encoder; the graph above
a wire is the same. Only nodes of ComfyUI itself and of this pack are known to make the same from the same: where
another node, or one that says it always changes, stands above a wire, its identity is not known, and whoever asks
takes the content that came over the wire instead.
"""

import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.internal import first_real_override
from comfy_execution.graph_utils import is_link

import nodes as host_nodes

from ...helios_core.fingerprint import fingerprint
from .file_content import file_content, folder_content

logger = logging.getLogger(__name__)

# They choose where something is computed: the input of this name goes through them unchanged.
PLACEMENT_NODES = {
    "SelectModelDevice": "model",
    "SelectCLIPDevice": "clip",
    "SelectVAEDevice": "vae",
    "MultiGPU_WorkUnits": "model",
}
PLACEMENT_INPUTS = ("device",)
# How ComfyUI was started to compute text: another text encoder, in effect.
TEXT_PRECISIONS = ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "fp32_text_enc", "bf16_text_enc")
_EMBEDDING = re.compile(r"embedding:([^\s,()]+)")
_MAX_NAME = 260
_PACK = __name__.rpartition(".nodes.")[0]


def wire_identity(hidden, input_name: str) -> str:
    """What comes over the wire into an input of the running node, or "" if that cannot be said.

    `hidden` are the node's hidden inputs, with `unique_id` and `dynprompt` (or `prompt`) among them.
    """
    get_node = _graph_of(hidden)
    if get_node is None:
        return ""
    wire = (get_node(hidden.unique_id) or {}).get("inputs", {}).get(input_name)
    if not is_link(wire):
        return ""
    identity = _Graph(get_node).identity_of(wire)
    precisions = [name for name in TEXT_PRECISIONS if getattr(args, name, False)]
    return "" if identity is None else fingerprint(identity, precisions)


def _graph_of(hidden) -> Callable[[str], Mapping[str, Any] | None] | None:
    """Looks a node up by its id, also inside a subgraph that a node has expanded to."""
    if hidden is None or hidden.unique_id is None:
        return None
    if hidden.dynprompt is not None:
        dynprompt = hidden.dynprompt
        return lambda node_id: dynprompt.get_node(node_id) if dynprompt.has_node(node_id) else None
    return hidden.prompt.get if hidden.prompt else None


class _Graph:
    """Identities of a graph's outputs, each found once."""

    def __init__(self, get_node: Callable[[str], Mapping[str, Any] | None]) -> None:
        self.get_node = get_node
        self.identities: dict[str, str | None] = {}

    def identity_of(self, wire: list) -> str | None:
        """Of what comes from an output, [node id, slot]; None when it is not known."""
        node_id, slot = wire
        node = self.get_node(node_id)
        kind = host_nodes.NODE_CLASS_MAPPINGS.get(node["class_type"]) if node else None
        if kind is None or not _is_known(kind):
            return None
        if node["class_type"] in PLACEMENT_NODES:
            through = node["inputs"].get(PLACEMENT_NODES[node["class_type"]])
            return self.identity_of(through) if is_link(through) else None
        # Of a list, the nodes below are run for each item: one wire is then many things.
        if any(getattr(kind, "OUTPUT_IS_LIST", None) or ()) or getattr(kind, "NOT_IDEMPOTENT", False):
            return None
        if node_id not in self.identities:
            self.identities[node_id] = None  # for a graph that leads into itself
            self.identities[node_id] = self._node(node, kind)
        identity = self.identities[node_id]
        return None if identity is None else fingerprint(identity, slot)

    def _node(self, node: Mapping[str, Any], kind: type) -> str | None:
        inputs, has_file = {}, False
        for name, value in node["inputs"].items():
            if name in PLACEMENT_INPUTS:
                continue
            if is_link(value):
                identity = self.identity_of(value)
                if identity is None:
                    return None
                inputs[name] = ["wire", identity]
                continue
            try:
                content = _content_named(value)
                inputs[name] = ["constant", value if content is None else content, _embeddings_in(value)]
            except (OSError, TypeError):
                return None
            has_file = has_file or content is not None
        changed = _is_changed(node, kind)
        if changed is None:
            return None
        try:
            # A node that names a file asks for its content or its date to see a change: the content is there already.
            return fingerprint(node["class_type"], inputs, [] if has_file else changed)
        except TypeError:
            return None


def _is_known(kind: type) -> bool:
    """Whether a node is ComfyUI's own (not one that asks a server), or one of this pack."""
    if kind.__module__ == "nodes" or kind.__module__.startswith(f"{_PACK}."):
        return True
    return (getattr(kind, "RELATIVE_PYTHON_MODULE", None) or "").startswith("comfy_extras.")


def _content_named(value: Any) -> str | None:
    """Fingerprint of the file (or folder of weights) that a constant names; None when it names none."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or "\n" in value or "\0" in value:
        return None
    for category in folder_paths.folder_names_and_paths:
        if category == "custom_nodes":
            continue
        for root in folder_paths.get_folder_paths(category):
            path = Path(root) / value
            if _is_inside(path, Path(root)) and os.path.isfile(path):
                return file_content(path)
            if category == "diffusion_models" and _is_inside(path, Path(root)) and os.path.isdir(path):
                return folder_content(path)
    return _content_in_input(value)


def _content_in_input(value: str) -> str | None:
    """Fingerprint of a file in the input folder, or in another that the name says: "picture.png [output]"."""
    name, folder = folder_paths.annotated_filepath(value)
    root = Path(folder or folder_paths.get_input_directory())
    path = root / name
    return file_content(path) if _is_inside(path, root) and os.path.isfile(path) else None


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path stays in a folder, and is not the folder itself. Links in it may lead anywhere."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return bool(parts) and ".." not in parts


def _embeddings_in(value: Any) -> list[str]:
    """Content of the embeddings that a prompt names."""
    names = _EMBEDDING.findall(value) if isinstance(value, str) else []
    found = [_content_named(name + ending) for name in names for ending in ("", ".safetensors", ".pt", ".bin")]
    return [content for content in found if content is not None]


def _is_changed(node: Mapping[str, Any], kind: type) -> list | None:
    """What the node itself says of changes, [] if nothing; None when it always changes, or it cannot be said."""
    if "is_changed" in node:
        values = node["is_changed"]
    else:
        ask = _asker(kind)
        if ask is None:
            return []
        try:
            values = ask(**{name: None if is_link(value) else value for name, value in node["inputs"].items()})
        except Exception as fault:
            logger.debug("%s cannot say whether it has changed: %s", kind.__name__, fault)
            return None
    values = values if isinstance(values, list) else [values]
    if any(inspect.isawaitable(value) or (isinstance(value, float) and math.isnan(value)) for value in values):
        return None
    return values


def _asker(kind: type) -> Callable | None:
    """The node's `IS_CHANGED` or, of the newer kind, `fingerprint_inputs`; None if it has none of its own."""
    if hasattr(kind, "fingerprint_inputs"):
        return first_real_override(kind, "fingerprint_inputs")
    return getattr(kind, "IS_CHANGED", None)
