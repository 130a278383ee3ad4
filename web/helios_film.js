// Shows the finished film on the nodes of this pack that preview while they work. ComfyUI's page prefers a node's live
// preview to its output for as long as there is one, and takes it away only when the node runs again: the preview,
// which is no video, would stay in place of the film. Without this script the file is written all the same.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after } from "./shared/dom.js";
import { hasFilm, locatorOf, nodeIdOf } from "./film/model.js";

// The names that ComfyUI's page gives to what it puts under a node's own widgets.
const LIVE_WIDGETS = ["$$canvas-image-preview", "$$comfy_animation_preview"];
const FILM_WIDGET = "video-preview";

/** Nodes of this pack in the graph -> whether their film, rather than a live preview, is what they show. */
const showsFilm = new Map();

app.registerExtension({
    name: "Helios.Film",
    setup() {
        api.addEventListener("b_preview_with_metadata", ({ detail }) => {
            const id = nodeIdOf(detail?.displayNodeId ?? detail?.nodeId);
            for (const node of showsFilm.keys()) if (String(node.id) === id) makeRoom(node);
        });
    },
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("Helios")) return;
        showsFilm.set(node, false);
        after(node, "onExecuted", (output) => {
            if (hasFilm(output)) showFilm(node);
        });
        // The page loads pictures in its own time: one that was asked for before the film may come after it.
        after(node, "onDrawBackground", () => {
            if (showsFilm.get(node) && node.imgs) dropLivePreview(node);
        });
        after(node, "onRemoved", () => showsFilm.delete(node));
    },
});

function showFilm(node) {
    showsFilm.set(node, true);
    const store = outputStore();
    const locator = locatorOf(node);
    if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(locator);
    else delete app.nodePreviewImages?.[locator];
    const live = store?.nodePreviewImages;
    if (live) {
        live[locator] = []; // older pages do not see that it was taken away
        delete live[locator];
    }
    dropLivePreview(node);
    node.previewMediaType = "video"; // older pages look for nothing else
    node.images = undefined; // so that the page finds the output new, and loads it
    node.graph?.setDirtyCanvas(true, true);
}

function dropLivePreview(node) {
    node.imgs = node.preview = undefined;
    for (const name of LIVE_WIDGETS) removeWidget(node, name);
}

/** A run begins to preview: the film before it goes, or the page would try to play the preview's pictures. */
function makeRoom(node) {
    const isFilm = showsFilm.get(node) || node.videoContainer || node.previewMediaType === "video";
    if (!isFilm) return;
    showsFilm.set(node, false);
    removeWidget(node, FILM_WIDGET);
    node.videoContainer = node.previewMediaType = node.images = undefined;
    const locator = locatorOf(node);
    delete app.nodeOutputs?.[locator];
    const shown = outputStore()?.nodeOutputs;
    if (shown) delete shown[locator];
}

function removeWidget(node, name) {
    const at = node.widgets?.findIndex((widget) => widget.name === name) ?? -1;
    if (at < 0) return;
    node.widgets[at].onRemove?.();
    node.widgets.splice(at, 1);
}

/** What the page remembers of outputs and previews; pinia keeps its stores by name. Undefined where that is not so. */
function outputStore() {
    const page = document.getElementById("vue-app")?.__vue_app__;
    return page?.config.globalProperties.$pinia?._s?.get("nodeOutput");
}
