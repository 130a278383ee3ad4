"""Where the pack keeps what it makes, inside ComfyUI's own output folder."""

import re
from pathlib import Path

import folder_paths

MEMORY_SUFFIX = ".helios.safetensors"
_RUN_NAME = re.compile(r"[\w][\w .-]{0,99}")


def runs_root() -> Path:
    """The folder of all run folders."""
    return Path(folder_paths.get_output_directory()) / "helios_runs"


def run_path(name: str) -> Path:
    """The run folder of that name. Raises ValueError for a name that is not a plain folder name."""
    name = name.strip()
    if not _RUN_NAME.fullmatch(name):
        raise ValueError(
            f"run name {name!r} must begin with a letter or digit and hold only letters, digits, spaces, '_', '-' "
            "and '.', at most 100"
        )
    return runs_root() / name


def list_memories() -> list[str]:
    """Memory files in the output and input folders, as "output/..." or "input/..."."""
    return sorted(
        f"{place}/{file.relative_to(root).as_posix()}"
        for place, root in _memory_roots().items()
        if root.is_dir()
        for file in root.rglob(f"*{MEMORY_SUFFIX}")
    )


def memory_path(name: str) -> Path:
    """Path of a listed memory file. Raises ValueError for any other name."""
    if name not in list_memories():
        raise ValueError(
            f"there is no memory file {name!r}. Save one with Helios Save Memory, or put a *{MEMORY_SUFFIX} file into "
            "ComfyUI's input folder and press R to refresh"
        )
    place, _, rest = name.partition("/")
    return _memory_roots()[place] / rest


def next_path(prefix: str, suffix: str, width: int = 0, height: int = 0) -> tuple[Path, str]:
    """A free path in the output folder for a filename prefix of ComfyUI's kind, and its subfolder."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def _memory_roots() -> dict[str, Path]:
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }
