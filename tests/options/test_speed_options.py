"""Training through the transformer that overwrites its sums, and the options that trade exactness for speed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helios_core.model import attention as attention_module
from helios_core.model.rope import Rotary, rotate
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.conditioning import image_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS, SamplingSettings
from tests import reference
from tests.chunks import chunks_of
from tests.model.test_transformer import inputs, memory_of, ours, relative_error, run_oracle


@pytest.fixture
def oracle():
    return reference.transformer(is_amplify_history=True)


def velocity(model: HeliosTransformer, arguments: dict) -> torch.Tensor:
    prompt = model.encode_prompt(arguments["encoder_hidden_states"])
    memory = model.encode_memory(memory_of(arguments).window())
    return model(arguments["hidden_states"], arguments["timestep"], prompt, memory)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_gradients_of_every_weight_are_the_references(oracle, batch_size):
    model, arguments = ours(oracle), inputs(oracle, batch_size, (6, 6), (6, 6))
    velocity(model, arguments).square().mean().backward()
    oracle(**arguments, return_dict=False)[0].square().mean().backward()
    expected = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 1e-3, name


def test_what_is_overwritten_without_autograd_changes_no_value_and_no_input(oracle):
    model, arguments = ours(oracle), inputs(oracle, 2, (6, 6), (6, 6))
    with_autograd = velocity(model, arguments)
    assert with_autograd.requires_grad
    with torch.no_grad():
        prompt = model.encode_prompt(arguments["encoder_hidden_states"])
        memory = model.encode_memory(memory_of(arguments).window())
        before = memory.tokens.clone()
        results = [model(arguments["hidden_states"], arguments["timestep"], prompt, memory) for _ in range(2)]
    assert torch.equal(memory.tokens, before)
    assert torch.equal(results[0], results[1])
    assert relative_error(results[0], with_autograd) < 1e-5


def test_queries_and_keys_made_a_few_rows_at_a_time_are_the_references(oracle, monkeypatch):
    monkeypatch.setattr(attention_module, "CPU_ROWS", 16)  # 76 tokens: the last piece is a part of one
    arguments = inputs(oracle, 2, (4, 4), (8, 8))
    with torch.no_grad():
        actual = velocity(ours(oracle), arguments)
    assert relative_error(actual, run_oracle(oracle, arguments)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_that_of_complex_numbers_spelled_out(dtype):
    x = torch.randn(2, 5, 3, 8, generator=reference.generator(0)).to(dtype)
    angle = torch.randn(5, 4, generator=reference.generator(1))
    real, imaginary = x.double()[..., ::2], x.double()[..., 1::2]
    cos, sin = angle.double().cos()[:, None], angle.double().sin()[:, None]
    expected = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)
    with torch.no_grad():
        turned = rotate(x.clone(), Rotary(angle.cos(), angle.sin()))
    torch.testing.assert_close(turned.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


STEPS = replace(VARIANTS["distilled"], steps=(2, 2, 2), amplify_first_chunk=False)
GUIDED = replace(VARIANTS["mid"], steps=(2, 2, 2), zero_init=False)
NUM_HISTORY = 2 * 4 * 4 + 1 * 2 * 2 + 4 * 1 * 1  # short, mid and long memory of 64 x 64 pixels


def sampled(model: HeliosTransformer, settings: SamplingSettings, attention=F.scaled_dot_product_attention):
    """Latents of two chunks that follow a picture."""
    source = reference.generator(3)
    picture, tail = (torch.randn(1, 16, 1, 8, 8, generator=source) for _ in range(2))
    rows = [torch.randn(1, 11, 16, generator=source) for _ in range(2)]
    chunks = chunks_of(
        model,
        rows[0],
        image_memory(picture, tail, SeededNoise(0)),
        2,
        SeededNoise(1),
        settings,
        negative=rows[1],
        hooks=Hooks(attention=attention),
    )
    return torch.cat([latents for latents, _ in chunks], dim=2)


class SubstituteHistory:
    """An attention for the exact model that puts the history's keys and values of an earlier forward in the place of
    those of later ones: in groups of `num_forwards` forwards, of which the first `num_prompts` are kept."""

    def __init__(self, num_layers: int, num_forwards: int, num_prompts: int) -> None:
        self.num_layers, self.num_forwards, self.num_prompts = num_layers, num_forwards, num_prompts
        self.calls = 0
        self.kept = {}

    def __call__(self, query, key, value):
        if key.shape[2] == 11:  # the prompt
            return F.scaled_dot_product_attention(query, key, value)
        forward, layer = divmod(self.calls, self.num_layers)
        self.calls += 1
        place = (forward % self.num_prompts, layer)
        if forward % self.num_forwards < self.num_prompts:
            self.kept[place] = key[:, :, :NUM_HISTORY].clone(), value[:, :, :NUM_HISTORY].clone()
        past_key, past_value = self.kept[place]
        key = torch.cat((past_key, key[:, :, NUM_HISTORY:]), dim=2)
        value = torch.cat((past_value, value[:, :, NUM_HISTORY:]), dim=2)
        return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(("mode", "steps_between"), [("stage", 2), ("chunk", 6)])
@pytest.mark.parametrize(("settings", "num_prompts"), [(STEPS, 1), (GUIDED, 2)], ids=["distilled", "guided"])
def test_reused_history_is_the_exact_model_with_the_keys_and_values_of_an_earlier_step(
    oracle, mode, steps_between, settings, num_prompts
):
    model = ours(oracle)
    substitute = SubstituteHistory(len(model.blocks), steps_between * num_prompts, num_prompts)
    expected = sampled(model, settings, substitute)
    actual = sampled(model, replace(settings, history_reuse=mode))
    assert relative_error(actual, expected) < 0.2 * relative_error(actual, sampled(model, settings))


@pytest.mark.parametrize("mode", ["stage", "chunk"])
def test_with_reused_history_only_the_first_forward_asks_for_the_history_rows(oracle, mode):
    rows = []

    def attention(query, key, value):
        if key.shape[2] != 11:
            rows.append((query.shape[2], key.shape[2]))
        return F.scaled_dot_product_attention(query, key, value)

    model = ours(oracle)
    sampled(model, replace(STEPS, history_reuse=mode), attention)
    first_block = rows[: 6 * len(model.blocks) : len(model.blocks)]
    noisy = [9, 9, 36, 36, 144, 144]
    assert [keys for _, keys in first_block] == [count + NUM_HISTORY for count in noisy]
    firsts = (0, 2, 4) if mode == "stage" else (0,)
    assert [query for query, _ in first_block] == [
        count + NUM_HISTORY * (step in firsts) for step, count in enumerate(noisy)
    ]


def test_one_step_a_stage_leaves_nothing_to_reuse_within_a_stage(oracle):
    model, settings = ours(oracle), replace(STEPS, steps=(1, 1, 1))
    assert torch.equal(sampled(model, replace(settings, history_reuse="stage")), sampled(model, settings))


def test_another_name_for_history_reuse_is_refused():
    with pytest.raises(ValueError, match=r"'always'.*off, stage, chunk"):
        replace(STEPS, history_reuse="always")
