// The strip of chunks: rerolls, runs as the server tells them, and what an edit makes stale.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as strip from "../../web/strip/model.js";

const ABOUT = { node: "7", run_name: "fox", take: 2, first_chunk: 3, num_chunks: 3 };
const queued = (chunk) => ({ ...ABOUT, chunk, state: "queued", reused: false, filename: null, thumbnail: null });
const done = (chunk, news = {}) => ({
    ...queued(chunk), state: "done", seconds_of_video: (chunk - 2) * 1.375,
    filename: `0000${chunk}-ab.mp4`, subfolder: "helios_runs/fox & co/segments", type: "output", ...news,
});
const INPUTS = {
    7: { seed: 5, chunks: 3, seconds: 0, steps: "", crf: 18, reroll: "4:9", run_name: "fox", filename_prefix: "a" },
    2: { text: "a fox" },
};
const RUN = { ...ABOUT, inputs: INPUTS, chunks: [done(3), done(4), queued(5)] };
const withEdit = (id, values) => (other) => ({ ...INPUTS[other], ...(other === String(id) ? values : {}) });

test("re-roll replaces the seed of its chunk and keeps every other one", () => {
    assert.equal(strip.reroll("", 3, "77"), "3:77");
    assert.equal(strip.reroll("5:12, 3:1", 3, "77"), "3:77, 5:12");
    assert.equal(strip.reroll("4:18446744073709551615", 3, "7"), "3:7, 4:18446744073709551615");
});

test("redo from here also drops the seeds of later chunks", () => {
    assert.equal(strip.redoFrom("2:1, 3:5, 9:12", 3, "77"), "2:1, 3:77");
});

test("a reroll text that cannot be read is told, not overwritten", () => {
    for (const text of ["3", "3=7", "a:b", "3:-1"]) {
        assert.throws(() => strip.reroll(text, 1, "2"), strip.RerollError);
    }
});

test("new seeds are whole numbers that JavaScript can tell apart", () => {
    assert.equal(strip.newSeed(() => 0), "0");
    assert.ok(Number.isSafeInteger(Number(strip.newSeed(() => 1 - Number.EPSILON))));
});

test("a chunk's news change that chunk and leave the run before as it was", () => {
    const after = strip.withChunk(RUN, done(5));
    assert.deepEqual(after.chunks.map(({ state }) => state), ["done", "done", "done"]);
    assert.equal(RUN.chunks[2].state, "queued");
});

test("a page that missed the start of a run shows it from the first news on", () => {
    const run = strip.withChunk(null, done(4));
    assert.deepEqual(run.chunks.map(({ chunk, state }) => [chunk, state]), [[3, "queued"], [4, "done"], [5, "queued"]]);
    assert.equal(strip.firstStale(run, () => ({})), Infinity);
});

test("a thumbnail that was seen once is shown again for the same file and for no other", () => {
    const before = { ...RUN, chunks: [done(3, { thumbnail: "data:3" }), done(4, { thumbnail: "data:4" }), queued(5)] };
    let run = strip.withKnownThumbnails({ ...RUN, chunks: [3, 4, 5].map(queued) }, before);
    run = strip.withChunk(strip.withChunk(run, done(3)), done(4, { filename: "00004-other.mp4" }));
    assert.deepEqual(run.chunks.map(({ thumbnail }) => thumbnail), ["data:3", null, null]);
});

test("without an edit nothing is stale, and length and file name make nothing stale", () => {
    assert.equal(strip.firstStale(RUN, withEdit(7, {})), Infinity);
    assert.equal(strip.firstStale(RUN, withEdit(7, { chunks: 9, seconds: 4, filename_prefix: "b" })), Infinity);
});

test("another prompt or setting makes all chunks stale, and so does a node that is gone", () => {
    assert.equal(strip.firstStale(RUN, withEdit(2, { text: "a wolf" })), 3);
    assert.equal(strip.firstStale(RUN, withEdit(7, { steps: "1,1,1" })), 3);
    assert.equal(strip.firstStale(RUN, (id) => (id === "2" ? null : INPUTS[id])), 3);
});

test("another seed makes stale from the first chunk on that has it", () => {
    assert.equal(strip.firstStale(RUN, withEdit(7, { seed: 6 })), 3);
    assert.equal(strip.firstStale(RUN, withEdit(7, { reroll: "4:9, 5:1" })), 5);
    assert.equal(strip.firstStale(RUN, withEdit(7, { reroll: "" })), 4);
    assert.equal(strip.firstStale(RUN, withEdit(7, { reroll: " 4 : 9 , 3:5" })), Infinity); // 5 is chunk 3's seed anyway
    assert.equal(strip.firstStale(RUN, withEdit(7, { reroll: "4:9, 5" })), Infinity); // half typed
});

test("only what is done can be stale", () => {
    assert.deepEqual(RUN.chunks.map((chunk) => strip.shownState(chunk, 4)), ["done", "stale", "queued"]);
    assert.equal(strip.summary(RUN, 4), "2 of 3 chunks, 1 stale");
});

test("a chunk is described in one line", () => {
    assert.equal(strip.describeChunk(RUN, RUN.chunks[1], "done"), "Chunk 4 of 3 to 5, to 2.75 seconds: done");
    const reused = done(4, { reused: true });
    assert.match(strip.describeChunk(RUN, reused, "done"), /taken from disk$/);
});

test("a chunk that is there has an address, with its names escaped", () => {
    assert.equal(strip.viewPath(queued(3)), null);
    const path = strip.viewPath(done(3));
    assert.equal(path, "/view?filename=00003-ab.mp4&subfolder=helios_runs%2Ffox+%26+co%2Fsegments&type=output");
});

test("a branch keeps this take's chunks to the chosen one and makes the rest", () => {
    assert.deepEqual(strip.branchValues(RUN, 4, "4:9, 5:1"), {
        rewind: { run_name: "fox", chunks: 2, take: 2 },
        copy: { chunks: 1, seconds: 0, reroll: "5:1" },
    });
    assert.equal(strip.branchValues(RUN, 5, "").copy.chunks, 1);
});
