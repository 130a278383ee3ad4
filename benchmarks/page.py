"""BENCHMARKS.md: the places in it that scripts write to, and what a number was measured on and by which command."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PAGE = Path(__file__).parent.parent / "BENCHMARKS.md"


def facts(device: torch.device, *more: str) -> str:
    """Date, device, what `more` says, and versions, on one line."""
    if device.type == "cuda":
        where = [torch.cuda.get_device_name(device)]
    else:
        threads = torch.get_num_threads()
        where = [f"{platform.machine()} CPU", f"{threads} thread{'s' if threads > 1 else ''}"]
    versions = [f"{name} {installed(name)}" for name in ("torch", "diffusers") if installed(name)]
    return ", ".join([str(date.today()), *where, *more, *versions])


def installed(package: str) -> str:
    """The version of a package, or "" if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def command_line(module: str, arguments: Iterable[str]) -> str:
    """How the numbers are made again: without `--write`, which only says where they go."""
    return " ".join([f"python -m benchmarks.{module}", *(a for a in arguments if a != "--write")])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def marks(page: Path, name: str) -> tuple[str, str]:
    """The lines between which a section stands. Raises ValueError when the page does not have them: ask before work."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text()
    if start not in text or end not in text:
        raise ValueError(f"{page} has no lines {start!r} and {end!r} to write between; run without --write")
    return start, end


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name. Raises ValueError when the page has no such marks."""
    start, end = marks(page, name)
    head, rest = page.read_text().split(start)
    page.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end)[1]}")
