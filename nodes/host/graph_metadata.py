"""The graph that made a video, for the video's own metadata: dropped on ComfyUI, the file opens its graph."""

import json
import math
import re

from comfy.cli_args import args


def graph_metadata(hidden) -> dict[str, str]:
    """The graph of the running node under the names that ComfyUI itself uses; nothing with --disable-metadata.

    `hidden` are the node's hidden inputs, with `prompt` and `extra_pnginfo` among them.
    """
    if args.disable_metadata:
        return {}
    values = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        values["prompt"] = hidden.prompt
    return {key: json_with_counted_braces(value) for key, value in values.items()}


def json_with_counted_braces(value) -> str:
    """JSON in which no text has a brace: ComfyUI's reader of webm finds the end of the graph by counting them."""

    def escaped(text: re.Match) -> str:
        return text[0].replace("{", r"\u007b").replace("}", r"\u007d")

    return re.sub(r'"(?:[^"\\]|\\.)*"', escaped, json.dumps(finite(value)))


def finite(value):
    """The value with null for NaN and infinity, which JSON does not have and the page cannot read."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
