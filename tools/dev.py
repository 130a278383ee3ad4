#!/usr/bin/env python3
"""One command sets up everything and runs the demo, another one the tests. Needs Python 3.11+ and PyPI, nothing else.

    python3 tools/dev.py demo     a video from the embedded demo model, without ComfyUI and without downloads of weights
    python3 tools/dev.py test     all tests; with COMFYUI_PATH also those inside that ComfyUI (several: joined by ':')

Of several ComfyUI versions the newest runs all tests and the others those that depend on the version; with
`--every-version` all of them run all. What is installed goes into `.venv` and `.frontend` folders in this checkout; a
second run finds them ready.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
# Frameworks a ComfyUI checkout asks for without version; they are put beside whatever torch there is.
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
# Put on the newest ComfyUI by some tests: a version that no ComfyUI tested here brings.
NEXT_FRONTEND = "comfyui_frontend_package==1.58.1"
COMFYUI_TEST_PACKAGES = [
    "hypothesis", "playwright", "pytest", "pytest-timeout", "requests", "scikit-image", "websocket-client", "gguf",
]  # fmt: skip


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (said before anything else fails)
        sys.exit(f"Python {sys.version.split()[0]} is too old; Python 3.11 or newer is needed")
    command, *arguments = sys.argv[1:] or ["help"]
    match command:
        case "demo":
            return demo(arguments)
        case "test":
            return test(arguments)
        case _:
            print(__doc__)
            return 0 if command in ("help", "-h", "--help") else 2


def demo(arguments: list[str]) -> int:
    """The main job on the embedded default: prompts in, mp4 and contact sheet out. Further arguments are passed on."""
    python = environment(".venv", ["-r", str(ROOT / "requirements-core.txt")])
    return run([python, "-m", "helios_core", "demo", "--out", str(ROOT / "output"), *arguments])


def test(arguments: list[str]) -> int:
    """Core tests against diffusers, tests of web/, then the tests inside each ComfyUI that COMFYUI_PATH names."""
    every_version = "--every-version" in arguments
    arguments = [argument for argument in arguments if argument != "--every-version"]
    python = environment(".venv-test", ["-r", str(ROOT / "requirements-dev.txt")])
    without_comfyui = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    status = run([python, "-m", "ruff", "check", "."])
    status = check_types(python) or status
    status = run([python, "-m", "pytest", *arguments], env=without_comfyui) or status
    if node := shutil.which("node"):
        status = run([node, "--test", "tests/web"]) or status
    else:
        print("The tests of web/ are skipped: there is no node on this machine", flush=True)
    named = filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep))
    checkouts = sorted((Path(name).expanduser().resolve() for name in named), key=comfyui_version, reverse=True)
    for comfyui in checkouts:
        status = test_inside(comfyui, arguments, all_tests=every_version or comfyui is checkouts[0]) or status
    return status


def test_inside(comfyui: Path, arguments: list[str], *, all_tests: bool) -> int:
    """Run the tests inside one ComfyUI checkout: all, or those that depend on its version."""
    python = comfyui_environment(comfyui)
    env = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    if all_tests:
        env["COMFYUI_NEXT_FRONTEND"] = str(next_frontend(python))
    else:
        arguments = ["-m", "not newest_only", *arguments]
    print(f"Tests inside ComfyUI {'.'.join(map(str, comfyui_version(comfyui)))}, {comfyui}", flush=True)
    return run([python, "-m", "pytest", "tests/comfyui", *arguments], env=env)


def comfyui_version(comfyui: Path) -> tuple[int, ...]:
    """Of a ComfyUI checkout, such as (0, 33, 0)."""
    if not (comfyui / "main.py").is_file():
        sys.exit(f"COMFYUI_PATH names {comfyui}, which is no ComfyUI checkout (there is no main.py)")
    found = re.search(r'__version__ = "([\d.]+)', (comfyui / "comfyui_version.py").read_text())
    if not found:
        sys.exit(f"{comfyui / 'comfyui_version.py'} does not say which version of ComfyUI this is")
    return tuple(int(part) for part in found[1].strip(".").split("."))


def next_frontend(python: Path) -> Path:
    """The folder of NEXT_FRONTEND that ComfyUI's --front-end-root takes."""
    folder = ROOT / f".frontend-{NEXT_FRONTEND.split('==')[1]}"
    if not (folder / "ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--target", folder, NEXT_FRONTEND], check=True)
        (folder / "ready").touch()
    return folder / "comfyui_frontend_package" / "static"


def check_types(python: Path) -> int:
    """Type checker over core and nodes, in a copy: it takes folders for packages, and a checkout may have any name."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "helios_pack"
        for part in ("helios_core", "nodes"):
            shutil.copytree(ROOT / part, pack / part, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
        (pack / "__init__.py").touch()
        settings = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
        return run([python, "-m", "mypy", *settings, "helios_pack"], folder=Path(folder))


def environment(name: str, requirements: list[str], prepare=None) -> Path:
    """Python of the virtual environment `name`, made or brought up to date when its requirements have changed."""
    folder = ROOT / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    files = [Path(item).read_bytes() for item in requirements if item.endswith(".txt")]
    core = (ROOT / "requirements-core.txt").read_bytes()
    wanted = hashlib.sha256(b"\0".join([sys.version.encode(), repr(requirements).encode(), core, *files])).hexdigest()
    stamp = folder / "ready"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"Setting up {name} (once; a few minutes) ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True
        )
        if prepare is not None:
            prepare(python)
        stamp.write_text(wanted)
    return python


def comfyui_environment(comfyui: Path) -> Path:
    """Python of an environment with that ComfyUI's own requirements."""
    lines = (comfyui / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line.strip() and line.strip() not in TORCH_FAMILY and line[0] != "#"]
    return environment(f".venv-{comfyui.name}", [TORCH, *wanted, *COMFYUI_TEST_PACKAGES], add_torch_family)


def add_torch_family(python: Path) -> None:
    """Install torchvision and torchaudio beside whatever torch there is, and scikit-video for its sample clips only."""
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "torchvision==0.28.0", "torchaudio==2.11.0", "scikit-video==1.1.11"], check=True)
    if not imports(python, "torchaudio"):
        # The registry's is linked against CUDA. Without its library it imports, and lacks what no test here asks for.
        for library in (package_folder(python, "torchaudio") / "lib").glob("_torchaudio.*"):
            library.unlink()
    if imports(python, "torchvision"):
        return
    # The registry's torchvision is linked against CUDA. With a CPU torch its C++ operators do not load, which it
    # tolerates, but it then describes two operators that nobody has declared. So they are declared.
    file = package_folder(python, "torchvision") / "_meta_registrations.py"
    declare = "\n".join(
        f'torch.library.define("torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")'
        for name in ("nms", "qnms")
    )
    file.write_text(f"import torch\n{declare}\n{file.read_text()}")
    subprocess.run([python, "-c", "import torchvision, torchaudio"], check=True)


def imports(python: Path, package: str) -> bool:
    return subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def package_folder(python: Path, package: str) -> Path:
    where = f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    return Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())


def run(command: list, env: dict[str, str] | None = None, folder: Path = ROOT) -> int:
    return subprocess.run([str(part) for part in command], cwd=folder, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
