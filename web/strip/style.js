// The strip's looks, in ComfyUI's theme colours. States differ by border and by a word, not by colour alone.

export const CSS = `
.helios-strip {
    --accent: #4f9dde;
    display: flex; flex-direction: column; gap: 6px; box-sizing: border-box; width: 100%; height: 100%;
    padding: 8px; border-radius: 8px; font: 12px/1.35 sans-serif; color: var(--input-text, #ddd);
    background: var(--comfy-menu-bg, #353535); user-select: none; overflow: hidden;
}
.helios-strip * { box-sizing: border-box; }
.helios-strip [hidden] { display: none !important; }
.helios-strip .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; flex: none; }
.helios-strip button { font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 2px 7px; height: 24px; cursor: pointer; }
.helios-strip button:hover:enabled { border-color: var(--accent); }
.helios-strip button:disabled { opacity: .4; cursor: default; }
.helios-strip :is(button, .tile):focus-visible { outline: 2px solid var(--accent); outline-offset: -1px; }
.helios-strip .where { color: var(--descrip-text, #999); font-variant-numeric: tabular-nums; flex: none; min-height: 16px;
    white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.helios-strip .where.fault { color: #e5484d; white-space: normal; }
.helios-strip .tiles { display: flex; gap: 4px; overflow-x: auto; overflow-y: hidden; flex: none; height: 84px;
    scrollbar-width: thin; align-items: flex-start; }
.helios-strip .tile { flex: none; width: 92px; height: 76px; position: relative; overflow: hidden; border-radius: 6px;
    cursor: pointer; background: var(--comfy-input-bg, #222); border: 2px solid var(--border-color, #4e4e4e); }
.helios-strip .tile img { width: 100%; height: 100%; object-fit: cover; display: block; pointer-events: none; }
.helios-strip .tile .label { position: absolute; left: 0; right: 0; bottom: 0; display: flex; padding: 1px 5px;
    justify-content: space-between; font-size: 11px; color: #fff; background: rgb(0 0 0 / .62); pointer-events: none; }
.helios-strip .tile.queued, .helios-strip .tile.stopped { border-style: dashed; }
.helios-strip .tile.stopped { border-color: #e5484d; }
.helios-strip .tile.done { border-color: #57b26a; }
.helios-strip .tile.running { border-color: var(--accent); }
.helios-strip .tile.stale { border-color: #d9a21b; border-style: dotted; }
.helios-strip .tile.stale img { filter: grayscale(.7); opacity: .65; }
.helios-strip .tile[aria-selected=true] { box-shadow: inset 0 0 0 3px var(--accent); }
.helios-strip .tile[aria-selected=true] img { clip-path: inset(3px); }
.helios-strip video { width: 100%; flex: 1 1 auto; min-height: 0; background: #000; border-radius: 6px; }
.helios-strip .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;
