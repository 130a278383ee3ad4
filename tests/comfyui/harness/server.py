"""Starts ComfyUI as its users do, in a process of its own, and talks to it over HTTP and its websocket."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import websocket

from .home import Home

START_SECONDS = 300  # a moment on a quiet machine
RUN_SECONDS = 120
TEXT_EVENT = 3  # BinaryEventTypes.TEXT of ComfyUI's protocol.py
OUTCOMES = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class ServerRun:
    """What a client of the server saw of one run."""

    events: list[tuple[float, str, dict]]  # (time.monotonic() at arrival, name, data)
    history: dict

    @property
    def outcome(self) -> str:
        return next(name for _, name, _ in reversed(self.events) if name in OUTCOMES)

    def named(self, name: str) -> list[dict]:
        return [data for _, event, data in self.events if event == name]


class Server:
    """`main.py --cpu` on a free port. Use as a context manager.

    `options` go to main.py last, and may take the place of `--cpu`; `environment` is added to this process's;
    `run_seconds` is how long a run may say nothing.
    """

    def __init__(
        self,
        home: Home,
        *,
        python: str = sys.executable,
        options: Sequence[str] = ("--cpu",),
        environment: Mapping[str, str] | None = None,
        run_seconds: float = RUN_SECONDS,
    ):
        self.home = home
        self.python = python
        self.options = options
        self.environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.run_seconds = run_seconds
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.root / f"server_{self.port}.log"

    def __enter__(self) -> "Server":
        self.start()
        try:
            self.wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        command = [self.python, str(self.home.checkout / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--base-directory", str(self.home.root), "--disable-api-nodes"]
        command += ["--database-url", "sqlite:///:memory:", "--preview-method", "auto", *self.options]
        environment = {**os.environ, **self.environment}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.home.root, env=environment
            )

    def wait_until_up(self) -> None:
        """Return once it answers. Raises RuntimeError with its log if it ends, TimeoutError if it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with code {self._process.returncode}:\n{self.log_text()}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI was not up after {START_SECONDS} s:\n{self.log_text()}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str):
        """GET a path and return the parsed JSON."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def post(self, path: str, body: dict):
        """POST JSON and return the parsed answer, or None when it is empty. HTTP errors are raised."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def run_graph(
        self, graph: dict, on_event: Callable[[str, dict], None] | None = None, features: dict | None = None
    ) -> ServerRun:
        """Queue an API-format graph and follow it to its end.

        `on_event(name, data)` sees every event as it comes; binary preview frames have the name "preview", words for
        a node "progress_text". `features` is what the client says it can do, as ComfyUI's frontend does.
        """
        client_id = uuid.uuid4().hex
        connection = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=self.run_seconds
        )
        try:
            if features is not None:
                connection.send(json.dumps({"type": "feature_flags", "data": features}))
            prompt_id = self.post("/prompt", {"prompt": graph, "client_id": client_id})["prompt_id"]
            events = _events_until_the_end(connection, prompt_id, on_event)
        finally:
            connection.close()
        return ServerRun(events, self.get(f"/history/{prompt_id}")[prompt_id])

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def object_info(self) -> dict[str, dict]:
        return self.get("/object_info")


def _events_until_the_end(connection, prompt_id, on_event) -> list[tuple[float, str, dict]]:
    events = []
    while True:
        message = connection.recv()
        if isinstance(message, bytes):
            name, data = _binary_event(message)
        else:
            message = json.loads(message)
            name, data = message["type"], message.get("data", {})
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
        events.append((time.monotonic(), name, data))
        if on_event is not None:
            on_event(name, data)
        # Sent once the run is in the history, unlike the events of OUTCOMES.
        if name == "executing" and data["node"] is None:
            return events


def _binary_event(message: bytes) -> tuple[str, dict]:
    (kind,) = struct.unpack_from(">I", message)
    if kind != TEXT_EVENT:
        return "preview", {"size": len(message)}
    (length,) = struct.unpack_from(">I", message, 4)
    return "progress_text", {"node": message[8 : 8 + length].decode(), "text": message[8 + length :].decode()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
