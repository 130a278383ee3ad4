"""Write the English names and tooltips of the nodes, and check that the other languages say something for each.

English is in the node definitions and nowhere else; `locales/en/nodeDefs.json` repeats it in the form that ComfyUI's
frontend reads. The other folders of `locales` are written by hand. From a running ComfyUI that has this pack:

    python tools/make_locales.py --server http://127.0.0.1:8188
"""

import argparse
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[1] / "locales"
SOURCE = "en"
NODES = "nodeDefs.json"
PREFIX = "Helios"


def english(object_info: dict[str, dict]) -> dict[str, dict]:
    """Node id -> its texts, from the node definitions as /object_info gives them. Keys are the frontend's."""
    return {name: _texts_of(info) for name, info in sorted(object_info.items()) if name.startswith(PREFIX)}


def _texts_of(info: dict) -> dict:
    inputs = {
        name: {"name": options.get("display_name") or name, "tooltip": options.get("tooltip") or ""}
        for section in ("required", "optional")
        for name, (_, options) in info["input"].get(section, {}).items()
    }
    # Without any tooltip ComfyUI leaves the list out; one that lacks its tooltip is None.
    tooltips = info.get("output_tooltips") or [None] * len(info["output"])
    outputs = {
        str(index): {"name": name, "tooltip": tooltip or ""}
        for index, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    texts = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return {**texts, "outputs": outputs} if outputs else texts


def leaves(texts: dict, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every text, as in ("HeliosLoader.inputs.variant.tooltip", "The three ...")."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def differences(source: dict, translation: dict) -> list[str]:
    """One line for each text that a translation lacks, leaves empty, or has for something that is no longer there."""
    wanted, given = dict(leaves(source)), dict(leaves(translation))
    lines = [f"{path} is missing" for path in wanted.keys() - given.keys()]
    lines += [f"{path} is not in the nodes" for path in given.keys() - wanted.keys()]
    lines += [f"{path} is empty" for path, text in given.items() if not text.strip()]
    return sorted(lines)


def write_english(object_info: dict[str, dict]) -> dict[str, dict]:
    """Write the English file and return what is in it."""
    texts = english(object_info)
    path = LOCALES / SOURCE / NODES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI that has this pack")
    with urllib.request.urlopen(parser.parse_args().server + "/object_info", timeout=60) as response:
        texts = write_english(json.load(response))
    faults = []
    for path in sorted(LOCALES.glob(f"*/{NODES}")):
        translation = json.loads(path.read_text(encoding="utf-8"))
        faults += [f"{path.parent.name}: {line}" for line in differences(texts, translation)]
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
