"""Helios Video Combine: formats, sound, previews and images; Helios Context: clips read as streams."""

import json
import logging

import av
import numpy as np
import psutil
import pytest
import torch
from harness.inprocess import GraphRejected

from helios_core.media.formats import FORMATS
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter

RATE = 24
COMBINE = {"frame_rate": float(RATE), "crf": 18, "filename_prefix": "combine"}


@pytest.fixture
def run(comfyui):
    """run(inputs of the node, **other nodes) -> Run; the frames are 12 of ComfyUI's example picture."""

    def run_graph(inputs, **nodes):
        graph = {
            "picture": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
            "small": {
                "class_type": "ImageScale",
                "inputs": {
                    "image": ["picture", 0],
                    "width": 96,
                    "height": 64,
                    "upscale_method": "area",
                    "crop": "disabled",
                },
            },
            "frames": {"class_type": "RepeatImageBatch", "inputs": {"image": ["small", 0], "amount": 12}},
            "combine": {
                "class_type": "HeliosVideoCombine",
                "inputs": {**COMBINE, **({} if "latents" in inputs else {"images": ["frames", 0]}), **inputs},
            },
            **nodes,
        }
        return comfyui.run_graph(graph)

    return run_graph


@pytest.fixture(scope="module")
def sound_clip(home, comfyui):
    """A clip in input/ of 2 seconds with a click half a second in."""
    from helios_core.media.audio import waveform_sound

    wave = torch.zeros(2, 2 * 44100)
    wave[:, 22050:22100] = 0.9
    with VideoWriter(home.input / "click.mp4", width=64, height=64, sound=waveform_sound(wave, 44100)) as writer:
        writer.write(torch.rand(2 * RATE, 64, 64, 3))
    return "click.mp4"


def saved_file(home, run):
    assert run.success, run.error
    return max(home.output.glob("combine*"), key=lambda path: path.stat().st_mtime_ns)


def shown_file(home, run):
    (shown,) = run.history["outputs"]["combine"]["images"]
    return home.root / shown["type"] / shown["subfolder"] / shown["filename"]


def loudest_second(path):
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=8000)
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    parts += resampler.resample(None)
    samples = np.concatenate([part.to_ndarray()[0] for part in parts])
    return np.abs(samples).argmax() / 8000, len(samples) / 8000


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_with_its_graph_and_shown_in_the_node(run, home, name):
    result = run({"format": name})
    path = saved_file(home, result)
    assert path.suffix == FORMATS[name].suffix
    assert read_video(path).num_frames == 12
    with av.open(str(path)) as container:
        metadata = {key.lower(): value for key, value in container.metadata.items()}
    assert json.loads(metadata["prompt"])["combine"]["inputs"]["format"] == name
    shown = shown_file(home, result)
    assert shown.suffix in (".mp4", ".webm")
    assert read_video(shown).num_frames == 12
    assert (shown == path) == (name in ("mp4 (h264)", "webm (vp9)", "webm (av1)"))


def test_the_node_shows_ten_bit_h264_by_a_small_copy(run, home):
    result = run({"pix_fmt": "yuv420p10le"})
    assert shown_file(home, result) != saved_file(home, result)
    with av.open(str(shown_file(home, result))) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_the_defaults_write_what_the_node_always_wrote(run, home):
    path = saved_file(home, run({}))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (path.suffix, context.name, context.pix_fmt) == (".mp4", "h264", "yuv420p")
        assert not container.streams.audio


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"format": "avi"}, r"no format 'avi'; allowed: mp4 \(h264\)"),
        ({"format": "mov (ProRes 422 HQ)", "pix_fmt": "yuv420p"}, "no pix_fmt 'yuv420p'; allowed: auto, yuv422p10le"),
        ({"crf": 60}, r"crf 60 is out of range; allowed: 0 \(best\) to 51"),
    ],
)
def test_what_cannot_be_encoded_is_refused_before_anything_runs(run, inputs, message):
    with pytest.raises(GraphRejected, match=message):
        run(inputs)


def test_the_sound_of_a_source_video_is_taken_and_cut_to_the_length(run, home, sound_clip):
    clip = {"class_type": "LoadVideo", "inputs": {"file": sound_clip}}
    start = {"audio_start": 0.25, "source_video": ["clip", 0]}
    loudest, length = loudest_second(saved_file(home, run(start, clip=clip)))
    assert loudest == pytest.approx(0.25, abs=1 / RATE)
    assert length == pytest.approx(12 / RATE, abs=1 / RATE)


def test_the_sound_of_an_audio_wire_is_followed_by_silence(run, home, sound_clip):
    nodes = {
        "clip": {"class_type": "LoadVideo", "inputs": {"file": sound_clip}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}},
    }
    path = saved_file(home, run({"audio": ["parts", 1], "audio_start": 0.4, "format": "mkv (ffv1)"}, **nodes))
    loudest, length = loudest_second(path)
    assert loudest == pytest.approx(0.1, abs=1 / RATE)
    assert length == pytest.approx(12 / RATE, abs=1 / RATE)


def test_two_sounds_at_once_are_refused(run, sound_clip):
    nodes = {
        "clip": {"class_type": "LoadVideo", "inputs": {"file": sound_clip}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}},
    }
    result = run({"audio": ["parts", 1], "source_video": ["clip", 0]}, **nodes)
    assert "audio and source_video are both connected" in result.error


LATENTS = {
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
    "latents": {"class_type": "VAEEncode", "inputs": {"pixels": ["chunk", 0], "vae": ["vae", 0]}},
    "chunk": {"class_type": "RepeatImageBatch", "inputs": {"image": ["small", 0], "amount": 33}},
}
FROM_LATENTS = {"latents": ["latents", 0], "vae": ["vae", 0]}


def test_images_are_given_only_when_asked_and_the_log_says_what_they_take(run, models, caplog):
    show = {"class_type": "PreviewImage", "inputs": {"images": ["combine", 1]}}
    with caplog.at_level(logging.INFO):
        result = run({**FROM_LATENTS, "return_images": True}, show=show, **LATENTS)
    assert result.success, result.error
    assert result.output("combine", 1).shape == (33, 64, 96, 3)
    assert "33 frames of 96x64 as images take 0.00 GB" in caplog.text


def test_without_return_images_a_node_that_wants_them_says_what_to_turn_on(run):
    result = run({}, show={"class_type": "PreviewImage", "inputs": {"images": ["combine", 1]}})
    assert "turn on return_images" in str(result.events)


def test_images_that_do_not_fit_into_ram_are_refused_before_decoding(run, models, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=1000))
    result = run({**FROM_LATENTS, "return_images": True}, **LATENTS)
    assert "33 frames of 96x64 as images take 0.00 GB of RAM" in result.error


def test_a_text_with_a_single_brace_does_not_end_the_graph_in_a_webm(run, home):
    path = saved_file(home, run({"format": "webm (vp9)", "filename_prefix": "combine }{{x"}))
    text = path.read_bytes()[: 2 * 1024 * 1024].decode("latin-1")  # as much as the frontend reads
    begin = end = text.index("{", text.index("PROMPT"))
    depth = 0
    while not (depth == 0 and end > begin):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    assert json.loads(text[begin:end])["combine"]["inputs"]["filename_prefix"] == "combine }{{x"


def make_wire(kind: str, value):
    """A node that puts `value` on a wire of that kind."""
    from comfy_api.latest import io

    from nodes import NODE_CLASS_MAPPINGS

    class Maker:
        RETURN_TYPES, FUNCTION, CATEGORY = (kind,), "make", "tests"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        @classmethod
        def IS_CHANGED(cls):
            return float("nan")

        def make(self):
            return (value,)

    assert io  # the host is loaded
    NODE_CLASS_MAPPINGS["TestWire"] = Maker
    return {"class_type": "TestWire", "inputs": {}}


@pytest.mark.parametrize("shape", [(1, 3, 9000), (1, 6, 9000), (2, 2, 9000), (2, 9000), (9000,), (1, 1, 0)])
def test_sound_of_any_number_of_channels_and_clips_is_mixed_down(run, home, shape):
    wave = {"waveform": torch.rand(shape) - 0.5, "sample_rate": 8000}
    path = saved_file(home, run({"audio": ["wave", 0]}, wave=make_wire("AUDIO", wave)))
    _, length = loudest_second(path)
    assert length == pytest.approx(12 / RATE, abs=2 / RATE)


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((5, 64, 96, 1), (96, 64)), ((5, 64, 96, 2), (96, 64)), ((5, 64, 96, 4), (96, 64)), ((5, 64, 96), (96, 64)),
     ((64, 96, 3), (96, 64)), ((5, 63, 95, 3), (96, 64)), ((5, 1, 1, 3), (2, 2))],
)  # fmt: skip
@pytest.mark.parametrize("format", ["mp4 (h264)", "mkv (ffv1)"])
def test_pictures_with_other_channels_and_sizes_become_a_film(run, home, caplog, shape, stored, format):
    result = run({"images": ["wire", 0], "format": format}, wire=make_wire("IMAGE", torch.rand(shape)))
    clip = read_video(saved_file(home, result))
    assert clip.num_frames == (1 if shape == (64, 96, 3) else 5)
    height, width = clip.frames.shape[1:3]
    odd = (shape[1] % 2 if len(shape) == 4 else 0) and format == "mp4 (h264)"
    assert (width, height) == stored or not odd
    assert ("last pixels repeated" in caplog.text) == bool(odd)


def test_the_graph_in_the_file_is_json_that_a_page_reads(run, home):
    path = saved_file(home, run({"images": ["wire", 0]}, wire=make_wire("IMAGE", torch.rand(2, 32, 32, 3))))
    with av.open(str(path)) as container:
        graph = container.metadata["prompt"]

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads(graph, parse_constant=refuse)


def test_the_sound_of_a_video_in_memory_is_whole_beside_its_preview(run, home, sound_clip):
    from io import BytesIO

    from comfy_api.latest import InputImpl

    video = InputImpl.VideoFromFile(BytesIO((home.input / sound_clip).read_bytes()))
    inputs = {"source_video": ["clip", 0], "format": "mov (ProRes 422 HQ)"}
    result = run(inputs, clip=make_wire("VIDEO", video))
    loudest, length = loudest_second(saved_file(home, result))
    assert loudest == pytest.approx(0.499, abs=1 / RATE)
    assert length == pytest.approx(12 / RATE, abs=1 / RATE)
