"""The strip of chunks on Helios Long Video in ComfyUI's own frontend: run, re-roll, run again, branch, reload.

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

SMALL = {"seconds": 0, "chunks": 3, "steps": "1,1,1"}


class StripPage:
    """A page with the long_t2v workflow made small, and what a user can do to its strip."""

    def __init__(self, page, server):
        self.page = page
        self.server = server
        self.harness = Page(page, server)

    def open(self, run_name: str) -> None:
        self.harness.open(read_workflow("long_t2v"))
        self.harness.set_widgets("HeliosContext", {"width": 128, "height": 64})
        self.harness.set_widgets("HeliosLongVideo", SMALL | {"run_name": run_name, "filename_prefix": run_name})
        self.show_node()

    def show_node(self) -> None:
        self.page.evaluate(
            """() => {
                const node = app.graph._nodes.find(node => node.type === 'HeliosLongVideo')
                app.canvas.ds.scale = 0.8
                app.canvas.ds.offset = [400 - node.pos[0], 60 - node.pos[1]]
                app.canvas.setDirty(true, true)
            }"""
        )
        self.page.wait_for_selector(".helios-strip")
        self.page.wait_for_timeout(300)

    def run(self) -> None:
        assert self.harness.run() == "execution_success"
        self.page.wait_for_timeout(300)

    @property
    def tiles(self):
        return self.page.locator(".helios-strip").first.locator(".tile")

    @property
    def states(self) -> list[str]:
        return self.tiles.evaluate_all("(tiles) => tiles.map(tile => tile.className.split(' ')[1])")

    @property
    def files(self) -> list[str]:
        """What each tile plays."""
        return self.page.evaluate(
            """async () => {
                const history = Object.values(await (await app.api.fetchApi('/history')).json())
                const runs = history.flatMap(({outputs}) => Object.values(outputs)).filter(o => o.helios_run)
                return runs.at(-1).helios_run[0].chunks.map(chunk => chunk.filename)
            }"""
        )

    def widget(self, name: str):
        return self.page.evaluate(
            """(name) => app.graph._nodes.find(node => node.type === 'HeliosLongVideo')
                .widgets.find(widget => widget.name === name).value""",
            name,
        )

    def saved_values(self) -> list:
        """widgets_values of the node as a saved workflow has them."""
        return self.page.evaluate(
            "() => app.graph.serialize().nodes.find(node => node.type === 'HeliosLongVideo').widgets_values"
        )

    def press(self, name: str) -> None:
        self.page.locator(".helios-strip").first.get_by_role("button", name=name).click()

    @property
    def version(self) -> str:
        return self.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")

    def screenshot(self, name: str, tmp_path: Path) -> None:
        folder = Path(os.environ.get("HELIOS_SCREENSHOTS", tmp_path))
        self.page.wait_for_timeout(300)
        self.harness.screenshot(folder / f"{name}_{self.version}.png")


@pytest.fixture(scope="module")
def strip(server):
    with chromium(EXECUTABLE) as browser:
        server.post("/api/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        yield StripPage(page, server)


def test_chunks_are_shown_played_rerolled_and_only_later_ones_are_made_again(strip, tmp_path):
    strip.open("strip reroll")
    assert strip.states == []
    strip.run()
    assert strip.states == ["done"] * 3
    assert strip.page.locator(".helios-strip .tile img:not([hidden])").count() == 3
    first = strip.files

    strip.tiles.nth(1).click()
    strip.page.wait_for_function("() => document.querySelector('.helios-strip video').readyState >= 2")
    assert first[1] in strip.page.locator(".helios-strip video").get_attribute("src")
    strip.screenshot("strip_done", tmp_path)

    strip.press("Give this chunk another seed; later ones keep theirs (R)")
    text = strip.widget("reroll")
    assert text.startswith("1:")
    assert text[2:].isdecimal()
    assert strip.states == ["done", "stale", "stale"]
    strip.screenshot("strip_stale", tmp_path)

    strip.run()
    assert strip.states == ["done"] * 3
    again = strip.files
    assert again[0] == first[0]
    assert not set(again[1:]) & set(first)
    strip.screenshot("strip_again", tmp_path)


def test_keys_choose_play_and_redo_a_chunk(strip):
    strip.harness.set_widgets("HeliosLongVideo", {"reroll": "1:4, 2:5"})
    strip.tiles.nth(1).focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        strip.page.keyboard.press(key)
    assert strip.tiles.nth(1).get_attribute("aria-selected") == "true"
    assert strip.page.locator(".helios-strip video").is_visible()
    strip.page.keyboard.press("Escape")
    assert not strip.page.locator(".helios-strip video").is_visible()
    strip.page.keyboard.press("d")
    text = strip.widget("reroll")
    assert text.startswith("1:")
    assert "," not in text


def test_an_edit_of_the_prompt_makes_every_chunk_stale(strip):
    strip.harness.set_widgets("CLIPTextEncode", {"text": "a wolf in the snow"})
    strip.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    strip.page.wait_for_timeout(100)
    assert strip.states == ["stale"] * 3


def test_a_branch_is_plain_nodes_and_makes_the_rest_of_the_video(strip, tmp_path):
    strip.open("strip branch")
    strip.run()
    strip.tiles.nth(1).focus()
    strip.page.keyboard.press("b")
    nodes = strip.page.evaluate(
        """() => app.graph._nodes.filter(n => ['HeliosRewindMemory', 'HeliosLongVideo'].includes(n.type))
                .sort((a, b) => a.id - b.id).map(n =>
            [n.widgets.filter(w => ['run_name', 'chunks', 'take', 'seconds'].includes(w.name)).map(w => w.value),
             n.inputs.filter(i => i.link != null).map(i => i.name)])"""
    )
    (original, linked), (rewind, _), (copy, copied) = nodes
    assert original == ["strip branch", 3, 0]
    assert rewind == ["strip branch", 2, 0]
    assert copy == ["strip branch", 1, 0]
    assert copied == linked
    strip.harness.fit_view()
    strip.screenshot("strip_branch", tmp_path)
    strip.run()
    second = strip.page.locator(".helios-strip").nth(1).locator(".tile")
    assert second.count() == 1
    assert "Chunk 2 of 2 to 2" in second.get_attribute("aria-label")


def test_the_strip_is_not_saved_and_comes_back_after_a_reload(strip, tmp_path):
    strip.open("strip reload")
    (original,) = [node for node in read_workflow("long_t2v")["nodes"] if node["type"] == "HeliosLongVideo"]
    expected = list(original["widgets_values"])
    expected[0], expected[3], expected[4], expected[5], expected[12] = "strip reload", 3, 0, "1,1,1", "strip reload"
    assert strip.saved_values() == expected
    strip.run()
    # After a run ComfyUI's own preview widgets stand behind the strip and save values of theirs.
    assert strip.saved_values()[: len(expected)] == expected

    workflow = strip.page.evaluate("() => app.graph.serialize()")
    strip.page.reload()
    strip.page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    strip.harness.open(workflow)
    strip.show_node()
    strip.page.wait_for_selector(".helios-strip .tile.done", timeout=5000)
    assert strip.states == ["done"] * 3
    strip.screenshot("strip_reload", tmp_path)


def test_no_error_was_told_to_the_console(strip):
    assert [error for error in strip.harness.errors if "helios" in error.lower()] == []
