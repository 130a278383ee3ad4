"""Keep the sample workflows and the nodes of a release for tests/comfyui/test_old_graphs.py. Run at each release:

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python tools/freeze_graphs.py 0.2.0

A folder of tests/comfyui/old_graphs that is there already is never written again: what a release promised stays.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK / "tests" / "comfyui"))

from harness.checkout import find_checkout  # noqa: E402
from harness.graph import input_specs, widget_names  # noqa: E402
from harness.home import make_home  # noqa: E402
from harness.inprocess import ComfyUI  # noqa: E402


def describe(info: dict) -> dict:
    """What a saved graph relies on: input names, stored widgets by position, and the types of the outputs."""
    return {
        "inputs": list(input_specs(info)),
        "required": [name for name, (_, _, required) in input_specs(info).items() if required],
        "widgets": widget_names(info),
        "outputs": list(info["output"]),
    }


def main(version: str) -> None:
    checkout, why_not = find_checkout()
    if checkout is None:
        raise SystemExit(why_not)
    folder = PACK / "tests" / "comfyui" / "old_graphs" / version
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as root:
        info = ComfyUI(make_home(Path(root) / "home", checkout)).object_info()
    nodes = {name: describe(info[name]) for name in sorted(info) if name.startswith("Helios")}
    (folder / "nodes.json").write_text(json.dumps(nodes, indent=1) + "\n")
    for workflow in sorted((PACK / "workflows").glob("*.json")):
        shutil.copy(workflow, folder)


if __name__ == "__main__":
    main(sys.argv[1])
