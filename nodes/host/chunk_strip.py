"""Reports to ComfyUI's frontend how each chunk of a Helios Long Video run is doing, for the node's strip.

Two events go to the client that queued the run; a client that does not know them loses nothing by leaving them out.

"helios.run", once, before the first chunk; at the end it is also in the node's `ui` output, as the only item of the
list "helios_run" and with the states of the end, so that it is in ComfyUI's history after a page was loaded again:

    node         id of the node, as in ComfyUI's own events
    run_name     name of the run folder
    take         number of this version among those of the run folder, as Helios Rewind Memory takes it
    first_chunk  the first chunk of this run, counted from 0 at the start of the video
    num_chunks   how many chunks this run has
    inputs       {node id: {input: value}}, from the prompt: this node and all that it depends on, wires left out
    chunks       a list of what follows, one for each chunk in order, at first all "queued"

"helios.chunk", whenever something about a chunk changes:

    node, run_name, take, first_chunk, num_chunks    as above
    chunk                        counted from 0 at the start of the video
    state                        "queued", "running" (from its first step to the end of its encoding), "done", or
                                 "stopped": the run ended before that; a chunk whose sampling was finished is on
                                 disk all the same, and reused
    reused                       it was found on disk
    seconds_of_video             length of this run's video to the end of this chunk
    filename, subfolder, type    what ComfyUI's /view takes to play the chunk; null before it is done
    thumbnail                    a JPEG at most 160 pixels wide or high as a data URL, or null

A chunk is reported as done at once, and once more with its thumbnail. Thumbnails are made in a thread of their own;
where it falls behind they are left out, so that no chunk ever waits for one.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image
from server import PromptServer

from ...helios_core.geometry import FRAMES_PER_CHUNK
from ...helios_core.media.reader import stream_video
from ...helios_core.run.job import ChunkDone, LongVideo
from ...helios_core.run.run_folder import RunFolder
from ...helios_core.sampling.hooks import Hooks, StepDone
from .graph_metadata import finite
from .strip_file import StripFile

logger = logging.getLogger(__name__)

RUN_EVENT, CHUNK_EVENT = "helios.run", "helios.chunk"
THUMBNAIL_SIZE = 160  # pixels, the longer side
MAX_WAITING = 8  # thumbnails
MAX_KEPT = 256  # thumbnails in the ui output, which ComfyUI keeps in its history: about 2 MB
LAST_SECONDS = 2.0  # given to the thumbnails that are not ready when the video is


class ChunkStrip:
    """The strip of one run, from the beginning of the `with` block to its end, however it ends."""

    def __init__(
        self, node_id: str | None, video: LongVideo, folder: RunFolder, prompt: Mapping[str, Any] | None
    ) -> None:
        self.about = {
            "node": node_id,
            "run_name": folder.path.name,
            "take": len(folder.takes()),
            "first_chunk": video.chunks.start,
            "num_chunks": video.num_chunks,
        }
        self.inputs = upstream_inputs(prompt or {}, node_id)
        self.chunks = {chunk: self._queued(chunk, video) for chunk in video.chunks}
        self.thumbnails = Thumbnails(self._show_thumbnail)
        self.file = StripFile(folder.path, self.about | {"inputs": self.inputs})

    def _queued(self, chunk: int, video: LongVideo) -> dict[str, Any]:
        num_frames = (chunk + 1 - video.chunks.start) * FRAMES_PER_CHUNK
        return {
            **self.about,
            "chunk": chunk,
            "state": "queued",
            "reused": False,
            "seconds_of_video": float(num_frames / video.encoding.frame_rate),
            "filename": None,
            "subfolder": None,
            "type": None,
            "thumbnail": None,
        }

    def __enter__(self) -> ChunkStrip:
        _send(RUN_EVENT, self.run())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.thumbnails.close(LAST_SECONDS if kind is None else 0)
        for chunk, known in self.chunks.items():
            if known["state"] == "running":
                self._tell(chunk, state="stopped")
        self.file.end()

    def run(self) -> dict[str, Any]:
        """The payload of "helios.run" as things are now."""
        without_picture = list(self.chunks)[:-MAX_KEPT]
        chunks = self.chunks | {chunk: self.chunks[chunk] | {"thumbnail": None} for chunk in without_picture}
        return {**self.about, "inputs": self.inputs, "chunks": list(chunks.values())}

    def watch(self, hooks: Hooks) -> Hooks:
        """The same hooks, which also report when a chunk begins."""

        def progress(step: StepDone) -> None:
            if self.chunks[step.chunk_index]["state"] == "queued":
                self._tell(step.chunk_index, state="running")
            if hooks.progress is not None:
                hooks.progress(step)

        return replace(hooks, progress=progress)

    def done(self, done: ChunkDone) -> None:
        """A chunk is finished."""
        subfolder = done.part.parent.relative_to(folder_paths.get_output_directory()).as_posix()
        place = {"filename": done.part.name, "subfolder": subfolder, "type": "output"}
        self._tell(done.chunk, state="done", reused=done.reused, seconds_of_video=done.seconds_of_video, **place)
        self.thumbnails.offer(done.chunk, done.part)

    def _show_thumbnail(self, chunk: int, thumbnail: str) -> None:
        self._tell(chunk, thumbnail=thumbnail)

    def _tell(self, chunk: int, **news: Any) -> None:
        self.chunks[chunk] = self.chunks[chunk] | news
        _send(CHUNK_EVENT, self.chunks[chunk])
        self.file.add({"chunk": chunk, **news})


class Thumbnails:
    """One thread that makes thumbnails and hands them to `deliver(chunk, data_url)`, until it is closed.

    `offer` never waits: with MAX_WAITING thumbnails still to be made, a further one is put off until another chunk is
    offered, and left out when none is.
    """

    def __init__(self, deliver: Callable[[int, str], None]) -> None:
        self.deliver = deliver
        self.closed = False
        self.waiting: set[Future] = set()
        self.put_off: list[tuple[int, Path]] = []
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="helios-thumbnail")

    def offer(self, chunk: int, part: Path) -> None:
        self.waiting = {future for future in self.waiting if not future.done()}
        self.put_off.append((chunk, part))
        while self.put_off and len(self.waiting) < MAX_WAITING:
            future = self.thread.submit(self._make, *self.put_off.pop())
            future.add_done_callback(_log_fault)
            self.waiting.add(future)

    def close(self, seconds: float) -> None:
        """Give those that wait that much time, and let go of what is not ready then."""
        wait(self.waiting, timeout=seconds)
        self.closed = True
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _make(self, chunk: int, part: Path) -> None:
        thumbnail = make_thumbnail(part)
        if not self.closed:
            self.deliver(chunk, thumbnail)


def _log_fault(future: Future) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.warning("A thumbnail could not be made: %s", future.exception())


def make_thumbnail(part: Path) -> str:
    """The middle frame of a chunk's video as a small JPEG, a data URL."""
    middle = FRAMES_PER_CHUNK // 2
    (frame,) = islice(stream_video(part), middle, middle + 1)
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    jpeg = BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def upstream_inputs(prompt: Mapping[str, Any], node_id: str | None) -> dict[str, dict[str, Any]]:
    """{node id: {input: value}} of a node of an API graph and of all nodes that it depends on, without the wires."""
    found: dict[str, dict[str, Any]] = {}
    ahead = [] if node_id is None else [node_id]
    while ahead:
        at = ahead.pop()
        if at in found or at not in prompt:
            continue
        inputs = prompt[at]["inputs"]
        wires = {name: value for name, value in inputs.items() if isinstance(value, list)}
        found[at] = finite({name: value for name, value in inputs.items() if name not in wires})
        ahead += [str(wire[0]) for wire in wires.values() if wire]
    return found


def _send(event: str, payload: dict[str, Any]) -> None:
    server = PromptServer.instance
    if server.client_id is not None:  # nobody asked for reports; without an id it would go to every client
        server.send_sync(event, payload, server.client_id)
