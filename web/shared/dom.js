// Small helpers for widgets made of plain elements.

/** An element with properties, and children that are elements or text. Text never becomes markup. */
export function make(tag, properties = {}, children = []) {
    const { role, ...rest } = properties;
    const element = Object.assign(document.createElement(tag), rest);
    if (role) element.setAttribute("role", role);
    element.append(...children);
    return element;
}

/** What happens on the element is no dragging of the node, no zoom of the canvas and no shortcut of the page. */
export function keepEvents(element) {
    for (const name of ["pointerdown", "mousedown", "dblclick", "keydown", "copy", "paste", "cut"]) {
        element.addEventListener(name, (event) => event.stopPropagation());
    }
}

/** Call `then` after a method of this one object, whether or not it has had one. */
export function after(object, name, then) {
    const before = object[name];
    object[name] = function (...values) {
        const result = before?.apply(this, values);
        then(...values);
        return result;
    };
}
