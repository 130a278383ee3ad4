// The strip's elements and what mouse and keys do to them. Whatever comes from a run gets into the page as text,
// values and attributes, never as markup.

import { keepEvents, make } from "../shared/dom.js";
import { inEnglish } from "../shared/words.js";
import * as model from "./model.js";
import { CSS } from "./style.js";

const KEYS =
    "Left and Right choose a chunk, Home and End the first and last. Enter or Space plays it, Escape ends that. " +
    "R gives it another seed, D redoes the video from it, B branches after it.";
const EMPTY = "The chunks are shown here when the video is made.";
const HEIGHT = 176; // px, of which ComfyUI keeps 20 free around the strip
const PLAYER_HEIGHT = 210;

/**
 * `values(id)` gives {widget: value} of a node of the graph or null, `rerolls()` the text of the reroll widget,
 * `setRerolls(text)` changes it, `branch({rewind, copy})` adds the nodes of a branch, `address(path)` makes an address
 * of a path of the server, and `resized()` is called when `height` has changed. `t` translates (shared/words.js).
 */
export class ChunkStrip {
    height = HEIGHT;
    run = null;
    selected = 0; // position in the run

    constructor(host) {
        this.host = host;
        this.t = host.t ?? inEnglish;
        this.tiles = [];
        this.build();
        this.draw();
    }

    // Elements

    build() {
        const { t } = this;
        this.element = make("div", { className: "helios-strip" });
        this.playButton = this.button(t("▶ Play"), t("Play the chunk (Enter)"), () => this.play());
        this.rerollButton = this.button(
            t("Re-roll"), t("Give this chunk another seed; later ones keep theirs (R)"),
            () => this.setSeed(model.reroll),
        );
        this.redoButton = this.button(
            t("Redo from here"), t("Give this chunk another seed and drop the re-rolls after it (D)"),
            () => this.setSeed(model.redoFrom),
        );
        this.branchButton = this.button(
            t("Branch from here"),
            t("Add nodes that continue after this chunk, for another prompt or seed; this video stays (B)"),
            () => this.branch(),
        );
        this.buttons = [this.playButton, this.rerollButton, this.redoButton, this.branchButton];
        const bar = make("div", { className: "bar", role: "toolbar", ariaLabel: t("Chosen chunk") }, this.buttons);
        this.where = make("div", { className: "where", role: "status" });
        this.list = make("div", {
            className: "tiles", role: "listbox", ariaLabel: t("Chunks of the video"), ariaOrientation: "horizontal",
        });
        this.player = make("video", { controls: true, loop: true, muted: true, playsInline: true, hidden: true });
        this.player.setAttribute("aria-label", t("Chosen chunk"));
        this.help = make("span", { className: "unseen", textContent: t(KEYS), id: `helios-strip-keys-${Math.random()}` });
        const style = make("style", { textContent: CSS });
        this.element.append(style, bar, this.list, this.where, this.player, this.help);
        this.list.addEventListener("keydown", (event) => this.onKey(event));
        keepEvents(this.element);
    }

    button(text, title, act) {
        const button = make("button", { type: "button", textContent: text, title, ariaLabel: title });
        button.addEventListener("click", act);
        return button;
    }

    tile(position) {
        // ComfyUI's own keys leave alone what has the focus and this type, as text areas do.
        const tile = make("div", { className: "tile", role: "option", type: "textarea" });
        tile.setAttribute("aria-describedby", this.help.id);
        const [picture, number, state] = [make("img", { alt: "", hidden: true }), make("span"), make("span")];
        tile.append(picture, make("div", { className: "label" }, [number, state]));
        Object.assign(tile, { picture, number, state });
        tile.addEventListener("focus", () => this.select(position));
        tile.addEventListener("click", () => {
            this.select(position);
            this.play();
        });
        return tile;
    }

    // From the run to the page

    /** Show a run that begins, or one of before. */
    showRun(run) {
        this.run = model.withKnownThumbnails(run, this.run);
        this.stop();
        this.refresh();
    }

    /** A chunk has changed. */
    showChunk(news) {
        const before = this.run;
        this.run = model.withChunk(this.run, news);
        if (before?.take !== this.run.take || before?.run_name !== this.run.run_name) return this.refresh();
        this.drawTile(news.chunk - this.run.first_chunk);
        this.drawBar();
    }

    /** Look again which chunks the graph would make anew. */
    refresh() {
        const isNew = this.run && model.firstStale(this.run, this.host.values);
        if (this.run && this.tiles.length === this.run.num_chunks && isNew === this.stale && this.drawn === this.run) return;
        this.stale = isNew;
        this.draw();
    }

    draw() {
        const { run } = this;
        this.drawn = run;
        const hadFocus = this.list.contains(this.element.ownerDocument.activeElement);
        if (this.tiles.length !== (run?.num_chunks ?? 0)) {
            this.tiles = Array.from({ length: run?.num_chunks ?? 0 }, (_, position) => this.tile(position));
            this.list.replaceChildren(...this.tiles);
        }
        this.selected = Math.max(0, Math.min(this.selected, this.tiles.length - 1));
        this.tiles.forEach((_, position) => this.drawTile(position));
        this.drawBar();
        if (hadFocus) this.tiles[this.selected]?.focus({ preventScroll: true });
    }

    drawTile(position) {
        const { run, tiles, selected } = this;
        const [chunk, tile] = [run.chunks[position], tiles[position]];
        const state = model.shownState(chunk, this.stale);
        const label = model.describeChunk(run, chunk, state, this.t);
        tile.className = `tile ${state}`;
        tile.title = tile.ariaLabel = label;
        tile.tabIndex = position === selected ? 0 : -1;
        tile.ariaSelected = String(position === selected);
        tile.number.textContent = chunk.chunk;
        tile.state.textContent = this.stateInAWord(state);
        tile.picture.hidden = !chunk.thumbnail;
        if (chunk.thumbnail && tile.picture.src !== chunk.thumbnail) tile.picture.src = chunk.thumbnail;
    }

    drawBar() {
        const chunk = this.chosen;
        const isThere = Boolean(chunk?.filename);
        this.playButton.disabled = this.branchButton.disabled = !isThere;
        this.rerollButton.disabled = this.redoButton.disabled = !chunk;
        const values = chunk && { chunk: chunk.chunk, summary: model.summary(this.run, this.stale, this.t) };
        this.report(chunk ? this.t("chunk {chunk} chosen; {summary}", values) : this.t(EMPTY));
    }

    stateInAWord(state) {
        const { t } = this;
        return { queued: t("queued"), running: t("running"), stopped: t("stopped"), done: t("done"), stale: t("stale") }[state];
    }

    report(message, { isFault = false } = {}) {
        this.where.classList.toggle("fault", isFault);
        if (this.where.textContent !== message) this.where.textContent = message;
    }

    get chosen() {
        return this.run?.chunks[this.selected];
    }

    select(position) {
        const before = this.selected;
        if (position === before && this.tiles[before] === this.element.ownerDocument.activeElement) return;
        this.selected = Math.max(0, Math.min(position, this.tiles.length - 1));
        if (before < this.tiles.length) this.drawTile(before);
        this.drawTile(this.selected);
        this.drawBar();
        const tile = this.tiles[this.selected];
        tile.focus({ preventScroll: true });
        // scrollIntoView would also scroll what the node stands in.
        this.list.scrollLeft = Math.min(tile.offsetLeft - this.list.offsetLeft, Math.max(
            this.list.scrollLeft, tile.offsetLeft - this.list.offsetLeft + tile.offsetWidth - this.list.clientWidth));
    }

    // What the buttons do

    play() {
        const path = this.chosen && model.viewPath(this.chosen);
        if (!path) return;
        this.player.src = this.host.address(path);
        this.setPlayer(true);
        // A browser may refuse to start by itself; the player's own button is there then.
        this.player.play().catch((fault) => console.debug("Helios chunk strip:", fault.message));
    }

    stop() {
        if (this.player.hidden) return;
        this.player.removeAttribute("src");
        this.player.load();
        this.setPlayer(false);
    }

    setPlayer(isOpen) {
        if (this.player.hidden === !isOpen) return;
        this.player.hidden = !isOpen;
        this.height = HEIGHT + (isOpen ? PLAYER_HEIGHT : 0);
        this.host.resized(isOpen ? PLAYER_HEIGHT : -PLAYER_HEIGHT);
    }

    setSeed(change) {
        this.withRerolls((text) => {
            const changed = change(text, this.chosen.chunk, model.newSeed());
            this.host.setRerolls(changed);
            this.refresh();
            this.report(this.t("reroll is now {changed}; press Run to make these chunks", { changed }));
        });
    }

    branch() {
        this.withRerolls((text) => {
            const { chunk } = this.chosen;
            this.host.branch(model.branchValues(this.run, chunk, text));
            this.report(this.t("a branch after chunk {chunk} was added below; change its prompt or seed", { chunk }));
        });
    }

    withRerolls(act) {
        try {
            act(this.host.rerolls());
        } catch (fault) {
            if (!(fault instanceof model.RerollError)) throw fault;
            const { part } = fault;
            const message = this.t('reroll "{part}" must be chunk:seed, two whole numbers, as in 3:77; correct it first', { part });
            this.report(message, { isFault: true });
        }
    }

    // Keys

    onKey(event) {
        if (!this.chosen || event.altKey || event.ctrlKey || event.metaKey) return;
        const acts = {
            ArrowLeft: () => this.select(this.selected - 1),
            ArrowRight: () => this.select(this.selected + 1),
            Home: () => this.select(0),
            End: () => this.select(Infinity),
            Enter: () => this.play(),
            " ": () => this.play(),
            Escape: () => this.stop(),
            r: () => this.rerollButton.click(),
            d: () => this.redoButton.click(),
            b: () => this.branchButton.click(),
        };
        const act = acts[event.key] ?? acts[event.key.toLowerCase()];
        if (!act) return;
        event.preventDefault();
        act();
    }

    remove() {
        this.stop();
    }
}
