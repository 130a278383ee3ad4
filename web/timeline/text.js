// The text form of a prompt schedule: the same as helios_core/script/schedule_text.py, with the same errors.
// tests/script/schedule_cases.json holds both to it. A parsed document remembers comments and how each segment was typed, so
// that an edit on the timeline changes the text of what it touches and nothing else.

import { CHOICE, inTheirPlace, NOTE, plainHead, visible, writtenElsewhere } from "../shared/typed.js";

export const SHAPES = ["linear", "spherical", "step"];
export const MAX_CHUNK = 100000;
export const MAX_BLEND = 1000;
export const OPEN_END_CHUNKS = 4;
const FRAMES_PER_CHUNK = 33;
const MAX_SEED = 18446744073709551615n;
const MAX_GUIDANCE = 30;

const TOKEN = /[ \t]*(?:(:)|"([^"]*)"|([^ \t:"]+)|(")|$)/uy;
const WHOLE = /^-?[0-9]{1,30}$/;
const NUMBER = /^-?[0-9]{1,9}(?:\.[0-9]{1,17})?$/;
const SECONDS = /^([0-9]{1,30}(?:\.[0-9]{1,30})?)(?:s|secs?|seconds?)$/;
const BARE_NUMBER = /^[0-9]{1,30}(?:\.[0-9]{1,30})?$/;
const TIME_UNIT = /[ \t]+(?:s|secs?|seconds?)(?=[ \t:]|$)/iy;
const CLOCK = /[ \t]*([0-9]{1,4}):([0-5][0-9])(?::([0-5][0-9]))?(\.[0-9]{1,9})?(?=[ \t:]|$)/y;
const PLAIN_NAME = /^[A-Za-z0-9._/-]+$/;
const OPTIONS = ["blend", ...SHAPES, "seed", "guidance", "anchor", "lora"];
const MAX_LORA_STRENGTH = 100;
const FORBIDDEN = /[\0-\x08\x0A-\x1F\x7F]|\p{Cs}/u;

/** Whether a text is a schedule's JSON form, which begins with a brace. */
export function isJson(text) {
    const start = visible(text).replace(/^[ \t\r\n]+/, "");
    return start.startsWith("{") && CHOICE.exec(start)?.index !== 0;
}

/** A fault in the text, at `line` and `column`, both counted from 1 in characters. */
export class ScheduleError extends Error {
    constructor(line, column, message) {
        super(`line ${line}, column ${column}: ${message}`);
        this.line = line;
        this.column = column;
    }
}

/**
 * Read the text form. Returns {segments, end, tail}:
 * a segment is {start, prompt, blend, shape, seed, guidance, anchor, lora, unit, lead, source}, with null for what is not
 * given, `seed` a BigInt, `lora` a list of {name, strength}, `unit` ("s" or "chunk") how its start was typed, `lead` the comment and empty lines before
 * it and `source` its own lines; `end` is null or {start, unit, lead, source}; `tail` are the lines after the last.
 * Throws ScheduleError.
 */
export function parseSchedule(text, frameRate = 24) {
    const segments = [];
    let end = null;
    let pending = []; // comments and empty lines that belong to what comes next
    text.split(/\r\n|\r|\n/).forEach((typed, index) => {
        const number = index + 1;
        let content = visible(typed);
        const forbidden = content.match(FORBIDDEN);
        if (forbidden) {
            const column = Array.from(content.slice(0, forbidden.index)).length + 1;
            const code = forbidden[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
            throw new ScheduleError(number, column, `the character U+${code} is not allowed in a schedule; remove it`);
        }
        const last = segments.at(-1);
        const isComment = /^(?:#|\/\/)/.test(content);
        if (!isComment) content = plainHead(content);
        const isEmpty = /^[ \t]*$/.test(content);
        if (isComment || isEmpty) {
            if (isEmpty && last) last.rows.push("");
            pending.push(typed);
            return;
        }
        const line = new Line(number, content, frameRate);
        line.checkPlain();
        if (end) line.fail(1, 'nothing may follow the line with "end"');
        if (/^[ \t]/.test(content)) {
            if (!last) line.fail(1, "a line that begins with a space continues a prompt, and there is none above");
            last.rows.push(content);
            last.source.push(...pending, typed);
        } else if (/^end(?:[ \t]|$)/i.test(content)) {
            end = { ...line.end(last), lead: pending, source: [typed] };
        } else {
            segments.push({ ...line.segment(last), lead: pending, source: [typed] });
        }
        pending = [];
    });
    if (!segments.length) {
        const message = 'the schedule is empty; it needs at least one line such as "0s: a fox in the snow"';
        throw new ScheduleError(1, 1, message);
    }
    for (const segment of segments) {
        segment.prompt = cleanLines(segment.rows.join("\n"));
        delete segment.rows;
    }
    return { segments, end, tail: pending };
}

/** The text of a document. Segments with a `source` stand as they were typed. */
export function formatSchedule(document, frameRate = 24) {
    const lines = [];
    for (const segment of document.segments) {
        lines.push(...segment.lead, ...(segment.source ?? formatSegment(segment, frameRate).split("\n")));
    }
    if (document.end) {
        lines.push(...document.end.lead, ...(document.end.source ?? [`end ${formatStart(document.end, frameRate)}`]));
    }
    return [...lines, ...document.tail].join("\n").replace(/\n*$/, "\n");
}

/** The comment lines between a segment's own lines. They move above it when it is written anew. */
export function innerComments(segment) {
    return (segment.source ?? []).filter((line) => /^(?:#|\/\/)/.test(visible(line)));
}

export function chunkSeconds(chunk, frameRate) {
    return (chunk * FRAMES_PER_CHUNK) / frameRate;
}

export function nearestChunk(seconds, frameRate) {
    return Math.floor((seconds * frameRate) / FRAMES_PER_CHUNK + 0.5);
}

/** Seconds to the millisecond, without zeros at the end: "1.375". Enough to find the chunk again. */
export function formatSeconds(seconds) {
    return String(Math.floor(seconds * 1000 + 0.5) / 1000);
}

/** A prompt as the text form can hold it: lines stripped, no control characters. */
export function cleanPrompt(prompt) {
    return cleanLines(prompt.replace(/\r\n?/g, "\n").replace(/[\0-\x08\x0B-\x1F\x7F]|\p{Cs}/gu, ""));
}

export function formatSegment(segment, frameRate) {
    const words = [formatStart(segment, frameRate)];
    if (segment.blend !== null) words.push(`blend ${segment.blend}`);
    if (segment.shape !== null) words.push(segment.shape);
    if (segment.seed !== null) words.push(`seed ${segment.seed}`);
    if (segment.guidance !== null) words.push(`guidance ${segment.guidance}`);
    if (segment.anchor !== null) words.push(`anchor ${quoted(segment.anchor)}`);
    for (const { name, strength } of segment.lora ?? []) words.push(`lora ${quoted(name)} ${strength}`);
    return `${words.join(" ")}: ${segment.prompt.replaceAll("\n", "\n    ")}`;
}

function quoted(name) {
    return PLAIN_NAME.test(name) ? name : `"${name}"`;
}

/** The LoRAs of a segment as they stand in a field: "snow.safetensors 0.8, rain.safetensors 1". */
export function loraText(loras) {
    return (loras ?? []).map(({ name, strength }) => `${quoted(name)} ${strength}`).join(", ");
}

/** What is wrong with an option's value, or "". `value` is text as typed in a field. */
export function optionFault(name, value) {
    try {
        readOption(name, value);
        return "";
    } catch (fault) {
        return fault.message;
    }
}

/** An option's value from its text: a number, a BigInt for the seed, or text. Throws Error that says what is allowed. */
export function readOption(name, token) {
    if (name === "anchor") {
        if (token === "" || /["\n\r]/.test(token)) {
            throw new Error(`anchor is ${JSON.stringify(token)}; it must be the name of a picture, without quotes in it`);
        }
        return token;
    }
    if (name === "lora") return readLoras(token);
    if (name === "guidance") {
        if (!NUMBER.test(token)) throw new Error(`guidance is ${excerpt(token)}; it must be a number`);
        const value = Number(token);
        if (value < 1 || value > MAX_GUIDANCE) {
            throw new Error(`guidance is ${value}; it must be a number from 1 (none) to ${MAX_GUIDANCE}`);
        }
        return value;
    }
    if (!WHOLE.test(token)) throw new Error(`${name} is ${excerpt(token)}; it must be a whole number`);
    const value = BigInt(token);
    if (name === "seed") {
        if (value < 0n || value > MAX_SEED) {
            throw new Error(`seed is ${value}; it must be a whole number from 0 to ${MAX_SEED}`);
        }
        return value;
    }
    if (value < 0n || value > BigInt(MAX_BLEND)) {
        throw new Error(`blend is ${value}; it must be a whole number of chunks from 0 to ${MAX_BLEND}`);
    }
    return Number(value);
}

/** What `loraText` gives, as a list of {name, strength}; a strength may be left out. */
function readLoras(text) {
    const loras = [];
    for (const part of text.split(",")) {
        const [, inQuotes, plain, strength] = /^\s*(?:"([^"]+)"|([^\s"]+))(?:\s+(\S+))?\s*$/u.exec(part) ?? [];
        const name = inQuotes ?? plain;
        if (name === undefined) throw new Error(`lora is ${excerpt(part.trim())}; write a file name and a strength, as in snow.safetensors 0.8`);
        addLora(loras, name, strength ?? "1");
    }
    return loras;
}

function addLora(loras, name, token) {
    if (loras.some((lora) => lora.name === name)) throw new Error(`the LoRA ${JSON.stringify(name)} is given twice`);
    if (!NUMBER.test(token)) throw new Error(`the LoRA's strength is ${excerpt(token)}; it must be a number`);
    loras.push({ name, strength: checkStrength(Number(token)) });
}

function checkStrength(value) {
    if (Math.abs(value) <= MAX_LORA_STRENGTH) return value;
    const range = `from -${MAX_LORA_STRENGTH} to ${MAX_LORA_STRENGTH}`;
    throw new Error(`the LoRA's strength is ${value}; it must be a number ${range}`);
}

function formatStart({ start, unit }, frameRate) {
    return unit === "s" ? `${formatSeconds(chunkSeconds(start, frameRate))}s` : `chunk ${start}`;
}

function cleanLines(prompt) {
    const lines = visible(prompt).split("\n").map((line) => line.replace(/^[ \t]+|[ \t]+$/g, ""));
    return lines.join("\n").replace(/^\n+|\n+$/g, "");
}

function excerpt(text) {
    const characters = Array.from(text);
    return `"${characters.length > 40 ? characters.slice(0, 40).join("") + "..." : text}"`;
}

/** An unindented line, read token by token. */
class Line {
    constructor(number, content, frameRate) {
        Object.assign(this, { number, content, frameRate, position: 0, tokenAt: 0, quoted: false });
    }

    fail(column, message) {
        throw new ScheduleError(this.number, column, message);
    }

    get column() {
        return Array.from(this.content.slice(0, this.tokenAt)).length + 1;
    }

    /** Throws for what CLIP Text Encode would put in or leave out of a prompt; a schedule's prompts stay as they are. */
    checkPlain() {
        const [choice, note] = [CHOICE.exec(this.content), NOTE.exec(this.content)];
        const columnAt = (index) => Array.from(this.content.slice(0, index)).length + 1;
        if (choice) this.fail(columnAt(choice.index), "a schedule makes no choice between {a|b}; write the one that is meant");
        if (note) {
            const message = "a note behind // would go into the prompt; put it on a line that begins with #";
            this.fail(columnAt(note.index + 1), message);
        }
    }

    /** The next word or ":", or null at the end of the line. A quoted name is given without its quotes. */
    next() {
        TOKEN.lastIndex = this.position;
        const [all, colon, quoted, word, quote] = TOKEN.exec(this.content);
        this.position += all.length;
        this.quoted = quoted !== undefined;
        const token = colon ?? quoted ?? word ?? quote ?? null;
        this.tokenAt = this.position - (token === null ? 0 : token.length + 2 * this.quoted);
        if (quote !== undefined) this.fail(this.column, "the quoted name has no closing quote");
        return token;
    }

    expect(what, found) {
        this.fail(this.column, `expected ${what}, found ${found === null ? "the end of the line" : excerpt(found)}`);
    }

    /** Call `read`, and report its fault with the place of the latest token. */
    at(column, read) {
        try {
            return read();
        } catch (fault) {
            return this.fail(column, fault.message);
        }
    }

    segment(previous) {
        const elsewhere = writtenElsewhere(this.content, this.frameRate);
        if (elsewhere.length) this.fail(1, inTheirPlace(elsewhere));
        const { start, unit } = this.time('a start such as "5s" or "chunk 4"');
        this.at(1, () => checkOrder(previous?.start ?? null, start));
        const segment = { start, unit, blend: null, shape: null, seed: null, guidance: null, anchor: null, lora: null };
        let token;
        while ((token = this.next()) !== ":" || this.quoted) {
            const typed = token;
            token = token?.toLowerCase() ?? "";
            if (!OPTIONS.includes(token) || this.quoted) this.expect(`${OPTIONS.join(", ")} or ":"`, typed);
            if (token === "lora") {
                segment.lora ??= [];
                this.lora(segment.lora);
                continue;
            }
            const name = SHAPES.includes(token) ? "shape" : token;
            if (segment[name] !== null) {
                this.fail(this.column, `${name === "shape" ? "the blend shape" : token} is given twice`);
            }
            segment[name] = name === "shape" ? token : this.option(token);
        }
        return { ...segment, rows: [this.content.slice(this.position)] };
    }

    end(last) {
        this.next();
        if (!last) this.fail(1, "the end comes before the first segment; put it last");
        const time = this.time('an end such as "20s" or "chunk 15"');
        this.at(1, () => checkEnd(last.start, time.start));
        const token = this.next();
        if (token !== null) this.expect("the end of the line", token);
        return time;
    }

    time(what) {
        CLOCK.lastIndex = this.position;
        const clock = CLOCK.exec(this.content);
        if (clock) {
            this.position += clock[0].length;
            return this.seconds(1, clockSeconds(clock));
        }
        const token = this.next();
        let column = this.column;
        let word = this.quoted ? "" : (token?.toLowerCase() ?? "");
        if (BARE_NUMBER.test(word)) {
            TIME_UNIT.lastIndex = this.position;
            const unit = TIME_UNIT.exec(this.content);
            if (unit) {
                this.position += unit[0].length;
                word += "s";
            }
        }
        const seconds = SECONDS.exec(word);
        if (seconds) return this.seconds(column, Number(seconds[1]));
        if (word !== "chunk") this.expect(what, token);
        const number = this.next();
        column = this.column;
        if (number === null || this.quoted || !WHOLE.test(number)) {
            this.expect('a whole number after "chunk"', number);
        }
        return this.at(column, () => ({ start: checkStart(BigInt(number)), unit: "chunk" }));
    }

    seconds(column, value) {
        const start = nearestChunk(Math.min(value, 1e12), this.frameRate);
        return this.at(column, () => ({ start: checkStart(BigInt(start)), unit: "s" }));
    }

    /** The name of a LoRA and, if a number follows, its strength. */
    lora(loras) {
        const name = this.next();
        const column = this.column;
        if (name === null || (name === ":" && !this.quoted)) this.expect('the name of a file after "lora"', name);
        if (loras.some((lora) => lora.name === name)) this.fail(column, `the LoRA ${JSON.stringify(name)} is given twice`);
        const before = this.position;
        const token = this.next();
        if (token === null || this.quoted || !NUMBER.test(token)) {
            this.position = before;
            loras.push({ name, strength: 1 });
            return;
        }
        loras.push({ name, strength: this.at(this.column, () => checkStrength(Number(token))) });
    }

    option(name) {
        const token = this.next();
        const column = this.column;
        if (name === "anchor") {
            if (token === null || (token === ":" && !this.quoted)) {
                this.expect('the name of a picture after "anchor"', token);
            }
        } else if (token === null || this.quoted || !(name === "guidance" ? NUMBER : WHOLE).test(token)) {
            this.expect(`${name === "guidance" ? "a number" : "a whole number"} after "${name}"`, token);
        }
        return this.at(column, () => readOption(name, token));
    }
}

function checkStart(chunk) {
    if (chunk < 0n || chunk > BigInt(MAX_CHUNK)) {
        throw new Error(`start is ${chunk}; it must be a chunk from 0 to ${MAX_CHUNK}`);
    }
    return Number(chunk);
}

function checkOrder(previous, start) {
    if (previous === null && start !== 0) {
        throw new Error(`the first segment starts at chunk ${start}; it must start at 0`);
    }
    if (previous !== null && start === previous) {
        throw new Error(`two segments start at chunk ${start}; move one of them by a chunk or more`);
    }
    if (previous !== null && start < previous) {
        const above = `before the segment above (chunk ${previous}); put them in order`;
        throw new Error(`starts at chunk ${start}, ${above}`);
    }
}

function checkEnd(lastStart, chunk) {
    if (chunk <= lastStart) {
        const range = `from ${lastStart + 1} (one chunk after the last start) to ${MAX_CHUNK}`;
        throw new Error(`the end is at chunk ${chunk}; it must lie ${range}`);
    }
}

/** 01:02.5 -> 62.5, and with three parts the first is hours. */
function clockSeconds([, first, second, third, fraction]) {
    let seconds = Number(first) * 60 + Number(second);
    if (third !== undefined) seconds = seconds * 60 + Number(third);
    return seconds + Number(fraction ?? 0);
}
