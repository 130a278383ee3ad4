// Puts a timeline under the text of Helios Prompt Schedule. Both show the node's `text` widget, which is what is saved
// and run; without this script the text still works.

import { app } from "../../scripts/app.js";
import { after } from "./shared/dom.js";
import { pageTranslator } from "./shared/words.js";
import { Timeline } from "./timeline/view.js";

const WATCHED = ["text", "frame_rate", "blend", "shape", "file"];

app.registerExtension({
    name: "Helios.Timeline",
    nodeCreated(node) {
        if (node.comfyClass === "HeliosPromptSchedule") attach(node);
    },
});

/** A function that, a moment after its last call, has ComfyUI look whether the workflow changed: it keeps drafts and
 * its own undo by that, and looks by itself only when it sees a mouse button go up, or a key that is not ours. */
function changeNoter() {
    let timer;
    return () => {
        clearTimeout(timer);
        timer = setTimeout(() => app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(), 300);
    };
}

function attach(node) {
    const noteChange = changeNoter();
    const find = (name) => node.widgets?.find((widget) => widget.name === name);
    const widgets = Object.fromEntries(WATCHED.map((name) => [name, find(name)]));
    if (WATCHED.some((name) => !widgets[name])) {
        console.warn("Helios Prompt Schedule lacks widgets that its timeline needs; only the text is shown.");
        return;
    }
    const isLinked = () => node.inputs?.some((input) => input.widget?.name === "text" && input.link != null);
    const t = pageTranslator(app);
    const replacedBy = () => {
        if (isLinked()) return t("The schedule comes from another node; the text here is not used.");
        const { value } = widgets.file;
        return value ? t("The schedule comes from the file {file}; the text here is not used.", { file: value }) : "";
    };
    const timeline = new Timeline({
        t,
        read: () => ({
            text: String(widgets.text.value ?? ""),
            frameRate: Number(widgets.frame_rate.value) || 24,
            blend: Number(widgets.blend.value),
            shape: widgets.shape.value,
            replacedBy: replacedBy(),
        }),
        write(text) {
            widgets.text.value = text;
            widgets.text.callback?.(text);
            node.graph?.setDirtyCanvas(true, true);
            noteChange();
        },
    });
    // Last, and not saved itself, so that the values saved by position are the same with and without this script.
    const widget = node.addDOMWidget("timeline", "HELIOS_TIMELINE", timeline.element, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => timeline.height,
    });
    widget.serialize = false;
    for (const name of WATCHED) after(widgets[name], "callback", () => timeline.refresh());
    after(node, "onConfigure", () => timeline.refresh());
    after(node, "onConnectionsChange", () => timeline.refresh());
    after(node, "onRemoved", () => timeline.remove());
    node.setSize([Math.max(node.size[0], 560), Math.max(node.size[1], 640)]);
    timeline.refresh();
}
