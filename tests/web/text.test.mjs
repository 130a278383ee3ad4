// The text form of a schedule, as the timeline reads and writes it. Run with: node --test tests/web
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { cleanPrompt, formatSchedule, formatSegment, parseSchedule, ScheduleError } from "../../web/timeline/text.js";

const cases = JSON.parse(readFileSync(new URL("../script/schedule_cases.json", import.meta.url), "utf-8"));

/** As Python prints it: every segment anew, starts in chunks, no comments. */
function canonical(document) {
    const plain = (part) => ({ ...part, unit: "chunk", lead: [], source: undefined });
    return formatSchedule({ segments: document.segments.map(plain), end: document.end && plain(document.end), tail: [] });
}

for (const { name, text, frame_rate: frameRate = 24, segments, num_chunks: end, canonical: expected } of cases.good) {
    test(`text means what the shared cases say: ${name}`, () => {
        const document = parseSchedule(text, frameRate);
        if (segments) {
            const found = document.segments.map(({ start, prompt, blend, shape, seed, guidance, anchor, lora }) => ({
                start, prompt, blend, shape, seed: seed === null ? null : Number(seed), guidance, anchor,
                loras: lora && Object.fromEntries(lora.map(({ name, strength }) => [name, strength])),
            }));
            const wanted = segments.map(({ guidance_scale: guidance = null, ...given }) => ({
                blend: null, shape: null, seed: null, anchor: null, loras: null, ...given, guidance,
            }));
            assert.deepEqual(found, wanted);
            assert.equal(document.end?.start, end);
        }
        assert.equal(canonical(document), expected);
    });

    test(`what is not edited stays as it was typed: ${name}`, () => {
        const typed = text.replace(/\r\n?/g, "\n").replace(/\n*$/, "\n");
        assert.equal(formatSchedule(parseSchedule(text, frameRate), frameRate), typed);
    });
}

for (const { name, text, error } of cases.bad) {
    test(`an error is the same as Python's: ${name}`, () => {
        assert.throws(() => parseSchedule(text), (fault) => fault instanceof ScheduleError && fault.message === error);
    });
}

test("random text is a schedule or an error with a place in the text", () => {
    const alphabet = Array.from('0123456789s: \n\t#blendchunk"\'-.\0🦊');
    let state = 7;
    const random = (below) => (state = (state * 48271) % 2147483647) % below;
    for (let run = 0; run < 5000; run++) {
        const text = Array.from({ length: random(60) }, () => alphabet[random(alphabet.length)]).join("");
        try {
            const document = parseSchedule(text);
            assert.deepEqual(canonical(parseSchedule(canonical(document))), canonical(document));
        } catch (fault) {
            assert.ok(fault instanceof ScheduleError, fault.stack);
            const lines = text.split(/\r\n|\r|\n/);
            assert.ok(fault.line >= 1 && fault.line <= lines.length);
            assert.ok(fault.column >= 1 && fault.column <= Array.from(lines[fault.line - 1]).length + 1);
        }
    }
});

test("a line of 100 kB is read in a moment, and an error about one is short", () => {
    const started = performance.now();
    assert.equal(parseSchedule("0s: " + "x".repeat(100_000)).segments[0].prompt.length, 100_000);
    for (const text of ["x".repeat(100_000), '0s "' + "x".repeat(100_000), "0s blend " + "9".repeat(100_000)]) {
        assert.throws(() => parseSchedule(text), (fault) => fault.message.length < 200);
    }
    assert.ok(performance.now() - started < 1000);
});

test("a prompt typed in a field becomes one that the text can hold", () => {
    const prompt = cleanPrompt(" a fox\u0000\r\n\t# in the snow \n\n chunk 3: \n\n");
    assert.equal(prompt, "a fox\n# in the snow\n\nchunk 3:");
    const segment = { start: 0, unit: "s", prompt, blend: null, shape: null, seed: null, guidance: null, anchor: null, lora: null };
    assert.equal(parseSchedule(formatSegment(segment, 24)).segments[0].prompt, prompt);
});
