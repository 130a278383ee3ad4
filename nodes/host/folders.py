"""Where the pack keeps what it makes, inside ComfyUI's own output folder, and finds what it reads."""

import logging
import os
import re
import time
from pathlib import Path

import folder_paths

from ...helios_core.files import UNFINISHED_BYTES, check_file_name
from ...helios_core.typed import visible
from .file_names import expand_name, without_tokens

logger = logging.getLogger(__name__)

MEMORY_SUFFIX = ".helios.safetensors"
_RUN_NAME = re.compile(r"[\w][\w .-]{0,99}")
_COUNTER_BYTES = len("_00001_")
_LONGEST_SUFFIX = len(MEMORY_SUFFIX)
_LIST_SECONDS = 2.0  # for which a list of files is good: ComfyUI asks for it several times in a row
_listed: dict[str, tuple[float, list[str]]] = {}


def runs_root() -> Path:
    """The folder of all run folders."""
    return Path(folder_paths.get_output_directory()) / "helios_runs"


def run_path(name: str, hidden=None) -> Path:
    """The run folder of that name, in which %..% stand for what they do in file names (`hidden` are the node's hidden
    inputs). Raises ValueError for a name that is not a plain folder name."""
    name = without_tokens(name) if hidden is None else expand_name(name, hidden.prompt, hidden.extra_pnginfo)
    name = visible(name).strip()
    if not _RUN_NAME.fullmatch(name):
        raise ValueError(
            f"run name {name[:120]!r} must begin with a letter or digit and hold only letters, digits, spaces, '_', "
            "'-' and '.', at most 100"
        )
    check_file_name(name)
    return runs_root() / name


# What is written


def check_prefix(prefix: str) -> None:
    """Raise ValueError for a filename prefix that `next_path` could not take, whatever its %..% stand for."""
    _place(without_tokens(prefix), _LONGEST_SUFFIX)


def next_path(prefix: str, suffix: str, width: int = 0, height: int = 0, hidden=None) -> tuple[Path, str]:
    """A free path in the output folder for a filename prefix of ComfyUI's kind, and its subfolder. `hidden` are the
    node's hidden inputs, for what stands between percent signs. Raises ValueError where it could not be written."""
    prompt, pnginfo = (None, None) if hidden is None else (hidden.prompt, hidden.extra_pnginfo)
    prefix = _place(expand_name(prefix, prompt, pnginfo, width=width, height=height), len(suffix))
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def _place(prefix: str, suffix_bytes: int) -> str:
    """The prefix relative to the output folder. Raises ValueError unless it names a file that can be there."""
    root = folder_paths.get_output_directory()
    plain = visible(prefix).strip().replace("\\", "/")
    whole = os.path.normpath(os.path.join(root, plain))
    if not plain or plain.endswith("/") or os.path.normpath(root) == whole:
        raise ValueError(f"filename_prefix {prefix[:120]!r} names no file; end it with a name's beginning: x/video")
    if not _is_inside(root, os.path.dirname(whole)):
        raise ValueError(
            f"filename_prefix {prefix[:120]!r} leads out of ComfyUI's output folder ({root}), and ComfyUI writes "
            "nothing elsewhere; give a name or a folder below it, or start ComfyUI with --output-directory"
        )
    relative = Path(os.path.relpath(whole, root))
    for part in relative.parts[:-1]:
        check_file_name(part)
    check_file_name(relative.name, room=_COUNTER_BYTES + suffix_bytes + UNFINISHED_BYTES)
    return relative.as_posix()


def _is_inside(root: str, path: str) -> bool:
    """Whether ComfyUI takes the path for one inside `root`: newer versions follow links before they look."""
    if hasattr(folder_paths, "is_within_directory"):
        return folder_paths.is_within_directory(root, path)
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


# What is read


def input_file(name: str, what: str) -> Path:
    """A file in ComfyUI's input folder. Raises ValueError when it is not there, or lies outside."""
    folder = Path(folder_paths.get_input_directory())
    path = folder / name
    if not _is_inside(str(folder), str(path)):
        raise ValueError(f"{what} {name!r} lies outside ComfyUI's input folder; put the file there and give its name")
    if not path.is_file():
        raise ValueError(f"{what} {name!r} is not in ComfyUI's input folder ({folder})")
    return path


def list_memories() -> list[str]:
    """Memory files in the output and input folders, as "output/..." or "input/..."; links to folders are followed, as
    in ComfyUI's model folders."""
    return sorted(
        f"{place}/{file}" for place, root in _memory_roots().items() for file in _files_below(str(root), MEMORY_SUFFIX)
    )


def _files_below(root: str, suffix: str) -> list[str]:
    """Paths below `root`, with "/", of the files that end so. Good for a moment; the tree is walked again after it."""
    before = _listed.get(root)
    if before is not None and time.monotonic() - before[0] < _LIST_SECONDS:
        return before[1]
    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link back to a folder around it
            subfolders.clear()
            continue
        seen.add(place)
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if name.endswith(suffix)]
    _listed[root] = (time.monotonic(), found)
    return found


def memory_path(name: str) -> Path:
    """Path of a memory file as `list_memories` names it. Raises ValueError for any other name."""
    place, _, rest = str(name).partition("/")
    root = _memory_roots().get(place)
    is_plain = rest.endswith(MEMORY_SUFFIX) and "\\" not in rest and not {"", ".", ".."} & set(rest.split("/"))
    path = root / rest if root is not None and is_plain and "\0" not in rest else None
    if path is None or not path.is_file():
        raise ValueError(
            f"there is no memory file {name!r}. Save one with Helios Save Memory, or put a *{MEMORY_SUFFIX} file into "
            "ComfyUI's input folder and press R to refresh"
        )
    return path


def _memory_roots() -> dict[str, Path]:
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }
