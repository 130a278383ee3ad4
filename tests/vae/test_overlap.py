"""Decoding beside the sampling: whole frames from a device that is late, the same file, and nothing lost on the way."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helios_core.cli import main
from helios_core.media.reader import read_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.hooks import Hooks
from helios_core.vae.side_stream import SideStream
from tests import runs


class LateDevice:
    """Stands for torch.cuda and its device: what is launched on a stream is done by a thread of the stream's own, a
    little later, in order. Streams wait for each other only where they are told to, and so does the host."""

    def __init__(self):
        self.sampling = LateStream()
        self.current = self.sampling

    def Stream(self, device):
        return LateStream()

    def Event(self):
        return LateEvent()

    def current_stream(self, device):
        return self.current

    @contextmanager
    def stream(self, stream):
        self.current, before = stream, self.current
        try:
            yield
        finally:
            self.current = before

    def launch(self, work):
        self.current.queue.submit(lambda: (time.sleep(0.02), work()))


class LateStream:
    def __init__(self):
        self.queue = ThreadPoolExecutor(1)

    def wait_event(self, event):
        self.queue.submit(event.reached.wait)


class LateEvent:
    def record(self, stream):
        self.reached = threading.Event()
        stream.queue.submit(self.reached.set)

    def synchronize(self):
        self.reached.wait()


class CopiesAreLaunched(TorchDispatchMode):
    """While it is on, copies are done by the device, not by the host at once."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.copy_.default:
            return func(*args, **(kwargs or {}))
        self.cuda.launch(lambda: func(*args, **(kwargs or {})))
        return args[0]


def test_frames_are_whole_and_made_of_whole_weights_however_late_the_device_is():
    cuda = LateDevice()
    weights = torch.full((3,), torch.nan)
    for value in range(5):  # the last is what the weights are to be
        cuda.launch(lambda value=value: weights.fill_(value))
    side = SideStream("cpu", cuda)

    def decode(latents):
        frames = torch.full((3,), torch.nan)
        cuda.launch(lambda: torch.mul(latents, weights, out=frames))
        return frames

    with CopiesAreLaunched(cuda):
        frames = side.around(decode)(torch.tensor([1.0, 2.0, 3.0]))
    assert frames.tolist() == [4, 8, 12]


def test_sampling_does_not_wait_for_the_decoder():
    cuda = LateDevice()
    side, may_end = SideStream("cpu", cuda), threading.Event()
    sampled = threading.Event()

    def decode(latents):
        cuda.launch(lambda: may_end.wait(60))
        return latents

    with ThreadPoolExecutor(1) as background:
        frames = background.submit(side.decode, decode, torch.ones(2))
        cuda.sampling.queue.submit(sampled.set)
        assert sampled.wait(60)
        assert not frames.done()
        may_end.set()
        assert torch.equal(frames.result(), torch.ones(2))


def test_each_chunk_gets_frames_of_its_own():
    side = SideStream("cpu", LateDevice())
    first = side.decode(lambda latents: latents, torch.zeros(2))
    side.decode(lambda latents: latents, torch.ones(2))
    assert torch.equal(first, torch.zeros(2))


def test_a_fault_of_the_decoder_comes_out_and_the_stream_is_left():
    cuda = LateDevice()
    with pytest.raises(ZeroDivisionError):
        SideStream("cpu", cuda).decode(lambda latents: 1 / 0, torch.zeros(2))
    assert cuda.current is cuda.sampling


def test_latents_on_a_device_are_refused():
    with pytest.raises(ValueError, match="are on meta; hand them in on the CPU"):
        SideStream("cpu", LateDevice()).decode(lambda latents: latents, torch.zeros(2, device="meta"))


def overlapped(decode=runs.decode):
    return {"decode": SideStream("cpu", LateDevice()).around(decode), "decode_in_background": True}


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
    decoding, asked = [], []
    begun, cancelled = threading.Event(), threading.Event()

    def decode(latents):
        decoding.append("begun")
        begun.set()
        cancelled.wait(60)  # however few processors there are, the decoder is at work when the user cancels
        frames = runs.decode(latents)
        decoding.append("done")
        return frames

    def cancel():
        asked.append(1)
        if len(asked) > 1 + 20 and not cancelled.is_set():  # the sampler is at chunk 1, the decoder in chunk 0
            assert begun.wait(60)
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
