"""Helios under ComfyUI's dynamic VRAM, with all of the card and with 12 GiB of it, against ComfyUI's static loading.

    python -m benchmarks.dynamic_vram --comfyui ~/ComfyUI                    tiny, on the CPU: whether it runs
    python -m benchmarks.dynamic_vram --comfyui ~/ComfyUI --device cuda      14B with random weights, in bf16 and in fp8

Run it with the Python of that ComfyUI (0.16 or later), which needs `websocket-client` besides. Each way has a ComfyUI
server of its own, one after the other, and samples and decodes three chunks twice: the first time reads the weights and
is not counted. Printed are seconds of a chunk, the peak of the card's memory in use (of all programs on it), the
process's own memory and the files that it has mapped, what Helios had estimated, and whether the latents are those of
the static way. No way is begun after `--minutes`; `--layers 8` makes the model, and the time, smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from helios_core.model.config import TransformerConfig
from tests.comfyui.harness.server import Server, ServerRun

from . import random_weights
from .comfyui import RUN_SECONDS, Host, seconds_of_nodes
from .comfyui_graphs import TINY, VAE, Graph, is_tiny, random_graph, with_seed
from .page import facts, table

LAZY = "BENCHMARK_LAZY"  # as comfyui_nodes reads it
CHUNKS = 3
SMALL_CARD_GIB = 12
SAMPLER, DECODER = "sampler", "decode"
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Way:
    """How weights are kept and the server is started."""

    weight_dtype: str
    memory: str
    options: tuple[str, ...] = ()
    dynamic: bool = True

    @property
    def name(self) -> str:
        return f"{self.weight_dtype}, {'dynamic' if self.dynamic else 'static'}, {self.memory}"


@dataclass
class Measured:
    """Seconds of the second run, peak bytes, Helios' own estimate, and how the latents differ from the static ones."""

    name: str
    seconds_per_chunk: float = 0.0
    decoding_per_chunk: float = 0.0
    card: int = 0
    own_memory: int = 0
    mapped_files: int = 0
    estimate: str = ""
    difference: float | None = None
    error: str = ""


def ways(device: str, card_gib: float) -> list[Way]:
    """The static way of a dtype comes first: the others are held against its latents."""
    found = []
    for dtype in ("bf16", "fp8_e4m3fn"):
        found += [Way(dtype, "whole card", ("--disable-dynamic-vram",), dynamic=False), Way(dtype, "whole card")]
        if device == "cuda":
            reserved = f"{max(0.0, card_gib - SMALL_CARD_GIB):.1f}"
            found.append(Way(dtype, f"{SMALL_CARD_GIB} GiB of it", ("--reserve-vram", reserved)))
    return found


def graph_of(way: Way, object_info: dict, device: str, file_name: str) -> Graph:
    graph = random_graph("random-bf16", object_info, device)
    graph["model"]["inputs"].update(model_name=file_name, weight_dtype=way.weight_dtype)
    graph[SAMPLER]["inputs"]["chunks"] = CHUNKS
    graph["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": "latents"}}
    return graph


class Peaks:
    """Looks at a server's memory now and then, within the `with` block."""

    def __init__(self, server: Server) -> None:
        self.card = self.own_memory = self.mapped_files = 0
        self._server, self._done = server, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            memory = process_memory(self._server.pid)
            self.own_memory = max(self.own_memory, memory["RssAnon"] + memory["RssShmem"])
            self.mapped_files = max(self.mapped_files, memory["RssFile"])
            try:
                self.card = max(self.card, self._server.get("/benchmark/used") or 0)
            except urllib.error.URLError:  # busy; the next look may do
                continue


def process_memory(pid: int) -> dict[str, int]:
    """Bytes of a process by kind, as Linux reports them; zeros elsewhere."""
    status = Path(f"/proc/{pid}/status")
    found = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", status.read_text() if status.is_file() else "", re.MULTILINE))
    return {kind: int(found.get(kind, 0)) * 1024 for kind in ("RssAnon", "RssFile", "RssShmem")}


@contextmanager
def server_for(host: Host, way: Way, root: Path) -> Iterator[Server]:
    server = host.server(root)
    server.options = [*server.options, *way.options]
    if way.dynamic and host.device == "cpu":
        server.environment[LAZY] = "1"
    server.run_seconds = RUN_SECONDS
    with server:
        yield server


def run_once(server: Server, graph: Graph, seed: int) -> ServerRun:
    """Raises RuntimeError with ComfyUI's words when it fails."""
    run = server.run_graph(with_seed(graph, seed))
    if run.outcome != "execution_success":
        words = " ".join(data.get("exception_message", "") for data in run.named("execution_error"))
        raise RuntimeError(words.strip() or run.outcome)
    return run


def measure(host: Host, way: Way, file_name: str) -> tuple[Measured, torch.Tensor | None]:
    """One way, and its latents of the second run."""
    measured = Measured(way.name)
    with tempfile.TemporaryDirectory() as root, server_for(host, way, Path(root) / "home") as server:
        graph = graph_of(way, server.object_info(), host.device, file_name)
        try:
            run_once(server, graph, seed=1)
            with Peaks(server) as peaks:
                run = run_once(server, graph, seed=2)
        except RuntimeError as fault:
            measured.error = str(fault)
            return measured, None
        seconds = seconds_of_nodes(run)
        measured.seconds_per_chunk = seconds[SAMPLER] / CHUNKS
        measured.decoding_per_chunk = seconds[DECODER] / CHUNKS
        measured.card, measured.own_memory, measured.mapped_files = peaks.card, peaks.own_memory, peaks.mapped_files
        estimates = re.findall(r"Helios \w+ at \d+x\d+, \d+ chunks: (.*)", server.log_text())
        measured.estimate = estimates[-1] if estimates else ""
        newest = max(server.home.output.glob("latents*.latent"), key=lambda path: path.stat().st_mtime_ns)
        return measured, load_file(newest)["latent_tensor"]


def measure_all(host: Host, todo: list[Way], file_name: str, minutes: float) -> list[Measured]:
    started, results = time.monotonic(), []
    expected: dict[str, torch.Tensor | None] = {}
    for way in todo:
        if time.monotonic() - started > 60 * minutes:
            results.append(Measured(way.name, error=f"not begun: {minutes:g} minutes were over"))
            continue
        measured, latents = measure(host, way, file_name)
        if not way.dynamic:
            expected[way.weight_dtype] = latents
        elif latents is not None and expected.get(way.weight_dtype) is not None:
            measured.difference = float((latents - expected[way.weight_dtype]).abs().max())
        results.append(measured)
    return results


def lines_of(results: list[Measured]) -> list[str]:
    def same(result: Measured) -> str:
        if result.difference is None:
            return ""
        return "the same bits" if result.difference == 0 else f"differ by {result.difference:.3g} at most"

    header = ["way", "s/chunk", "decoding, s/chunk", "card GiB", "process GiB", "mapped GiB", "latents", "estimate"]
    rows = []
    for r in results:
        numbers = [f"{r.seconds_per_chunk:.2f}", f"{r.decoding_per_chunk:.2f}"]
        numbers += [f"{value / 2**30:.2f}" for value in (r.card, r.own_memory, r.mapped_files)]
        rows.append([r.name, *(numbers if not r.error else [""] * 5), r.error or same(r), r.estimate])
    return table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--python", default=sys.executable, help="that runs it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", type=Path, help="folder to keep the random weights in, 28 GB for the 14B model")
    parser.add_argument("--layers", type=int, default=40, help="of the model, on a GPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no way is begun any more")
    parser.add_argument("--json", action="store_true", help="print the numbers as one line of JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    card_gib = torch.cuda.get_device_properties(device).total_memory / 2**30 if options.device == "cuda" else 0.0
    config = TINY if is_tiny(options.device) else TransformerConfig(num_layers=options.layers)
    file_name = f"random_{config.num_layers}_layers_distilled.safetensors"
    with tempfile.TemporaryDirectory() as scratch:
        models = (options.models or Path(scratch)).expanduser().resolve()
        path = models / "diffusion_models" / file_name
        random_weights.write_transformer(path, config, "bf16", device=options.device)
        if not is_tiny(options.device):
            random_weights.write_vae(models / "vae" / VAE)
        host = Host(options.comfyui.expanduser().resolve(), options.python, options.device, models=models)
        results = measure_all(host, ways(options.device, card_gib), file_name, options.minutes)
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        print("\n".join([facts(device, f"ComfyUI {host.comfyui.name}"), "", *lines_of(results)]))
    return int(any(result.error or result.difference for result in results))


if __name__ == "__main__":
    sys.exit(main())
