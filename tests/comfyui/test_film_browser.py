"""What a node that previews and saves shows when its run is over, in both of the frontend's renderers.

Set HELIOS_SCREENSHOTS to a folder to keep pictures of it.
"""

import os
from pathlib import Path

import pytest
from harness.browser import Page, chromium, find_chromium
from harness.samples import read_workflow

EXECUTABLE = find_chromium()
if EXECUTABLE is None:
    pytest.skip("no Chromium found (set CHROMIUM to one)", allow_module_level=True)
pytest.importorskip("playwright", reason="playwright is not installed")

NODE = "app.graph._nodes.find(node => node.type === 'HeliosLongVideo')"
CLASSIC, VUE = {"Comfy.VueNodes.Enabled": False}, {"Comfy.VueNodes.Enabled": True}

# Of the node's own part of the page: every video that is loaded, and whether anything of a preview is left.
SHOWN_CLASSIC = f"""() => {{
    const node = {NODE}
    const film = node.widgets.find(widget => widget.name === 'video-preview')?.element?.querySelector('video')
    return {{film: film && film.readyState >= 2 && film.offsetHeight > 0 ? film.currentSrc : '',
             live: (node.imgs?.length ?? 0) + Object.keys(app.nodePreviewImages).length
                   + node.widgets.filter(widget => /^[$][$](canvas-image|comfy_animation)/.test(widget.name)).length}}
}}"""
SHOWN_VUE = f"""() => {{
    const element = document.querySelector(`[data-node-id="${{{NODE}.id}}"]`)
    const film = [...element.querySelectorAll('video')].find(video => !video.closest('.helios-strip'))
    return {{film: film && film.readyState >= 2 && film.offsetHeight > 0 ? film.currentSrc : '',
             live: element.querySelectorAll('img[src^="blob:"]').length
                   + element.innerText.toLowerCase().includes('failed to load')}}
}}"""


@pytest.fixture(scope="module")
def browser():
    with chromium(EXECUTABLE) as browser:
        yield browser


@pytest.mark.parametrize(("settings", "shown"), [(CLASSIC, SHOWN_CLASSIC), (VUE, SHOWN_VUE)], ids=["classic", "vue"])
def test_the_finished_film_takes_the_place_of_the_live_preview_run_after_run(
    browser, server, settings, shown, tmp_path
):
    server.post("/api/settings", settings)
    page = browser.new_page(viewport={"width": 1400, "height": 1400})
    try:
        harness = Page(page, server)
        version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        if settings is VUE and version.startswith("1.27."):
            pytest.skip("this frontend's experimental Vue nodes show no output of any node")
        harness.open(read_workflow("long_t2v"))
        harness.set_widgets("HeliosContext", {"width": 128, "height": 64})
        name = f"film {'vue' if settings is VUE else 'classic'}"
        small = {"seconds": 0, "chunks": 1, "steps": "2,1,1", "run_name": name, "filename_prefix": name}
        harness.set_widgets("HeliosLongVideo", small)
        page.evaluate(
            f"""() => {{
                app.canvas.ds.scale = 0.8
                app.canvas.ds.offset = [400 - {NODE}.pos[0], 60 - {NODE}.pos[1]]
                app.canvas.setDirty(true, true)
                window.previews = 0
                app.api.addEventListener('b_preview_with_metadata', () => window.previews++)
            }}"""
        )
        page.wait_for_timeout(300)
        for take in (1, 2):
            harness.set_widgets("HeliosLongVideo", {"seed": take})
            before = page.evaluate("() => window.previews")
            assert harness.run() == "execution_success"
            assert page.evaluate("() => window.previews") > before
            file = f"{name}_{take:05}_.mp4".replace(" ", "+")
            page.wait_for_function(
                f"(file) => {{ const shown = ({shown})(); return shown.film.includes(file) && !shown.live }}",
                arg=file,
            )
            page.wait_for_timeout(1500)  # what the page still had to load came and changed nothing
            now = page.evaluate(shown)
            assert file in now["film"]
            assert not now["live"]
        folder = Path(os.environ.get("HELIOS_SCREENSHOTS", tmp_path))
        harness.screenshot(folder / f"{name}_{version}.png")
    finally:
        page.close()
        server.post("/api/settings", CLASSIC)
