"""Pictures that explain: the plot of a drift report, and a memory laid out as labelled frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..geometry import FRAME_RATE, FRAMES_PER_CHUNK
from .measures import MEASURES, DriftMeasured

PAPER, INK, FAINT, LINE, FIRST, LAST = "#16181d", "#e8eaed", "#8b919a", "#31353d", "#4f9dde", "#e0863a"
PANEL = (620, 210)  # px, of one measure
MARGIN = 24


def plot_drift(measured: DriftMeasured, *, frame_rate: float = FRAME_RATE) -> Image.Image:
    """Each measure over the seconds of the video, a dot for each chunk, with the means of both ends."""
    columns = 2
    rows = math.ceil(len(MEASURES) / columns)
    title = 48
    picture = Image.new("RGB", (columns * PANEL[0] + 2 * MARGIN, rows * PANEL[1] + title + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    seconds = measured.num_frames / frame_rate
    draw.text((MARGIN, 14), f"Drift over {seconds:.1f} s ({len(measured.chunks)} chunks)", INK, _font(20))
    draw.text((picture.width - 420, 18), "mean of the first 15 %", FIRST, _font(14))
    draw.text((picture.width - 210, 18), "mean of the last 15 %", LAST, _font(14))
    for number, (name, meaning) in enumerate(MEASURES.items()):
        left = MARGIN + number % columns * PANEL[0]
        top = title + number // columns * PANEL[1]
        _draw_panel(draw, left, top, name, meaning, measured, frame_rate)
    return picture


def _draw_panel(draw, left: int, top: int, name: str, meaning: str, measured: DriftMeasured, frame_rate: float) -> None:
    first, last = measured.first[name], measured.last[name]
    draw.text((left, top), name.replace("_", " - "), INK, _font(16))
    draw.text((left + 120, top + 3), meaning, FAINT, _font(12))
    shown = "not measured" if math.isnan(last - first) else f"{first:.4g} to {last:.4g} ({last - first:+.3g})"
    draw.text((left + PANEL[0] - MARGIN, top + 24), shown, INK, _font(13), anchor="ra")

    box = (left + 58, top + 44, left + PANEL[0] - MARGIN, top + PANEL[1] - 34)
    points = [(chunk + 0.5, values[name]) for chunk, values in enumerate(measured.chunks)]
    points = [(chunk, value) for chunk, value in points if not math.isnan(value)]
    low, high = _range([value for _, value in points] + [end for end in (first, last) if not math.isnan(end)])
    total = len(measured.chunks)

    def place(chunk: float, value: float) -> tuple[float, float]:
        x = box[0] + chunk / total * (box[2] - box[0])
        return x, box[3] - (value - low) / (high - low) * (box[3] - box[1])

    for part in range(5):
        value = low + part / 4 * (high - low)
        y = place(0, value)[1]
        draw.line((box[0], y, box[2], y), LINE)
        draw.text((box[0] - 8, y), f"{value:.4g}", FAINT, _font(12), anchor="rm")
    for part in range(5):
        chunk = part / 4 * total
        x = place(chunk, low)[0]
        time = chunk * FRAMES_PER_CHUNK / frame_rate if total > 1 else chunk * measured.num_frames / frame_rate
        draw.text((x, box[3] + 6), f"{time:.3g} s", FAINT, _font(12), anchor="ma")
    for value, colour, start, end in ((first, FIRST, 0.0, 0.15), (last, LAST, 0.85, 1.0)):
        if not math.isnan(value):
            draw.line((*place(start * total, value), *place(end * total, value)), colour, width=4)
    if len(points) > 1:
        draw.line([place(*point) for point in points], INK, width=2)
    if total <= 100:
        for point in points:
            x, y = place(*point)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), INK)


def _range(values: list[float]) -> tuple[float, float]:
    """Limits of an axis that holds the values, with some air; never so tight that rounding looks like drift."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = max(0.08 * (high - low), 0.02 * max(abs(low), abs(high)), 0.05)
    return low - air, high + air


@dataclass(frozen=True)
class Strip:
    """A part of the memory: its name and what to know about it, and its frames (H, W, 3) in [0, 1] from the oldest to
    the latest, None where there is no past yet."""

    title: str
    note: str
    frames: list[torch.Tensor | None]


def draw_strips(title: str, strips: list[Strip], *, frame_size: tuple[int, int], width: int = 1240) -> Image.Image:
    """The strips below each other; `frame_size` is (width, height) of the video, for the shape of empty frames."""
    columns = 8
    tile_width = (width - 2 * MARGIN) // columns - 8
    tile_height = round(tile_width * frame_size[1] / frame_size[0])
    rows = [math.ceil(len(strip.frames) / columns) for strip in strips]
    height = 60 + sum(42 + count * (tile_height + 10) for count in rows) + MARGIN // 2
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 16), title, INK, _font(20))
    top = 60
    for strip, count in zip(strips, rows, strict=True):
        draw.text((MARGIN, top), strip.title, INK, _font(17))
        draw.text((MARGIN + 190, top + 3), strip.note, FAINT, _font(14))
        for number, frame in enumerate(strip.frames):
            x = MARGIN + number % columns * (tile_width + 8)
            y = top + 30 + number // columns * (tile_height + 10)
            _draw_tile(picture, draw, (x, y, x + tile_width, y + tile_height), frame)
        top += 42 + count * (tile_height + 10)
    return picture


def _draw_tile(picture: Image.Image, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], frame) -> None:
    if frame is None:
        draw.rectangle(box, outline=LINE)
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), "empty", FAINT, _font(13), anchor="mm")
        return
    pixels = (frame.float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    tile = Image.fromarray(pixels).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    picture.paste(tile, box[:2])


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A picture as frames (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)[None]


def _font(size: int):
    return ImageFont.load_default(size)
