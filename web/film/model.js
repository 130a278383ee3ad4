// What the film on a node depends on, as pure functions.

/** Whether a node's output names a video, in the form that ComfyUI's own video nodes have. */
export function hasFilm(output) {
    return Boolean(output?.animated?.some(Boolean) && output.images?.length);
}

/** The id of a node in its own graph, of the id it is executed by: inside subgraphs those of the nodes around it are
 * in front. */
export function nodeIdOf(executionId) {
    return String(executionId).split(":").at(-1);
}

/** The name that the page's stores have for a node: its id, and in front of it the subgraph's when it stands in one. */
export function locatorOf({ id, graph }) {
    return graph && graph.isRootGraph === false ? `${graph.id}:${id}` : String(id);
}
