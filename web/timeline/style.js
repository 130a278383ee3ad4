// The timeline's looks, in ComfyUI's theme colours.

export const CSS = `
.helios-timeline {
    --accent: #4f9dde;
    display: flex; flex-direction: column; gap: 6px; box-sizing: border-box; width: 100%; height: 100%;
    padding: 8px; border-radius: 8px; font: 12px/1.35 sans-serif; color: var(--input-text, #ddd);
    background: var(--comfy-menu-bg, #353535); user-select: none; overflow: hidden;
}
.helios-timeline * { box-sizing: border-box; }
.helios-timeline [hidden] { display: none !important; }
.helios-timeline .bar { display: flex; align-items: center; gap: 4px; min-height: 24px; }
.helios-timeline button, .helios-timeline input, .helios-timeline select, .helios-timeline textarea {
    font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 2px 7px;
}
.helios-timeline button { cursor: pointer; height: 24px; }
.helios-timeline button:hover:enabled { border-color: var(--accent); }
.helios-timeline button:disabled { opacity: .4; cursor: default; }
.helios-timeline .where { margin-left: auto; color: var(--descrip-text, #999); white-space: nowrap; overflow: hidden;
    text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.helios-timeline :is(button, input, select, textarea, .block):focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.helios-timeline .scroll { overflow-x: auto; overflow-y: hidden; flex: none; scrollbar-width: thin; }
.helios-timeline .lane { position: relative; }
.helios-timeline .ruler { position: relative; height: 18px; color: var(--descrip-text, #999); font-size: 11px;
    font-variant-numeric: tabular-nums; }
.helios-timeline .tick { position: absolute; top: 0; padding-left: 3px; height: 18px; white-space: nowrap;
    border-left: 1px solid var(--border-color, #4e4e4e); }
.helios-timeline .track { position: relative; height: 64px; border-radius: 6px; touch-action: none;
    background-color: var(--comfy-input-bg, #222);
    background-image: linear-gradient(to right, var(--border-color, #4e4e4e) 1px, transparent 1px); }
.helios-timeline .block {
    position: absolute; top: 3px; bottom: 3px; overflow: hidden; border-radius: 6px; cursor: grab; padding: 4px 9px;
    color: var(--input-text, #ddd); background-color: color-mix(in srgb, var(--hue) 38%, var(--comfy-input-bg, #222));
    border: 1px solid color-mix(in srgb, var(--hue) 75%, transparent); margin-right: 1px;
}
.helios-timeline .block.first { cursor: pointer; }
.helios-timeline .block.selected { background-color: color-mix(in srgb, var(--hue) 58%, var(--comfy-input-bg, #222));
    border: 2px solid var(--hue); padding: 3px 8px; }
.helios-timeline .block.open { border-right-style: dashed; }
.helios-timeline .dragging, .helios-timeline .dragging .block { cursor: grabbing; }
.helios-timeline .block .blend { position: absolute; top: 0; bottom: 0; pointer-events: none;
    background: color-mix(in srgb, var(--before) 45%, var(--comfy-input-bg, #222));
    border-right: 1px dotted color-mix(in srgb, var(--input-text, #ddd) 45%, transparent); }
.helios-timeline .too-short { border-color: #e5484d; }
.helios-timeline .prompt { position: relative; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
    overflow: hidden; overflow-wrap: anywhere; pointer-events: none; }
.helios-timeline .marks { position: absolute; left: 9px; right: 9px; bottom: 2px; font-size: 10px; opacity: .85;
    pointer-events: none; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; text-align: right; }
.helios-timeline .grip { position: absolute; top: 0; bottom: 0; width: 9px; cursor: ew-resize; }
.helios-timeline .grip.left { left: 0; } .helios-timeline .grip.right { right: 0; }
.helios-timeline .grip:hover { background: color-mix(in srgb, var(--hue) 70%, transparent); }
.helios-timeline .note { padding: 4px 8px; border-radius: 5px; border-left: 3px solid #e5484d; user-select: text;
    background: color-mix(in srgb, #e5484d 16%, transparent); overflow-wrap: anywhere; max-height: 60px; overflow-y: auto; }
.helios-timeline .note.mild { border-color: #d9a21b; background: color-mix(in srgb, #d9a21b 16%, transparent); }
.helios-timeline .editor { display: flex; flex-direction: column; gap: 6px; flex: 1 1 auto; min-height: 96px; }
.helios-timeline .editor textarea { flex: 1; min-height: 46px; resize: none; padding: 5px 8px; user-select: text; }
.helios-timeline .fields { display: flex; flex-wrap: wrap; gap: 6px; }
.helios-timeline .fields label { display: flex; align-items: center; gap: 4px; color: var(--descrip-text, #999); }
.helios-timeline .fields input { width: 58px; } .helios-timeline .fields input.blend { width: 38px; }
.helios-timeline .fields label:last-child { flex: 1; } .helios-timeline .fields input.anchor { flex: 1; min-width: 76px; }
.helios-timeline input[aria-invalid=true] { border-color: #e5484d; }
.helios-timeline .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

/** Colours of the blocks, in turn. */
export const HUES = ["#4f9dde", "#e0863a", "#57b26a", "#b678d6", "#d9b321", "#e0607e"];
