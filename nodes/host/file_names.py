"""What stands between percent signs in the name of an output, as in ComfyUI's own save nodes.

    %date:yyyy-MM-dd%               the time, by d, M, yy or yyyy, h, m, s, doubled for two digits
    %year% %month% %day% %hour% %minute% %second% %width% %height%
    %KSampler.seed%                 the value of another node's input, by the node's name or title

In ComfyUI its page puts the first and the last in, and only for its own nodes. Here it is done where the node runs, so
that it is the same for a graph from the API and for a name that another node makes. What cannot be found stays as it
is, with a warning, less what no file name can hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"%([^%]+)%")
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NO_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_NODE_NAME = "Node name for S&R"
_LONGEST_VALUE = 80  # characters of another node's value: a prompt is no file name


def expand_name(
    name: str, prompt: Mapping | None, pnginfo: Mapping | None, *, now: datetime | None = None, **sizes: int
) -> str:
    """`name` with what stands between percent signs put in; `prompt` and `pnginfo` are the node's hidden inputs, and
    `sizes` maybe `width` and `height`."""
    if "%" not in name:
        return name
    now = now or datetime.now()
    known = {part: f"{getattr(now, part):02}" for part in ("year", "month", "day", "hour", "minute", "second")}
    known |= {size: str(value) for size, value in sizes.items()}

    def value_of(token: re.Match) -> str:
        text = token[1]
        if text in known:
            return known[text]
        if text.startswith("date:"):
            return _plain(format_date(text.removeprefix("date:"), now))
        node, dot, widget = text.partition(".")
        found = _input_value(node, widget, prompt or {}, pnginfo or {}) if dot and "." not in widget else None
        if found is None:
            logger.warning("%s in the name %r stays as it is: there is no such thing", token[0], name)
            return _plain(token[0])
        return _plain(str(found))[:_LONGEST_VALUE].strip(" .")

    return _TOKEN.sub(value_of, name)


def without_tokens(name: str) -> str:
    """`name` with one letter for each of them, to look at the rest of it before they are known."""
    return _TOKEN.sub("x", name)


def format_date(pattern: str, moment: datetime) -> str:
    """ "yyyy-MM-dd" -> "2026-03-01". Other letters stay, as in ComfyUI's page."""
    parts = {"d": moment.day, "M": moment.month, "h": moment.hour, "m": moment.minute, "s": moment.second}

    def value_of(part: re.Match) -> str:
        letters = part[0]
        if letters[0] in parts:
            return str(parts[letters[0]]).zfill(len(letters))
        return {2: f"{moment.year % 100:02}", 4: str(moment.year)}.get(len(letters), letters)

    return _DATE_PART.sub(value_of, pattern)


def _plain(text: str) -> str:
    return _NO_NAME.sub("_", text)


def _input_value(name: str, widget: str, prompt: Mapping[str, Any], pnginfo: Mapping[str, Any]) -> Any:
    """The value of an input of the first node called `name`, None when there is none or it comes by a wire."""
    for node_id in (*_named_in_workflow(name, pnginfo.get("workflow")), *_named_in_prompt(name, prompt)):
        value = prompt.get(node_id, {}).get("inputs", {}).get(widget)
        if value is not None and not isinstance(value, list | dict):
            return value
    return None


def _named_in_workflow(name: str, workflow: Any) -> list[str]:
    """Ids of the nodes of that name in the page's own form of the graph, by their name first and then by title."""
    nodes = workflow.get("nodes", []) if isinstance(workflow, Mapping) else []
    nodes = [node for node in nodes if isinstance(node, Mapping)]
    by_name = [node for node in nodes if (node.get("properties") or {}).get(_NODE_NAME) == name]
    return [str(node.get("id")) for node in [*by_name, *(node for node in nodes if node.get("title") == name)]]


def _named_in_prompt(name: str, prompt: Mapping[str, Any]) -> list[str]:
    by_type = [node_id for node_id, node in prompt.items() if node.get("class_type") == name]
    by_title = [node_id for node_id, node in prompt.items() if (node.get("_meta") or {}).get("title") == name]
    return [*by_type, *by_title]
