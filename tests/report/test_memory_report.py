"""The memory inspector: pictures and numbers of a memory."""

import json
from dataclasses import replace

import pytest
import torch

from helios_core.demo import DEMO_CONFIG, DemoModel
from helios_core.memory.config import MemoryConfig
from helios_core.model.config import TransformerConfig
from helios_core.report.cost import memory_tokens
from helios_core.report.drawings import draw_strips
from helios_core.report.memory_report import describe_memory, memory_frames, memory_strips, token_counts
from helios_core.sampling.conditioning import image_memory, text_memory
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS


def numbered(memory, num_chunks: int):
    """A memory after chunks whose latent frames have the values 1, 2, 3, ..."""
    for chunk in range(num_chunks):
        values = torch.arange(1, 10) + 9 * chunk
        memory = memory.append(values.float()[None, None, :, None, None].expand(1, 16, 9, 8, 8))
    return memory


class CountingVae:
    """Frames that show the latent's value; a chunk gives 33 of which every fourth belongs to a latent frame."""

    def __init__(self):
        self.asked = []

    def __call__(self, latents):
        self.asked.append(latents.shape[2])
        values = latents[0, 0, :, 0, 0]
        frames = values if len(values) == 1 else torch.cat((values[:1], values[1:].repeat_interleave(4)))
        return frames[:, None, None, None].expand(-1, 4, 4, 3)


def shown(frames):
    return [None if frame is None else int(frame[0, 0, 0]) for frame in frames]


def test_each_latent_frame_is_shown_once_from_the_oldest_to_the_latest():
    vae = CountingVae()
    assert shown(memory_frames(numbered(text_memory(width=64, height=64), 3), vae)) == list(range(9, 28))
    assert vae.asked == [9, 9, 1]


def test_where_there_is_no_past_yet_nothing_is_decoded():
    vae = CountingVae()
    assert shown(memory_frames(text_memory(width=64, height=64), vae)) == [None] * 19
    assert vae.asked == []
    assert shown(memory_frames(numbered(text_memory(width=64, height=64), 1), vae)) == [None] * 10 + list(range(1, 10))


def test_a_frame_without_its_chunk_is_decoded_alone():
    latents = torch.ones(1, 16, 1, 8, 8)
    memory = image_memory(latents, 2 * latents, SeededNoise(0), add_noise=False)
    vae = CountingVae()
    assert shown(memory_frames(memory, vae)) == [None] * 18 + [2]
    assert vae.asked == [1]


def test_strips_hold_anchor_long_mid_and_short_memory():
    strips = memory_strips(numbered(text_memory(width=64, height=64), 3), TransformerConfig(), CountingVae())
    assert [(strip.title, shown(strip.frames)) for strip in strips] == [
        ("Anchor", [1]),
        ("Long memory", list(range(9, 25))),
        ("Mid memory", [25, 26]),
        ("Short memory", [27]),
    ]
    without = text_memory(width=64, height=64, config=MemoryConfig(keep_first_frame=False))
    assert memory_strips(without, TransformerConfig(), CountingVae())[0].title == "Long memory"


@pytest.mark.parametrize("size", [(64, 64), (192, 128), (80, 48)])
@pytest.mark.parametrize("keep_first_frame", [True, False])
def test_token_counts_are_those_of_the_transformer(size, keep_first_frame):
    config = MemoryConfig(keep_first_frame=keep_first_frame)
    memory = text_memory(width=size[0], height=size[1], config=config)
    counts = token_counts(memory, DEMO_CONFIG)
    model = DemoModel().load_transformer()
    assert sum(counts.values()) == model.encode_memory(memory.window()).tokens.shape[1]
    assert sum(counts.values()) == memory_tokens(DEMO_CONFIG, *size, config)


def test_the_description_is_json_and_counts_what_the_next_chunk_runs_over():
    memory = numbered(text_memory(width=640, height=384), 0)
    described = describe_memory(
        memory, TransformerConfig(), VARIANTS["distilled"], dtype=torch.bfloat16, weight_bytes=28 * 2**30
    )
    values = json.loads(json.dumps(described))
    # Spec section 1.1, at 640 x 384.
    assert values["memory_tokens"] == {"anchor": 960, "long": 240, "mid": 240, "short": 960, "all": 2400}
    assert [stage["noisy_tokens"] for stage in values["stages_of_next_chunk"]] == [540, 2160, 8640]
    assert [stage["steps"] for stage in values["stages_of_next_chunk"]] == [4, 4, 4]
    assert values["bytes"]["this_memory"] == 16 * 19 * 48 * 80 * 4
    assert values["bytes"]["weights"] == 28 * 2**30


def test_a_memory_is_drawn_with_empty_places_marked():
    memory = numbered(text_memory(width=64, height=64), 1)
    strips = memory_strips(memory, TransformerConfig(), lambda latents: torch.rand(latents.shape[2], 8, 8, 3))
    picture = draw_strips("Memory", strips, frame_size=(64, 64))
    assert picture.width == 1240
    filled = draw_strips("Memory", [replace(strips[0], frames=[torch.ones(8, 8, 3)])], frame_size=(64, 64))
    assert filled.getpixel((60, 120)) == (255, 255, 255)
