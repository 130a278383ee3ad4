"""Everything on BENCHMARKS.md in one command.

    python -m benchmarks.all --device cuda --comfyui ~/ComfyUI --write     on a GPU with 80 GB: some hours
    python -m benchmarks.all --comfyui ~/ComfyUI --write                   on a CPU
    python -m benchmarks.all --quick                                       only tries the commands, in minutes

Each part is a command of its own, in a process of its own; what it does is said at its top. A part that fails is
reported at the end and stops no other. Needs what the tests need; `--python` names the Python that runs ComfyUI, if
that is another one. `--scratch` keeps the random weights of the ComfyUI parts (44 GB) for the next time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .page import PAGE, write_section
from .processes import ROOT


@dataclass(frozen=True)
class Part:
    """A command. `quick` are its arguments when it is only tried. It writes its numbers to the page itself, those of a
    CPU with `writes_cpu`; or all that it prints on a GPU goes to the page's `section`."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    takes_device: bool = True
    needs_comfyui: bool = False
    needs_gpu: bool = False
    writes_cpu: bool = True
    section: str = ""


PARTS = (
    Part("speed", "benchmarks.speed", ("--profile",), ("--profile", "--quick", "--pairs", "1")),
    Part("speed compiled", "benchmarks.speed", ("--compile",), needs_gpu=True),
    Part("options", "benchmarks.options", (), ("--chunks", "1"), section="options cuda"),
    Part("vae", "benchmarks.vae", (), ("--rounds", "1")),
    Part("budgets", "benchmarks.budgets", (), ("--rounds", "1"), needs_comfyui=True, writes_cpu=False),
    Part("comfyui", "benchmarks.comfyui", (), ("--rounds", "1"), needs_comfyui=True, writes_cpu=False),
    Part("growth", "benchmarks.growth", (), ("--chunks", "15"), takes_device=False),
)


@dataclass(frozen=True)
class Setup:
    device: str
    comfyui: Path | None
    python: str
    scratch: Path | None
    quick: bool
    write: bool

    def why_not(self, part: Part) -> str:
        """Why a part cannot run here, or ""."""
        if find_spec(part.module) is None:
            return f"there is no {part.module}"
        if part.needs_comfyui and self.comfyui is None:
            return "it needs --comfyui"
        if part.needs_gpu and (self.device == "cpu" or self.quick):
            return "it needs a GPU"
        return ""

    def command(self, part: Part) -> list[str]:
        arguments = list(part.quick if self.quick else part.arguments)
        if part.takes_device:
            arguments += ["--device", self.device]
        if part.needs_comfyui:
            arguments += ["--comfyui", str(self.comfyui), "--python", self.python]
            if self.scratch is not None:
                arguments += ["--models" if part.name == "comfyui" else "--scratch", str(self.scratch)]
        if self.write and not part.section and (part.writes_cpu or self.device != "cpu"):
            arguments.append("--write")
        # It drives the server through packages that come with ComfyUI's tests.
        python = self.python if part.name == "comfyui" else sys.executable
        return [python, "-m", part.module, *arguments]


def run(part: Part, setup: Setup) -> str:
    """Run a part, showing what it prints. Returns what went wrong, or ""."""
    reason = setup.why_not(part)
    if reason:
        return f"not run: {reason}"
    command = setup.command(part)
    print(f"\n== {part.name}: {' '.join(command)}", flush=True)
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode != 0:
        return f"ended with code {process.returncode}"
    if setup.write and part.section and setup.device != "cpu":
        write_section(PAGE, part.section, "".join(lines).strip())
    return ""


def run_all(parts: Sequence[Part], setup: Setup) -> list[str]:
    """A line about each part: how long it took, or what went wrong."""
    verdicts = []
    for part in parts:
        start = time.monotonic()
        try:
            fault = run(part, setup)
        except (OSError, ValueError) as error:  # no such Python; no place on the page
            fault = str(error)
        verdicts.append(f"{part.name}: {fault or f'done in {time.monotonic() - start:.0f} s'}")
    return verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--comfyui", type=Path, help="a checkout; without one the parts in ComfyUI are left out")
    parser.add_argument("--python", default=sys.executable, help="that runs it")
    parser.add_argument("--scratch", type=Path, help="folder where random weights are kept")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round, on the CPU; not for the page")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.quick and (options.write or options.device != "cpu"):
        parser.error("--quick only tries the commands, on the CPU: it goes with neither --write nor --device cuda")
    chosen = [part for part in PARTS if options.only is None or part.name in options.only]
    names = ("device", "comfyui", "python", "scratch", "quick", "write")
    verdicts = run_all(chosen, Setup(**{name: getattr(options, name) for name in names}))
    print("\n".join(["", *verdicts]))
    return int(any(": done in " not in verdict for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
