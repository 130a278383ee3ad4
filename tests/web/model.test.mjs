// Edits on the timeline.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as model from "../../web/timeline/model.js";
import { formatSchedule, parseSchedule } from "../../web/timeline/text.js";

const TEXT = "# opening\n0s: a fox\n5s blend 2:  it looks  up\n# late\nchunk 8: night\n    falls\nend 20s\n";
const defaults = { blend: 3, shape: "linear", frameRate: 24 };
const starts = (document) => document.segments.map(({ start }) => start);

function edited(edit, text = TEXT) {
    const document = edit(parseSchedule(text));
    const after = formatSchedule(document);
    assert.deepEqual(starts(parseSchedule(after)), starts(document));
    return after;
}

test("moving a block moves its end too, and changes no other line", () => {
    assert.equal(
        edited((document) => model.moveBlock(document, 1, 2)),
        "# opening\n0s: a fox\n8.25s blend 2: it looks  up\n# late\nchunk 10: night\n    falls\nend 20s\n",
    );
});

test("a block moves no further than one chunk of its neighbours", () => {
    const document = parseSchedule(TEXT);
    assert.deepEqual(starts(model.moveBlock(document, 1, -50)), [0, 1, 5]);
    assert.deepEqual(starts(model.moveBlock(document, 1, 50)), [0, 10, 14]);
    assert.equal(model.moveBlock(document, 0, 3), document);
});

test("the last block takes the end of the video with it", () => {
    const moved = model.moveBlock(parseSchedule(TEXT), 2, 3);
    assert.deepEqual([...starts(moved), moved.end.start], [0, 4, 11, 18]);
});

test("dragging a border resizes the two blocks beside it", () => {
    const document = parseSchedule(TEXT);
    assert.deepEqual(starts(model.moveStart(document, 2, -2)), [0, 4, 6]);
    assert.deepEqual(starts(model.moveEnd(document, 1, 3)), [0, 4, 11]);
    assert.deepEqual(starts(model.moveEnd(document, 0, 99)), [0, 7, 8]);
    assert.equal(model.moveEnd(document, 2, -99).end.start, 9);
});

test("giving the last block another length writes where the video ends", () => {
    assert.equal(
        edited((document) => model.moveEnd(document, 1, 1), "0s: a\n5s: b\n"),
        "0s: a\n5s: b\nend 12.375s\n",
    );
});

test("splitting repeats the prompt", () => {
    assert.equal(
        edited((document) => model.splitBlock(document, 0), "0s seed 7 anchor a.png: a\nend chunk 5"),
        "0s seed 7 anchor a.png: a\n2.75s seed 7: a\nend chunk 5\n",
    );
    const document = parseSchedule("0s: a\nend chunk 1");
    assert.equal(model.splitBlock(document, 0), document);
    assert.deepEqual(starts(model.splitBlock(parseSchedule(TEXT), 1, 7)), [0, 4, 7, 8]);
});

test("a duplicate has the same length and what follows moves on", () => {
    assert.equal(
        edited((document) => model.duplicateBlock(document, 1)),
        "# opening\n0s: a fox\n5s blend 2:  it looks  up\n11s blend 2: it looks  up\n" +
            "# late\nchunk 12: night\n    falls\nend 26.125s\n",
    );
});

test("deleting a block keeps the comments, and the first place is filled", () => {
    assert.equal(
        edited((document) => model.removeBlock(document, 0)),
        "# opening\n0s blend 2: it looks  up\n# late\nchunk 8: night\n    falls\nend 20s\n",
    );
    assert.equal(
        edited((document) => model.removeBlock(document, 2)),
        "# opening\n0s: a fox\n5s blend 2:  it looks  up\n# late\nend 20s\n",
    );
    const document = parseSchedule("0s: a");
    assert.equal(model.removeBlock(document, 0), document);
});

test("editing a field rewrites only its segment", () => {
    assert.equal(
        edited((document) => model.editBlock(document, 2, { prompt: "day\nbreaks", seed: 18446744073709551615n })),
        "# opening\n0s: a fox\n5s blend 2:  it looks  up\n# late\nchunk 8 seed 18446744073709551615: day\n    breaks\nend 20s\n",
    );
    const document = parseSchedule(TEXT);
    assert.equal(model.editBlock(document, 1, { blend: 2, prompt: " it looks  up " }), document);
});

test("comments among a prompt's lines move above it when it is edited", () => {
    assert.equal(
        edited((document) => model.editBlock(document, 0, { blend: 1 }), "0s: a\n# why\n  b\n# end\n"),
        "# why\n0s blend 1: a\n    b\n# end\n",
    );
});

test("a block too short for its blend is found, and one without an end never is", () => {
    const document = parseSchedule("0s blend 9: a\nchunk 3 blend 2: b\nchunk 5 blend 3: c\nchunk 7: d");
    assert.deepEqual([0, 1, 2, 3].map((index) => model.isTooShort(document, index, defaults)), [false, false, true, false]);
    assert.equal(model.isTooShort(parseSchedule("0s: a\nchunk 3: b\nend chunk 5"), 1, defaults), true);
    assert.equal(model.isTooShort(parseSchedule("0s: a\nchunk 3 step: b\nend chunk 5"), 1, defaults), false);
});

test("a block is told in words", () => {
    const document = parseSchedule(TEXT);
    assert.equal(
        model.describeBlock(document, 1, defaults),
        "Segment 2 of 3, 5.5 to 11 seconds, chunks 4 to 7, blends in over 2 chunks, linear. it looks  up",
    );
});

test("any row of edits leaves a schedule that the text can hold", () => {
    let state = 3;
    const random = (below) => (state = (state * 48271) % 2147483647) % below;
    const edits = [
        (document, index) => model.moveBlock(document, index, random(9) - 4),
        (document, index) => model.moveStart(document, index, random(9) - 4),
        (document, index) => model.moveEnd(document, index, random(9) - 4),
        (document, index) => model.splitBlock(document, index),
        (document, index) => (document.segments.length < 12 ? model.duplicateBlock(document, index) : document),
        (document, index) => model.removeBlock(document, index),
        (document, index) => model.editBlock(document, index, { prompt: "x\n\n# y" }),
    ];
    let document = parseSchedule("# first\n0s: a\n\n# second\n5s: b\n# last\n");
    for (let run = 0; run < 3000; run++) {
        document = edits[random(edits.length)](document, random(document.segments.length));
        const again = parseSchedule(formatSchedule(document));
        assert.deepEqual(starts(again), starts(document));
        assert.deepEqual(again.segments.map(({ prompt }) => prompt), document.segments.map(({ prompt }) => prompt));
        assert.equal(again.end?.start, document.end?.start);
    }
});

test("undo goes back edit by edit, redo forward, and typing counts as one edit", () => {
    const history = new model.History("a");
    history.record("b");
    history.record("bc", "prompt");
    history.record("bcd", "prompt");
    assert.equal(history.undo(), "b");
    assert.equal(history.undo(), "a");
    assert.equal(history.undo(), null);
    assert.equal(history.redo(), "b");
    assert.equal(history.redo(), "bcd");
    assert.equal(history.redo(), null);
    history.undo();
    history.record("e");
    assert.equal(history.redo(), null);
    history.reset("from elsewhere");
    assert.equal(history.undo(), null);
});
