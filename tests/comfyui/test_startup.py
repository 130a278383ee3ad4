"""The pack changes nothing of ComfyUI's and is loaded quickly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import clean_start
from harness.latents_graph import latents_graph

SECONDS = 0.3
RUNS = 3


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> list[dict]:
    """What `clean_start` printed, several times over."""
    found = []
    for number in range(RUNS):
        root = tmp_path_factory.mktemp("start") / str(number)
        command = [sys.executable, str(Path(clean_start.__file__)), str(root)]
        output = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
    return found


def test_loading_the_pack_replaces_no_function_and_no_class_of_comfyuis(starts):
    for start in starts:
        assert start["loaded"]
        assert start["watched"] > 5000
        assert start["changed"] == []


def test_the_pack_adds_less_than_a_third_of_a_second_to_the_start(starts, record_property):
    # Of the processor, and the least disturbed: the wall clock, which says the same on an idle machine, measures what
    # else a busy one does.
    seconds = min(start["seconds"]["processor"] for start in starts)
    record_property("seconds", seconds)
    assert seconds <= SECONDS


def test_the_pack_loads_no_library_that_comfyui_has_not_loaded_already(starts):
    assert [name for start in starts for name in start["imported"]] == []


def test_a_run_replaces_no_function_and_no_class_of_comfyuis(comfyui, models):
    before = clean_start.snapshot()
    result = comfyui.run_graph(latents_graph(comfyui.object_info()))
    assert result.success, result.error
    after = clean_start.snapshot()
    assert [name for name, identity in before.items() if after.get(name) != identity] == []
