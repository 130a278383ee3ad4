"""Helios Finish Video beside ComfyUI's own nodes for the same steps, its files, its resuming, and bad input."""

import sys
from itertools import islice

import av
import pytest
import torch
from harness.finish_weights import INTERPOLATORS, UPSCALERS, write_interpolators, write_upscalers
from harness.inprocess import GraphRejected

from helios_core.media.formats import FORMATS, eight_bits
from helios_core.media.frames import resize_frames
from helios_core.media.reader import read_video, stream_video
from helios_core.media.writer import VideoWriter

NUM_FRAMES, PIECE = 12, 5
LOSSLESS = "mkv (ffv1)"
FINISH = {
    "run_name": "film", "width": 0, "height": 0, "scale": 0.0, "fit": "crop", "factor": 1, "frame_rate": 0.0,
    "format": LOSSLESS, "pix_fmt": "auto", "crf": 18, "filename_prefix": "film",
}  # fmt: skip


@pytest.fixture(scope="module")
def finishing_models(comfyui, home):
    write_upscalers(home.models / "upscale_models")
    if "FrameInterpolate" in comfyui._nodes.NODE_CLASS_MAPPINGS:
        write_interpolators(home.models / "frame_interpolation")


@pytest.fixture(scope="module")
def small_clip(home, clip_file):
    """12 frames of a real clip, small."""
    with VideoWriter(home.input / "small.mp4", width=96, height=64) as writer:
        for frame in islice(stream_video(home.input / clip_file), 20, 20 + NUM_FRAMES):
            writer.write(resize_frames(frame[None], 96, 64).float() / 255)
    return "small.mp4"


@pytest.fixture
def run(comfyui, small_clip, finishing_models, request, monkeypatch):
    """run(inputs of the node, **other nodes) -> Run; the video are frames in memory, more than two short pieces."""
    (core,) = [module for name, module in sys.modules.items() if name.endswith(".helios_core.finish.film")]
    monkeypatch.setattr(core, "PIECE_FRAMES", PIECE)
    run_name = request.node.name[:60].translate(str.maketrans("[].()", "-----"))

    def run_graph(inputs, interrupt_at=float("inf"), **nodes):
        graph = {
            "clip": {"class_type": "LoadVideo", "inputs": {"file": small_clip}},
            "frames": {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}},
            "video": {"class_type": "CreateVideo", "inputs": {"images": ["frames", 0], "fps": 24.0}},
            "finish": {
                "class_type": "HeliosFinishVideo",
                "inputs": {**FINISH, "run_name": run_name, "video": ["video", 0], **inputs},
            },
            **nodes,
        }
        return comfyui.run_graph(graph, interrupt_at=interrupt_at)

    return run_graph


def upscaler(name):
    return {"class_type": "UpscaleModelLoader", "inputs": {"model_name": name}}


def upscaled(images):
    return {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["model", 0], "image": [images, 0]}}


def interpolator(comfyui, name):
    if "FrameInterpolate" not in comfyui._nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this ComfyUI has no frame interpolation")
    return {"class_type": "FrameInterpolationModelLoader", "inputs": {"model_name": name}}


def kept(name):
    """A node that keeps images in memory for the test to look at."""
    return {"class_type": "PreviewImage", "inputs": {"images": [name, 0]}}


def film(run):
    assert run.success, run.error
    return read_video(run.output("finish").get_stream_source())


def report(run):
    return run.output("finish", 1)


@pytest.mark.parametrize("name", UPSCALERS)
def test_upscaled_frames_are_those_of_comfyuis_own_node(run, name):
    result = run(
        {"upscale_model": ["model", 0]},
        model=upscaler(name),
        native=upscaled("frames"),
        kept=kept("native"),
    )
    assert result.output("native").std() > 0.05
    assert torch.equal(film(result).frames, eight_bits(result.output("native")))


@pytest.mark.parametrize(("name", "factor"), [(INTERPOLATORS[0], 2), (INTERPOLATORS[0], 5), (INTERPOLATORS[1], 2)])
def test_interpolated_frames_are_those_of_comfyuis_own_node_at_piece_borders_too(run, comfyui, name, factor):
    result = run(
        {"interp_model": ["model", 0], "factor": factor, "cut_threshold": 0.0},
        model=interpolator(comfyui, name),
        native={
            "class_type": "FrameInterpolate",
            "inputs": {"interp_model": ["model", 0], "images": ["frames", 0], "multiplier": factor},
        },
        kept=kept("native"),
    )
    made, native = film(result), eight_bits(result.output("native"))
    assert native.float().std() > 10
    assert made.frame_rate == 24 * factor
    assert len(made.frames) == factor * NUM_FRAMES
    # Ours holds the last frame as long as every other is shown, so that the duration stays.
    assert torch.equal(made.frames[: len(native)], native)
    assert torch.equal(made.frames[len(native) :], native[-1:].expand(factor - 1, -1, -1, -1))


def test_a_frame_rate_that_is_no_multiple_keeps_the_duration_and_the_frames_in_common(run, comfyui):
    result = run(
        {"interp_model": ["model", 0], "frame_rate": 60.0, "cut_threshold": 0.0},
        model=interpolator(comfyui, INTERPOLATORS[0]),
        kept=kept("frames"),
    )
    made = film(result)
    assert (made.frame_rate, len(made.frames)) == (60, NUM_FRAMES * 60 // 24)
    assert torch.equal(made.frames[::5], eight_bits(result.output("frames"))[::2])


def test_interpolating_then_upscaling_is_what_the_two_nodes_make_in_a_row(run, comfyui):
    result = run(
        {"interp_model": ["rife", 0], "upscale_model": ["model", 0], "factor": 2, "cut_threshold": 0.0},
        rife=interpolator(comfyui, INTERPOLATORS[0]),
        model=upscaler(UPSCALERS[0]),
        smooth={
            "class_type": "FrameInterpolate",
            "inputs": {"interp_model": ["rife", 0], "images": ["frames", 0], "multiplier": 2},
        },
        native=upscaled("smooth"),
        kept=kept("native"),
    )
    native = eight_bits(result.output("native"))
    # In memory the native node's frames lie in another order, which a convolution may add up in another order.
    assert (film(result).frames[: len(native)].int() - native.int()).abs().max() <= 1
    assert "frames between are made at the small size" in report(result)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_and_shown(run, name):
    result = run({"format": name, "width": 160, "height": 120})
    path = result.output("finish").get_stream_source()
    assert path.endswith(FORMATS[name].suffix)
    assert film(result).frames.shape == (NUM_FRAMES, 120, 160, 3)
    assert "cut off, left and right" in report(result)
    assert result.history["outputs"]["finish"]["images"]


def test_a_file_keeps_its_sound_in_sync(run, home, comfyui):
    from helios_core.media.audio import waveform_sound

    wave = torch.zeros(2, 2 * 44100)
    wave[:, 44100:44200] = 0.9
    with VideoWriter(home.input / "beep.mp4", width=64, height=64, sound=waveform_sound(wave, 44100)) as writer:
        writer.write(torch.rand(48, 64, 64, 3))
    result = run({"video": ["beep", 0], "scale": 2.0}, beep={"class_type": "LoadVideo", "inputs": {"file": "beep.mp4"}})
    assert result.success, result.error
    with av.open(result.output("finish").get_stream_source()) as container:
        samples = torch.cat([torch.from_numpy(part.to_ndarray()) for part in container.decode(audio=0)], dim=-1)
    loudest = int(samples[0].float().abs().argmax()) // 2  # left and right in turn
    assert abs(loudest - 44150) < 1500


def test_part_of_a_file_is_finished_without_the_rest(run, comfyui):
    if "Video Slice" not in comfyui._nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this ComfyUI cuts no videos")
    result = run(
        {"video": ["cut", 0]},
        cut={
            "class_type": "Video Slice",
            "inputs": {"video": ["clip", 0], "start_time": 2 / 24, "duration": 6 / 24, "strict_duration": False},
        },
    )
    whole = read_video(comfyui.home.input / "small.mp4").frames
    assert torch.equal(film(result).frames, whole[2:8])


def test_a_cancelled_run_keeps_its_pieces_and_ends_in_the_same_bytes(run, home, monkeypatch):
    import comfy.utils

    # Newer versions leave out what the bar says within a tenth of a second, and Cancel is pressed by the bar here.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    inputs = {"upscale_model": ["model", 0], "run_name": "cancelled"}
    model = upscaler(UPSCALERS[0])
    broken_off = run(inputs, interrupt_at=0.8, model=model)
    assert not broken_off.success
    pieces = sorted((home.output / "helios_runs" / "cancelled" / "pieces").glob("0*"))
    assert len(pieces) == NUM_FRAMES // PIECE
    made = [piece.stat().st_mtime_ns for piece in pieces]
    resumed = run(inputs, model=model)
    unbroken = run({**inputs, "run_name": "unbroken"}, model=model)
    assert [piece.stat().st_mtime_ns for piece in pieces] == made
    assert torch.equal(film(resumed).frames, film(unbroken).frames)
    assert "to be made now: 2 frames in 1 pieces" in report(resumed)


def test_when_memory_runs_out_tiles_get_smaller_and_the_report_says_so(run, comfyui, monkeypatch):
    from spandrel import ImageModelDescriptor

    call = ImageModelDescriptor.__call__

    def little_memory(self, image):
        if max(image.shape[2:]) > 256:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, image)

    monkeypatch.setattr(ImageModelDescriptor, "__call__", little_memory)
    big = {
        "class_type": "ImageScale",
        "inputs": {"image": ["one", 0], "width": 400, "height": 64, "upscale_method": "area", "crop": "disabled"},
    }
    result = run(
        {"upscale_model": ["model", 0], "video": ["wide", 0]},
        model=upscaler(UPSCALERS[0]),
        one={"class_type": "ImageFromBatch", "inputs": {"image": ["frames", 0], "batch_index": 0, "length": 1}},
        big=big,
        wide={"class_type": "CreateVideo", "inputs": {"images": ["big", 0], "fps": 24.0}},
    )
    assert film(result).frames.shape == (1, 128, 800, 3)
    assert "continuing with tiles of 256 pixels" in report(result)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"factor": 2}, "become 48 only with a model that makes the frames between"),
        ({"scale": 2.0, "width": 100}, "scale 2.0 and a size of 100x0 are both set"),
        ({"factor": 2, "frame_rate": 60.0}, "the frame rate is set twice"),
        ({"width": 95, "height": 64, "format": "mp4 (h264)"}, "width 95 cannot be written"),
        ({"upscale_model": ["frames", 0]}, "upscale_model is a Tensor; expected a model"),
        ({"interp_model": ["frames", 0], "factor": 2}, "interp_model is a Tensor; expected FILM or RIFE"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_made(run, home, inputs, message, monkeypatch):
    if "frames" in str(inputs):
        import execution

        monkeypatch.setattr(execution, "validate_node_input", lambda *args, **kwargs: True)
    result = run(inputs)
    assert not result.success
    assert message in result.error


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"format": "avi"}, "no format 'avi'"),
        ({"format": "mp4 (hevc)", "crf": 60}, "crf 60 is out of range"),
        ({"run_name": "../x"}, "run name"),
    ],
)
def test_what_the_form_says_is_refused_before_the_graph_runs(run, inputs, message):
    with pytest.raises(GraphRejected, match=message):
        run(inputs)


# Cut and join


@pytest.fixture(scope="module")
def sounding_clip(home, small_clip):
    """The small clip with a click a quarter of a second in."""
    from helios_core.media.audio import waveform_sound

    wave = torch.zeros(2, 22050)
    wave[:, 11025:11125] = 0.9
    frames = read_video(home.input / small_clip).frames.float() / 255
    with VideoWriter(home.input / "click.mp4", width=96, height=64, sound=waveform_sound(wave, 44100)) as writer:
        writer.write(frames)
    return "click.mp4"


def cut_and_join(comfyui, clip, number, run_name, **inputs):
    return comfyui.run_graph(
        {
            "clip": {"class_type": "LoadVideo", "inputs": {"file": clip}},
            "cut": {
                "class_type": "HeliosCutVideo",
                "inputs": {"video": ["clip", 0], "number": number, "length": 5, "overlap": 2, "start": 0},
            },
            "step": {"class_type": "ImageInvert", "inputs": {"image": ["cut", 0]}},
            "finish": {
                "class_type": "HeliosJoinVideo",
                "inputs": {
                    "images": ["step", 0],
                    "piece": ["cut", 1],
                    "video": ["clip", 0],
                    "run_name": run_name,
                    "format": LOSSLESS,
                    "pix_fmt": "auto",
                    "crf": 0,
                    "filename_prefix": "joined",
                    **inputs,
                },
            },
        }
    )


def test_an_image_step_run_piece_by_piece_gives_the_whole_video_with_its_sound(comfyui, home, sounding_clip):
    whole = read_video(home.input / sounding_clip).frames
    for number, missing in ((1, "0, 2"), (0, "2")):
        result = cut_and_join(comfyui, sounding_clip, number, "in pieces")
        assert film(result).num_frames == 5
        assert report(result) == f"piece {number} of 3 is kept; still missing: {missing}"
    result = cut_and_join(comfyui, sounding_clip, 2, "in pieces")
    assert "all 3 pieces are joined: 12 frames" in report(result)
    made = film(result)
    assert made.frame_rate == 24
    assert torch.equal(made.frames, 255 - whole)
    with av.open(result.output("finish").get_stream_source()) as container:
        samples = torch.cat([torch.from_numpy(part.to_ndarray()) for part in container.decode(audio=0)], dim=-1)
    assert abs(int(samples[0].float().abs().argmax()) // 2 - 11075) < 1500


def test_a_piece_that_does_not_exist_is_refused_with_those_that_do(comfyui, sounding_clip):
    result = cut_and_join(comfyui, sounding_clip, 3, "no such piece")
    assert "there is no piece 3: 12 frames in pieces of 5 are pieces 0 to 2" in result.error
