"""The sample workflows in ComfyUI's own frontend.

Set HELIOS_SCREENSHOTS to a folder to keep a picture of each.
"""

import os
import re
from pathlib import Path

import pytest
from harness.browser import Page, chromium, find_chromium
from harness.graph import to_api
from harness.home import make_home
from harness.samples import NAMES, read_clip, read_workflow
from harness.server import Server

EXECUTABLE = find_chromium()
if EXECUTABLE is None:
    pytest.skip("no Chromium found (set CHROMIUM to one)", allow_module_level=True)
pytest.importorskip("playwright", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    with chromium(EXECUTABLE) as browser:
        yield browser


@pytest.fixture(scope="module")
def clean_server(home, tmp_path_factory):
    """The same ComfyUI without the pack. It starts while the tests of the other one run."""
    clean = make_home(tmp_path_factory.mktemp("clean") / "home", home.checkout, with_pack=False)
    server = Server(clean)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(clean_server, server, browser):
    return Page(browser.new_page(viewport={"width": 1600, "height": 900}), server)


@pytest.fixture(scope="module")
def errors_without_the_pack(browser, clean_server):
    """What a clean ComfyUI of this version complains about in this browser, when it loads a graph."""
    clean_server.wait_until_up()
    page = Page(browser.new_page(viewport={"width": 1600, "height": 900}), clean_server)
    page.open({"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4})
    return {_without_address(error) for error in page.errors}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_workflow_opens_with_no_missing_node_and_no_overlap(name, page, tmp_path):
    opened = page.open(read_workflow(name))
    assert opened.missing_nodes == []
    assert "missing" not in page.text().lower()
    assert _overlaps(opened.boxes) == []
    page.fit_view()
    page.screenshot(Path(os.environ.get("HELIOS_SCREENSHOTS", tmp_path)) / f"{name}.png")


@pytest.mark.parametrize("name", NAMES)
def test_the_frontend_makes_the_same_api_graph_of_a_workflow_as_our_converter(name, page, server):
    workflow = read_workflow(name)
    assert page.open(workflow).prompt == to_api(workflow, server.object_info())


def test_a_workflow_runs_from_the_page_and_the_page_shows_the_video(page, home):
    page.open(read_workflow("t2v"))
    page.set_widgets("HeliosContext", {"width": 128, "height": 64})
    page.set_widgets("HeliosChunkSampler", {"chunks": 1, "steps": "1,1,1"})
    page.set_widgets("HeliosVideoCombine", {"filename_prefix": "from_the_page"})
    assert page.run() == "execution_success"
    (file,) = home.output.glob("from_the_page*.mp4")
    assert read_clip(file).frames.shape == (33, 64, 128, 3)
    assert page.wait_for("video") is not None
    assert "from_the_page" in page.evaluate("() => document.querySelector('video').currentSrc")


def test_the_pack_adds_no_error_to_the_browsers_console(page, errors_without_the_pack):
    # What the tests above have brought up. The next one is refused, which the console shows.
    new = {_without_address(error) for error in page.errors} - errors_without_the_pack
    assert new == set()


def test_a_wrong_value_is_refused_with_its_reason_when_run_is_pressed(page):
    page.open(read_workflow("t2v"))
    page.set_widgets("HeliosChunkSampler", {"steps": "2;2;2"})
    answer = page.run()
    assert answer.startswith("rejected")
    assert "whole numbers" in answer


def _without_address(error: str) -> str:
    return re.sub(r"http://127\.0\.0\.1:\d+", "", error)


def _overlaps(boxes: dict[str, tuple[float, float, float, float]]) -> list[tuple[str, str]]:
    found = []
    items = list(boxes.items())
    for i, (first, (x, y, w, h)) in enumerate(items):
        for second, (x2, y2, w2, h2) in items[i + 1 :]:
            if x < x2 + w2 and x2 < x + w and y < y2 + h2 and y2 < y + h:
                found.append((first, second))
    return found
