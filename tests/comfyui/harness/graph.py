"""Turns a workflow file (what the frontend saves) into an API graph (what the server runs), without a browser.

The same rules as the frontend's own app.graphToPrompt(), which a browser test compares it with:
widget values are stored by position, in the order of the node's definition; a seed widget is followed by one extra
value ("fixed", "randomize", ...) and an upload widget by another; widgets that are newer than the file keep their
defaults; a link overrides the widget of the same name.
"""

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")
UPLOADS = ("image_upload", "video_upload", "audio_upload")


def to_api(workflow: dict, object_info: dict[str, dict]) -> dict[str, dict]:
    """Convert a workflow of plain nodes (no subgraphs, none muted or bypassed) to the API format."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): _api_node(node, object_info, sources)
        for node in workflow["nodes"]
        if node["type"] not in NOTES
    }


def _api_node(node: dict, object_info: dict[str, dict], sources: dict[int, list]) -> dict:
    if node["type"] not in object_info:
        raise ValueError(f"node {node['id']} has the unknown type {node['type']}")
    if node.get("mode", 0) != 0:
        raise ValueError(f"node {node['id']} ({node['type']}) is muted or bypassed")
    info = object_info[node["type"]]
    names = widget_names(info)
    values = node.get("widgets_values", [])
    if len(values) > len(names):
        raise ValueError(f"{node['type']} has the widgets {names} but the file holds {values}")
    # A file older than the node's latest widgets has no value for them: they keep their defaults.
    inputs = {name: default_value(info, name) for name in names[len(values) :] if name is not None}
    inputs |= {name: value for name, value in zip(names, values, strict=False) if name is not None}
    for slot in node.get("inputs", []):
        if slot.get("link") is not None:
            inputs[slot["name"]] = sources[slot["link"]]
    title = node.get("title") or info.get("display_name") or node["type"]
    return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}


def input_specs(info: dict) -> dict[str, tuple]:
    """Each input's (type, options, required) in the order of the node's definition."""
    specs = {}
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            specs[name] = (spec[0], options, section == "required")
    return specs


def is_widget(kind, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput", False)


def widget_names(info: dict) -> list[str | None]:
    """Names of the stored widget values by position; None for values that are not inputs of the node."""
    names, uploads = [], 0
    for name, (kind, options, _) in input_specs(info).items():
        if not is_widget(kind, options):
            continue
        names.append(name)
        if _has_control(name, kind, options):
            names.append(None)
        uploads += any(options.get(key) for key in UPLOADS)
    return names + [None] * uploads


def default_value(info: dict, name: str):
    kind, options, _ = input_specs(info)[name]
    choices = kind if isinstance(kind, list) else options.get("options") or [""]
    return options.get("default", choices[0])


def _has_control(name: str, kind, options: dict) -> bool:
    # The frontend gives every integer of these two names the control, whatever the definition says.
    return bool(options.get("control_after_generate")) or (kind == "INT" and name in ("seed", "noise_seed"))
