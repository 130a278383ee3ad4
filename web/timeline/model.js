// What can be done to a schedule on the timeline, as pure functions: document in, new document out. A document is what
// parseSchedule gives; blocks follow each other without a gap, so a block ends where the next one starts.

import { inEnglish } from "../shared/words.js";
import { cleanPrompt, chunkSeconds, formatSeconds, innerComments, MAX_CHUNK, OPEN_END_CHUNKS } from "./text.js";

/** {start, end, isOpen} of block `index` in chunks; `isOpen` when the text does not say where the last one ends. */
export function blockBounds(document, index) {
    const { segments, end } = document;
    const { start } = segments[index];
    if (index + 1 < segments.length) return { start, end: segments[index + 1].start, isOpen: false };
    return { start, end: end ? end.start : start + OPEN_END_CHUNKS, isOpen: !end };
}

/** Length of the whole schedule in chunks. */
export function totalChunks(document) {
    return blockBounds(document, document.segments.length - 1).end;
}

/** {blend, shape} into block `index`; `defaults` are those of segments that name none. */
export function blendOf(document, index, defaults) {
    const segment = document.segments[index];
    const shape = segment.shape ?? defaults.shape;
    if (index === 0 || shape === "step") return { blend: 0, shape: "step" };
    return { blend: segment.blend ?? defaults.blend, shape };
}

/** Whether block `index` ends before its blend does. The last block holds on when the text names no end. */
export function isTooShort(document, index, defaults) {
    const { start, end, isOpen } = blockBounds(document, index);
    return !isOpen && blendOf(document, index, defaults).blend > end - start;
}

/** Move block `index` by `delta` chunks between its neighbours, which give way. The first one stays at 0. */
export function moveBlock(document, index, delta) {
    const { segments, end } = document;
    if (index === 0) return document;
    const isLast = index === segments.length - 1;
    const low = segments[index - 1].start + 1 - segments[index].start;
    const room = isLast ? MAX_CHUNK - totalChunks(document) : lastStart(document, index + 1) - segments[index + 1].start;
    const by = clamp(delta, low, room);
    if (by === 0) return document;
    const moved = segments.map((segment, at) =>
        at === index || at === index + 1 ? changed(segment, { start: segment.start + by }) : segment,
    );
    return { ...document, segments: moved, end: isLast && end ? changed(end, { start: end.start + by }) : end };
}

/** Move the start of block `index`, which the block before then ends at. */
export function moveStart(document, index, delta) {
    if (index === 0) return document;
    const { segments } = document;
    const { start } = segments[index];
    const wanted = clamp(start + delta, segments[index - 1].start + 1, lastStart(document, index));
    return wanted === start ? document : replaceAt(document, index, changed(segments[index], { start: wanted }));
}

/** Move the end of block `index`. An end is written into the text when the last block had none. */
export function moveEnd(document, index, delta) {
    if (index + 1 < document.segments.length) return moveStart(document, index + 1, delta);
    const bounds = blockBounds(document, index);
    const wanted = clamp(bounds.end + delta, bounds.start + 1, MAX_CHUNK);
    if (wanted === bounds.end) return document;
    const end = document.end ?? { unit: document.segments[index].unit, lead: [], source: null };
    return { ...document, end: changed(end, { start: wanted }) };
}

/** Split block `index` at `chunk` (default: its middle); both parts have its prompt, and only the first its anchor. */
export function splitBlock(document, index, chunk = null) {
    const { start, end } = blockBounds(document, index);
    if (end - start < 2) return document;
    const at = clamp(chunk ?? Math.floor((start + end) / 2), start + 1, end - 1);
    const second = { ...changed(document.segments[index], { start: at, anchor: null, blend: null, shape: null }), lead: [] };
    return { ...document, segments: document.segments.toSpliced(index + 1, 0, second) };
}

/** Put a copy of block `index` behind it; what follows moves on by its length. */
export function duplicateBlock(document, index) {
    const { start, end } = blockBounds(document, index);
    const length = end - start;
    if (totalChunks(document) + length > MAX_CHUNK) return document;
    const later = (part) => changed(part, { start: part.start + length });
    const copy = { ...later(document.segments[index]), lead: [] };
    const segments = [...document.segments.slice(0, index + 1), copy, ...document.segments.slice(index + 1).map(later)];
    return { ...document, segments, end: document.end && later(document.end) };
}

/** Take block `index` out; the one before it continues in its place. The comments above it stay. The last one stays. */
export function removeBlock(document, index) {
    const { segments } = document;
    if (segments.length === 1) return document;
    const { lead } = segments[index];
    const rest = segments.toSpliced(index, 1);
    if (index < rest.length) {
        const next = index === 0 ? changed(rest[0], { start: 0 }) : rest[index];
        rest[index] = { ...next, lead: [...lead, ...next.lead] };
        return { ...document, segments: rest };
    }
    if (document.end) return { ...document, segments: rest, end: { ...document.end, lead: [...lead, ...document.end.lead] } };
    return { ...document, segments: rest, tail: [...lead, ...document.tail] };
}

/** Change fields of block `index`: prompt, blend, shape, seed, guidance, anchor. */
export function editBlock(document, index, fields) {
    const values = "prompt" in fields ? { ...fields, prompt: cleanPrompt(fields.prompt) } : fields;
    const segment = document.segments[index];
    const isSame = Object.entries(values).every(([name, value]) => segment[name] === value);
    return isSame ? document : replaceAt(document, index, changed(segment, values));
}

/** A block in words, for people who do not see the timeline. */
export function describeBlock(document, index, { frameRate, ...defaults }, t = inEnglish) {
    const { start, end, isOpen } = blockBounds(document, index);
    const { blend, shape } = blendOf(document, index, defaults);
    const seconds = (chunk) => formatSeconds(chunkSeconds(chunk, frameRate));
    const values = {
        number: index + 1, total: document.segments.length, from: seconds(start), to: seconds(end), chunk: start,
        last: end - 1, blend, shape,
    };
    let label = isOpen
        ? t("Segment {number} of {total}, from {from} seconds on, from chunk {chunk} on", values)
        : t("Segment {number} of {total}, {from} to {to} seconds, chunks {chunk} to {last}", values);
    if (blend > 1) label = t("{label}, blends in over {blend} chunks, {shape}", { ...values, label });
    if (isTooShort(document, index, defaults)) label = t("{label}, too short for its blend", { label });
    const prompt = Array.from(document.segments[index].prompt).slice(0, 200).join("");
    return t("{label}. {prompt}", { label, prompt: prompt || t("(empty prompt)") });
}

/** Texts to go back to. Edits in a row with the same `key` count as one. */
export class History {
    constructor(text) {
        this.reset(text);
    }

    /** Forget everything: the text was changed elsewhere. */
    reset(text) {
        Object.assign(this, { text, past: [], future: [], key: null });
    }

    record(text, key = null) {
        if (text === this.text) return;
        if (key === null || key !== this.key) this.past.push(this.text);
        Object.assign(this, { text, future: [], key });
    }

    undo() {
        return this.#step(this.past, this.future);
    }

    redo() {
        return this.#step(this.future, this.past);
    }

    /** The text to show, or null when there is none to go to. */
    #step(from, to) {
        if (!from.length) return null;
        to.push(this.text);
        this.text = from.pop();
        this.key = null;
        return this.text;
    }
}

/** The latest chunk that block `index` can start at and still be one chunk long. */
function lastStart(document, index) {
    const { end, isOpen } = blockBounds(document, index);
    return isOpen ? MAX_CHUNK - OPEN_END_CHUNKS : end - 1;
}

/** A segment or end with other values: written anew, with the comments among its lines moved above it. */
function changed(part, values) {
    return { ...part, ...values, lead: [...part.lead, ...innerComments(part)], source: null };
}

function replaceAt(document, index, segment) {
    return { ...document, segments: document.segments.with(index, segment) };
}

function clamp(value, low, high) {
    return Math.max(low, Math.min(high, value));
}
