"""What people type and paste, made plain: full-width letters, invisible characters, and other programs' schedules.

`web/shared/typed.js` does the same, and `tests/script/schedule_cases.json` holds both to it.
"""

from __future__ import annotations

import re

from .geometry import FRAME_RATE

# The mark at the start of some files, and what takes no room on the screen: it comes along when text is copied.
_INVISIBLE = dict.fromkeys((0xFEFF, 0x200B, 0x2060))
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SPACES: dict[int, str] = dict.fromkeys((0xA0, 0x2007, 0x202F, 0x3000), " ")
_QUOTES: dict[int, str] = dict.fromkeys((0x201C, 0x201D, 0x201E), '"')
_ANY_QUOTE = '"\uff02\u201c\u201d\u201e'
_PLAIN: dict[int, int | str] = {**_FULL_WIDTH, **_SPACES, **_QUOTES}

_UNIT = r"(?:s|secs?|seconds?)?"
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_SPAN = re.compile(rf"({_NUMBER}) ?{_UNIT} ?(?:-|–|—|~|to) ?{_NUMBER} ?{_UNIT} ?[:=]? ?(.*)", re.IGNORECASE)
_POINT = re.compile(rf"({_NUMBER}) ?{_UNIT} ?[:=] ?(.*)", re.IGNORECASE)
_BRACKETS = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_FRAME = re.compile(r'"?([0-9]{1,9})"? ?: ?"(.*)" ?,?')

CHOICE = re.compile(r"(?<!\\)\{[^{}\"]*\|[^{}]*\}")
NOTE = re.compile(r"[ \t]//(?:[ \t]|$)")


def visible(text: str) -> str:
    """The text without characters that show nothing."""
    return text.translate(_INVISIBLE)


def plain(text: str) -> str:
    """A short text of numbers and signs as an English keyboard would have given it."""
    return visible(text).translate(_PLAIN)


def plain_head(line: str) -> str:
    """The same for a line's beginning, up to its first colon outside quotes; every character stays in its place."""
    head, closing = [], ""
    for typed in line:
        sign = typed.translate(_PLAIN)
        if closing:
            sign = '"' if typed in closing else typed
            closing = "" if typed in closing else closing
        elif sign == '"':
            closing = '"' if typed == '"' else _ANY_QUOTE
        head.append(sign)
        if sign == ":" and not closing:
            break
    return "".join(head) + line[len(head) :]


def written_elsewhere(line: str, frame_rate: float = FRAME_RATE) -> list[str]:
    """A line in the form of another program, as lines of a schedule; an empty list when it has none that is known.

    "[0s-2s: a fox] [2s: it jumps]" -> ["0s: a fox", "2s: it jumps"]; so "0-5s: a fox", and "48": "it jumps" by frames.
    """
    line = line.translate(_SPACES).strip(" \t")
    if line[:1] in ("[", "("):
        parts = _BRACKETS.findall(line)
        found = [match for part in parts if (match := _SPAN.fullmatch(part) or _POINT.fullmatch(part))]
        return [f"{match[1]}s: {_cut(match[2])}" for match in found] if len(found) == len(parts) else []
    span = _SPAN.fullmatch(line)
    if span:
        return [f"{span[1]}s: {_cut(span[2])}"]
    frame = _FRAME.fullmatch(line)
    return [by_frame(int(frame[1]), frame[2], frame_rate)] if frame else []


def by_frame(frame: int, prompt: str, frame_rate: float) -> str:
    """A line of a schedule for a prompt that starts at a frame."""
    seconds = f"{int(frame / frame_rate * 1000 + 0.5) / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{seconds}s: {_cut(prompt)}"


def in_their_place(lines: list[str]) -> str:
    """What to say of such lines: how they are written here."""
    shown = " / ".join(lines[:3]) + (" / ..." if len(lines) > 3 else "")
    return f"a line is a start, a colon and a prompt that lasts to the next start; write here: {shown}"


def _cut(prompt: str) -> str:
    prompt = prompt.strip(" \t")
    return f"{prompt[:40]}..." if len(prompt) > 40 else prompt
