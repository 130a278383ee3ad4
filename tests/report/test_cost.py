"""The predicted costs against what a run really takes: tokens, parameters, operations, live bytes."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.report import cost
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS
from tests.chunks import chunks_of
from tests.live_tensors import LivePeak

TOLERANCE = 0.10  # of the measured peak


def make_model(dtype, *, heads=4, layers=2, ffn_dim=688, **options) -> HeliosTransformer:
    config = TransformerConfig(
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        ffn_dim=ffn_dim,
        text_dim=256,
        rope_dim=(24, 20, 20),
        **options,
    )
    return HeliosTransformer(config, dtype=dtype).eval().requires_grad_(False)


def settings_for(*, guided: bool):
    variant = VARIANTS["mid" if guided else "distilled"]
    return replace(variant, steps=(1, 1, 1), zero_init=False, amplify_first_chunk=False)


def run(model, width, height, *, guided, num_chunks=1, history_reuse="off"):
    """Everything that a run allocates is allocated in here."""

    def prompt():
        return torch.randn(1, 512, model.config.text_dim, dtype=model.dtype)

    yield from chunks_of(
        model,
        prompt(),
        text_memory(width=width, height=height),
        num_chunks,
        SeededNoise(0),
        replace(settings_for(guided=guided), history_reuse=history_reuse),
        negative=prompt() if guided else None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("width", "height", "guided", "options"),
    [
        pytest.param(320, 192, False, {}, id="320x192"),
        pytest.param(128, 128, True, {"layers": 6}, id="128x128, guided, 6 layers"),
        pytest.param(192, 128, True, {"heads": 8, "ffn_dim": 1382}, id="192x128, guided, 8 heads"),
        pytest.param(192, 128, False, {"ffn_dim": 256}, id="192x128, narrow feed-forward"),
        pytest.param(192, 128, False, {"is_amplify_history": True}, id="192x128, amplified history"),
    ],
)
def test_predicted_activations_are_within_ten_percent_of_the_live_tensors_at_their_peak(
    dtype, width, height, guided, options
):
    model = make_model(dtype, **options)
    with LivePeak(model.parameters()) as live:
        for _ in run(model, width, height, guided=guided):
            pass
    predicted = cost.activation_bytes(model.config, width, height, dtype, num_prompts=1 + guided)
    assert predicted == pytest.approx(live.peak, rel=TOLERANCE)


def test_the_history_kept_for_later_steps_is_counted_too():
    model = make_model(torch.float32, layers=6)
    with LivePeak(model.parameters()) as live:
        for _ in run(model, 128, 128, guided=True, history_reuse="chunk"):
            pass
    predicted = cost.activation_bytes(model.config, 128, 128, torch.float32, num_prompts=2, reuse_history=True)
    assert predicted == pytest.approx(live.peak, rel=TOLERANCE)


def test_a_later_chunk_takes_no_more_than_the_first_and_leaves_only_its_memory():
    model = make_model(torch.bfloat16)
    peaks, live = [], LivePeak(model.parameters())
    with live:
        for latents, memory in run(model, 192, 128, guided=False, num_chunks=4):
            kept = latents.nbytes + memory.frames.nbytes + memory.anchor.nbytes
            peaks.append(live.peak)
            live.peak = 0
        torch.zeros(1)  # an operation, for `live` to look again
    assert max(peaks[1:]) <= peaks[0] + 2 * kept  # what the one before left, and what the caller still holds
    assert live.now <= kept + 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"is_amplify_history": True, "history_scale_mode": "scalar"}])
def test_weights_are_counted_to_the_byte(dtype, options):
    model = make_model(dtype, **options)
    assert cost.num_parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())
    assert cost.weight_bytes(model.config, dtype) == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_operations_of_a_forward_are_those_that_torch_counts(stage):
    model, width, height = make_model(torch.float32, layers=3), 128, 128
    expected = cost.stage_costs(model.config, width, height, 3)[stage]
    memory = text_memory(width=width, height=height)
    tokens = model.encode_memory(memory.window())
    prompt = model.encode_prompt(torch.zeros(1, 512, model.config.text_dim))
    shrink = 8 * 2 ** (2 - stage)
    latents = torch.zeros(1, 16, 9, height // shrink, width // shrink)
    model(latents, torch.tensor([500.0]), prompt, tokens)  # makes the prompt's keys and values

    def attention(query, key, value):  # spelled out: the counter does not know the CPU's own kernel
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value

    with FlopCounterMode(display=False) as counter:
        model(latents, torch.tensor([500.0]), prompt, tokens, attention=attention)
    counts = counter.get_flop_counts()
    blocks = sum(sum(counts[f"HeliosTransformer.blocks.{index}"].values()) for index in range(3))
    assert tokens.tokens.shape[1] == expected.memory_tokens
    assert expected.flops == blocks


def test_memory_and_latents_on_disk_are_as_large_as_predicted():
    model = make_model(torch.bfloat16)
    memory = text_memory(width=192, height=128)
    rows = torch.zeros(1, 8, model.config.text_dim, dtype=torch.bfloat16)
    ((latents, _),) = chunks_of(model, rows, memory, 1, SeededNoise(0), settings_for(guided=False))
    estimate = cost.estimate_memory(
        model.config, settings_for(guided=False), 192, 128, dtype=torch.bfloat16, weight_bytes=123
    )
    assert estimate.disk_per_chunk == latents.nbytes
    assert estimate.weights == estimate.host == 123
    assert "activations 0.01 GiB" in str(estimate)
