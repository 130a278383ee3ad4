"""Hostile values for every option of the command line: each is accepted or refused in a sentence, before anything is
made, and leaves no file behind."""

import argparse
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import helios_core.generate as generate_module
from helios_core import cli
from helios_core.files import save_tensors
from helios_core.media.writer import VideoWriter

NUM_CASES = 200

NUMBERS = ["", "0", "-1", "1", "2", "64", "100000", "9" * 30, "1e400", "-1e400", "nan", "inf"]
NUMBERS += ["0.0001", "１２", "1_0", " 3 "]
NUMBERS += ["\u200b3", "3,", "2,2", "2,2,2", "1,1", "2，2", "x", "0x10"]
PAIRS = ["", ":", "0:", ":0", "0:0", "1:a storm", "-1:1", "9:1", "0:9999999999999999999999", "x:y", "０：１", "0:1:2"]
PATHS = ["", ".", "..", "gone", "gone/a.mp4", "words.txt", "words.mp4", "empty", "folder", "12:30.mp4", "CON.mp4"]
PATHS += ["a", "a.mp4", "a.png", "a.xyz", "end.", "风" * 100 + ".mp4", "x" * 300, "words.txt/a.mp4", "a\udcff.mp4"]
PATHS += [
    "-",
    "a.avi",
    "clip.mp4",
    "a.helios.safetensors",
    "stranger.safetensors",
    "%s",
    "~",
    "picture.png",
    "schedule.txt",
    "frames.json",
]
WORDS = ["", "a fox", "x" * 3000, "{red|blue} fox", "\u200b", "\udcff", "🦊", "a\nb", "--", "-x"]


class ReachedSampling(Exception):
    """The options were accepted."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files of every kind but the right one."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "words.txt").write_text("0s: a fox\nno start")
    (folder / "words.mp4").write_text("words")
    (folder / "schedule.txt").write_text('0s: a fox\n2s anchor "gone.png": it jumps')
    (folder / "frames.json").write_text('{"0": "a fox"}')
    save_tensors(folder / "stranger.safetensors", "chunk", {"a": torch.zeros(1)}, {})
    with VideoWriter(folder / "clip.mp4", width=32, height=32) as writer:
        writer.write(torch.rand(40, 32, 32, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def reached(video, *_, **__):
            video.check()
            raise ReachedSampling

        patch.setattr(generate_module, "make_video", reached)
        patch.setattr(cli, "make_show", lambda *_, **__: reached)
        yield folder


def options_of(command: str) -> dict[str, argparse.Action]:
    (commands,) = [a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return {action.option_strings[-1]: action for action in commands.choices[command]._actions if action.option_strings}


def values_of(action: argparse.Action) -> st.SearchStrategy[str]:
    if action.choices:
        return st.sampled_from([*map(str, action.choices), "nope", ""])
    if action.type is Path:
        return st.sampled_from(PATHS) | st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    if action.type in (int, float) or action.dest == "steps":
        return st.sampled_from(NUMBERS) | st.integers().map(str) | st.floats().map(str)
    if action.metavar and ":" in action.metavar:
        return st.sampled_from(PAIRS) | st.text(max_size=8)
    return st.sampled_from(WORDS)


SLOW = ("--help", "--compile")  # help exits with 0; compiling is refused or accepted as on its own
GENERATE = {name: action for name, action in options_of("generate").items() if name not in SLOW}


@st.composite
def command_lines(draw) -> list[str]:
    usual = {"--prompt": "a fox", "--out": "out.mp4", "--width": "64", "--height": "64"}
    usual |= {"--steps": "1,1", "--chunks": "1"}
    names = draw(st.lists(st.sampled_from(sorted(GENERATE)), min_size=1, max_size=3, unique=True))
    line = ["generate"]
    if "--schedule" in names:
        usual.pop("--prompt")
    for name, value in usual.items():
        if name not in names:
            line += [f"{name}={value}"]
    for name in names:
        line += [name] if GENERATE[name].nargs == 0 else [f"{name}={draw(values_of(GENERATE[name]))}"]
    return line


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def outcome(line: list[str], caplog, capsys) -> str:
    """What is said when the command is refused; nothing when it is accepted."""
    caplog.clear()
    capsys.readouterr()
    try:
        status = cli.main(line)
    except ReachedSampling:
        return ""
    except SystemExit as stop:  # argparse
        status = stop.code
        return capsys.readouterr().err.strip().splitlines()[-1] if status else ""
    assert status == 2
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"][-1]


@settings(
    max_examples=NUM_CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@example(["generate", "--prompt=a fox", "--out=12:30.mp4"])
@example(["generate", "--prompt=a fox", "--out=out.mp4", "--width=512", "--height=288"])
@example(["generate", "--prompt=a fox", "--out=out.mp4", "--chunks=99999999999999999999"])
@given(line=command_lines())
def test_every_option_of_generate_is_accepted_or_refused_in_a_sentence_without_a_trace(place, caplog, capsys, line):
    before = files_in(place)
    said = outcome(line, caplog, capsys)
    if said:
        assert len(said) < 900, said
        assert "Traceback" not in said
        assert len(said.split()) > 3, said
        assert files_in(place) == before, said
    for name in files_in(place) - before:  # a run folder that sampling would have filled
        assert name.partition(os.sep)[0].endswith(".run") or said == ""


def test_all_options_are_tried():
    assert {"--out", "--seed", "--steps", "--schedule", "--image", "--video", "--memory", "--reroll"} <= set(GENERATE)
    assert sys.modules[cli.__name__] is cli
