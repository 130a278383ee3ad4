"""Run as a program, in a process of its own: what the pack costs and changes when ComfyUI loads it.

    python clean_start.py <an empty folder>

Prints one JSON object: `seconds` of load_custom_node for the pack, with all of ComfyUI loaded, both of the processor
and on the wall clock; `imported`, modules of other libraries loaded with it; and `changed`, the names of callables and
class attributes of ComfyUI's modules that are others than before.
"""

import asyncio
import json
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.checkout import PACK, find_checkout
from harness.home import PACK_FOLDER, Home, make_home
from harness.inprocess import ComfyUI

HOST_MODULES = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "nodes", "execution", "server")
HOST_MODULES += ("folder_paths", "latent_preview", "app", "utils", "torch.nn.functional", "torch.nn.modules")


def is_host(name: str) -> bool:
    return name in HOST_MODULES or name.startswith(tuple(f"{module}." for module in HOST_MODULES))


def is_library(name: str) -> bool:
    return PACK_FOLDER not in name and name.split(".", maxsplit=1)[0] not in sys.stdlib_module_names


def snapshot() -> dict[str, int]:
    """Identity of every function, class and class attribute of the host's modules, by name."""
    found = {}
    for name, module in list(sys.modules.items()):
        if not is_host(name) or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                found[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                for attribute, item in list(vars(value).items()):
                    if callable(item) or isinstance(item, staticmethod | classmethod | property):
                        found[f"{name}.{key}.{attribute}"] = id(item)
    return found


def main(root: Path) -> None:
    checkout, _ = find_checkout()
    home: Home = make_home(root, checkout, with_pack=False)
    ComfyUI(home)
    import nodes

    before, modules = snapshot(), set(sys.modules)
    pack = home.custom_nodes / PACK_FOLDER
    pack.symlink_to(PACK, target_is_directory=True)
    wall, processor = time.perf_counter(), time.process_time()
    loaded = asyncio.run(nodes.load_custom_node(str(pack), module_parent="custom_nodes"))
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    after = snapshot()
    report = {
        "loaded": loaded,
        "seconds": seconds,
        "imported": sorted(name for name in set(sys.modules) - modules if is_library(name)),
        "watched": len(before),
        "changed": sorted(name for name, identity in before.items() if after.get(name) != identity),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
