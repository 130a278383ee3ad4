// Puts a strip of chunks under the widgets of Helios Long Video. It shows what the server reports (nodes/host/chunk_strip.py)
// and sets plain inputs of the graph; without this script the node works all the same.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after } from "./shared/dom.js";
import { pageTranslator } from "./shared/words.js";
import { ChunkStrip } from "./strip/view.js";

const REMEMBERED = 16; // runs of ComfyUI's history to look through after a page was loaded
const GAP = 60; // px between the nodes of a branch

/** Node of the graph -> its strip. */
const strips = new Map();
/** `key` of a run -> the run as it was last shown on this page: a workflow that is opened again has new nodes. */
const latest = new Map();

app.registerExtension({
    name: "Helios.ChunkStrip",
    setup() {
        api.addEventListener("helios.run", ({ detail }) => each(detail, (strip) => strip.showRun(detail)));
        api.addEventListener("helios.chunk", ({ detail }) => each(detail, (strip) => strip.showChunk(detail)));
        api.addEventListener("graphChanged", () => strips.forEach((strip) => strip.refresh()));
    },
    nodeCreated(node) {
        if (node.comfyClass === "HeliosLongVideo") attach(node);
    },
    afterConfigureGraph: restore,
});

const find = (node, name) => node.widgets?.find((widget) => widget.name === name);
const key = (id, runName) => `${id} ${runName}`;
const keyOf = (node) => key(node.id, String(find(node, "run_name")?.value).trim());

function each(payload, show) {
    // Inside a subgraph the id has those of the nodes around it in front.
    const id = payload.node.split(":").at(-1);
    for (const [node, strip] of strips) {
        if (String(node.id) !== id) continue;
        show(strip);
        latest.set(key(id, payload.run_name), strip.run);
    }
}

function attach(node) {
    if (["run_name", "reroll", "chunks", "seconds"].some((name) => !find(node, name))) {
        console.warn("Helios Long Video lacks widgets that its strip of chunks needs; it is not shown.");
        return;
    }
    const strip = new ChunkStrip({
        t: pageTranslator(app),
        values: (id) => widgetValues(node, id),
        rerolls: () => String(find(node, "reroll").value ?? ""),
        setRerolls(text) {
            setValues(node, { reroll: text });
            noteChange();
        },
        branch(values) {
            addBranch(node, values);
            noteChange();
        },
        address: (path) => api.apiURL(path),
        resized(by) {
            node.setSize([node.size[0], node.size[1] + by]);
            node.graph?.setDirtyCanvas(true, true);
        },
    });
    // Last, and not saved itself, so that the values saved by position are the same with and without this script.
    const widget = node.addDOMWidget("chunk_strip", "HELIOS_CHUNK_STRIP", strip.element, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => strip.height,
        getMaxHeight: () => strip.height,
    });
    widget.serialize = false;
    for (const own of node.widgets) if (own !== widget) after(own, "callback", () => strip.refresh());
    after(node, "onExecuted", (output) => {
        const run = output?.helios_run?.[0];
        if (run) each({ ...run, node: String(node.id) }, (own) => own.showRun(run));
    });
    after(node, "onRemoved", () => {
        strips.delete(node);
        strip.remove();
    });
    strips.set(node, strip);
    node.setSize([Math.max(node.size[0], 420), node.size[1]]);
}

/** {name: value} of the widgets of a node: of this one or, by its id, of another in the same graph. */
function widgetValues(node, id) {
    const own = id.split(":").at(-1);
    const found = own === String(node.id) ? node : node.graph?.getNodeById(Number(own));
    // What stands outside the node's own subgraph cannot be looked up from here; it counts as unchanged.
    if (!found) return id.includes(":") ? {} : null;
    return Object.fromEntries((found.widgets ?? []).map(({ name, value }) => [name, value]));
}

function setValues(node, values) {
    for (const [name, value] of Object.entries(values)) {
        const widget = find(node, name);
        widget.value = value;
        widget.callback?.(value);
    }
    node.graph?.setDirtyCanvas(true, true);
}

/** Beside the node: a rewind to after the chunk, and a copy of the node that continues from there. */
function addBranch(node, values) {
    const { graph } = node;
    const rewind = LiteGraph.createNode("HeliosRewindMemory");
    const copy = node.clone();
    const bottom = node.pos[1] + node.size[1];
    rewind.pos = [node.pos[0] - rewind.size[0] - GAP, bottom + GAP];
    copy.pos = [node.pos[0], bottom + GAP];
    graph.add(rewind);
    graph.add(copy);
    setValues(rewind, values.rewind);
    setValues(copy, values.copy);
    node.inputs.forEach((input, slot) => {
        if (input.link == null || input.name === "memory") return;
        const { origin_id, origin_slot } = graph.getLink?.(input.link) ?? graph.links[input.link];
        graph.getNodeById(origin_id)?.connect(origin_slot, copy, slot);
    });
    rewind.connect(0, copy, copy.inputs.findIndex(({ name }) => name === "memory"));
}

/** Show the latest run of each node that shows none: from this page, the run's folder, or ComfyUI's history. */
async function restore() {
    for (const [node, strip] of strips) {
        const run = latest.get(keyOf(node));
        if (run && !strip.run) strip.showRun(run);
    }
    await Promise.all([...strips].map(([node, strip]) => strip.run || restoreFromDisk(node, strip)));
    if (![...strips.values()].some((strip) => !strip.run)) return;
    const response = await api.fetchApi(`/history?max_items=${REMEMBERED}`);
    if (!response.ok) return console.warn(`Helios chunk strip: the history gave ${response.status}`);
    for (const { outputs } of Object.values(await response.json()).reverse()) {
        for (const [node, strip] of strips) {
            const run = outputs?.[node.id]?.helios_run?.[0];
            if (run && !strip.run && key(node.id, run.run_name) === keyOf(node)) strip.showRun(run);
        }
    }
}

/** Cancelled runs, and all after ComfyUI was started again, are in no history. */
async function restoreFromDisk(node, strip) {
    const name = String(find(node, "run_name")?.value ?? "").trim();
    const response = await api.fetchApi(`/helios/strip?${new URLSearchParams({ run_name: name })}`);
    if (!response.ok) return console.warn(`Helios chunk strip: its run's folder gave ${response.status}`);
    const run = await response.json();
    // News that came meanwhile begins a run by itself, with less to show than what is on disk.
    if (run && run.node === String(node.id) && (!strip.run || strip.run.inputs === null)) {
        strip.showRun(run);
        latest.set(keyOf(node), strip.run);
    }
}

/** Have ComfyUI look whether the workflow changed: by itself it does so only when it sees a key or mouse button. */
function noteChange() {
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
