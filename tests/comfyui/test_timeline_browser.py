"""The timeline of Helios Prompt Schedule in ComfyUI's own frontend, by mouse and by keyboard.

Set HELIOS_SCREENSHOTS to a folder to keep pictures of it.
"""

import json
import os
from pathlib import Path

import pytest
from harness.browser import Page, chromium, find_chromium
from harness.samples import read_workflow

EXECUTABLE = find_chromium()
if EXECUTABLE is None:
    pytest.skip("no Chromium found (set CHROMIUM to one)", allow_module_level=True)
pytest.importorskip("playwright", reason="playwright is not installed")

TEXT = "# the opening\n0s: a fox in the snow\n5.5s blend 3: it looks up\nchunk 9 blend 4: night falls\nend 20.625s\n"
HOSTILE = '<img src=x onerror="window.pwned = 1"><script>window.pwned = 1</script>'


class TimelinePage:
    """A page with one Helios Prompt Schedule, and what a user can do to its timeline."""

    def __init__(self, page, server):
        self.harness = Page(page, server)
        self.page = page

    def start(self, text: str = TEXT) -> None:
        """A new graph with one node that has this text."""
        self.page.evaluate(
            """() => {
                for (const node of [...app.graph._nodes]) app.graph.remove(node)
                const node = LiteGraph.createNode('HeliosPromptSchedule')
                node.pos = [40, 60]
                app.graph.add(node)
                window.created = node
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [260, 40]
                app.canvas.setDirty(true, true)
            }"""
        )

        self.page.wait_for_selector(".helios-timeline .block")
        self.type_text(TEXT)
        self.chunk_width = self.block(0).bounding_box()["width"] / 4  # on the screen; the first block has four
        self.type_text(text)

    def type_text(self, text: str) -> None:
        """Change the text widget as typing in it does."""
        self.page.evaluate(
            """(text) => {
                const widget = app.graph._nodes[0].widgets.find(w => w.name === 'text')
                widget.value = text
                widget.callback?.(text)
            }""",
            text,
        )
        self.page.wait_for_timeout(100)

    @property
    def text(self) -> str:
        return self.page.evaluate("() => app.graph._nodes[0].widgets.find(w => w.name === 'text').value")

    def block(self, number: int):
        return self.page.locator(".helios-timeline .block").nth(number)

    def drag(self, locator, chunks: float) -> None:
        box = locator.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        by = chunks * self.chunk_width
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by / 2, y, steps=3)
        self.page.mouse.move(x + by, y, steps=3)
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(60)  # ComfyUI's own undo would act on the next frame

    @property
    def note(self) -> str:
        note = self.page.locator(".helios-timeline .note")
        return note.inner_text() if note.is_visible() else ""

    @property
    def version(self) -> str:
        """Of the frontend, such as 1.37.11."""
        return self.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")

    def screenshot(self, name: str, tmp_path: Path) -> None:
        folder = Path(os.environ.get("HELIOS_SCREENSHOTS", tmp_path))
        self.page.mouse.move(5, 400)
        self.page.wait_for_timeout(300)
        self.harness.screenshot(folder / f"{name}_{self.version}.png")


@pytest.fixture(scope="module")
def browser():
    with chromium(EXECUTABLE) as browser:
        yield browser


def open_page(browser, server, *, vue: bool, theme: str = "dark") -> TimelinePage:
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": theme})
    return TimelinePage(browser.new_page(viewport={"width": 1400, "height": 900}), server)


@pytest.fixture(scope="module", params=["classic nodes", "Vue nodes"])
def shared_page(request, browser, server):
    page = open_page(browser, server, vue=request.param == "Vue nodes")
    if request.param == "Vue nodes" and page.version.startswith("1.27."):
        server.post("/api/settings", {"Comfy.VueNodes.Enabled": False})
        page.page.close()
        pytest.skip("this frontend's experimental Vue nodes show no DOM widget of any pack; the text is edited there")
    yield page
    server.post("/api/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})
    page.page.close()


@pytest.fixture
def timeline(shared_page):
    shared_page.start()
    return shared_page


def test_a_new_node_shows_its_text_as_blocks(timeline, tmp_path):
    blocks = timeline.page.locator(".helios-timeline .block")
    assert blocks.count() == 3
    assert blocks.nth(1).get_attribute("aria-label") == (
        "Segment 2 of 3, 5.5 to 12.375 seconds, chunks 4 to 8, blends in over 3 chunks, linear. it looks up"
    )
    assert timeline.note == ""
    timeline.screenshot("timeline", tmp_path)


def test_dragging_a_block_moves_it_by_whole_chunks_and_changes_no_other_line(timeline):
    timeline.drag(timeline.block(1), 1.3)
    expected = "# the opening\n0s: a fox in the snow\n6.875s blend 3: it looks up\nchunk 10 blend 4: night falls\n"
    assert timeline.text == expected + "end 20.625s\n"


def test_dragging_borders_resizes(timeline):
    timeline.drag(timeline.block(1).locator(".grip.left"), -2)
    assert "\n2.75s blend 3: it looks up\nchunk 9 " in timeline.text
    timeline.drag(timeline.block(2).locator(".grip.right"), -1)
    assert timeline.text.endswith("end 19.25s\n")
    timeline.drag(timeline.block(0).locator(".grip.right"), -50)
    assert "\n1.375s blend 3: it looks up\n" in timeline.text


def test_a_drag_can_be_given_up_with_escape(timeline):
    box = timeline.block(1).bounding_box()
    timeline.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    timeline.page.mouse.down()
    timeline.page.mouse.move(box["x"] + box["width"] / 2 + 2 * timeline.chunk_width, box["y"] + 40, steps=3)
    timeline.press("Escape")
    timeline.page.mouse.up()
    assert timeline.text == TEXT


def test_keys_move_resize_split_duplicate_delete_and_take_back(timeline):
    timeline.block(1).click()
    timeline.press("ArrowRight", "Shift+ArrowLeft")
    moved = TEXT.replace("5.5s", "6.875s")
    assert timeline.text == moved
    timeline.press("s")
    assert "6.875s blend 3: it looks up\n9.625s: it looks up\nchunk 9" in timeline.text
    timeline.press("Delete", "ArrowUp", "d")
    assert timeline.page.locator(".helios-timeline .block").count() == 4
    timeline.press("Delete", "Control+z", "Control+z", "Control+z", "Control+z", "Control+z", "Control+z")
    assert timeline.text == TEXT
    timeline.press("Control+Shift+z", "Control+y")
    assert timeline.text == moved
    # ComfyUI's own undo would have loaded the graph again.
    assert timeline.page.evaluate("() => app.graph._nodes[0] === window.created")


def test_enter_edits_the_prompt_and_escape_leaves_it(timeline):
    timeline.block(0).click()
    timeline.press("ArrowDown", "Enter", "Control+a")
    timeline.page.keyboard.type("it sleeps\nand dreams")
    timeline.press("Escape")
    assert "5.5s blend 3: it sleeps\n    and dreams\nchunk 9" in timeline.text
    timeline.press("Control+z")
    assert timeline.text == TEXT
    assert timeline.page.evaluate("() => document.activeElement.getAttribute('aria-selected')") == "true"


def test_a_double_click_edits_the_prompt(timeline):
    timeline.block(1).dblclick()
    timeline.press("End")
    timeline.page.keyboard.type(" at last")
    assert "5.5s blend 3: it looks up at last\n" in timeline.text


def test_a_click_right_after_a_drag_chooses_the_block_and_is_no_double_click(timeline):
    timeline.drag(timeline.block(1), 1)
    timeline.block(1).click()
    assert timeline.page.evaluate("() => document.activeElement.getAttribute('aria-selected')") == "true"


def test_comfyui_takes_note_of_an_edit_for_its_drafts_and_its_own_undo(timeline):
    timeline.drag(timeline.block(1), 1)
    timeline.page.wait_for_timeout(600)
    state = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.activeState.nodes[0].widgets_values[0]"
    assert timeline.page.evaluate(state) == timeline.text


def test_fields_set_the_options_of_the_chosen_segment(timeline, tmp_path):
    timeline.block(2).click()
    fields = timeline.page.locator(".helios-timeline .fields")
    fields.locator("input.seed").fill("18446744073709551615")
    fields.locator("input.guidance").fill("4.5")
    fields.locator("input.anchor").fill("my dusk.png")
    fields.locator("input.anchor").press("Tab")
    fields.locator("select").select_option("spherical")
    expected = 'chunk 9 blend 4 spherical seed 18446744073709551615 guidance 4.5 anchor "my dusk.png": night falls'
    assert expected in timeline.text
    fields.locator("input.seed").fill("-1")
    fields.locator("input.seed").press("Tab")
    assert timeline.note == "seed is -1; it must be a whole number from 0 to 18446744073709551615"
    assert expected in timeline.text
    timeline.screenshot("timeline_options", tmp_path)


def test_a_segment_too_short_for_its_blend_is_flagged(timeline, tmp_path):
    timeline.type_text("0s: a fox in the snow\n5.5s blend 4: it looks up\nchunk 6: night falls")
    assert timeline.note == "Segment 2 is too short for the blend: the next prompt starts with a jump."
    assert "too-short" in timeline.block(1).get_attribute("class")
    timeline.screenshot("timeline_too_short", tmp_path)


def test_text_with_a_fault_is_reported_with_line_and_column_and_stays_as_it_is(timeline, tmp_path):
    broken = "0s: a fox\n5s blnd 2: it looks up"
    timeline.type_text(broken)
    assert timeline.note.startswith("line 2, column 4: expected blend, linear, spherical, step, seed, guidance, anchor")
    assert not timeline.block(0).is_visible()
    assert timeline.text == broken
    timeline.screenshot("timeline_fault", tmp_path)
    timeline.type_text(TEXT)
    assert timeline.note == ""
    assert timeline.block(0).is_visible()


@pytest.mark.parametrize(
    "text",
    [
        f"0s: {HOSTILE}\n5s: {HOSTILE}",
        HOSTILE,
        f'0s anchor "{HOSTILE.replace(chr(34), "")}": a',
        f"0s {HOSTILE}: a",
        "0s: " + HOSTILE * 1000,
        f"0s: \x00{HOSTILE}",
        f"-3s: {HOSTILE}",
        f'{{"segments": "{HOSTILE}"}}',
    ],
    ids=["prompts", "no start", "anchor", "option", "100 kB", "control character", "negative time", "JSON"],
)
def test_markup_in_a_schedule_never_becomes_an_element(timeline, text):
    timeline.type_text(text)
    root = timeline.page.locator(".helios-timeline")
    assert root.locator("img, script, a, iframe").count() == 0
    assert timeline.page.evaluate("() => window.pwned") is None
    assert timeline.text == text


def test_saving_and_loading_keep_text_and_timeline_and_values_stay_in_place(timeline):
    timeline.drag(timeline.block(1), 1)
    saved = timeline.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    (node,) = json.loads(saved)["nodes"]
    assert node["widgets_values"] == [timeline.text, 24, 3, "linear", ""]
    timeline.start("0s: something else")
    timeline.page.evaluate("async (saved) => await app.loadGraphData(JSON.parse(saved))", saved)
    timeline.page.wait_for_timeout(300)
    assert timeline.text == node["widgets_values"][0]
    assert timeline.page.locator(".helios-timeline .block").count() == 3
    assert "6.875 to" in timeline.block(1).get_attribute("aria-label")


def test_other_nodes_are_as_they_are_without_the_timeline(timeline):
    widgets = timeline.page.evaluate(
        """() => ['CLIPTextEncode', 'HeliosScheduleAdd', 'KSampler'].map(type =>
            LiteGraph.createNode(type).widgets.map(widget => widget.type)).flat()"""
    )
    assert "HELIOS_TIMELINE" not in widgets


def test_the_sample_workflow_is_edited_on_its_timeline_and_runs(shared_page, home, tmp_path):
    shared_page.harness.open(read_workflow("prompt_timeline"))
    shared_page.harness.set_widgets("HeliosContext", {"width": 128, "height": 64})
    shared_page.harness.set_widgets("HeliosChunkSampler", {"steps": "1,1,1"})
    prefix = f"timeline_{'vue' if shared_page.page.evaluate('() => !!LiteGraph.vueNodesMode') else 'classic'}"
    shared_page.harness.set_widgets("HeliosVideoCombine", {"filename_prefix": prefix})
    shared_page.harness.set_widgets("HeliosPromptSchedule", {"text": "0s: a fox\nchunk 1: it looks up\nend chunk 2\n"})
    shared_page.harness.fit_view()
    shared_page.screenshot("prompt_timeline", tmp_path)
    assert shared_page.harness.run() == "execution_success"
    assert list(home.output.glob(f"{prefix}*.mp4"))


def test_the_timeline_is_readable_in_the_light_theme(browser, server, tmp_path):
    page = open_page(browser, server, vue=False, theme="light")
    page.start()
    page.screenshot("timeline_light", tmp_path)
    colours = page.block(0).evaluate(
        "(block) => [getComputedStyle(block).color, getComputedStyle(block).backgroundColor]"
    )
    assert colours[0] != colours[1]
    server.post("/api/settings", {"Comfy.ColorPalette": "dark"})
    page.page.close()
