// What people type and paste, made plain: the same as helios_core/script/typed.py.

const INVISIBLE = /[\uFEFF\u200B\u2060]/g;
const FULL_WIDTH = /[\uFF01-\uFF5E]/g;
const SPACES = /[\xA0\u2007\u202F\u3000]/g;
const QUOTES = /[\u201C\u201D\u201E]/g;

const ANY_QUOTE = '"\uFF02\u201C\u201D\u201E';

const UNIT = "(?:s|secs?|seconds?)?";
const NUMBER = "[0-9]{1,9}(?:\\.[0-9]{1,9})?";
const SPAN = new RegExp(`^(${NUMBER}) ?${UNIT} ?(?:-|–|—|~|to) ?${NUMBER} ?${UNIT} ?[:=]? ?(.*)$`, "i");
const POINT = new RegExp(`^(${NUMBER}) ?${UNIT} ?[:=] ?(.*)$`, "i");
const BRACKETS = /[[(]([^[\]()]*)[\])]/g;
const FRAME = /^"?([0-9]{1,9})"? ?: ?"(.*)" ?,?$/;

export const CHOICE = /(?<!\\)\{[^{}"]*\|[^{}]*\}/;
export const NOTE = /[ \t]\/\/(?:[ \t]|$)/;

/** The text without characters that show nothing. */
export function visible(text) {
    return text.replace(INVISIBLE, "");
}

/** A short text of numbers and signs as an English keyboard would have given it. */
export function plain(text) {
    return plainSigns(visible(text));
}

function plainSigns(text) {
    return text
        .replace(FULL_WIDTH, (sign) => String.fromCharCode(sign.charCodeAt(0) - 0xfee0))
        .replace(SPACES, " ")
        .replace(QUOTES, '"');
}

/** The same for a line's beginning, up to its first colon outside quotes; every character stays in its place. */
export function plainHead(line) {
    let [head, closing] = ["", ""];
    for (let at = 0; at < line.length; at++) {
        const typed = line[at];
        let sign = plainSigns(typed);
        if (closing) {
            sign = closing.includes(typed) ? '"' : typed;
            if (closing.includes(typed)) closing = "";
        } else if (sign === '"') {
            closing = typed === '"' ? '"' : ANY_QUOTE;
        }
        head += sign;
        if (sign === ":" && !closing) return head + line.slice(at + 1);
    }
    return head;
}

/** A line in the form of another program, as lines of a schedule; an empty list when it has none that is known. */
export function writtenElsewhere(line, frameRate = 24) {
    line = line.replace(SPACES, " ").replace(/^[ \t]+|[ \t]+$/g, "");
    if ("[(".includes(line[0] ?? " ")) {
        const found = [...line.matchAll(BRACKETS)].map(([, part]) => SPAN.exec(part) ?? POINT.exec(part));
        return found.length && found.every(Boolean) ? found.map((part) => `${part[1]}s: ${cut(part[2])}`) : [];
    }
    const span = SPAN.exec(line);
    if (span) return [`${span[1]}s: ${cut(span[2])}`];
    const frame = FRAME.exec(line);
    return frame ? [byFrame(Number(frame[1]), frame[2], frameRate)] : [];
}

function byFrame(frame, prompt, frameRate) {
    return `${Math.floor((frame / frameRate) * 1000 + 0.5) / 1000}s: ${cut(prompt)}`;
}

/** What to say of such lines: how they are written here. */
export function inTheirPlace(lines) {
    const shown = lines.slice(0, 3).join(" / ") + (lines.length > 3 ? " / ..." : "");
    return `a line is a start, a colon and a prompt that lasts to the next start; write here: ${shown}`;
}

function cut(prompt) {
    const characters = Array.from(prompt.replace(/^[ \t]+|[ \t]+$/g, ""));
    return characters.length > 40 ? `${characters.slice(0, 40).join("")}...` : characters.join("");
}
