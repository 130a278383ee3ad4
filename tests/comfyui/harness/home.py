"""A throw-away ComfyUI base directory, so that the checkout itself is never written to."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .checkout import PACK

PACK_FOLDER = "ComfyUI-Helios"


@dataclass(frozen=True)
class Home:
    """What `--base-directory` points to: models/, input/, output/, user/ and custom_nodes/."""

    root: Path
    checkout: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def custom_nodes(self) -> Path:
        return self.root / "custom_nodes"

    def saved_files(self, history: dict) -> list[Path]:
        """The files in output/ that a finished run's output nodes report."""
        entries = [
            entry
            for output in history["outputs"].values()
            for values in output.values()
            for entry in values
            if isinstance(entry, dict) and entry.get("type") == "output"
        ]
        return [self.output / entry["subfolder"] / entry["filename"] for entry in entries]


def make_home(root: Path, checkout: Path, *, with_pack: bool = True) -> Home:
    """Create a home whose custom_nodes holds the pack and the shrunken model classes (`tiny_models`).

    Without the pack it is a clean ComfyUI, to compare with.
    """
    home = _make_folders(root, checkout)
    if not with_pack:
        return home
    (home.custom_nodes / PACK_FOLDER).symlink_to(PACK, target_is_directory=True)
    tiny_models = Path(__file__).with_name("tiny_models")
    (home.custom_nodes / "tiny_models").symlink_to(tiny_models, target_is_directory=True)
    return home


def _make_folders(root: Path, checkout: Path) -> Home:
    home = Home(root, checkout)
    folders = [home.input, home.output, home.custom_nodes, root / "user", root / "temp"]
    folders += [home.models / name for name in ("diffusion_models", "text_encoders", "vae", "loras")]
    for folder in folders:
        folder.mkdir(parents=True)
    shutil.copy(checkout / "input" / "example.png", home.input)
    return home
