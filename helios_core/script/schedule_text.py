"""The text form of a prompt schedule, for people to type.

    # One segment a line: when it starts, options, a colon, the prompt.
    0s: a fox in the snow
    5s blend 2: it looks up
        and lifts a paw          (a line that begins with a space continues the prompt)
    chunk 8 blend 4 spherical seed 7 guidance 4 anchor "dusk.png" lora snow.safetensors 0.8: night falls
    end 20s

Times in seconds are moved to the nearest chunk; 00:05 is 5s. Case, full-width signs and invisible characters do not
matter before the colon. `web/timeline/text.js` reads and writes the same form, with the same
errors; `tests/schedule_cases.json` holds both to it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ..geometry import FRAME_RATE
from ..typed import CHOICE, NOTE, by_frame, in_their_place, plain_head, visible, written_elsewhere
from .schedule import (
    BLEND_SHAPES,
    CHECKS,
    DEFAULT_BLEND,
    PromptSchedule,
    Segment,
    check_end,
    check_order,
    check_start,
    control_character_message,
    find_control_character,
    nearest_chunk,
)

_TOKEN = re.compile(r'[ \t]*(?:(:)|"([^"]*)"|([^ \t:"]+)|(")|$)')
_WHOLE = re.compile(r"-?[0-9]{1,30}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,17})?")
_SECONDS = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)(?:s|secs?|seconds?)")
_BARE_NUMBER = re.compile(r"[0-9]{1,30}(?:\.[0-9]{1,30})?")
_UNIT = re.compile(r"[ \t]+(?:s|secs?|seconds?)(?=[ \t:]|$)", re.IGNORECASE)
_CLOCK = re.compile(r"[ \t]*([0-9]{1,4}):([0-5][0-9])(?::([0-5][0-9]))?(\.[0-9]{1,9})?(?=[ \t:]|$)")
_END = re.compile(r"end(?:[ \t]|$)", re.IGNORECASE)
_OPTIONS = ("blend", *BLEND_SHAPES, "seed", "guidance", "anchor", "lora")


class ScheduleError(ValueError):
    """A fault in a schedule's text, at `line` and `column`, both counted from 1."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.line, self.column = line, column


def parse_schedule(
    text: str, *, frame_rate: float = FRAME_RATE, blend: int = DEFAULT_BLEND, shape: str = "linear"
) -> PromptSchedule:
    """Read a schedule from its text form, or from JSON (which begins with a brace).

    `blend` (chunks) and `shape` are those of segments that name none. Raises ScheduleError with line and column, or
    ValueError for JSON that is no schedule.
    """
    text = visible(text)
    start = text.lstrip(" \t\r\n")
    if start.startswith("{") and not CHOICE.match(start):
        _check_no_frames(start, frame_rate)
        return PromptSchedule.from_json(text, blend=blend, shape=shape)
    entries: list[dict[str, Any]] = []
    prompts: list[list[str]] = []
    num_chunks = None
    lines = re.split(r"\r\n|\r|\n", text)
    for number, typed in enumerate(lines, start=1):
        position = find_control_character(typed)
        if position is not None:
            raise ScheduleError(number, position + 1, control_character_message(typed[position]))
        if typed.startswith(("#", "//")):
            continue
        content = plain_head(typed)
        if not content.strip(" \t"):
            if prompts:
                prompts[-1].append("")
            continue
        line = _Line(number, content, frame_rate)
        line.check_plain()
        if num_chunks is not None:
            line.fail(1, 'nothing may follow the line with "end"')
        if content[0] in " \t":
            if not prompts:
                line.fail(1, "a line that begins with a space continues a prompt, and there is none above")
            prompts[-1].append(content)
        elif _END.match(content):
            num_chunks = line.end(entries[-1]["start"] if entries else None)
        else:
            entry, first = line.segment(entries[-1]["start"] if entries else None)
            entries.append(entry)
            prompts.append([first])
    if not entries:
        raise ScheduleError(1, 1, 'the schedule is empty; it needs at least one line such as "0s: a fox in the snow"')
    segments = [Segment(prompt="\n".join(rows), **entry) for entry, rows in zip(entries, prompts, strict=True)]
    return PromptSchedule(tuple(segments), num_chunks, blend, shape)


def _check_no_frames(text: str, frame_rate: float) -> None:
    """Raise ValueError, with the text to write, for JSON of prompts by frame numbers, as other packs have it."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict) and values and all(re.fullmatch("[0-9]{1,9}", key) for key in values):
        lines = [by_frame(int(frame), str(prompt), frame_rate) for frame, prompt in values.items()]
        raise ValueError(f"this is JSON by frame numbers; {in_their_place(lines)}")


class _Line:
    """An unindented line, read token by token. Columns are counted in characters, from 1."""

    def __init__(self, number: int, content: str, frame_rate: float) -> None:
        self.number, self.content, self.frame_rate = number, content, frame_rate
        self.position = 0
        self.column = 1  # of the latest token

    def fail(self, column: int, message: str) -> NoReturn:
        raise ScheduleError(self.number, column, message)

    def check_plain(self) -> None:
        """Raise for what CLIP Text Encode would put in or leave out of a prompt; a schedule's prompts stay as they
        are."""
        choice, note = CHOICE.search(self.content), NOTE.search(self.content)
        if choice:
            self.fail(choice.start() + 1, "a schedule makes no choice between {a|b}; write the one that is meant")
        if note:
            message = "a note behind // would go into the prompt; put it on a line that begins with #"
            self.fail(note.start() + 2, message)

    def next(self) -> str | None:
        """The next word or ":", or None at the end of the line. A quoted name is given without its quotes."""
        match = _TOKEN.match(self.content, self.position)
        assert match is not None, "the pattern fits anywhere: at worst at the end of the line"
        colon, quoted, word, quote = match.groups()
        self.position = match.end()
        self.quoted = quoted is not None
        token = next((part for part in (colon, quoted, word, quote) if part is not None), None)
        self.column = self.position + 1 - (0 if token is None else len(token) + 2 * self.quoted)
        if quote is not None:
            self.fail(self.column, "the quoted name has no closing quote")
        return token

    def expect(self, what: str, found: str | None) -> NoReturn:
        shown = "the end of the line" if found is None else f'"{found[:40]}{"..." if len(found) > 40 else ""}"'
        self.fail(self.column, f"expected {what}, found {shown}")

    def check(self, column: int, check, *values) -> None:
        try:
            check(*values)
        except ValueError as fault:
            self.fail(column, str(fault))

    def segment(self, previous: int | None) -> tuple[dict[str, Any], str]:
        """(fields of the segment, first line of its prompt)."""
        elsewhere = written_elsewhere(self.content, self.frame_rate)
        if elsewhere:
            self.fail(1, in_their_place(elsewhere))
        start = self.time('a start such as "5s" or "chunk 4"')
        self.check(1, check_order, previous, start)
        entry: dict[str, Any] = {"start": start}
        while (token := self.next()) != ":" or self.quoted:
            typed, token = token, (token or "").lower()
            if token not in _OPTIONS or self.quoted:
                self.expect(f'{", ".join(_OPTIONS)} or ":"', typed)
            if token == "lora":
                self.lora(entry.setdefault("loras", []))
                continue
            name = "shape" if token in BLEND_SHAPES else "guidance_scale" if token == "guidance" else token
            if name in entry:
                self.fail(self.column, f"{'the blend shape' if name == 'shape' else token} is given twice")
            entry[name] = token if name == "shape" else self.value(token)
        return entry, self.content[self.position :]

    def end(self, last_start: int | None) -> int:
        self.next()
        if last_start is None:
            self.fail(1, "the end comes before the first segment; put it last")
        chunk = self.time('an end such as "20s" or "chunk 15"')
        self.check(1, check_end, last_start, chunk)
        token = self.next()
        if token is not None:
            self.expect("the end of the line", token)
        return chunk

    def time(self, what: str) -> int:
        """A time "5s", "00:05" or "chunk 4", as a chunk."""
        clock = _CLOCK.match(self.content, self.position)
        if clock:
            self.position = clock.end()
            return self.seconds(1, _clock_seconds(*clock.groups()))
        token = self.next()
        column = self.column
        word = "" if self.quoted or token is None else token.lower()
        unit = _UNIT.match(self.content, self.position) if _BARE_NUMBER.fullmatch(word) else None
        if unit:
            self.position = unit.end()
            word += "s"
        seconds = _SECONDS.fullmatch(word)
        if seconds:
            return self.seconds(column, float(seconds.group(1)))
        if word == "chunk":
            token = self.next()
            column = self.column
            if token is None or self.quoted or not _WHOLE.fullmatch(token):
                self.expect('a whole number after "chunk"', token)
            chunk = int(token)
        else:
            self.expect(what, token)
        self.check(column, check_start, chunk)
        return chunk

    def seconds(self, column: int, value: float) -> int:
        # Beyond all bounds, and then not a number that a chunk can be counted with.
        chunk = nearest_chunk(min(value, 1e12), self.frame_rate)
        self.check(column, check_start, chunk)
        return chunk

    def lora(self, loras: list[tuple[str, float]]) -> None:
        """The name of a LoRA and, if a number follows, its strength."""
        name = self.next()
        column = self.column
        if name is None or (name == ":" and not self.quoted):
            self.expect('the name of a file after "lora"', name)
        self.check(column, CHECKS["lora"], name)
        if any(name == other for other, _ in loras):
            self.fail(column, f"the LoRA {json.dumps(name, ensure_ascii=False)} is given twice")
        before = self.position
        token = self.next()
        if token is None or self.quoted or not _NUMBER.fullmatch(token):
            self.position = before
            loras.append((name, 1.0))
            return
        self.check(self.column, CHECKS["strength"], float(token))
        loras.append((name, float(token)))

    def value(self, option: str) -> int | float | str:
        token = self.next()
        column = self.column
        if option == "anchor":
            if token is None or (token == ":" and not self.quoted):
                self.expect('the name of a picture after "anchor"', token)
            value: int | float | str = token
        else:
            pattern, kind = (_NUMBER, "a number") if option == "guidance" else (_WHOLE, "a whole number")
            if token is None or self.quoted or not pattern.fullmatch(token):
                self.expect(f'{kind} after "{option}"', token)
            value = float(token) if option == "guidance" else int(token)
        self.check(column, CHECKS[option], value)
        return value


def _clock_seconds(first: str, second: str, third: str | None, fraction: str | None) -> float:
    """01:02.5 -> 62.5, and with three parts the first is hours."""
    seconds = int(first) * 60 + int(second)
    if third is not None:
        seconds = seconds * 60 + int(third)
    return seconds + float(fraction or 0)
