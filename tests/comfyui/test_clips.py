"""Helios Context takes clips from files as streams: the same memory as from all frames, without holding them."""

import pytest
import torch
from harness.probe import give_pictures

from helios_core.media.formats import MKV_FFV1
from helios_core.media.writer import VideoWriter


@pytest.fixture(scope="module")
def clips(home, comfyui):
    """Clips in input/, bit-exact, and their frames: 70 at 24 per second, each twice at 48, and 40 of an odd size."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (70, 64, 64, 3), generator=generator) / 255
    odd = torch.randint(256, (40, 45, 83, 3), generator=generator) / 255
    clips = {"one": (24, frames), "two": (48, frames.repeat_interleave(2, 0)), "odd": (24, odd)}
    for name, (rate, content) in clips.items():
        height, width = content.shape[1:3]
        path = home.input / f"{name}.mkv"
        with VideoWriter(path, width=width, height=height, frame_rate=rate, format=MKV_FFV1) as writer:
            writer.write(content)
    return {name: content for name, (_, content) in clips.items()}


@pytest.fixture
def memory(comfyui, models, clips):
    """memory(clip, way, **inputs of Helios Context) -> its frames, without noise.

    The clip comes as a file, as all of its frames, or as what GetVideoComponents makes of the file.
    """

    def run(clip, way="file", **inputs):
        graph = {
            "clip": {"class_type": "LoadVideo", "inputs": {"file": f"{clip}.mkv"}},
            "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}},
            "frames": give_pictures(clips[clip]),
            "again": {
                "class_type": "CreateVideo",
                "inputs": {
                    "images": ["parts" if way == "components" else "frames", 0],
                    "fps": 48.0 if clip == "two" else 24.0,
                },
            },
            "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
            "context": {
                "class_type": "HeliosContext",
                "inputs": {
                    "width": 64,
                    "height": 64,
                    "resize": "crop",
                    "noise_seed": 0,
                    "add_noise": False,
                    "reanchor": False,
                    "vae": ["vae", 0],
                    "video": ["clip" if way == "file" else "again", 0],
                    **inputs,
                },
            },
            "save": {
                "class_type": "HeliosSaveMemory",
                "inputs": {"memory": ["context", 0], "filename_prefix": "memories/clip"},
            },
        }
        result = comfyui.run_graph(graph)
        assert result.success, result.error
        made = result.output("context")
        return torch.cat((made.anchor, made.frames), dim=2)

    return run


@pytest.mark.parametrize("clip", ["one", "odd"])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_streamed_clip_gives_the_memory_that_all_its_frames_give(memory, clip, resize):
    assert torch.equal(memory(clip, resize=resize), memory(clip, "frames", resize=resize))


@pytest.mark.parametrize("clip", ["one", "odd"])
def test_a_streamed_clip_gives_the_memory_that_get_video_components_gives_as_far_as_that_is_exact(
    memory, clips, clip, home
):
    from comfy_api.latest import InputImpl

    # Since 0.11 ComfyUI has FFmpeg convert to 32-bit floats, which are up to 1.2 of 255 too dark; before, to 8 bits.
    converted = InputImpl.VideoFromFile(str(home.input / f"{clip}.mkv")).get_components().images
    error = (converted - clips[clip]).abs().max()
    assert error < 1.25 / 255
    assert (memory(clip) - memory(clip, "components")).abs().mean() <= 2 * error


def test_a_file_is_never_loaded_as_a_whole(memory, monkeypatch):
    from comfy_api.latest import InputImpl

    def refuse(self):
        raise AssertionError("all frames of the file were asked for")

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", refuse)
    assert memory("one").isfinite().all()


@pytest.mark.parametrize("way", ["file", "frames"])
def test_a_clip_of_twice_the_rate_taken_at_24_gives_the_memory_of_the_slower_one(memory, way):
    assert torch.equal(memory("two", way, video_frame_rate=24.0), memory("one"))
    assert not torch.equal(memory("two", way), memory("one"))
