// node --test tests/web

import assert from "node:assert/strict";
import { test } from "node:test";
import { hasFilm, locatorOf, nodeIdOf } from "../../web/film/model.js";

test("a video in a node's output is a film; a picture, text or nothing is none", () => {
    assert.ok(hasFilm({ images: [{ filename: "a.mp4" }], animated: [true] }));
    assert.ok(!hasFilm({ images: [{ filename: "a.png" }] }));
    assert.ok(!hasFilm({ images: [], animated: [true] }));
    assert.ok(!hasFilm({ text: ["done"] }));
    assert.ok(!hasFilm(undefined));
});

test("the last part of an execution id names the node in its own graph", () => {
    assert.equal(nodeIdOf("12"), "12");
    assert.equal(nodeIdOf("4:7:12"), "12");
    assert.equal(nodeIdOf(12), "12");
});

test("a node in a subgraph is located by the subgraph's id, one outside by its own alone", () => {
    assert.equal(locatorOf({ id: 3, graph: { isRootGraph: true, id: "x" } }), "3");
    assert.equal(locatorOf({ id: 3, graph: { isRootGraph: false, id: "x" } }), "x:3");
    assert.equal(locatorOf({ id: 3, graph: {} }), "3");
});
