"""How fast graphs run in a real ComfyUI: ours, and those of any other pack.

    python -m benchmarks.comfyui --comfyui ~/ComfyUI                     the demo workflow, on the CPU
    python -m benchmarks.comfyui --comfyui ~/ComfyUI --device cuda       14B with random weights, in bf16 and in fp8
    python -m benchmarks.comfyui --comfyui ~/ComfyUI --device cuda --models ~/ComfyUI/models \\
        --graph ours.json --graph theirs.json --custom-nodes ~/their_pack

Run it with the Python of that ComfyUI, which needs `websocket-client` besides. A graph is a file in the API format (in
ComfyUI: Workflow, Export (API)) or the name of a built-in one: demo, random-bf16, random-fp8. Each gets a ComfyUI
server of its own with this pack and those of `--custom-nodes`, in a temporary folder: the checkout is never written to.
All are up at once, so their models must fit together.

After a run that warms up, the graphs run in turns. Every number named seed or noise_seed in them is another in each
round, the same for all graphs, so that the cache does not answer; loaders and prompts stay in the cache, as for a user
who queues again. Reported are seconds, their ratio to the first graph's, the seconds of each node, and peak memory: of
the process on a CPU, of torch's allocator on a GPU. A graph that fails (out of memory is the usual reason) is reported
with its error, and the others follow.

`--gib 6` gives each server a card of 6 GiB; see comfyui_nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from urllib.error import HTTPError

import torch
import websocket

from tests.comfyui.harness.checkout import PACK
from tests.comfyui.harness.home import PACK_FOLDER, Home, make_home
from tests.comfyui.harness.server import Server, ServerRun

from . import comfyui_graphs
from .comfyui_graphs import Graph, chunks_in, with_seed
from .page import PAGE, command_line, facts, marks, table, write_section

LIMIT = "BENCHMARK_GIB"  # as comfyui_nodes reads it
NODES = Path(__file__).with_name("comfyui_nodes")
FIRST_SEED = 1000
RUN_SECONDS = 3600.0  # of silence; the first run reads the weights
NODES_TOLD = 6


@dataclass
class Measured:
    """Of one graph: seconds of each run, of each node in each run, peak bytes, and what stopped it, if anything."""

    name: str
    chunks: int = 0
    seconds: list[float] = field(default_factory=list)
    nodes: dict[str, list[float]] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def per_chunk(self) -> float:
        """Median seconds; of the whole run where chunks are not known."""
        return median(self.seconds) / (self.chunks or 1)


@dataclass
class Entry:
    """A graph with its server, up."""

    graph: Graph
    server: Server
    measured: Measured

    def run(self, seed: int, *, counts: bool) -> None:
        """One run. A failure is noted, and ends this entry."""
        if self.measured.error:
            return
        reset_peak(self.server)
        try:
            run = self.server.run_graph(with_seed(self.graph, seed))
        except (OSError, websocket.WebSocketException) as fault:
            self.measured.error = f"{explained(fault)}; the server's last words: {last_line(self.server)}"
            return
        if run.outcome != "execution_success":
            self.measured.error = " ".join(data.get("exception_message", "") for data in run.named("execution_error"))
            self.measured.error = self.measured.error.strip() or run.outcome
        elif counts:
            self.measured.seconds.append(seconds_of(run))
            self.measured.peaks.append(peak_bytes(self.server))
            for node, seconds in seconds_of_nodes(run).items():
                self.measured.nodes.setdefault(label(self.graph, node), []).append(seconds)


def explained(fault: Exception) -> str:
    """With what the server says about a graph that it refuses."""
    return f"{fault}: {fault.read().decode(errors='replace')}" if isinstance(fault, HTTPError) else str(fault)


def last_line(server: Server) -> str:
    return next((line for line in reversed(server.log_text().splitlines()) if line.strip()), "none")


def label(graph: Graph, node: str) -> str:
    """A node's type, and its id where the type is not enough."""
    kind = graph[node]["class_type"] if node in graph else node
    alone = sum(other["class_type"] == kind for other in graph.values()) == 1
    return kind if alone else f"{kind} ({node})"


def seconds_of(run: ServerRun) -> float:
    """From the start of the execution to the end."""
    begun = next(time for time, name, _ in run.events if name == "execution_start")
    return run.events[-1][0] - begun


def seconds_of_nodes(run: ServerRun) -> dict[str, float]:
    """Seconds from each node's start to the next one's, by node id."""
    starts = [(time, data["node"]) for time, name, data in run.events if name == "executing"]
    total: dict[str, float] = {}
    for (begun, node), (ended, _) in pairwise(starts):
        if node is not None:
            total[node] = total.get(node, 0) + ended - begun
    return total


# Memory


def reset_peak(server: Server) -> None:
    server.get("/benchmark/peak")
    try:
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak is then that of all runs
        return


def peak_bytes(server: Server) -> int:
    """Of torch's allocator on a GPU, of the process's resident memory on a CPU, since the last reset; 0 if unknown."""
    on_gpu = server.get("/benchmark/peak")
    if on_gpu is not None:
        return on_gpu
    status = Path(f"/proc/{server.pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# Running it


@dataclass(frozen=True)
class Host:
    """Which ComfyUI, and how it is started."""

    comfyui: Path
    python: str
    device: str
    custom_nodes: tuple[Path, ...] = ()
    models: Path | None = None
    gib: float | None = None

    def server(self, root: Path) -> Server:
        """Not started yet; its home is made at `root`."""
        home = make_home(root, self.comfyui, with_pack=False)
        links = {home.custom_nodes / PACK_FOLDER: PACK, home.custom_nodes / "benchmark_nodes": NODES}
        links |= {home.custom_nodes / folder.name: folder for folder in self.custom_nodes}
        for link, folder in links.items():
            link.symlink_to(folder, target_is_directory=True)
        if self.models is not None:
            link_models(self.models, home)
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        if self.gib is not None:
            environment[LIMIT] = str(self.gib)
        options = ["--preview-method", "none", *(["--cpu"] if self.device == "cpu" else [])]
        return Server(home, python=self.python, options=options, environment=environment, run_seconds=RUN_SECONDS)


def link_models(models: Path, home: Home) -> None:
    """Give a home all files of a models folder."""
    for file in models.rglob("*"):
        link = home.models / file.relative_to(models)
        if file.is_file() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


@contextmanager
def entries(host: Host, names: list[str]) -> Iterator[list[Entry]]:
    """A server for each graph, all up."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = []
        for number, name in enumerate(names):
            server = stack.enter_context(host.server(root / str(number)))
            graph = comfyui_graphs.load(name, server.object_info(), host.device)
            with_seed(graph, 0)  # before heavy work: it must have one
            made.append(Entry(graph, server, Measured(name, chunks_in(graph))))
        yield made


def measure(host: Host, names: list[str], num_rounds: int) -> list[Measured]:
    """Every graph `num_rounds` times, in turns whose order alternates, after a run each that warms up."""
    with entries(host, names) as made:
        for round_number in range(-1, num_rounds):
            for entry in made[:: 1 if round_number % 2 else -1]:
                entry.run(FIRST_SEED + round_number, counts=round_number >= 0)
        return [entry.measured for entry in made]


# Reporting it


def graphs_table(results: list[Measured]) -> list[str]:
    header = ["graph", "seconds, median (spread)", "seconds per chunk", "against the first", "peak memory"]
    return table(header, [graph_row(result, results[0]) for result in results])


def graph_row(result: Measured, first: Measured) -> list[str]:
    name = Path(result.name).stem
    if result.error:
        return [name, f"failed: {' '.join(result.error.split())[:300]}", "", "", ""]
    seconds = result.seconds
    ratio = "1" if result is first else "unknown"
    if result is not first and not first.error:
        ratios = [own / its for own, its in zip(seconds, first.seconds, strict=True)]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        name,
        f"{median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g}) in {len(seconds)} rounds",
        f"{result.per_chunk:.3g}" if result.chunks else "",
        ratio,
        f"{max(result.peaks) / 2**20:.0f} MiB",
    ]


def nodes_table(results: list[Measured]) -> list[str]:
    """The slowest nodes of each graph."""
    rows = []
    for result in results:
        slowest = sorted(result.nodes.items(), key=lambda node: -median(node[1]))[:NODES_TOLD]
        rows += [[Path(result.name).stem, node, f"{median(seconds):.3g}"] for node, seconds in slowest]
    return table(["graph", "node", "seconds, median"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--python", default=sys.executable, help="that runs it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--graph", action="append", help="file in the API format, or demo, random-bf16, random-fp8")
    parser.add_argument("--custom-nodes", action="append", type=Path, default=[], help="folder of another pack")
    parser.add_argument("--models", type=Path, help="ComfyUI models folder that the graphs' files are in; random "
                        "weights are written there too")  # fmt: skip
    parser.add_argument("--gib", type=float, help="give each server a card of this many GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the numbers as one line of JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    options = parser.parse_args()
    section = f"comfyui {options.device}"
    if options.write:
        marks(PAGE, section)
    names = options.graph or (["demo"] if options.device == "cpu" else ["random-bf16", "random-fp8"])
    with tempfile.TemporaryDirectory() as scratch:
        models = (options.models or Path(scratch)).expanduser().resolve()
        for name in names:
            comfyui_graphs.prepare(name, models, options.device)
        custom_nodes = tuple(folder.expanduser().resolve() for folder in options.custom_nodes)
        comfyui = options.comfyui.expanduser().resolve()
        host = Host(comfyui, options.python, options.device, custom_nodes, models, options.gib)
        results = measure(host, names, options.rounds)
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
        return 0
    lines = [*graphs_table(results), "", *nodes_table(results)]
    print("\n".join(lines))
    if options.write:
        device = torch.device(options.device)
        reported = f"`{command_line('comfyui', sys.argv[1:])}` – {facts(device, f'ComfyUI {comfyui.name}')}."
        write_section(PAGE, section, "\n".join([reported, "", *lines]))
    return int(any(result.error for result in results))


if __name__ == "__main__":
    sys.exit(main())
