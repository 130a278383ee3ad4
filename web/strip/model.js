// What the strip of chunks knows and does, as pure functions. A run is the payload of the server's "helios.run" event
// and is kept up to date by "helios.chunk" (nodes/host/chunk_strip.py has both).

import { plain } from "../shared/typed.js";
import { inEnglish } from "../shared/words.js";

const MAX_SEED = 2 ** 48; // Every number below fits a JavaScript number and the node's seed.
const FOR_ALL_CHUNKS = ["run_name", "steps", "guidance_scale", "amplify_first_chunk", "anti_drift", "frame_rate", "crf"];

/** A reroll text that is not `chunk:seed, chunk:seed`; `part` is what cannot be read. */
export class RerollError extends Error {
    constructor(part) {
        super(`reroll "${part}" must be chunk:seed`);
        this.part = part;
    }
}

/** "3:77, 5:12" -> Map of chunk to seed. Seeds stay text: they may be larger than a JavaScript number can hold. */
export function parseRerolls(text) {
    const rerolls = new Map();
    for (const part of plain(text).split(",").map((part) => part.trim()).filter(Boolean)) {
        const found = /^(\d+)\s*:\s*(\d+)$/.exec(part);
        if (!found) throw new RerollError(part);
        rerolls.set(Number(found[1]), found[2]);
    }
    return rerolls;
}

export function formatRerolls(rerolls) {
    return [...rerolls].sort(([a], [b]) => a - b).map(([chunk, seed]) => `${chunk}:${seed}`).join(", ");
}

/** Give one chunk another seed; all others keep theirs. */
export function reroll(text, chunk, seed) {
    return formatRerolls(parseRerolls(text).set(chunk, seed));
}

/** Give a chunk another seed, and forget those of the chunks after it. */
export function redoFrom(text, chunk, seed) {
    const kept = [...parseRerolls(text)].filter(([other]) => other < chunk);
    return formatRerolls(new Map([...kept, [chunk, seed]]));
}

/** The part of a reroll text that is about chunks after this one. */
export function rerollsAfter(text, chunk) {
    return formatRerolls(new Map([...parseRerolls(text)].filter(([other]) => other > chunk)));
}

export function newSeed(random = Math.random) {
    return String(Math.floor(random() * MAX_SEED));
}

/** The run with what "helios.chunk" reports. A page that came too late for "helios.run" begins a run from it. */
export function withChunk(run, news) {
    const isSame = run && ["run_name", "take", "first_chunk", "num_chunks"].every((name) => run[name] === news[name]);
    const { node, run_name, take, first_chunk, num_chunks } = news;
    const base = isSame ? run : { node, run_name, take, first_chunk, num_chunks, inputs: null, chunks: null };
    const chunks = base.chunks
        ? [...base.chunks]
        : Array.from({ length: num_chunks }, (_, at) => ({ chunk: first_chunk + at, state: "queued", thumbnail: null }));
    const at = news.chunk - first_chunk;
    chunks[at] = withThumbnail(withThumbnail(news, chunks[at]), run?.known?.get(news.filename));
    return { ...base, chunks };
}

/** A new run that remembers the thumbnails of an older one: the server may leave out those of chunks found on disk. */
export function withKnownThumbnails(run, older) {
    const known = new Map(older?.known);
    for (const chunk of older?.chunks ?? []) if (chunk.thumbnail) known.set(chunk.filename, chunk);
    return { ...run, known, chunks: run.chunks.map((chunk) => withThumbnail(chunk, known.get(chunk.filename))) };
}

function withThumbnail(chunk, older) {
    const isSame = chunk.filename && chunk.filename === older?.filename;
    return chunk.thumbnail || !isSame ? chunk : { ...chunk, thumbnail: older.thumbnail };
}

/**
 * The first chunk that is not what the graph asks for now, or Infinity. `current(id)` gives {widget: value} of a node
 * of the graph, or null when it is gone. What stands before the node (model, prompt, memory) counts for all chunks.
 */
export function firstStale(run, current) {
    if (!run.inputs) return Infinity;
    for (const [id, inputs] of Object.entries(run.inputs)) {
        if (id === run.node) continue;
        const now = current(id);
        const isChanged = !now || Object.entries(inputs).some(([name, value]) => name in now && !isSame(value, now[name]));
        if (isChanged) return run.first_chunk;
    }
    const then = run.inputs[run.node] ?? {};
    const now = current(run.node);
    if (!now) return Infinity;
    if (FOR_ALL_CHUNKS.some((name) => name in then && name in now && !isSame(then[name], now[name]))) return run.first_chunk;
    return firstOtherSeed(run, then, now);
}

function firstOtherSeed(run, then, now) {
    try {
        const [before, after] = [parseRerolls(String(then.reroll ?? "")), parseRerolls(String(now.reroll ?? ""))];
        const seed = (rerolls, chunk, inputs) => rerolls.get(chunk) ?? String(inputs.seed);
        const isOther = ({ chunk }) => seed(before, chunk, then) !== seed(after, chunk, now);
        return run.chunks.find(isOther)?.chunk ?? Infinity;
    } catch (error) {
        if (!(error instanceof RerollError)) throw error;
        return Infinity; // half typed
    }
}

function isSame(a, b) {
    return JSON.stringify(a) === JSON.stringify(b);
}

/** "queued", "running", "stopped", "done" or "stale". */
export function shownState(chunk, stale) {
    return chunk.state === "done" && chunk.chunk >= stale ? "stale" : chunk.state;
}

function stateInWords(chunk, state, t) {
    if (state === "queued") return t("queued");
    if (state === "running") return t("being made");
    if (state === "stopped") return t("stopped before it was finished");
    if (state === "stale") return t("done, but an input has changed since: the next run makes it again");
    return chunk.reused ? t("done, taken from disk") : t("done");
}

/** One line for a screen reader and the tooltip. */
export function describeChunk(run, chunk, state, t = inEnglish) {
    const values = {
        chunk: chunk.chunk, first: run.first_chunk, last: run.first_chunk + run.num_chunks - 1,
        seconds: Number(chunk.seconds_of_video?.toFixed(3)), state: stateInWords(chunk, state, t),
    };
    return chunk.seconds_of_video === undefined
        ? t("Chunk {chunk} of {first} to {last}: {state}", values)
        : t("Chunk {chunk} of {first} to {last}, to {seconds} seconds: {state}", values);
}

/** Where the chunk can be played, for ComfyUI's api.apiURL, or null. */
export function viewPath(chunk) {
    if (!chunk.filename) return null;
    const { filename, subfolder, type } = chunk;
    return `/view?${new URLSearchParams({ filename, subfolder, type })}`;
}

/** How many chunks are there of how many. */
export function summary(run, stale, t = inEnglish) {
    const states = run.chunks.map((chunk) => shownState(chunk, stale));
    const count = (state) => states.filter((other) => other === state).length;
    const values = { done: count("done") + count("stale"), total: run.num_chunks, stale: count("stale") };
    return values.stale ? t("{done} of {total} chunks, {stale} stale", values) : t("{done} of {total} chunks", values);
}

/** Values for what "branch from here" adds: the rewind to after this chunk, and the copy that continues. */
export function branchValues(run, chunk, rerollText) {
    const kept = chunk + 1 - run.first_chunk;
    return {
        rewind: { run_name: run.run_name, chunks: kept, take: run.take },
        copy: { chunks: Math.max(1, run.num_chunks - kept), seconds: 0, reroll: rerollsAfter(rerollText, chunk) },
    };
}
