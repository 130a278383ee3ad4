"""Written videos dropped on ComfyUI's own frontend open the graph that made them."""

import json

import pytest
from harness.browser import Page, chromium, find_chromium

from helios_core.media.formats import FORMATS

EXECUTABLE = find_chromium()
if EXECUTABLE is None:
    pytest.skip("no Chromium found (set CHROMIUM to one)", allow_module_level=True)
pytest.importorskip("playwright", reason="playwright is not installed")

# What a browser says of a file of that name.
MIME_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska"}


@pytest.fixture(scope="module")
def page(server):
    with chromium(EXECUTABLE) as browser:
        yield Page(browser.new_page(), server)


@pytest.fixture(scope="module")
def write(server, home):
    """write(format name) -> the file, made by ComfyUI from a graph whose prefix has unpaired braces."""

    def run(name):
        inputs = {"frame_rate": 24.0, "crf": 30, "filename_prefix": 'drop }{{ x', "format": name}
        graph = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
            "2": {"class_type": "HeliosVideoCombine", "inputs": {"images": ["1", 0], **inputs}},
        }
        history = server.run_graph(graph).history
        assert history["status"]["status_str"] == "success", history["status"]
        return max(home.output.glob("drop*"), key=lambda path: path.stat().st_mtime_ns)

    return run


def drop(page, path, name):
    """Hand a file of output/ to the frontend under a name; the prefix that the graph then shows, or None."""
    kind = MIME_TYPES[name[name.rindex(".") :]]
    return page.evaluate(
        f"""async () => {{
            await app.loadGraphData({{nodes: [], links: [], groups: [], config: {{}}, extra: {{}}, version: 0.4}})
            const answer = await fetch('/view?type=output&filename=' + encodeURIComponent({json.dumps(path.name)}))
            const file = new File([await answer.blob()], {json.dumps(name)}, {{type: {json.dumps(kind)}}})
            await app.handleFile(file)
            await new Promise((resolve) => setTimeout(resolve, 500))
            const node = app.graph._nodes.find((node) => node.type === 'HeliosVideoCombine')
            return node?.widgets.find((widget) => widget.name === 'filename_prefix').value ?? null
        }}"""
    )


@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if known.opens_workflow])
def test_a_dropped_video_opens_its_graph(name, write, page):
    path = write(name)
    assert drop(page, path, path.name) == 'drop }{{ x'


def test_a_master_in_mkv_opens_its_graph_once_it_is_named_webm(write, page):
    path = write("mkv (ffv1)")
    assert drop(page, path, "master.mkv") is None  # the frontend goes by the name
    assert drop(page, path, "master.webm") == 'drop }{{ x'
