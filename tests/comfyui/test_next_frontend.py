"""A newer frontend than this ComfyUI brings, as its users get one: the workflows open and run, our widgets work.

Set COMFYUI_NEXT_FRONTEND to the folder `static` of a comfyui_frontend_package; tools/dev.py installs one.
"""

import os
from importlib import metadata

import pytest
from harness.browser import chromium
from harness.graph import to_api
from harness.samples import NAMES, read_clip, read_workflow
from harness.server import Server
from test_chunk_strip_browser import EXECUTABLE, USUAL, StripPage
from test_timeline_browser import TEXT, TimelinePage

FRONTEND = os.environ.get("COMFYUI_NEXT_FRONTEND")
if FRONTEND is None:
    pytest.skip("COMFYUI_NEXT_FRONTEND names no frontend", allow_module_level=True)


@pytest.fixture(scope="module")
def next_server(home, models):
    with Server(home, options=["--cpu", "--front-end-root", FRONTEND]) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium(EXECUTABLE) as browser:
        yield browser


@pytest.fixture(scope="module", params=["classic nodes", "Vue nodes"])
def open_page(request, browser, next_server):
    """open_page(): a page as playwright gives it, with nodes drawn on the canvas or built of elements."""
    next_server.post("/api/settings", USUAL | {"Comfy.VueNodes.Enabled": request.param == "Vue nodes"})
    pages = []

    def open_page():
        pages.append(browser.new_page(viewport={"width": 1400, "height": 1100}))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def strip(open_page, next_server):
    return StripPage(open_page(), next_server)


def prefix_of(strip) -> str:
    return f"next_{'vue' if strip.page.evaluate('() => !!LiteGraph.vueNodesMode') else 'classic'}"


def test_the_page_is_of_a_newer_frontend_than_comfyuis_own(strip):
    own = metadata.version("comfyui-frontend-package")
    assert [int(part) for part in strip.version.split(".")] > [int(part) for part in own.split(".")]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_workflow_opens_and_gives_the_graph_that_it_always_gave(name, strip, next_server):
    opened = strip.harness.open(read_workflow(name))
    assert opened.missing_nodes == []
    assert opened.prompt == to_api(read_workflow(name), next_server.object_info())


def test_chunks_are_shown_played_and_rerolled_on_the_strip(strip, tmp_path):
    strip.open(prefix_of(strip))
    strip.run()
    assert strip.states == ["done"] * 3
    strip.tiles.nth(1).click()
    strip.page.wait_for_function("() => document.querySelector('.helios-strip video').readyState >= 2")
    strip.press("Give this chunk another seed; later ones keep theirs (R)")
    assert strip.widget("reroll").startswith("1:")
    assert strip.states == ["done", "stale", "stale"]
    strip.screenshot("next_strip", tmp_path)


def test_the_demo_runs_from_the_page_and_the_page_shows_the_video(strip, home):
    strip.harness.open(read_workflow("demo_t2v"))
    prefix = f"{prefix_of(strip)}_demo"
    strip.harness.set_widgets("HeliosChunkSampler", {"chunks": 1})
    strip.harness.set_widgets("HeliosVideoCombine", {"filename_prefix": prefix})
    strip.run()
    (file,) = home.output.glob(f"{prefix}*.mp4")
    assert read_clip(file).frames.shape == (33, 64, 64, 3)
    strip.harness.fit_view()
    assert strip.harness.wait_for("video") is not None


def test_the_timeline_is_edited_by_mouse_and_keyboard_and_saved(open_page, next_server, tmp_path):
    timeline = TimelinePage(open_page(), next_server)
    timeline.start()
    timeline.drag(timeline.block(1), 1.3)
    moved = TEXT.replace("5.5s", "6.875s").replace("chunk 9", "chunk 10")
    assert timeline.text == moved
    timeline.block(1).click()
    timeline.press("ArrowRight", "Shift+ArrowLeft", "Control+z", "Control+z", "Control+z")
    assert timeline.text == TEXT
    saved = timeline.page.evaluate("() => app.graph.serialize().nodes[0].widgets_values")
    assert saved == [TEXT, 24, 3, "linear", ""]
    timeline.screenshot("next_timeline", tmp_path)


def test_no_error_of_the_pack_is_in_the_console(strip):
    assert [error for error in strip.harness.errors if "helios" in error.lower()] == []
