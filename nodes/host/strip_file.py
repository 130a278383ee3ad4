"""The reports of a run's chunks to the page, kept in the run's own folder: the strip comes back from it after the
page was loaded again, a run was cancelled, or the server was restarted.

One JSON object a line: the run without its chunks, then every news of a chunk, and at last that the run has ended.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

from .folders import run_path

logger = logging.getLogger(__name__)

NAME = "strip.jsonl"
_SERVER_STARTED = time.time()


class StripFile:
    """The file of a run that begins. It takes the place of the last run's with the first news of a chunk: then the run
    folder is this run's own."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.run = {key: value for key, value in run.items() if key != "chunks"}
        self.is_begun = False

    def add(self, news: Mapping[str, Any]) -> None:
        """Append what is new of a chunk. A strip is no reason to end a run: a fault is only warned of."""
        own = {key: value for key, value in news.items() if key not in self.run}
        lines = [own] if self.is_begun else [self.run, own]
        self._write(lines, "a" if self.is_begun else "w")
        self.is_begun = True

    def end(self) -> None:
        """The run is over, however it ended."""
        if self.is_begun:
            self._write([{"ended": True}], "a")

    def _write(self, lines: list[Mapping[str, Any]], mode: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as fault:
            logger.warning("the strip of chunks is not kept: %s", fault)


def read_strip(folder: Path) -> dict[str, Any] | None:
    """The run as it was last reported to the page, in the form of "helios.run"; None when there is none to read.

    Chunks that a killed server left half made are "stopped".
    """
    path = folder / NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        is_over = path.stat().st_mtime < _SERVER_STARTED
    except (OSError, ValueError):
        return None
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # torn by a crash
    try:
        run, *news = records
        first, count = run["first_chunk"], run["num_chunks"]
        empty = {"state": "queued", "reused": False, "filename": None, "subfolder": None, "type": None}
        chunks = [{**run, "inputs": None, **empty, "chunk": first + at, "thumbnail": None} for at in range(count)]
        for record in news:
            if "chunk" in record:
                chunks[record["chunk"] - first] |= record
            is_over |= "ended" in record
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    for chunk in chunks:
        chunk.pop("inputs", None)
        if is_over and chunk["state"] == "running":
            chunk["state"] = "stopped"
    return {**run, "chunks": chunks}


@PromptServer.instance.routes.get("/helios/strip")
async def strip_of_run(request: web.Request) -> web.Response:
    """GET /helios/strip?run_name=NAME: the latest run of that name, or null."""
    try:
        folder = run_path(request.query.get("run_name", ""))
    except ValueError:
        return web.json_response(None)
    return web.json_response(read_strip(folder))
