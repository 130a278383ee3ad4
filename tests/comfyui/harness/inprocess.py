"""Runs ComfyUI inside the test's process: no HTTP, milliseconds a graph, real nodes, validation and executor.

The module imports nothing of ComfyUI itself: `start` has to name the base directory before `folder_paths` is read.
"""

import asyncio
import inspect
import logging
import math
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from .home import Home


@dataclass
class Run:
    """What one execution left behind."""

    success: bool
    history: dict[str, Any]
    events: list[tuple[str, Any]]
    executor: Any = field(default=None, repr=False)

    @property
    def error(self) -> str:
        """The message of the exception that ended the run, or an empty string."""
        for name, data in self.events:
            if name == "execution_error":
                return data["exception_message"].strip()
        return ""

    @property
    def progress(self) -> list[dict]:
        return [data for name, data in self.events if name == "progress"]

    def output(self, node_id: str, slot: int = 0) -> Any:
        """The value that a node put on one of its output slots. Raises LookupError when the cache has dropped it."""
        cached = self.executor.caches.outputs.get(node_id)
        if inspect.isawaitable(cached):  # since 0.11
            cached = asyncio.run(cached)
        if cached is None:
            raise LookupError(f"node {node_id} is not in the cache")
        outputs = getattr(cached, "outputs", cached)  # a CacheEntry since 0.4, a plain list before
        return outputs[slot][0]


class Cache(NamedTuple):
    """How an executor keeps what nodes have made."""

    kind: str  # of execution.CacheType
    kind_up_to_0_3: str = ""  # where it has another name there
    lru: int = 0  # nodes
    ram: float = 0.0  # GiB to be kept free of what the present run has made ...
    ram_inactive: float = 0.0  # ... and of what earlier ones have


PLENTY = 2.0**30  # GiB: more than any machine has free
CACHES = {
    "classic": Cache("CLASSIC"),
    "lru 1": Cache("LRU", lru=1),
    "none": Cache("NONE", "DEPENDENCY_AWARE"),
    # What 0.33 takes when nothing is said: it drops what earlier graphs have made, and with little free RAM the rest.
    "ram": Cache("RAM_PRESSURE", ram=0.01, ram_inactive=PLENTY),
    "ram none free": Cache("RAM_PRESSURE", ram=PLENTY, ram_inactive=PLENTY),
}


class GraphRejected(Exception):
    """ComfyUI's validation refused the graph; `node_errors` is what the frontend would show."""

    def __init__(self, error: dict, node_errors: dict):
        super().__init__(f"{error}: {node_errors}")
        self.node_errors = node_errors


class ComfyUI:
    """One ComfyUI, loaded in this process with the custom nodes of a home. There can be only one a process."""

    def __init__(self, home: Home):
        self.home = home
        self.load_warnings: list[str] = []
        self._interrupt_at = math.inf
        _point_to(home)
        # In this order: imported alone, nodes ends in a circular import.
        import utils.install_util  # noqa: F401
        import server  # isort: skip
        import nodes  # isort: skip

        import comfy.utils

        self._nodes = nodes
        self._server = _recording_server(server.PromptServer)
        comfy.utils.set_progress_bar_global_hook(self._report_progress)
        asyncio.run(self._load_nodes())

    async def _load_nodes(self) -> None:
        await self._nodes.init_public_apis()
        await self._nodes.init_builtin_extra_nodes()
        with _warnings_into(self.load_warnings):
            await self._nodes.init_external_custom_nodes()

    def _report_progress(self, value, total, preview, prompt_id=None, node_id=None):
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        if value >= self._interrupt_at * total:
            self._interrupt_at = math.inf
            comfy.model_management.interrupt_current_processing()
        self._server.send_sync("progress", {"value": value, "max": total})
        if preview is not None:
            self._server.send_sync("preview", preview)

    def object_info(self, node_types: list[str] | None = None) -> dict[str, dict]:
        """What the server's /object_info says about each node (the parts that a graph depends on)."""
        names = self._nodes.NODE_CLASS_MAPPINGS if node_types is None else node_types
        return {name: _node_info(self._nodes.NODE_CLASS_MAPPINGS[name]) for name in names}

    def run_graph(
        self,
        graph: dict[str, dict],
        *,
        after: Run | None = None,
        cache: str = "classic",
        interrupt_at: float = math.inf,
    ) -> Run:
        """Validate and execute an API-format graph. Raises GraphRejected if it is not valid.

        The cache is that of the run `after` which this one comes, or a fresh one of a kind of CACHES.
        `interrupt_at`: press Cancel when a progress bar gets to that fraction.
        """
        import execution

        prompt_id = str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, graph, None))
        if not valid:
            raise GraphRejected(error, node_errors)
        executor = self._executor(CACHES[cache]) if after is None else after.executor
        self._server.events = []
        self._interrupt_at = interrupt_at
        self._server.last_prompt_id = prompt_id
        executor.execute(graph, prompt_id, {"client_id": "tests", "extra_pnginfo": {}}, outputs)
        return Run(executor.success, executor.history_result, self._server.events, executor)

    def _executor(self, cache: Cache):
        import execution

        known = execution.CacheType.__members__
        if cache.kind not in known and cache.kind_up_to_0_3 not in known:
            pytest.skip(f"this ComfyUI has no cache of the kind {cache.kind}")
        kind = known[cache.kind if cache.kind in known else cache.kind_up_to_0_3]
        if "cache_args" in inspect.signature(execution.PromptExecutor).parameters:
            sizes = {"cache_args": {"lru": cache.lru, "ram": cache.ram, "ram_inactive": cache.ram_inactive}}
        else:
            sizes = {"cache_size": cache.lru}
        return execution.PromptExecutor(self._server, cache_type=kind, **sizes)


def _point_to(home: Home) -> None:
    # First, so that `import nodes` finds ComfyUI's module and not this pack's folder of that name.
    sys.path.insert(0, str(home.checkout))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(home.root)
    args.database_url = "sqlite:///:memory:"


def _recording_server(server_class):
    class RecordingServer(server_class):
        """ComfyUI's server object without a listening socket; what it would send is kept."""

        def __init__(self, loop):
            super().__init__(loop)
            self.events: list[tuple[str, Any]] = []

        def send_sync(self, event, data, sid=None):
            self.events.append((event, data))

    return RecordingServer(asyncio.new_event_loop())


class _warnings_into(logging.Handler):
    """Within the `with` block, every log record of level WARNING or above adds its text to the list."""

    def __init__(self, messages: list[str]):
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        logging.getLogger().addHandler(self)

    def __exit__(self, *exception):
        logging.getLogger().removeHandler(self)


def _node_info(node_class) -> dict:
    if hasattr(node_class, "GET_NODE_INFO_V1"):
        return node_class.GET_NODE_INFO_V1()
    inputs = node_class.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {section: list(specs) for section, specs in inputs.items()},
        "output": node_class.RETURN_TYPES,
        "output_name": getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES),
    }
