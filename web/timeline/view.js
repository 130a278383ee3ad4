// The timeline's elements and what mouse and keys do to them. Text of the schedule gets into the page as text only
// (textContent, value and attributes), never as markup.

import { keepEvents, make } from "../shared/dom.js";
import { inEnglish } from "../shared/words.js";
import * as model from "./model.js";
import { CSS, HUES } from "./style.js";
import {
    chunkSeconds, formatSchedule, isJson, loraText, optionFault, parseSchedule, readOption, ScheduleError, SHAPES,
} from "./text.js";

const KEYS =
    "Up and Down choose a segment. Left and Right move it, with Shift its end, by one chunk. Enter edits its prompt, " +
    "S splits, D duplicates, Delete removes it. Ctrl+Z takes back, Ctrl+Shift+Z or Ctrl+Y brings back.";
const fieldsIn = (t) => [
    ["blend", t("blend"), "", t("Chunks that the change to this prompt takes; empty: as set in the node")],
    ["seed", t("seed"), t("default"), t("Seed of these chunks; empty: the sampler's")],
    ["guidance", t("guidance"), t("default"), t("Guidance scale of these chunks; empty: the sampler's")],
    [
        "anchor", t("anchor"), t("no picture"),
        t("Name of a picture in the input folder that the video is anchored on from here"),
    ],
    [
        "lora", t("LoRAs"), t("none"),
        t("LoRAs of this segment with their strengths, with commas: snow.safetensors 0.8, rain.safetensors 0.5"),
    ],
];
const SECONDS_BETWEEN_TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
const MIN_CHUNK_WIDTH = 12; // px, below which the timeline scrolls
const DOUBLE_CLICK_MS = 400;

/**
 * `read()` gives {text, frameRate, blend, shape, replacedBy}, `write(text)` changes the text. Call `refresh` when the
 * text or a default changed elsewhere. `t` translates (shared/words.js). `height` is the least the element needs, in px.
 */
export class Timeline {
    height = 300;

    constructor({ read, write, t = inEnglish }) {
        Object.assign(this, { read, write, t, selected: 0, document: null, drag: null });
        this.history = new model.History(null);
        this.build();
    }

    // Elements

    build() {
        const { t } = this;
        this.element = make("div", { className: "helios-timeline" });
        // ComfyUI's own undo listens on the window before anything here and would act too; it leaves alone what has
        // the focus and this type, as text areas do.
        this.focusable = { type: "textarea" };
        this.undoButton = this.button("↶", t("Take back (Ctrl+Z)"), () => this.show(this.history.undo()));
        this.redoButton = this.button("↷", t("Bring back (Ctrl+Shift+Z)"), () => this.show(this.history.redo()));
        this.splitButton = this.button(t("Split"), t("Split the segment in two (S)"), () => this.split());
        this.duplicateButton = this.button(t("Duplicate"), t("Put a copy behind it (D)"), () => this.duplicate());
        this.removeButton = this.button(t("Delete"), t("Remove the segment (Delete)"), () => this.removeSelected());
        this.where = make("span", { className: "where" });
        const bar = make("div", { className: "bar", role: "toolbar", ariaLabel: t("Timeline") }, [
            this.undoButton, this.redoButton, this.splitButton, this.duplicateButton, this.removeButton, this.where,
        ]);

        this.ruler = make("div", { className: "ruler", ariaHidden: "true" });
        this.track = make("div", {
            className: "track", role: "listbox", ariaLabel: t("Prompts over time"), ariaOrientation: "horizontal",
        });
        this.lane = make("div", { className: "lane" }, [this.ruler, this.track]);
        this.scroll = make("div", { className: "scroll" }, [this.lane]);

        this.note = make("div", { className: "note", role: "alert", hidden: true });
        this.buildEditor();
        this.help = make("span", { className: "unseen", textContent: t(KEYS), id: `helios-keys-${Math.random()}` });
        this.live = make("span", { className: "unseen", role: "status" });
        const style = make("style", { textContent: CSS });
        this.element.append(style, bar, this.scroll, this.note, this.editor, this.help, this.live);

        this.track.addEventListener("keydown", (event) => this.onKey(event));
        this.track.addEventListener("pointerdown", (event) => this.onPointerDown(event));
        this.track.addEventListener("pointermove", (event) => this.onPointerMove(event));
        this.track.addEventListener("pointerup", (event) => this.onPointerUp(event));
        this.track.addEventListener("pointercancel", () => this.cancelDrag());
        keepEvents(this.element);
        this.resize = new ResizeObserver(() => this.drawRuler());
        this.resize.observe(this.scroll);
    }

    buildEditor() {
        const { t } = this;
        this.promptField = make("textarea", {
            ariaLabel: t("Prompt of the segment"), placeholder: t("What is shown here"),
        });
        this.promptField.addEventListener("input", () => this.edit({ prompt: this.promptField.value }, "prompt"));
        this.promptField.addEventListener("blur", () => this.fillEditor());
        this.fields = new Map();
        const labels = fieldsIn(t).map(([name, label, placeholder, title]) => {
            const field = make("input", { placeholder, title, className: name });
            field.addEventListener("change", () => this.editOption(name, field));
            this.fields.set(name, field);
            return make("label", { title }, [label, field]);
        });
        const options = ["", ...SHAPES].map((shape) => make("option", { value: shape, textContent: shape || t("default") }));
        this.shapeField = make("select", { title: t("How the two prompts blend; default: as set in the node") }, options);
        this.shapeField.addEventListener("change", () => this.edit({ shape: this.shapeField.value || null }));
        labels.splice(1, 0, make("label", {}, [t("shape"), this.shapeField]));
        this.editor = make("div", { className: "editor" }, [
            this.promptField, make("div", { className: "fields" }, labels),
        ]);
        this.editor.addEventListener("keydown", (event) => {
            if (event.key === "Escape") this.focusBlock();
        });
    }

    button(text, title, act) {
        const button = make("button", { type: "button", textContent: text, title, ariaLabel: title });
        button.addEventListener("click", act);
        return button;
    }

    remove() {
        this.resize.disconnect();
    }

    // From the text to the page

    /** Read text and defaults again. */
    refresh() {
        const given = this.read();
        this.frameRate = given.frameRate;
        this.defaults = { blend: given.blend, shape: given.shape };
        if (given.text !== this.history.text) this.history.reset(given.text);
        this.document = null;
        let message = given.replacedBy;
        let fault = null;
        if (isJson(given.text)) {
            message = this.t("The text is JSON, which the timeline does not edit.");
        } else {
            try {
                this.document = parseSchedule(given.text, given.frameRate);
            } catch (error) {
                if (!(error instanceof ScheduleError)) throw error;
                fault = error;
            }
        }
        this.cancelDrag();
        if (this.document) {
            this.selected = Math.min(this.selected, this.document.segments.length - 1);
            message ||= this.tooShort();
        }
        this.draw(this.document);
        this.report(fault?.message ?? message, { isError: fault !== null });
    }

    /** Show a message below the timeline, or none. */
    report(message, { isError }) {
        this.note.hidden = !message;
        this.note.classList.toggle("mild", !isError);
        // Said again only when it is another one.
        if (this.note.textContent !== message) this.note.textContent = message;
    }

    tooShort() {
        const numbers = this.document.segments
            .map((_, index) => (model.isTooShort(this.document, index, this.defaults) ? index + 1 : 0))
            .filter(Boolean);
        if (!numbers.length) return "";
        return numbers.length === 1
            ? this.t("Segment {number} is too short for the blend: the next prompt starts with a jump.", { number: numbers[0] })
            : this.t("Segments {numbers} are too short for the blend: the next prompts start with a jump.", {
                numbers: numbers.join(", "),
            });
    }

    draw(document) {
        for (const part of [this.scroll, this.editor]) part.hidden = !document;
        const index = this.selected;
        this.undoButton.disabled = !this.history.past.length;
        this.redoButton.disabled = !this.history.future.length;
        this.splitButton.disabled = !document || model.splitBlock(document, index) === document;
        this.duplicateButton.disabled = !document;
        this.removeButton.disabled = !document || document.segments.length === 1;
        this.where.textContent = document ? this.whereText(document) : "";
        if (!document) return;
        // Some room behind the end to drag it into; while dragging the scale stays as it was.
        const total = model.totalChunks(document);
        this.chunks = this.drag ? Math.max(this.chunks, total) : total + Math.max(1, Math.ceil(total / 12));
        this.lane.style.minWidth = `${this.chunks * MIN_CHUNK_WIDTH}px`;
        this.track.style.backgroundSize = `${100 / this.chunks}% 100%`;
        const hadFocus = this.track.contains(this.element.ownerDocument.activeElement);
        this.track.replaceChildren(...document.segments.map((_, at) => this.block(document, at)));
        if (hadFocus) this.focusBlock();
        this.drawRuler();
        this.fillEditor();
    }

    whereText(document) {
        const { start, end, isOpen } = model.blockBounds(document, this.selected);
        const seconds = (chunk) => chunkSeconds(chunk, this.frameRate).toFixed(2);
        const place = `${this.selected + 1}/${document.segments.length}`;
        const values = { place, from: seconds(start), to: seconds(end), chunk: start, last: end - 1 };
        if (isOpen) return this.t("{place} · {from} s on · chunk {chunk} on", values);
        if (end - start === 1) return this.t("{place} · {from} – {to} s · chunk {chunk}", values);
        return this.t("{place} · {from} – {to} s · chunks {chunk}–{last}", values);
    }

    block(document, index) {
        const { start, end, isOpen } = model.blockBounds(document, index);
        const segment = document.segments[index];
        const { blend } = model.blendOf(document, index, this.defaults);
        const label = model.describeBlock(document, index, { frameRate: this.frameRate, ...this.defaults }, this.t);
        const block = make("div", {
            className: "block", role: "option", ariaLabel: label, title: label,
            tabIndex: index === this.selected ? 0 : -1, ariaSelected: String(index === this.selected), ...this.focusable,
        });
        block.setAttribute("aria-describedby", this.help.id);
        block.dataset.index = index;
        const classes = {
            first: index === 0, selected: index === this.selected, open: isOpen,
            "too-short": model.isTooShort(document, index, this.defaults),
        };
        for (const [name, isOn] of Object.entries(classes)) block.classList.toggle(name, isOn);
        block.style.left = `${(100 * start) / this.chunks}%`;
        block.style.width = `calc(${(100 * (end - start)) / this.chunks}% - 1px)`;
        block.style.setProperty("--hue", HUES[index % HUES.length]);
        block.style.setProperty("--before", HUES[(index + HUES.length - 1) % HUES.length]);
        // What is left of the prompt before: whole in the first chunk of the blend, nothing in its last.
        for (let chunk = 0; chunk < Math.min(blend - 1, end - start); chunk++) {
            const cell = make("div", { className: "blend" });
            cell.style.left = `${(100 * chunk) / (end - start)}%`;
            cell.style.width = `${100 / (end - start)}%`;
            cell.style.opacity = 1 - chunk / (blend - 1);
            block.append(cell);
        }
        const shown = Array.from(segment.prompt.slice(0, 400)).slice(0, 200).join("");
        block.append(make("div", { className: "prompt", textContent: shown || this.t("(empty prompt)") }));
        const marks = [
            segment.seed !== null && `${this.t("seed")} ${segment.seed}`,
            segment.guidance !== null && `${this.t("guidance")} ${segment.guidance}`,
            segment.anchor !== null && this.t("anchor"),
            segment.lora !== null && this.t("LoRAs"),
        ].filter(Boolean);
        block.append(make("div", { className: "marks", textContent: marks.join(" · ") }));
        if (index > 0) block.append(make("div", { className: "grip left" }));
        block.append(make("div", { className: "grip right" }));
        return block;
    }

    drawRuler() {
        const width = this.lane.clientWidth;
        if (!this.document || !width) return;
        const length = chunkSeconds(this.chunks, this.frameRate);
        const step = SECONDS_BETWEEN_TICKS.find((seconds) => (seconds / length) * width >= 46) ?? 7200;
        const ticks = [];
        for (let second = 0; second < length; second += step) {
            const tick = make("span", { className: "tick", textContent: `${second} s` });
            tick.style.left = `${(100 * second) / length}%`;
            ticks.push(tick);
        }
        this.ruler.replaceChildren(...ticks);
    }

    /** Put the chosen segment's values into the fields, except the one that is being typed in. */
    fillEditor() {
        const segment = this.document?.segments[this.selected];
        if (!segment) return;
        const active = this.element.ownerDocument.activeElement;
        const values = [[this.promptField, segment.prompt], [this.shapeField, segment.shape ?? ""]];
        for (const [name, field] of this.fields) {
            values.push([field, name === "lora" ? loraText(segment.lora) : String(segment[name] ?? "")]);
        }
        for (const [field, value] of values) {
            if (field !== active && field.value !== value) field.value = value;
            if (field !== active) field.removeAttribute("aria-invalid");
        }
        // The first prompt has none to blend from.
        for (const field of [this.fields.get("blend"), this.shapeField]) field.disabled = this.selected === 0;
        this.fields.get("blend").placeholder = String(this.defaults.blend);
    }

    // From the page to the text

    /** Take a changed document over. Edits in a row with one `key` are one step of undo. */
    commit(document, key = null) {
        if (!this.document || document === this.document) return;
        const text = formatSchedule(document, this.frameRate);
        this.history.record(text, key);
        this.write(text);
        this.refresh();
    }

    /** A text of the history. */
    show(text) {
        if (text === null) return;
        this.write(text);
        this.refresh();
        this.announce();
    }

    edit(fields, key = null) {
        if (this.document) this.commit(model.editBlock(this.document, this.selected, fields), key && `${key} ${this.selected}`);
    }

    editOption(name, field) {
        const text = field.value.trim();
        const fault = text && optionFault(name, text);
        field.setAttribute("aria-invalid", String(Boolean(fault)));
        if (fault) {
            this.report(fault, { isError: true });
        } else {
            this.edit({ [name]: text ? readOption(name, text) : null });
            this.refresh();
        }
    }

    split() {
        this.commit(model.splitBlock(this.document, this.selected));
        this.announce();
    }

    duplicate() {
        this.commit(model.duplicateBlock(this.document, this.selected));
        this.select(this.selected + 1);
    }

    removeSelected() {
        this.commit(model.removeBlock(this.document, this.selected));
        this.announce();
    }

    select(index) {
        this.selected = Math.max(0, Math.min(index, this.document.segments.length - 1));
        this.draw(this.document);
        this.announce();
    }

    focusBlock() {
        this.track.children[this.selected]?.focus({ preventScroll: true });
    }

    announce() {
        if (!this.document) return;
        const words = { frameRate: this.frameRate, ...this.defaults };
        this.live.textContent = model.describeBlock(this.document, this.selected, words, this.t);
    }

    // Keys

    onKey(event) {
        if (!this.document || event.altKey) return;
        const act = event.ctrlKey || event.metaKey ? this.withControl(event) : this.withoutControl(event);
        if (!act) return;
        event.preventDefault();
        this.cancelDrag();
        act();
        this.focusBlock();
        if (event.key === "Enter") this.promptField.focus();
    }

    withControl(event) {
        const key = event.key.toLowerCase();
        if (key === "y" || (key === "z" && event.shiftKey)) return () => this.show(this.history.redo());
        return key === "z" ? () => this.show(this.history.undo()) : null;
    }

    withoutControl(event) {
        const by = (edit, delta) => () => {
            this.commit(edit(this.document, this.selected, delta));
            this.announce();
        };
        const shifted = event.shiftKey ? model.moveEnd : model.moveBlock;
        const acts = {
            ArrowLeft: by(shifted, -1),
            ArrowRight: by(shifted, 1),
            ArrowUp: () => this.select(this.selected - 1),
            ArrowDown: () => this.select(this.selected + 1),
            Home: () => this.select(0),
            End: () => this.select(Infinity),
            Enter: () => {},
            Escape: () => {},
            Delete: () => this.removeSelected(),
            Backspace: () => this.removeSelected(),
            s: () => this.split(),
            d: () => this.duplicate(),
        };
        return acts[event.key] ?? acts[event.key.toLowerCase()];
    }

    // Mouse, pen and finger

    onPointerDown(event) {
        const block = event.target.closest?.(".block");
        if (!block || event.button !== 0 || !this.document) return;
        event.preventDefault();
        const index = Number(block.dataset.index);
        const grip = event.target.classList;
        const edit = grip.contains("left") ? model.moveStart : grip.contains("right") ? model.moveEnd : model.moveBlock;
        this.select(index);
        this.focusBlock();
        this.drag = { edit, index, x: event.clientX, document: this.document };
        this.track.setPointerCapture(event.pointerId);
    }

    onPointerMove(event) {
        if (!this.drag) return;
        // From the box on screen: the canvas may be zoomed.
        const chunkWidth = this.track.getBoundingClientRect().width / this.chunks;
        const delta = Math.round((event.clientX - this.drag.x) / chunkWidth);
        this.drag.document = this.drag.edit(this.document, this.drag.index, delta);
        this.track.classList.toggle("dragging", delta !== 0);
        this.where.textContent = this.whereText(this.drag.document);
        if (delta !== this.drag.delta) this.draw(this.drag.document);
        this.drag.delta = delta;
    }

    onPointerUp(event) {
        if (!this.drag) return;
        const { document, index } = this.drag;
        this.cancelDrag();
        const moved = document !== this.document;
        this.commit(document);
        this.announce();
        // The page's own dblclick never comes: the block that was pressed has been drawn anew since.
        const isSecond = !moved && this.click?.index === index && event.timeStamp - this.click.time < DOUBLE_CLICK_MS;
        this.click = moved ? null : { index, time: event.timeStamp };
        if (isSecond) this.promptField.focus();
    }

    cancelDrag() {
        if (!this.drag) return;
        this.drag = null;
        this.track.classList.remove("dragging");
        if (this.document) this.draw(this.document);
    }
}
