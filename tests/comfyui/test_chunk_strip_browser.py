"""The strip of chunks on Helios Long Video in ComfyUI's own frontend: run, re-roll, run again, branch, reload.

Set HELIOS_SCREENSHOTS to a folder to keep pictures of it.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest
from harness.browser import Page, chromium, find_chromium
from harness.samples import read_workflow

from helios_core.media.reader import read_video
from helios_core.run.run_folder import RunFolder

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

    def tell(self, event: str, payload: dict) -> None:
        """As if the server had sent it."""
        self.page.evaluate("([event, payload]) => app.api.dispatchCustomEvent(event, payload)", [event, payload])

    def show_run(self, chunks: list[dict], run_name: str = "shown", inputs: dict | None = None) -> None:
        """Have the strip show a run that never was, of the node's `inputs`; `chunks` are how they differ from queued
        ones."""
        node = self.page.evaluate("() => app.graph._nodes.find(node => node.type === 'HeliosLongVideo').id")
        about = {"node": str(node), "run_name": run_name, "take": 0, "first_chunk": 0, "num_chunks": len(chunks)}
        place = {"filename": None, "subfolder": None, "type": None}
        queued = {**about, **place, "state": "queued", "reused": False, "seconds_of_video": 1.375, "thumbnail": None}
        told = [{**queued, "chunk": number, **news} for number, news in enumerate(chunks)]
        self.tell("helios.run", {**about, "inputs": {str(node): inputs or {}}, "chunks": told})

    @property
    def thumbnails(self) -> list[str]:
        return self.tiles.locator("img").evaluate_all("(pictures) => pictures.map((picture) => picture.src)")

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


USUAL = {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark", "Comfy.Locale": "en"}
HOSTILE = '<img src=x onerror="window.pwned = 1"><script>window.pwned = 1</script>'


@pytest.fixture(scope="module")
def browser():
    with chromium(EXECUTABLE) as browser:
        yield browser


@pytest.fixture(scope="module")
def strip(browser, server):
    server.post("/api/settings", USUAL)
    return StripPage(browser.new_page(viewport={"width": 1400, "height": 1100}), server)


@pytest.fixture
def open_page(browser, server):
    """A page with other settings, which are as usual again afterwards."""
    pages = []

    def open_page(settings: dict) -> StripPage:
        server.post("/api/settings", USUAL | settings)
        pages.append(browser.new_page(viewport={"width": 1400, "height": 1100}))
        return StripPage(pages[-1], server)

    yield open_page
    server.post("/api/settings", USUAL)
    for page in pages:
        page.close()


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
    player = strip.page.locator(".helios-strip video")
    player.wait_for(state="visible")  # ComfyUI gives it its height when it draws the node anew
    strip.page.keyboard.press("Escape")
    player.wait_for(state="hidden")
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
    # The nodes' ids say nothing of their order: newer frontends give free numbers.
    nodes = strip.page.evaluate(
        """() => {
            const rewind = app.graph._nodes.find(n => n.type === 'HeliosRewindMemory')
            const goesOn = n => n.inputs.some((input, slot) => n.getInputNode(slot) === rewind)
            const [copy, original] = app.graph._nodes.filter(n => n.type === 'HeliosLongVideo')
                .sort((a, b) => goesOn(b) - goesOn(a))
            return [original, rewind, copy].map(n =>
                [n.widgets.filter(w => ['run_name', 'chunks', 'take', 'seconds'].includes(w.name)).map(w => w.value),
                 n.inputs.filter(i => i.link != null).map(i => i.name),
                 n.inputs.filter((input, slot) => n.getInputNode(slot) === rewind).map(i => i.name)])
        }"""
    )
    (original, linked, _), (rewind, _, _), (copy, copied, rewound) = nodes
    assert rewound == ["memory"]
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
    strip.page.wait_for_selector(".helios-strip .tile.done")
    assert strip.states == ["done"] * 3
    strip.screenshot("strip_reload", tmp_path)


@pytest.mark.newest_only
def test_twenty_chunks_with_the_page_open_and_with_no_page_are_the_same_file(strip, server, home):
    name = "strip twenty"
    strip.open(name)
    strip.harness.set_widgets("HeliosLongVideo", {"chunks": 20})
    assert strip.harness.run(timeout_s=400) == "execution_success"
    assert strip.states == ["done"] * 20
    runs = home.output / "helios_runs"
    (runs / name).rename(runs / f"{name} watched")
    (queued,) = [
        entry["prompt"] for entry in server.get("/history").values() if name in json.dumps(entry["prompt"][2])
    ]  # (number, id, graph, extra data, ...)
    # Or ComfyUI would find that it has made all this. A worker that still tidies up behind the last prompt misses one.
    for _ in range(3):
        server.post("/free", {"free_memory": True})
        time.sleep(1)
    # Without a client_id nobody is told anything; the graph that is kept in the file is the same.
    again = server.post("/prompt", {"prompt": queued[2], "extra_data": {"extra_pnginfo": queued[3]["extra_pnginfo"]}})
    deadline = time.monotonic() + 400
    while again["prompt_id"] not in server.get("/history"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert server.get("/history")[again["prompt_id"]]["status"]["status_str"] == "success"
    watched, alone = sorted(home.output.glob(f"{name}*.mp4"))
    assert read_video(watched).num_frames == 20 * 33
    assert watched.read_bytes() == alone.read_bytes()
    journal = RunFolder(runs / name).journal()
    assert sum(entry["record"] == "chunk" for entry in journal) == 20  # none was taken from disk


def test_every_state_of_a_chunk_has_a_word_and_a_border_of_its_own(strip, tmp_path):
    pictures = strip.thumbnails
    there = {"state": "done", "filename": "a.mp4", "subfolder": "", "type": "output"}
    strip.harness.set_widgets("HeliosLongVideo", {"reroll": "2:7"})
    strip.show_run(
        [{**there, "thumbnail": pictures[0]}, there, {**there, "thumbnail": pictures[2]}]
        + [{"state": state} for state in ("running", "stopped", "queued")],
        inputs={"seed": strip.widget("seed"), "reroll": ""},
    )
    assert strip.tiles.locator(".label span:last-child").all_inner_texts() == [
        "done", "done", "stale", "running", "stopped", "queued",
    ]  # fmt: skip
    borders = strip.tiles.evaluate_all(
        """(tiles) => tiles.map((tile) => getComputedStyle(tile))
            .map((style) => style.borderStyle + style.borderColor)"""
    )
    assert len(set(borders)) == 5
    strip.screenshot("strip_states", tmp_path)


def test_markup_in_what_a_run_reports_never_becomes_an_element(strip):
    news = dict.fromkeys(("state", "filename", "subfolder", "type", "thumbnail"), HOSTILE)
    strip.show_run([news, {**news, "state": "done"}], run_name=HOSTILE)
    strip.harness.set_widgets("HeliosLongVideo", {"reroll": f"1:{HOSTILE}"})
    strip.press("Give this chunk another seed; later ones keep theirs (R)")
    assert HOSTILE in strip.page.locator(".helios-strip .where").inner_text()
    root = strip.page.locator(".helios-strip")
    assert root.locator("script, a, iframe").count() == 0
    assert root.locator("img").count() == strip.tiles.count()
    assert strip.page.evaluate("() => window.pwned") is None


def test_in_vue_nodes_chunks_are_shown_played_and_rerolled_too(open_page, tmp_path):
    strip = open_page({"Comfy.VueNodes.Enabled": True})
    if strip.version.startswith("1.27."):
        pytest.skip("this frontend's experimental Vue nodes show no DOM widget of any pack")
    strip.open("strip vue")
    strip.run()
    assert strip.states == ["done"] * 3
    strip.tiles.nth(1).click()
    strip.page.wait_for_function("() => document.querySelector('.helios-strip video').readyState >= 2")
    strip.screenshot("strip_vue", tmp_path)
    strip.press("Give this chunk another seed; later ones keep theirs (R)")
    assert strip.widget("reroll").startswith("1:")
    assert strip.states == ["done", "stale", "stale"]


def test_the_strip_is_readable_in_the_light_theme(open_page, tmp_path):
    strip = open_page({"Comfy.ColorPalette": "light"})
    strip.open("strip branch")  # finished above
    strip.run()
    strip.harness.set_widgets("HeliosLongVideo", {"reroll": "2:5"})
    strip.screenshot("strip_light", tmp_path)
    for selector in (".helios-strip button", ".helios-strip .where"):
        colour = strip.page.locator(selector).first.evaluate("(element) => getComputedStyle(element).color")
        assert max(int(level) for level in re.findall(r"\d+", colour)[:3]) < 128  # dark on light


def test_strip_and_timeline_speak_chinese_when_comfyui_does(open_page, tmp_path):
    strip = open_page({"Comfy.Locale": "zh"})
    strip.open("strip branch")
    strip.run()
    strip.page.evaluate(
        """() => {
            const node = LiteGraph.createNode('HeliosPromptSchedule')
            node.pos = [app.graph._nodes.find(node => node.type === 'HeliosLongVideo').pos[0] + 460, 0]
            app.graph.add(node)
        }"""
    )
    strip.page.wait_for_selector(".helios-timeline .block")
    strip.screenshot("chinese", tmp_path)
    assert strip.page.locator(".helios-strip button").all_inner_texts() == ["▶ 播放", "重抽", "从此重做", "从此分支"]
    assert strip.page.locator(".helios-timeline button").all_inner_texts()[2:] == ["拆分", "复制", "删除"]
    assert strip.tiles.first.locator(".label span:last-child").inner_text() == "完成"


def test_no_error_was_reported_to_the_console(strip):
    assert [error for error in strip.harness.errors if "helios" in error.lower()] == []


def reload(strip, workflow: dict) -> None:
    strip.page.reload()
    strip.page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    strip.harness.open(workflow)
    strip.show_node()


def test_the_strip_comes_back_in_mid_run_after_a_cancelled_run_and_without_any_history(strip, server):
    strip.open("strip lost")
    strip.harness.set_widgets("HeliosLongVideo", {"chunks": 40, "steps": "8,8,8"})
    workflow = strip.page.evaluate("() => app.graph.serialize()")
    strip.page.evaluate("() => app.queuePrompt(0)")
    strip.page.wait_for_selector(".helios-strip .tile.done")

    reload(strip, workflow)
    strip.page.wait_for_selector(".helios-strip .tile.done")
    assert len(strip.states) == 40
    done = strip.states.count("done")
    strip.page.wait_for_function(
        "(done) => document.querySelectorAll('.helios-strip .tile.done').length > done", arg=done
    )  # and goes on

    server.interrupt()
    strip.page.wait_for_function("() => !document.querySelector('.helios-strip .tile.running')")
    server.post("/history", {"clear": True})
    reload(strip, workflow)
    strip.page.wait_for_selector(".helios-strip .tile.done")
    assert strip.states.count("done") > done
    assert "running" not in strip.states
    strip.tiles.nth(0).click()
    strip.page.wait_for_function("() => document.querySelector('.helios-strip video').readyState >= 2")
