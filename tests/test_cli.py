"""The command line: what can be expected to fail is one line that says what to do, before the work it would waste."""

import av
import pytest
import torch

from helios_core.cli import main
from helios_core.demo import DemoModel

SIZE = ["--width", "64", "--height", "64", "--steps", "1,1", "--chunks", "1"]


@pytest.fixture
def fail(tmp_path, caplog):
    """fail(options) -> what `generate` reports when it fails; its exit status is 2 and nothing is raised."""

    def run(*options: str) -> str:
        caplog.clear()
        arguments = ["generate", "--prompt", "a red circle", *SIZE, *options, "--out", str(tmp_path / "a.mp4")]
        assert main(arguments) == 2
        return caplog.text

    return run


def test_latents_that_become_infinite_are_reported_with_their_place(fail):
    report = fail("--guidance-scale", "1e38")
    assert "NaN or infinite in chunk 1, stage" in report
    assert "Traceback" not in report


def test_compiled_blocks_and_a_reused_history_are_refused_in_words(fail, tmp_path):
    assert "Turn one of the two off" in fail("--compile", "--history-reuse", "stage")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_reported(fail, monkeypatch):
    def load(source):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")

    monkeypatch.setattr(DemoModel, "load_transformer", load)
    report = fail()
    assert "Tried to allocate 4.00 GiB" in report
    assert "Traceback" not in report


def test_a_missing_encoder_is_reported_before_anything_is_made(fail, monkeypatch, tmp_path):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    report = fail()
    assert "no libx264 encoder" in report
    assert "pip install av" in report
    assert not list(tmp_path.iterdir())
