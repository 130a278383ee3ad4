"""Opens workflows in ComfyUI's own frontend with a headless Chromium."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .server import Server

READY_MS = 120_000  # longest wait for anything on the page: a busy machine is no failure


def find_chromium() -> str | None:
    """The browser to use: $CHROMIUM, or the one on PATH."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class OpenedWorkflow:
    """What the frontend made of a workflow file."""

    missing_nodes: list[str]
    boxes: dict[str, tuple[float, float, float, float]]  # node title and id -> x, y, width, height
    prompt: dict  # as app.graphToPrompt() gives it, API format


class Page:
    """One browser page on a server, ready for use. Console errors and page errors are kept in `errors`."""

    def __init__(self, page, server: Server):
        self._page = page
        page.set_default_timeout(READY_MS)
        self.errors: list[str] = []
        page.on("console", self._keep_console_error)
        page.on("pageerror", lambda error: self.errors.append(f"pageerror: {error}"))
        # Without it the template browser opens on the first visit and covers everything.
        server.post("/api/settings", {"Comfy.TutorialCompleted": True})
        page.goto(server.url)
        # Ready once it has opened a workflow of its own: that would come over one opened before.
        page.wait_for_function("() => window.app?.vueAppReady && app.extensionManager?.workflow?.activeWorkflow")

    def _keep_console_error(self, message) -> None:
        if message.type == "error":
            address = message.location.get("url", "") if message.location else ""
            self.errors.append(f"console: {message.text} {address.split('?')[0]}".strip())

    def open(self, workflow: dict) -> OpenedWorkflow:
        """Load a workflow as if its file had been dropped on the page."""
        missing = self._page.evaluate(
            """async (text) => {
                const workflow = JSON.parse(text)
                await app.loadGraphData(workflow)
                return workflow.nodes.map(n => n.type).filter(t => !(t in LiteGraph.registered_node_types))
            }""",
            json.dumps(workflow),
        )
        self._page.wait_for_timeout(300)  # the canvas lays nodes out on its next frames
        boxes = self._page.evaluate(
            """() => JSON.stringify(Object.fromEntries(app.graph._nodes.map(n =>
                [`${n.title} (${n.id})`, Array.from(n.getBounding())])))"""
        )
        prompt = self._page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
        boxes = {name: tuple(box) for name, box in json.loads(boxes).items()}
        return OpenedWorkflow(missing, boxes, json.loads(prompt))

    def set_widgets(self, node_type: str, values: dict) -> None:
        """Type values into the widgets of every node of a type."""
        self._page.evaluate(
            """([type, values]) => {
                for (const node of app.graph._nodes.filter(n => n.type === type))
                    for (const widget of node.widgets ?? [])
                        if (widget.name in values) {
                            widget.value = values[widget.name]
                            widget.callback?.(widget.value)
                        }
            }""",
            [node_type, values],
        )

    def run(self, timeout_s: float = 120) -> str:
        """Press Run and wait for the end: the final event's name, with the error message if there is one."""
        return self._page.evaluate(
            """async (timeout) => {
                const end = new Promise((resolve) => {
                    for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
                        app.api.addEventListener(name, (event) =>
                            resolve([name, event.detail?.exception_message ?? ''].join(' ').trim()), {once: true})
                    setTimeout(() => resolve('timeout'), timeout)
                })
                await app.queuePrompt(0)
                if (Object.keys(app.lastNodeErrors ?? {}).length)
                    return 'rejected ' + JSON.stringify(app.lastNodeErrors)
                return await end
            }""",
            timeout_s * 1000,
        )

    def fit_view(self) -> None:
        self._page.evaluate("() => app.canvas.fitViewToSelectionAnimated({duration: 1})")
        self._page.wait_for_timeout(300)

    def wait_for(self, selector: str):
        """The first element that fits, once it is there. Raises playwright's TimeoutError after a while."""
        return self._page.wait_for_selector(selector, state="attached")

    def text(self) -> str:
        return self._page.inner_text("body")

    def evaluate(self, script: str):
        return self._page.evaluate(script)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._page.screenshot(path=str(path))


@contextmanager
def chromium(executable: str):
    """A running browser; `browser.new_page()` opens a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        try:
            yield browser
        finally:
            browser.close()
