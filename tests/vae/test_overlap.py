"""Decoding beside the sampling: the order of what a GPU is told, the same file, and nothing lost on the way."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from helios_core.cli import main
from helios_core.media.reader import read_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.hooks import Hooks
from helios_core.vae.side_stream import SideStream
from tests import runs


class FakeCuda:
    """Stands for torch.cuda, and writes down what it is told. What runs on a stream is done when its event is waited
    for: until then a copy that was started has not arrived."""

    def __init__(self):
        self.log = []
        self.current = "sampling"

    def Stream(self, device):
        return FakeStream(self)

    def Event(self):
        return FakeEvent(self)

    def current_stream(self, device):
        return self.current

    @contextmanager
    def stream(self, stream):
        self.current, before = stream, self.current
        try:
            yield
        finally:
            self.current = before


class FakeStream:
    def __init__(self, cuda):
        self.cuda = cuda

    def wait_event(self, event):
        self.cuda.log.append(("side waits for", event.recorded_on))


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.recorded_on = cuda, None

    def record(self, stream):
        self.recorded_on = "sampling" if stream == "sampling" else "side"
        self.cuda.log.append(("record", self.recorded_on))

    def synchronize(self):
        self.cuda.log.append(("host waits for", self.recorded_on))


def test_the_stream_waits_for_the_weights_and_the_host_for_the_frames():
    cuda = FakeCuda()
    side = SideStream("cpu", cuda)

    def decode(latents):
        cuda.log.append(("decode on", "side" if cuda.current != "sampling" else "sampling"))
        return latents + 1

    assert torch.equal(side.around(decode)(torch.zeros(3)), torch.ones(3))
    assert cuda.log == [
        ("record", "sampling"),
        ("side waits for", "sampling"),
        ("decode on", "side"),
        ("record", "side"),
        ("host waits for", "side"),
    ]
    assert cuda.current == "sampling"


def test_each_chunk_gets_frames_of_its_own():
    side = SideStream("cpu", FakeCuda())
    first = side.decode(lambda latents: latents, torch.zeros(2))
    side.decode(lambda latents: latents, torch.ones(2))
    assert torch.equal(first, torch.zeros(2))


def test_a_fault_of_the_decoder_comes_out_and_the_stream_is_left():
    cuda = FakeCuda()
    with pytest.raises(ZeroDivisionError):
        SideStream("cpu", cuda).decode(lambda latents: 1 / 0, torch.zeros(2))
    assert cuda.current == "sampling"


def test_latents_on_a_device_are_refused():
    with pytest.raises(ValueError, match="are on meta; hand them in on the CPU"):
        SideStream("cpu", FakeCuda()).decode(lambda latents: latents, torch.zeros(2, device="meta"))


def overlapped(decode=runs.decode):
    return {"decode": SideStream("cpu", FakeCuda()).around(decode), "decode_in_background": True}


def test_an_overlapped_run_writes_the_same_file(tmp_path):
    runs.make(runs.video(3), tmp_path / "run", tmp_path / "plain.mp4")
    told = runs.make(runs.video(3), tmp_path / "other", tmp_path / "overlapped.mp4", **overlapped())
    assert [done.chunk for done in told] == [0, 1, 2]
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "overlapped.mp4").read_bytes()


def test_a_fault_beside_the_sampling_ends_the_run_and_keeps_the_chunk(tmp_path):
    def broken(latents):
        raise ArithmeticError("the decoder is broken")

    job, out = runs.video(3), tmp_path / "out.mp4"
    with pytest.raises(ArithmeticError, match="the decoder is broken"):
        runs.make(job, tmp_path / "run", out, **overlapped(broken))
    assert 1 <= len(list((tmp_path / "run" / "chunks").iterdir())) <= 2
    told = runs.make(job, tmp_path / "run", out, **overlapped())
    assert told[0].reused
    assert read_video(out).num_frames == 99


class Cancelled(Exception):
    pass


def test_cancelling_while_a_chunk_is_decoded_loses_nothing(tmp_path):
    settings = replace(runs.SETTINGS, steps=(20,))
    job = runs.video(3)
    plan = job.plan
    job = replace(job, plan=lambda chunk: replace(plan(chunk), settings=settings))
    decoding = []
    cancelled = threading.Event()

    def decode(latents):
        decoding.append("begun")
        cancelled.wait(60)  # however few processors there are, the decoder is at work when the user cancels
        frames = runs.decode(latents)
        decoding.append("done")
        return frames

    def cancel():
        if decoding == ["begun"]:  # the sampler is in chunk 1, the decoder in chunk 0
            cancelled.set()
            raise Cancelled

    options = overlapped(decode)
    with pytest.raises(Cancelled):
        runs.make(job, tmp_path / "run", tmp_path / "out.mp4", hooks=Hooks(check_cancelled=cancel), **options)
    assert decoding == ["begun", "done"]
    assert len(list((tmp_path / "run" / "segments").iterdir())) == 1
    told = runs.make(job, tmp_path / "run", tmp_path / "out.mp4", **options)
    assert [done.reused for done in told] == [True, False, False]
    assert len(decoding) == 2 * 3  # chunk 0 was not decoded again
    runs.make(job, tmp_path / "unbroken", tmp_path / "unbroken.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "unbroken.mp4").read_bytes()


def test_the_command_line_decodes_otherwise_from_the_same_chunks(tmp_path):
    out = tmp_path / "out.mp4"
    command = ["generate", "--prompt", "a red circle", "--chunks", "1", "--steps", "1,1", "--out", str(out)]
    command += ["--width", "32", "--height", "32"]
    assert main([*command, "--overlap-vae"]) == 0  # on a CPU that changes nothing
    exact = out.read_bytes()
    assert main([*command, "--vae-dtype", "bf16", "--vae-channels-last"]) == 0
    assert out.read_bytes() != exact
    folder = RunFolder(out.with_suffix(".run")).path
    assert len(list((folder / "chunks").glob("*.safetensors"))) == 1
    assert main(command) == 0
    assert out.read_bytes() == exact
