// What the widgets say in other languages: every sentence of theirs, with the same places for values.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { pageTranslator, translator } from "../../web/shared/words.js";
import { ZH } from "../../web/shared/zh.js";
import { parseSchedule } from "../../web/timeline/text.js";
import { describeBlock } from "../../web/timeline/model.js";

const WEB = new URL("../../web/", import.meta.url);

/** Every sentence that the code hands to `t`, or keeps in a constant for it. */
function sentences() {
    const files = readdirSync(WEB, { recursive: true }).filter((name) => name.endsWith(".js") && !name.startsWith("shared"));
    const code = files.map((name) => readFileSync(new URL(name, WEB), "utf8")).join("\n").replace(/"\s*\+\s*"/g, "");
    const found = [...code.matchAll(/(?:\bt\(\s*|const (?:KEYS|EMPTY) =\s*)(?:"([^"]*)"|'([^']*)')/g)];
    return new Set(found.map(([, double, single]) => double ?? single));
}

const places = (sentence) => [...sentence.matchAll(/\{\w+\}/g)].map(([place]) => place).sort();

test("the Chinese dictionary has every sentence of the widgets, and no other", () => {
    assert.ok(sentences().size > 60);
    assert.deepEqual([...sentences()].sort(), Object.keys(ZH).sort());
});

test("a sentence and its translation have the same places for values", () => {
    for (const [english, chinese] of Object.entries(ZH)) assert.deepEqual(places(chinese), places(english), english);
});

test("a translated sentence has its values in it, as they are", () => {
    const values = { part: "$& <b>{part}</b>" };
    const sentence = 'reroll "{part}" must be chunk:seed, two whole numbers, as in 3:77; correct it first';
    assert.ok(translator("zh")(sentence, values).startsWith("重抽“$& <b>{part}</b>”"));
});

test("a language without a dictionary gets English", () => {
    for (const locale of ["en", "fr", "constructor", undefined]) assert.equal(translator(locale)("Split"), "Split");
    assert.equal(pageTranslator({})("Split"), "Split");
    assert.equal(pageTranslator({ extensionManager: { setting: { get: () => "zh" } } })("Split"), "拆分");
});

test("a segment is described in the language of the page", () => {
    const document = parseSchedule("0s: a fox\n5.5s blend 2: it looks up\nend 11s");
    assert.equal(
        describeBlock(document, 1, { frameRate: 24, blend: 3, shape: "linear" }, translator("zh")),
        "第 2 段，共 2 段，5.5 到 11 秒，第 4 到 7 块，用 2 个分块过渡，linear。it looks up",
    );
});
