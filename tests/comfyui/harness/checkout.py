"""Finds the ComfyUI checkout that the tests run against, or says why there is none."""

import importlib.util
import os
from pathlib import Path

PACK = Path(__file__).resolve().parents[3]
# Packages of ComfyUI's own requirements that a plain development environment does not have.
MARKER_PACKAGES = ("aiohttp", "alembic", "torchsde")


def find_checkout() -> tuple[Path | None, str]:
    """Return (the checkout, "") or (None, one line that says why the tests cannot run)."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        checkout = Path(named).expanduser().resolve()
        if not _is_checkout(checkout):
            return None, f"COMFYUI_PATH={named} holds no ComfyUI (no main.py and nodes.py there)"
    else:
        checkout = PACK.parent.parent
        if PACK.parent.name != "custom_nodes" or not _is_checkout(checkout):
            return None, "set COMFYUI_PATH to a ComfyUI checkout (or have the pack itself in its custom_nodes folder)"
    missing = [name for name in MARKER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return None, f"run them with the Python environment of {checkout}: {', '.join(missing)} not installed"
    return checkout, ""


def _is_checkout(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()
