"""Helios Context takes clips from files as streams: the same memory as from all frames, without holding them."""

import pytest
import torch

from helios_core.media.formats import MKV_FFV1
from helios_core.media.writer import VideoWriter


@pytest.fixture(scope="module")
def clips(home, comfyui):
    """Clips in input/, bit-exact: 70 frames at 24 per second, each of them twice at 48, and 40 of an odd size."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(70, 64, 64, 3, generator=generator)
    odd = torch.rand(40, 45, 83, 3, generator=generator)
    for name, rate, content in (("one", 24, frames), ("two", 48, frames.repeat_interleave(2, 0)), ("odd", 24, odd)):
        height, width = content.shape[1:3]
        path = home.input / f"{name}.mkv"
        with VideoWriter(path, width=width, height=height, frame_rate=rate, format=MKV_FFV1) as writer:
            writer.write(content)


@pytest.fixture
def memory(comfyui, models, clips):
    """memory(clip, through components?, **inputs of Helios Context) -> its frames, without noise."""

    def run(clip, components=False, **inputs):
        graph = {
            "clip": {"class_type": "LoadVideo", "inputs": {"file": f"{clip}.mkv"}},
            "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}},
            "again": {
                "class_type": "CreateVideo",
                "inputs": {"images": ["parts", 0], "fps": 48.0 if clip == "two" else 24.0},
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
                    "video": ["again" if components else "clip", 0],
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
    assert torch.equal(memory(clip, resize=resize), memory(clip, components=True, resize=resize))


def test_a_file_is_never_loaded_as_a_whole(memory, monkeypatch):
    from comfy_api.latest import InputImpl

    def refuse(self):
        raise AssertionError("all frames of the file were asked for")

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", refuse)
    assert memory("one").isfinite().all()


@pytest.mark.parametrize("components", [False, True])
def test_a_clip_of_twice_the_rate_taken_at_24_gives_the_memory_of_the_slower_one(memory, components):
    assert torch.equal(memory("two", components, video_frame_rate=24.0), memory("one"))
    assert not torch.equal(memory("two", components), memory("one"))
