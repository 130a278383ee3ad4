"""Settings for all tests."""

from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent


class PackIsNotATestPackage:
    """Keep pytest from importing the pack's own __init__.py, which only ComfyUI can import."""

    @pytest.hookimpl
    def pytest_collect_directory(self, path, parent):
        if path == PACK:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_configure(config):
    # As a plugin, because a conftest's own hooks are not asked about the directories above it.
    config.pluginmanager.register(PackIsNotATestPackage())
